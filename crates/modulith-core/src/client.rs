//! What a caller holds. The same client serves a module in the same process and one behind a connection; which
//! of the two was decided when the process started.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::contract::{
    AnyBox, BoxFuture, Command, ContractModel, Effect, EffectRan, Kind, Query, QuerySlot, Ran, Wire,
};
use crate::json::JsonCodec;
use crate::key::ClientKey;
use crate::outcome::{CallError, CallFault, Failed, Fault, NotRun, Outcome, Refusal, Unknown, UnknownReason};
use crate::saga::{Saga, SagaRefused};

/// A contract's typed client, as the macro writes it.
pub trait ContractClient: Sized + Clone + Send + Sync + 'static {
    const CONTRACT: &'static str;
    fn model() -> ContractModel;
    fn from_client(client: Client) -> Self;
}

/// Calls into a module of the same process. Implemented by the runtime.
pub trait LocalCalls: Send + Sync {
    /// Runs a query on the caller's thread; `slot` is the method's [`QuerySlot`]. A heavy one it leaves as it is.
    fn query(&self, method: usize, slot: &mut (dyn Any + Send)) -> Result<Queried, NotRun>;
    /// Runs a query on the pool for heavy ones.
    fn heavy_query(&self, method: usize, slot: AnyBox) -> BoxFuture<'_, Result<AnyBox, NotRun>>;
    fn command(
        &self,
        method: usize,
        request: AnyBox,
        key: Option<ClientKey>,
    ) -> BoxFuture<'_, Result<Done, CallFault>>;
    fn effect(&self, method: usize, request: AnyBox) -> BoxFuture<'_, EffectRan>;
}

/// What became of a query on its caller's thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queried {
    /// It ran, and its slot has the answer.
    Here,
    /// It did not: it belongs on the pool for heavy ones, with a boxed slot.
    IsHeavy,
}

/// How a local command ended: what ran now, or what the inbox had stored under the key.
pub enum Done {
    Ran(Ran),
    Stored(Outcome),
}

/// A call that leaves the process.
pub struct RemoteCall {
    pub contract: &'static str,
    pub method: &'static str,
    pub kind: Kind,
    pub key: Option<ClientKey>,
    /// For a module that is spoken to in JSON.
    pub json: JsonCodec,
}

/// A request that is encoded where its bytes are wanted.
pub trait Encode {
    /// Writes it behind what is there already, in the form of [`crate::encode`].
    fn encode_onto(&self, out: &mut Vec<u8>) -> Result<(), Fault>;
}

impl<T: Wire> Encode for T {
    fn encode_onto(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        crate::encode_onto(self, out)
    }
}

/// Calls to a module elsewhere. Implemented by the runtime: deadline, retries and connection are its business.
pub trait RemoteCalls: Send + Sync {
    /// The request is encoded before this returns.
    fn call<'a>(
        &'a self,
        call: RemoteCall,
        request: &dyn Encode,
    ) -> BoxFuture<'a, Result<Outcome, CallFault>>;
}

/// Where a contract's calls go. Typed clients wrap it.
#[derive(Clone)]
pub struct Client {
    link: Link,
    key: Option<ClientKey>,
}

#[derive(Clone)]
enum Link {
    Local(Arc<dyn LocalCalls>),
    Remote(Arc<dyn RemoteCalls>),
}

impl Client {
    pub fn local(calls: Arc<dyn LocalCalls>) -> Self {
        Self { link: Link::Local(calls), key: None }
    }

    pub fn remote(calls: Arc<dyn RemoteCalls>) -> Self {
        Self { link: Link::Remote(calls), key: None }
    }

    /// The same client, whose commands carry an explicit key: a repeat within its retention (24 hours) gets the
    /// first answer, also after a restart of caller and callee. Without one a command gets an automatic key
    /// that lives as long as this process.
    pub fn keyed(&self, key: ClientKey) -> Self {
        Self { link: self.link.clone(), key: Some(key) }
    }

    pub async fn query<Req: Wire, T: Wire, E: Refusal>(
        &self,
        token: Query<Req, T, E>,
        request: Req,
    ) -> Result<T, CallError<E>> {
        match &self.link {
            Link::Local(local) => {
                let mut slot = QuerySlot::<Req, T, E> { request: Some(request), answer: None };
                if local.query(token.index, &mut slot)? == Queried::IsHeavy {
                    let boxed = local.heavy_query(token.index, Box::new(slot)).await?;
                    slot = *boxed.downcast().map_err(|_| unreadable("a query's slot changed its type"))?;
                }
                match slot.answer {
                    Some(Ok(answer)) => Ok(answer),
                    Some(Err(Failed::Refused(refusal))) => Err(CallError::Refused(refusal)),
                    Some(Err(Failed::Fault(fault))) => Err(CallError::NotRun(fault.into())),
                    None => Err(unreadable("a query left no answer").into()),
                }
            }
            Link::Remote(remote) => {
                self.ask(&**remote, token.contract, token.method, Kind::Query, request).await
            }
        }
    }

    pub async fn command<Req: Wire + Clone, T: Wire, E: Refusal>(
        &self,
        token: Command<Req, T, E>,
        request: Req,
    ) -> Result<T, CallError<E>> {
        match &self.link {
            Link::Local(local) => match local.command(token.index, Box::new(request), self.key).await? {
                Done::Ran(Ran::Done(answer)) => unbox(answer),
                Done::Ran(Ran::Refused(refusal)) => Err(CallError::Refused(unbox(refusal)?)),
                Done::Stored(outcome) => from_outcome(outcome),
            },
            Link::Remote(remote) => {
                self.ask(&**remote, token.contract, token.method, Kind::Command, request).await
            }
        }
    }

    pub async fn effect<Req: Wire, T: Wire, E: Refusal>(
        &self,
        token: Effect<Req, T, E>,
        request: Req,
    ) -> Result<T, CallError<E>> {
        match &self.link {
            Link::Local(local) => match local.effect(token.index, Box::new(request)).await {
                EffectRan::Done(answer) => unbox(answer),
                EffectRan::Refused(refusal) => Err(CallError::Refused(unbox(refusal)?)),
                EffectRan::NotRun(not_run) => Err(not_run.into()),
                EffectRan::Unknown(unknown) => Err(unknown.into()),
            },
            Link::Remote(remote) => {
                self.ask(&**remote, token.contract, token.method, Kind::Effect, request).await
            }
        }
    }

    async fn ask<Req: Wire, T: Wire, E: Refusal>(
        &self,
        remote: &dyn RemoteCalls,
        contract: &'static str,
        method: &'static str,
        kind: Kind,
        request: Req,
    ) -> Result<T, CallError<E>> {
        let json = JsonCodec::of::<Req, T, E>();
        let called = remote.call(RemoteCall { contract, method, kind, key: self.key, json }, &request);
        // It is encoded by now.
        drop(request);
        from_outcome(called.await?)
    }
}

fn unreadable(detail: impl Into<String>) -> Unknown {
    Unknown::new(UnknownReason::Unreadable, detail)
}

fn unbox<T: 'static, E>(value: AnyBox) -> Result<T, CallError<E>> {
    match value.downcast::<T>() {
        Ok(value) => Ok(*value),
        Err(_) => Err(unreadable(format!("a slot does not hold {}", std::any::type_name::<T>())).into()),
    }
}

fn from_outcome<T: Wire, E: Refusal>(outcome: Outcome) -> Result<T, CallError<E>> {
    match outcome {
        Outcome::Done(bytes) => crate::decode(&bytes).map_err(|fault| unreadable(fault.message).into()),
        Outcome::Refused(record) => match record.typed::<E>() {
            Some(refusal) => Err(CallError::Refused(refusal)),
            None => Err(CallError::RefusedOther(record)),
        },
    }
}

/// How a saga ended for its caller; stored. It answers when its pivot has committed; steps behind it go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SagaEnd {
    /// The pivot's answer, encoded.
    Done(#[serde(with = "crate::byte_string")] Vec<u8>),
    /// The step that refused and what it said. Everything before it is undone, or is being undone.
    Refused(SagaRefused),
    /// A step could not be reached. Everything before it is undone, or is being undone.
    Aborted(NotRun),
}

/// Starting sagas and looking for them. Implemented by the runtime.
pub trait SagaCalls: Send + Sync {
    fn start(
        &self,
        plan: &'static str,
        input: AnyBox,
        key: Option<ClientKey>,
    ) -> BoxFuture<'_, Result<SagaEnd, CallFault>>;
    /// How the saga under a client's key ended; `None` if the key was never used, or its retention is over. The key
    /// is one for all plans of the module.
    fn find(&self, key: ClientKey) -> Result<Option<SagaEnd>, NotRun>;
}

/// Starts sagas of one type.
pub struct SagaClient<S> {
    calls: Arc<dyn SagaCalls>,
    saga: PhantomData<fn(S)>,
}

impl<S> Clone for SagaClient<S> {
    fn clone(&self) -> Self {
        Self { calls: self.calls.clone(), saga: PhantomData }
    }
}

impl<S: Saga> SagaClient<S> {
    pub fn new(calls: Arc<dyn SagaCalls>) -> Self {
        Self { calls, saga: PhantomData }
    }

    /// Runs the saga and returns the pivot's answer as soon as the pivot has committed.
    ///
    /// With a key, a repeat gets what the first call got, also after a restart; without one, a repeat is a new
    /// saga.
    ///
    /// # Errors
    ///
    /// *Refused* names the step that declined. *Not run*: nothing was begun. *Unknown*: it goes on behind the
    /// caller's deadline; a repeat of the key tells how it ended.
    pub async fn start(&self, input: S, key: Option<ClientKey>) -> Result<S::Answer, CallError<SagaRefused>> {
        ended(self.calls.start(S::NAME, Box::new(input), key).await?)
    }

    /// What an earlier saga with this key answered, without beginning anything; `None` if the key is unused, or its
    /// retention (7 days after the end) is over. A key is one for all plans of a module, and any of their clients
    /// finds it, as far as their answers are of one type.
    ///
    /// # Errors
    ///
    /// What [`SagaClient::start`] with this key would answer: *refused* as then, or *not run* because it still runs,
    /// or because the key was used with another body.
    pub fn find(&self, key: ClientKey) -> Result<Option<S::Answer>, CallError<SagaRefused>> {
        self.calls.find(key)?.map(ended).transpose()
    }
}

fn ended<T: Wire>(end: SagaEnd) -> Result<T, CallError<SagaRefused>> {
    match end {
        SagaEnd::Done(answer) => {
            crate::decode(&answer).map_err(|fault: Fault| unreadable(fault.message).into())
        }
        SagaEnd::Refused(refused) => Err(CallError::Refused(refused)),
        SagaEnd::Aborted(not_run) => Err(not_run.into()),
    }
}
