//! Contracts: the three kinds of method, their tokens, and how a module's code is reached behind them.
//!
//! The macro `#[contract]` writes a token for each method and a `serve` function; everything it writes calls
//! what stands here, and could be written by hand (see `store/modules/cart/contract`).

use std::any::Any;
use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::context::Context;
use crate::effect::{Found, ProviderModel};
use crate::json::JsonCodec;
use crate::outcome::{
    Answer, CallError, Failed, Fault, FaultKind, NotRun, NotRunReason, Outcome, Refusal, RefusalCase,
    RefusalRecord, Unknown,
};
use crate::secret::SECRET_MARK;
use crate::tx::{Snapshot, Tx};

pub type AnyBox = Box<dyn Any + Send + Sync>;
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A type that contracts may carry. Implemented by itself for everything that has the three derives.
#[diagnostic::on_unimplemented(
    message = "a contract cannot carry `{Self}`",
    label = "is stored and sent",
    note = "write `#[derive(Serialize, Deserialize, JsonSchema)]` above it"
)]
pub trait Wire: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static {}
#[diagnostic::do_not_recommend]
impl<T: Serialize + DeserializeOwned + JsonSchema + Send + Sync + 'static> Wire for T {}

/// The kind of a method, which decides what may be done when a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Reads the module's own data. May be repeated freely.
    Query,
    /// Writes the module's own data in one transaction, exactly once per key.
    Command,
    /// Reaches the outside world, with the same key on every attempt.
    Effect,
}

macro_rules! token {
    ($(#[$doc:meta])* $name:ident, $kind:expr $(, $(#[$more_doc:meta])* $more:ident: $type:ty = $default:expr)?) => {
        $(#[$doc])*
        pub struct $name<Req, T, E> {
            pub contract: &'static str,
            pub method: &'static str,
            /// Position in the contract.
            pub index: usize,
            $($(#[$more_doc])* pub $more: $type,)?
            types: PhantomData<fn(Req) -> (T, E)>,
        }

        impl<Req, T, E> $name<Req, T, E> {
            pub const KIND: Kind = $kind;
            /// For the macro, and for contracts written by hand.
            pub const fn new(contract: &'static str, method: &'static str, index: usize) -> Self {
                Self { contract, method, index, $($more: $default,)? types: PhantomData }
            }
        }

        impl<Req, T, E> Clone for $name<Req, T, E> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<Req, T, E> Copy for $name<Req, T, E> {}
    };
}
token! {
    /// The token of a query: `Products.product`.
    Query, Kind::Query
}
token! {
    /// The token of a command: `Products.hold`.
    Command, Kind::Command
}
token! {
    /// The token of an effect: `Payments.charge`.
    Effect, Kind::Effect,
    /// What it relies on outside.
    provider: ProviderModel = ProviderModel::DEFAULT
}

/// How the types of one method are written and read; function pointers only.
#[derive(Clone, Copy)]
pub struct Codec {
    pub encode_request: fn(&dyn Any) -> Result<Vec<u8>, Fault>,
    pub decode_request: fn(&[u8]) -> Result<AnyBox, Fault>,
    pub encode_answer: fn(&dyn Any) -> Result<Vec<u8>, Fault>,
    pub decode_answer: fn(&[u8]) -> Result<AnyBox, Fault>,
    pub record_refusal: fn(&dyn Any) -> Result<RefusalRecord, Fault>,
    /// The same in JSON, for who is not written in Rust.
    pub json: JsonCodec,
}

impl Codec {
    pub const fn of<Req: Wire, T: Wire, E: Refusal>() -> Self {
        Self {
            encode_request: encode_any::<Req>,
            decode_request: decode_any::<Req>,
            encode_answer: encode_any::<T>,
            decode_answer: decode_any::<T>,
            record_refusal: |refusal| downcast::<E>(refusal)?.record(),
            json: JsonCodec::of::<Req, T, E>(),
        }
    }

    /// What goes into the inbox or onto the wire.
    pub fn outcome(&self, ran: &Ran) -> Result<Outcome, Fault> {
        match ran {
            Ran::Done(answer) => (self.encode_answer)(answer.as_ref()).map(Outcome::Done),
            Ran::Refused(refusal) => (self.record_refusal)(refusal.as_ref()).map(Outcome::Refused),
        }
    }
}

pub(crate) fn downcast<T: 'static>(value: &dyn Any) -> Result<&T, Fault> {
    value.downcast_ref::<T>().ok_or_else(|| {
        Fault::new(FaultKind::Encoding, format!("a slot does not hold {}", std::any::type_name::<T>()))
    })
}

pub(crate) fn encode_any<T: Wire>(value: &dyn Any) -> Result<Vec<u8>, Fault> {
    crate::encode(downcast::<T>(value)?)
}

pub(crate) fn decode_any<T: Wire>(bytes: &[u8]) -> Result<AnyBox, Fault> {
    Ok(Box::new(crate::decode::<T>(bytes)?))
}

/// What a module's command did, with its types erased: the answer `T` or the refusal `E`.
pub enum Ran {
    Done(AnyBox),
    Refused(AnyBox),
}

/// What an effect did, with its types erased.
pub enum EffectRan {
    Done(AnyBox),
    Refused(AnyBox),
    NotRun(NotRun),
    Unknown(Unknown),
}

/// Where a query in the same process finds its request and leaves its answer: no box, no encoding.
pub struct QuerySlot<Req, T, E> {
    pub request: Option<Req>,
    pub answer: Option<Answer<T, E>>,
}

/// A query behind its token.
pub trait QueryFn: Send + Sync {
    /// `slot` is the method's [`QuerySlot`].
    fn run(&self, db: &Snapshot<'_>, slot: &mut dyn Any) -> Result<(), Fault>;
    /// Writes the answer behind what is in `out` already, or says how it was refused.
    fn run_encoded(
        &self,
        db: &Snapshot<'_>,
        request: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<RefusalRecord>, Fault>;
}

/// A command behind its token.
pub trait CommandFn: Send + Sync {
    /// `request` is the method's request; it is cloned, since a command may run more than once.
    fn run(&self, tx: &mut Tx<'_>, request: &dyn Any) -> Result<Ran, Fault>;
}

/// An effect behind its token.
pub trait EffectFn: Send + Sync {
    fn run(&self, context: Context, request: AnyBox) -> BoxFuture<'static, EffectRan>;
    /// What this effect did, out of the answer of its look-up; `None` if it certainly did not run.
    fn found(&self, found: AnyBox) -> Result<Option<Ran>, Fault>;
}

/// A module's code for one method.
pub enum Handler {
    /// `heavy` queries run on a pool of their own instead of on the caller's thread.
    Query {
        run: Box<dyn QueryFn>,
        heavy: bool,
    },
    Command {
        run: Box<dyn CommandFn>,
    },
    Effect {
        run: std::sync::Arc<dyn EffectFn>,
        provider: ProviderModel,
    },
}

/// One served method.
pub struct ServedMethod {
    pub name: &'static str,
    pub codec: Codec,
    pub handler: Handler,
}

impl ServedMethod {
    pub fn kind(&self) -> Kind {
        match self.handler {
            Handler::Query { .. } => Kind::Query,
            Handler::Command { .. } => Kind::Command,
            Handler::Effect { .. } => Kind::Effect,
        }
    }
}

/// A contract with a module's code behind it: what `Products.serve(module)` returns.
pub struct Served {
    pub contract: ContractModel,
    pub methods: Vec<ServedMethod>,
}

impl Served {
    pub fn new(contract: ContractModel) -> Self {
        Self { contract, methods: Vec::new() }
    }

    pub fn query<Req: Wire, T: Wire, E: Refusal>(
        mut self,
        token: Query<Req, T, E>,
        heavy: bool,
        code: impl Fn(&Snapshot<'_>, Req) -> Answer<T, E> + Send + Sync + 'static,
    ) -> Self {
        let run = Box::new(TypedQuery { code, types: PhantomData });
        self.push(token.index, token.method, Codec::of::<Req, T, E>(), Handler::Query { run, heavy });
        self
    }

    pub fn command<Req: Wire + Clone, T: Wire, E: Refusal>(
        mut self,
        token: Command<Req, T, E>,
        code: impl Fn(&mut Tx<'_>, Req) -> Answer<T, E> + Send + Sync + 'static,
    ) -> Self {
        let run = Box::new(TypedCommand { code, types: PhantomData });
        self.push(token.index, token.method, Codec::of::<Req, T, E>(), Handler::Command { run });
        self
    }

    pub fn effect<Req: Wire, T: Wire, E: Refusal, F>(
        mut self,
        token: Effect<Req, T, E>,
        code: impl Fn(Context, Req) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Result<T, CallError<E>>> + Send + 'static,
    {
        let run = std::sync::Arc::new(TypedEffect { code, types: PhantomData });
        let handler = Handler::Effect { run, provider: token.provider };
        self.push(token.index, token.method, Codec::of::<Req, T, E>(), handler);
        self
    }

    fn push(&mut self, index: usize, name: &'static str, codec: Codec, handler: Handler) {
        assert_eq!(index, self.methods.len(), "methods of {} are served in their order", self.contract.name);
        self.methods.push(ServedMethod { name, codec, handler });
    }
}

struct TypedQuery<F, Types> {
    code: F,
    types: PhantomData<fn() -> Types>,
}

impl<Req: Wire, T: Wire, E: Refusal, F> QueryFn for TypedQuery<F, (Req, T, E)>
where
    F: Fn(&Snapshot<'_>, Req) -> Answer<T, E> + Send + Sync,
{
    fn run(&self, db: &Snapshot<'_>, slot: &mut dyn Any) -> Result<(), Fault> {
        let slot = slot
            .downcast_mut::<QuerySlot<Req, T, E>>()
            .ok_or_else(|| Fault::new(FaultKind::Encoding, "a query's slot has other types"))?;
        if let Some(request) = slot.request.take() {
            slot.answer = Some((self.code)(db, request));
        }
        Ok(())
    }

    fn run_encoded(
        &self,
        db: &Snapshot<'_>,
        request: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<RefusalRecord>, Fault> {
        match (self.code)(db, crate::decode(request)?) {
            Ok(answer) => crate::encode_onto(&answer, out).map(|()| None),
            Err(Failed::Refused(refusal)) => refusal.record().map(Some),
            Err(Failed::Fault(fault)) => Err(fault),
        }
    }
}

struct TypedCommand<F, Types> {
    code: F,
    types: PhantomData<fn() -> Types>,
}

impl<Req: Wire + Clone, T: Wire, E: Refusal, F> CommandFn for TypedCommand<F, (Req, T, E)>
where
    F: Fn(&mut Tx<'_>, Req) -> Answer<T, E> + Send + Sync,
{
    fn run(&self, tx: &mut Tx<'_>, request: &dyn Any) -> Result<Ran, Fault> {
        match (self.code)(tx, downcast::<Req>(request)?.clone()) {
            Ok(answer) => Ok(Ran::Done(Box::new(answer))),
            Err(Failed::Refused(refusal)) => Ok(Ran::Refused(Box::new(refusal))),
            Err(Failed::Fault(fault)) => Err(fault),
        }
    }
}

struct TypedEffect<F, Types> {
    code: F,
    types: PhantomData<fn() -> Types>,
}

impl<Req: Wire, T: Wire, E: Refusal, F, Fut> EffectFn for TypedEffect<F, (Req, T, E)>
where
    F: Fn(Context, Req) -> Fut + Send + Sync,
    Fut: Future<Output = Result<T, CallError<E>>> + Send + 'static,
{
    fn run(&self, context: Context, request: AnyBox) -> BoxFuture<'static, EffectRan> {
        let request = match request.downcast::<Req>() {
            Ok(request) => *request,
            Err(_) => {
                let not_run = NotRun::new(NotRunReason::Incompatible, "an effect's request has other types");
                return Box::pin(std::future::ready(EffectRan::NotRun(not_run)));
            }
        };
        let work = (self.code)(context.clone(), request);
        Box::pin(async move {
            match context.scope(work).await {
                Ok(answer) => EffectRan::Done(Box::new(answer)),
                Err(CallError::Refused(refusal)) => EffectRan::Refused(Box::new(refusal)),
                Err(CallError::NotRun(not_run)) => EffectRan::NotRun(not_run),
                Err(CallError::Unknown(unknown)) => EffectRan::Unknown(unknown),
                // An effect speaks for its own contract; a case that it cannot name is no certain answer.
                Err(CallError::RefusedOther(record)) => {
                    EffectRan::Unknown(Unknown::new(crate::UnknownReason::Unreadable, record.text))
                }
            }
        })
    }

    fn found(&self, found: AnyBox) -> Result<Option<Ran>, Fault> {
        match found.downcast::<Found<T, E>>() {
            Ok(found) => Ok(match *found {
                Found::Done(answer) => Some(Ran::Done(Box::new(answer))),
                Found::Refused(refusal) => Some(Ran::Refused(Box::new(refusal))),
                Found::Nothing => None,
            }),
            Err(_) => Err(Fault::new(FaultKind::Encoding, "a look-up's answer has other types")),
        }
    }
}

/// A contract as data: for the topology check, the handshake, documents and diagrams.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ContractModel {
    pub name: &'static str,
    pub version: u32,
    pub methods: Vec<MethodModel>,
}

/// One method of a contract as data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MethodModel {
    pub name: &'static str,
    pub kind: Kind,
    pub request: serde_json::Value,
    pub answer: serde_json::Value,
    pub refused: serde_json::Value,
    /// What can be known of a refusal before there is one. Its schema is what two services agree on.
    #[serde(skip)]
    pub refusals: &'static [RefusalCase],
    /// Of an effect. Only the service that hosts it acts on this, so it is no part of what two services agree on:
    /// a window may be corrected without releasing the callers.
    #[serde(skip)]
    pub provider: Option<ProviderModel>,
}

impl MethodModel {
    pub fn of<Req: Wire, T: Wire, E: Refusal>(name: &'static str, kind: Kind) -> Self {
        Self {
            name,
            kind,
            request: schemars::schema_for!(Req).to_value(),
            answer: schemars::schema_for!(T).to_value(),
            refused: schemars::schema_for!(E).to_value(),
            refusals: E::cases(),
            provider: (kind == Kind::Effect).then_some(ProviderModel::DEFAULT),
        }
    }

    /// An effect with what its token declares.
    pub fn effect<Req: Wire, T: Wire, E: Refusal>(token: Effect<Req, T, E>) -> Self {
        Self { provider: Some(token.provider), ..Self::of::<Req, T, E>(token.method, Kind::Effect) }
    }
}

impl ContractModel {
    /// Equal exactly when name, version, methods and all schemas are, whatever their documentation says, which of
    /// their fields are secret, and what effects rely on outside: the first 8 bytes of the SHA-256 of the contract as
    /// JSON with sorted keys, in hexadecimal.
    pub fn fingerprint(&self) -> String {
        let model = serde_json::to_value(self).expect("a model of strings and JSON is JSON");
        let mut text = String::new();
        canonical(&model, &mut text);
        let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
        digest.as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Sorted, since the order of an object's keys depends on a feature of `serde_json` that any crate may switch on;
/// without descriptions and marks of secrets, which change nothing that two services exchange.
fn canonical(value: &serde_json::Value, text: &mut String) {
    match value {
        serde_json::Value::Object(fields) => {
            // A field of a type may have either name; its value is a schema.
            let is_exchanged = |(key, value): &(&String, &serde_json::Value)| match key.as_str() {
                "description" => !value.is_string(),
                SECRET_MARK => !value.is_boolean(),
                _ => true,
            };
            let mut fields: Vec<_> = fields.iter().filter(is_exchanged).collect();
            fields.sort_by_key(|(key, _)| key.as_str());
            text.push('{');
            for (key, field) in fields {
                text.push_str(&serde_json::Value::from(key.as_str()).to_string());
                text.push(':');
                canonical(field, text);
                text.push(',');
            }
            text.push('}');
        }
        serde_json::Value::Array(items) => {
            text.push('[');
            for item in items {
                canonical(item, text);
                text.push(',');
            }
            text.push(']');
        }
        plain => text.push_str(&plain.to_string()),
    }
}
