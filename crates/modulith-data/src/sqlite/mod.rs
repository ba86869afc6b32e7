//! SQLite: one file a service, one writer with group commit, read snapshots on the caller's thread.
//!
//! Refuses: a file that another process owns, a file on a network file system, a file of a newer format, and
//! any statement of a module that leaves the module's own tables.

pub mod backup;
mod error;
mod file;
mod guard;
mod log;
mod memory;
mod reader;
mod shed;
mod statements;
mod work;
mod writer;

pub use error::{OpenError, may_pass};
pub use file::{Database, Identity};
pub use memory::{InMemory, Pending};
pub use writer::{WriterLimits, WriterSeen};
