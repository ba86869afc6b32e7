//! How a call ends: done, refused, not run, or unknown.
//!
//! The three ways of failing are kept apart by type because a caller may do different things about each: a
//! refusal is the callee's own, final answer; *not run* is certain and may be tried again; *unknown* may have
//! happened, so only a repeat with the same key (or a seal) tells.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::Wire;

/// What a query or a command returns: its answer, its own refusal, or a fault of the machinery below it.
pub type Answer<T, E> = Result<T, Failed<E>>;

/// Why a query or a command has no answer. `?` on a statement makes a [`Failed::Fault`]; `.into()` or `?` on a
/// refusal makes a [`Failed::Refused`].
#[derive(Debug)]
pub enum Failed<E> {
    /// The callee ran and declines. Stored under the command's key like any other answer.
    Refused(E),
    /// The database or the runtime failed. Nothing is stored; the command certainly did not happen.
    Fault(Fault),
}

impl<E: Refusal> From<E> for Failed<E> {
    fn from(refusal: E) -> Self {
        Failed::Refused(refusal)
    }
}

impl<E> From<Fault> for Failed<E> {
    fn from(fault: Fault) -> Self {
        Failed::Fault(fault)
    }
}

/// A refusal of the domain: a small enum, part of the contract. Implemented by `#[derive(Refusal)]`.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is no refusal",
    label = "is what a method refuses with",
    note = "write `#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]` above it, or `Never` here"
)]
pub trait Refusal: Wire + std::fmt::Debug {
    /// Stable name of the case, in snake case: `sold_out`. It travels outside the encoded refusal.
    fn code(&self) -> &str;
    /// One sentence for a person.
    fn text(&self) -> String;
    /// The HTTP status that an endpoint answers unless it says otherwise. Default 409.
    fn status(&self) -> u16 {
        409
    }
    /// All cases, for documents and for readers of JSON; of a refusal written by hand none, unless it says so.
    fn cases() -> &'static [RefusalCase] {
        &[]
    }
    /// The refusal as it is stored and sent.
    fn record(&self) -> Result<RefusalRecord, Fault> {
        RefusalRecord::of(self)
    }
}

/// A case of a refusal as data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusalCase {
    /// As it is written in the code and, unless serde renames it, in the encoded refusal: `SoldOut`.
    pub name: &'static str,
    pub code: &'static str,
    pub status: u16,
    /// Its text, where fields stand in braces.
    pub text: &'static str,
}

/// The refusal of a method that cannot refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Never {}

impl Refusal for Never {
    fn code(&self) -> &str {
        match *self {}
    }
    fn text(&self) -> String {
        match *self {}
    }
}

/// A refusal as it is stored and sent: its code, status and text outside, so that a reader which does not know
/// the case still reads *refused*, never *unknown*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusalRecord {
    pub code: String,
    pub text: String,
    pub status: u16,
    /// The typed refusal, encoded by [`crate::encode`].
    #[serde(with = "byte_string")]
    #[schemars(with = "Vec<u8>")]
    pub body: Vec<u8>,
}

impl RefusalRecord {
    pub fn of<E: Refusal>(refusal: &E) -> Result<Self, Fault> {
        Ok(Self {
            code: refusal.code().to_owned(),
            text: refusal.text(),
            status: refusal.status(),
            body: crate::encode(refusal)?,
        })
    }

    /// The typed refusal, if this build knows the case.
    pub fn typed<E: Refusal>(&self) -> Option<E> {
        crate::decode(&self.body).ok()
    }

    /// The refusal's fields as JSON, for a problem document: `{"products": ["85123A"]}`.
    pub fn fields(&self) -> serde_json::Map<String, serde_json::Value> {
        match crate::decode::<serde_json::Value>(&self.body) {
            // An enum case with fields is encoded as a map of its name to the fields.
            Ok(serde_json::Value::Object(mut outer)) if outer.len() == 1 => {
                match outer.values_mut().next().map(serde_json::Value::take) {
                    Some(serde_json::Value::Object(fields)) => fields,
                    _ => serde_json::Map::new(),
                }
            }
            _ => serde_json::Map::new(),
        }
    }
}

/// What a participant stores in its inbox and sends as the reply: an answer or a refusal, encoded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Done(#[serde(with = "byte_string")] Vec<u8>),
    Refused(RefusalRecord),
}

/// Byte strings as MessagePack's binary type instead of an array of numbers: `#[serde(with = "byte_string")]`.
pub mod byte_string {
    use serde::{Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        struct Bytes;
        impl de::Visitor<'_> for Bytes {
            type Value = Vec<u8>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
                Ok(bytes.to_vec())
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
                Ok(bytes)
            }
        }
        deserializer.deserialize_byte_buf(Bytes)
    }
}

/// What a caller of a contract gets when there is no answer.
#[derive(Debug)]
pub enum CallError<E> {
    /// The callee ran and declined; final for this key.
    Refused(E),
    /// The callee declined with a case that this build does not know (it is newer); final for this key.
    RefusedOther(RefusalRecord),
    /// It certainly did not happen. Trying again is safe.
    NotRun(NotRun),
    /// It may have happened. Repeat with the same key, or look.
    Unknown(Unknown),
}

impl<E> CallError<E> {
    /// The same failure of a call whose refusal another type stands for.
    pub fn map<F>(self, refusal: impl FnOnce(E) -> F) -> CallError<F> {
        match self {
            CallError::Refused(refused) => CallError::Refused(refusal(refused)),
            CallError::RefusedOther(record) => CallError::RefusedOther(record),
            CallError::NotRun(not_run) => CallError::NotRun(not_run),
            CallError::Unknown(unknown) => CallError::Unknown(unknown),
        }
    }
}

impl<E> From<CallFault> for CallError<E> {
    fn from(fault: CallFault) -> Self {
        match fault {
            CallFault::NotRun(not_run) => CallError::NotRun(not_run),
            CallFault::Unknown(unknown) => CallError::Unknown(unknown),
        }
    }
}

impl<E> From<NotRun> for CallError<E> {
    fn from(not_run: NotRun) -> Self {
        CallError::NotRun(not_run)
    }
}

impl<E> From<Unknown> for CallError<E> {
    fn from(unknown: Unknown) -> Self {
        CallError::Unknown(unknown)
    }
}

impl<E: Refusal> std::fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Refused(refusal) => write!(f, "refused: {}", refusal.text()),
            CallError::RefusedOther(record) => write!(f, "refused: {}", record.text),
            CallError::NotRun(not_run) => not_run.fmt(f),
            CallError::Unknown(unknown) => unknown.fmt(f),
        }
    }
}

impl<E: Refusal> std::error::Error for CallError<E> {}

/// A call without an answer and without a refusal.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CallFault {
    #[error(transparent)]
    NotRun(#[from] NotRun),
    #[error(transparent)]
    Unknown(#[from] Unknown),
}

/// Certainly not run, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("not run ({reason:?}): {detail}")]
pub struct NotRun {
    pub reason: NotRunReason,
    /// For logs, never for clients of the edge.
    pub detail: String,
    /// When a repeat is worth trying, if whoever declined has an opinion.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u32>,
}

impl NotRun {
    pub fn new(reason: NotRunReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), retry_after_ms: None }
    }

    /// The same, worth repeating after this many milliseconds.
    #[must_use]
    pub fn retry_after_ms(mut self, retry_after_ms: impl Into<Option<u32>>) -> Self {
        self.retry_after_ms = retry_after_ms.into();
        self
    }
}

impl From<Fault> for NotRun {
    fn from(fault: Fault) -> Self {
        let reason = match fault.kind {
            FaultKind::Panicked => NotRunReason::Panicked,
            _ => NotRunReason::Fault,
        };
        Self::new(reason, fault.message)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotRunReason {
    /// No connection to a service that hosts the module.
    Unavailable,
    /// A queue or a bulkhead is full.
    Overloaded,
    /// The deadline passed before it started.
    Deadline,
    /// The callee stops.
    Stopping,
    /// A statement failed or the database did.
    Fault,
    /// The module's code panicked.
    Panicked,
    /// The key is older than what the participant keeps.
    Expired,
    /// The key was used before with another request.
    KeyReused,
    /// The caller did not declare the need, or the callee does not serve the method.
    Incompatible,
    /// The key is still at work elsewhere.
    Running,
    /// A saga could not reach one of its steps; everything before is undone. The key stays used.
    Aborted,
}

/// May have run, and why that is not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("outcome unknown ({reason:?}): {detail}")]
pub struct Unknown {
    pub reason: UnknownReason,
    /// For logs, never for clients of the edge.
    pub detail: String,
}

impl Unknown {
    pub fn new(reason: UnknownReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnknownReason {
    /// The deadline passed while it ran.
    Deadline,
    /// The connection was lost after the request may have left.
    ConnectionLost,
    /// The commit failed in a way that may still be durable.
    CommitLost,
    /// The outside world gave no certain answer.
    Provider,
    /// The same, and its provider no longer recognises the key: the same bytes would be a second effect.
    WindowOver,
    /// The answer came and cannot be read by this build.
    Unreadable,
}

/// A failure below the domain: a statement, a limit, an encoding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub kind: FaultKind,
    pub message: String,
}

impl Fault {
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// The database refused or failed a statement.
    Statement,
    /// The statement touches a table of another module, or something modules may not do.
    Denied,
    /// A constraint of the database: unique, check, foreign key, not null.
    Constraint,
    /// A column holds another type than the code asked for.
    Type,
    /// Something is larger than its limit.
    Limit,
    /// Bytes that cannot be read, or a value that cannot be written.
    Encoding,
    /// The transaction ended under the command; the batch is run again.
    Lost,
    /// The module's code panicked.
    Panicked,
    /// The database's file is damaged; the message names it.
    Corrupt,
}
