//! What processes of one application say to each other: the payloads of the transport's calls and hellos.
//!
//! MessagePack with field names, so that a field added with a default is read by old and new.

use modulith_core::{NotRun, Outcome, Principal, RefusalRecord, StepKey, Unknown};
use modulith_data::inbox::{BodyHash, SealEnd, UndoEnd};
use modulith_data::saga::SagaId;
use serde::{Deserialize, Serialize};

/// One call.
#[derive(Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) ask: Ask,
    pub(crate) principal: Option<Principal>,
    pub(crate) request_id: String,
}

/// What one process asks of another.
#[derive(Serialize, Deserialize)]
pub(crate) enum Ask {
    Query {
        contract: String,
        method: String,
        #[serde(with = "modulith_core::byte_string")]
        request: Vec<u8>,
    },
    /// A command outside of a saga, under a client's or an automatic key.
    Command {
        contract: String,
        method: String,
        key: StepKey,
        hash: BodyHash,
        expires_ms: i64,
        #[serde(with = "modulith_core::byte_string")]
        request: Vec<u8>,
    },
    /// An effect outside of a saga: one attempt.
    Call {
        contract: String,
        method: String,
        #[serde(with = "modulith_core::byte_string")]
        request: Vec<u8>,
    },
    /// One command step of a saga.
    Step {
        contract: String,
        method: String,
        key: StepKey,
        #[serde(with = "modulith_core::byte_string")]
        request: Vec<u8>,
    },
    /// Several command steps as one transaction. The callee makes the requests itself, from the plan.
    Run {
        plan: String,
        version: u32,
        fingerprint: i64,
        id: SagaId,
        first: usize,
        last: usize,
        #[serde(with = "modulith_core::byte_string")]
        input: Vec<u8>,
        /// Of the steps before, as far as known.
        answers: Vec<Option<Bytes>>,
    },
    /// One effect step of a saga.
    Effect {
        contract: String,
        method: String,
        key: StepKey,
        #[serde(with = "modulith_core::byte_string")]
        request: Vec<u8>,
    },
    Seal {
        contract: String,
        key: StepKey,
    },
    /// `contract` and `method` are the undo's; `key` is the step's.
    Undo {
        contract: String,
        method: String,
        key: StepKey,
        by_key: bool,
    },
}

impl Ask {
    pub(crate) fn contract(&self) -> Option<&str> {
        match self {
            Ask::Query { contract, .. }
            | Ask::Command { contract, .. }
            | Ask::Call { contract, .. }
            | Ask::Step { contract, .. }
            | Ask::Effect { contract, .. }
            | Ask::Seal { contract, .. }
            | Ask::Undo { contract, .. } => Some(contract),
            Ask::Run { .. } => None,
        }
    }
}

/// What it is told.
#[derive(Serialize, Deserialize)]
pub(crate) enum Told {
    Outcome(Outcome),
    /// The answers of a run's steps.
    Steps(Vec<Bytes>),
    Refused {
        step: usize,
        record: RefusalRecord,
    },
    Sealed {
        step: usize,
    },
    /// The callee has no plan of that name, version and structure.
    PlanUnknown,
    Seal(SealEnd),
    Undo(UndoEnd),
    NotRun(NotRun),
    Unknown(Unknown),
}

/// Bytes as MessagePack's binary type where a field attribute cannot say so.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Bytes(#[serde(with = "modulith_core::byte_string")] pub(crate) Vec<u8>);

/// What a service says about itself in the handshake.
#[derive(Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) serves: Vec<ContractFacts>,
    pub(crate) needs: Vec<ContractFacts>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq, Clone)]
pub(crate) struct ContractFacts {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) fingerprint: String,
}
