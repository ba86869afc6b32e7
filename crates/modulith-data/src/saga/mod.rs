//! The coordinator: what it records, how a run executes, and the walk over a plan.
//!
//! The participants are the log. The coordinator records that a saga began, that it turned back, and how it
//! ended; after a crash it walks the plan again and every finished step answers from its inbox.

mod run;
mod table;
mod walk;

pub use run::{Modules, Run, RunEnd, SagaId, StepDone, run_steps};
pub use table::{Begun, NewSaga, OpenSaga, SAGAS_KEPT_MS, SagaTable, Stored};
pub use walk::{Heard, Next, Place, Walk};
