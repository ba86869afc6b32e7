//! What contracts, modules and the runtime share: outcomes, values, transactions, contracts, clients, plans.
//!
//! Nothing here opens a file or a socket, so that a contract crate stays light. Applications use these types
//! through the facade `modulith`.

mod client;
mod clock;
pub mod compat;
mod context;
mod contract;
mod crash;
mod effect;
mod json;
mod key;
mod outcome;
mod protection;
mod random;
mod redact;
mod repeats;
mod saga;
mod secret;
mod trace;
mod tx;
mod value;

pub use client::{
    Client, ContractClient, Done, Encode, LocalCalls, Queried, RemoteCall, RemoteCalls, SagaCalls,
    SagaClient, SagaEnd,
};
pub use context::{Context, Principal};
pub use contract::{
    AnyBox, BoxFuture, Codec, Command, CommandFn, ContractModel, Effect, EffectFn, EffectRan, Handler, Kind,
    MethodModel, Query, QueryFn, QuerySlot, Ran, Served, ServedMethod, Wire,
};
pub use crash::crash_point;
pub use effect::{EFFECT_WINDOW_DEFAULT, Found, LOOK_UP_DELAY, ProviderModel};
pub use json::{JsonCodec, JsonError, from_json};
pub use key::{ClientKey, Direction, Origin, StepKey};
pub use outcome::{
    Answer, CallError, CallFault, Failed, Fault, FaultKind, Never, NotRun, NotRunReason, Outcome, Refusal,
    RefusalCase, RefusalRecord, Unknown, UnknownReason, byte_string,
};
#[doc(hidden)]
pub use protection::{Protection, SwitchedOff};
#[doc(hidden)]
pub use random::random_u64;
pub use redact::{REDACTED, redacted};
pub use repeats::Repeats;
pub use saga::{
    Handle, Needs, Plan, PlanModel, PlanProblem, RequestOf, Saga, SagaRefused, StepKind, StepMethod,
    StepModel, UndoModel,
};
pub use secret::{SECRET_MARK, Secret};
pub use trace::{Trace, TraceFlags};
pub use tx::{Columns, SAGAS_PER_COMMAND_MAX, Snapshot, Statements, Tx};
pub use value::{Column, FromRow, Param, Params, Value};

/// Encodes a value in the stored and sent form: MessagePack with field names, so that an older reader skips
/// fields it does not know and a newer one fills fields that are missing.
pub fn encode<T: serde::Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, Fault> {
    let mut out = Vec::with_capacity(ENCODED_BYTES);
    encode_onto(value, &mut out)?;
    Ok(out)
}

/// The same behind what is there already.
pub fn encode_onto<T: serde::Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> Result<(), Fault> {
    rmp_serde::encode::write_named(out, value)
        .map_err(|error| Fault::new(FaultKind::Encoding, format!("cannot encode: {error}")))
}

/// Room for an encoded value to begin with: most are shorter.
const ENCODED_BYTES: usize = 128;

/// Decodes what [`encode`] wrote.
///
/// # Errors
///
/// [`FaultKind::Encoding`], naming the type, the field and what is wrong with it: `cannot decode Basket:
/// lines[0].unit: unknown variant `crate`, expected `piece` or `kilogram``.
pub fn decode<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    rmp_serde::from_slice(bytes).map_err(|error| undecoded::<T>(bytes, &error))
}

/// Decodes once more, since to know the field costs every value something that only errors are worth.
#[cold]
fn undecoded<T: serde::de::DeserializeOwned>(bytes: &[u8], error: &rmp_serde::decode::Error) -> Fault {
    let mut again = rmp_serde::Deserializer::from_read_ref(bytes);
    let why = match serde_path_to_error::deserialize::<_, T>(&mut again) {
        Err(error) if error.path().iter().next().is_some() => error.to_string(),
        _ => error.to_string(),
    };
    Fault::new(FaultKind::Encoding, format!("cannot decode {}: {why}", std::any::type_name::<T>()))
}
