//! What a coordinator asks of a participant, and what it is told.

use modulith_core::{RefusalRecord, StepKey};
use serde::{Deserialize, Serialize};

use super::run::SagaId;
use crate::inbox::{LowWater, StepRows};

/// A request under a saga's keys, with the coordinator's low-water mark.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Asked {
    pub saga: SagaId,
    pub ask: Ask,
    pub water: LowWater,
}

/// One thing that a coordinator asks for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Ask {
    /// One command step.
    Step {
        contract: String,
        method: String,
        step: u16,
        #[serde(with = "modulith_core::byte_string")]
        request: Vec<u8>,
    },
    /// Several command steps as one transaction. The participant makes the requests itself, from the plan.
    Run {
        plan: String,
        version: u32,
        fingerprint: i64,
        first: usize,
        last: usize,
        #[serde(with = "modulith_core::byte_string")]
        input: Vec<u8>,
        /// Of the steps before, as far as known.
        answers: Vec<Option<Bytes>>,
    },
    /// One effect step.
    Effect {
        contract: String,
        method: String,
        step: u16,
        #[serde(with = "modulith_core::byte_string")]
        request: Vec<u8>,
    },
    /// Make sure that this step never runs, or say that it has.
    Seal { contract: String, step: u16 },
    /// `contract` and `method` are the undo's; `step` is the one to be undone.
    Undo { contract: String, method: String, step: u16, by_key: bool },
    /// Say what stands under the keys of this step and of its undo. Changes nothing.
    Look { contract: String, step: u16 },
}

impl Ask {
    /// What is asked, in one word.
    pub fn name(&self) -> &'static str {
        match self {
            Ask::Step { .. } => "step",
            Ask::Run { .. } => "run",
            Ask::Effect { .. } => "effect",
            Ask::Seal { .. } => "seal",
            Ask::Undo { .. } => "undo",
            Ask::Look { .. } => "look",
        }
    }

    /// Whether it is about an effect, which asks the outside world.
    pub fn goes_outside(&self) -> bool {
        matches!(self, Ask::Effect { .. } | Ask::Undo { by_key: true, .. })
    }

    /// The contract it names; a run names those of its plan's steps.
    pub fn contract(&self) -> Option<&str> {
        match self {
            Ask::Step { contract, .. }
            | Ask::Effect { contract, .. }
            | Ask::Seal { contract, .. }
            | Ask::Undo { contract, .. }
            | Ask::Look { contract, .. } => Some(contract),
            Ask::Run { .. } => None,
        }
    }
}

/// What a participant knows for certain. What it does not is a [`CallFault`](modulith_core::CallFault).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// The steps' answers.
    Done(Vec<Bytes>),
    /// This step declined.
    Refused {
        step: usize,
        record: RefusalRecord,
    },
    /// This step never ran and never will.
    Sealed {
        step: usize,
    },
    /// This effect may have happened, and has to be resolved before it is sealed or undone.
    Started,
    Undone,
    Rows(StepRows),
    /// The participant has no plan of that name, version and structure.
    PlanUnknown,
    /// The saga is below the coordinator's own low-water mark.
    Expired,
}

/// Bytes as MessagePack's binary type where a field attribute cannot say so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes(#[serde(with = "modulith_core::byte_string")] pub Vec<u8>);

impl Asked {
    pub fn key(&self, step: u16) -> StepKey {
        self.saga.key(usize::from(step))
    }
}
