//! What processes of one application say to each other: the payloads of the transport's calls and hellos.
//!
//! MessagePack with field names, so that a field added with a default is read by old and new.

use modulith_core::{NotRun, Outcome, Principal, StepKey, Unknown};
use modulith_data::inbox::BodyHash;
use modulith_data::saga::{Asked, Told as SagaTold};
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
    /// Under a saga's keys.
    Saga(Asked),
}

impl Ask {
    pub(crate) fn contract(&self) -> Option<&str> {
        match self {
            Ask::Query { contract, .. } | Ask::Command { contract, .. } | Ask::Call { contract, .. } => {
                Some(contract)
            }
            Ask::Saga(asked) => asked.ask.contract(),
        }
    }
}

/// What it is told.
#[derive(Serialize, Deserialize)]
pub(crate) enum Told {
    Outcome(Outcome),
    Saga(SagaTold),
    NotRun(NotRun),
    Unknown(Unknown),
}

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
