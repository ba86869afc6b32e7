//! The coordinator: what it records, how a run executes, the walk over a plan and who drives it.
//!
//! The participants are the log. The coordinator records that a saga began, that it turned back, and how it
//! ended; after a crash it walks the plan again and every finished step answers from its inbox.

mod ask;
mod attention;
mod drive;
mod local;
mod name;
mod numbers;
mod operator;
mod run;
mod sagas;
mod seen;
mod table;
mod walk;

use std::sync::Arc;

use modulith_core::AnyBox;

pub use ask::{Ask, Asked, Bytes, Told};
pub use attention::{ATTENTION_CHARS_MAX, Attention, AttentionReason};
pub use drive::Drive;
pub use name::{NoSagaName, SagaName};
pub use operator::{OrderError, Standing};
pub use run::{Modules, Run, RunEnd, SagaId, StepDone, run_steps};
pub use sagas::{Answered, Sagas, WALKS_MAX};
pub use seen::{SagaContents, SagaFilter, SagaRow, SagaState};
pub use table::{Begun, NewSaga, OpenSaga, SAGAS_KEPT_MS, SagaTable, Stored, StoredKey};
pub use walk::{Heard, Next, Place, Walk};

/// A saga's input and the answers known so far. Cheap to clone into the writer's thread.
#[derive(Clone)]
struct Facts {
    input: Arc<AnyBox>,
    answers: Vec<Option<Arc<StepDone>>>,
}

/// What the saga's row is made from: recorded with the first run, or alone before it.
#[derive(Clone)]
struct Begin {
    input: Arc<Vec<u8>>,
    key: Option<StoredKey>,
}
