//! Runs a modulith application: topology, services, supervision, health, command line.

mod app;
mod backup;
mod calls;
mod certs;
mod check;
pub mod cli;
mod client;
mod control;
mod expose;
mod graph;
mod host;
mod hosted;
mod log;
mod metrics;
mod model;
mod module;
mod mount;
mod openapi;
mod operate;
mod placement;
mod process;
mod sagas;
mod spans;
mod supervisor;
pub mod topology;
mod world;

/// The runtime's numbers; those of the writer, the edge and the transport stand there.
pub mod limits {
    pub use crate::hosted::{AUTOMATIC_KEYS_KEPT_MS, CLIENT_KEYS_KEPT_MS};
    pub use crate::operate::{SAGAS_LISTED_DEFAULT, SAGAS_LISTED_MAX};
    pub use crate::world::EFFECT_TIME_MAX;
    pub use modulith_data::inbox::ANSWER_BYTES_MAX;
    pub use modulith_data::saga::SAGAS_KEPT_MS;
}

pub use app::App;
pub use cli::main;
pub use host::StartError;
pub use model::{AppModel, ModuleModel};
pub use module::{Links, Module, Setup, SetupError};
pub use mount::Mounted;
