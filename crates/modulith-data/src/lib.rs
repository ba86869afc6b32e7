//! Databases: transactions, ownership, migrations, the inbox and sagas.
//!
//! `sqlite` owns files and threads. `inbox` (the participant) and `saga` (the coordinator) hold no thread, no
//! socket and no clock: they are functions and state machines over [`Session`], so that the same code runs
//! under any engine and under a simulator.

pub mod clock;
pub mod inbox;
mod migrate;
mod panic;
pub mod participant;
mod recent;
pub mod saga;
mod session;
pub mod sqlite;
mod world;

pub use migrate::{Migration, MigrationError, file_stem};
pub use session::{ModuleCode, Session};
pub use world::{Urgency, World};
