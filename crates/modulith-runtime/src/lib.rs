//! Runs a modulith application: topology, services, supervision, health, command line.

mod app;
mod cli;
mod client;
mod control;
mod host;
mod hosted;
mod log;
mod model;
mod module;
mod mount;
mod process;
mod remote;
mod sagas;
pub mod topology;
mod wire;

// stand-ins until the files exist
mod check { pub(crate) fn check(_: &crate::model::AppModel, _: &crate::topology::Topology) -> Vec<crate::topology::Problem> { vec![] } }
mod graph {
    pub(crate) fn table(_: &crate::model::AppModel, _: &crate::topology::Topology) -> String { String::new() }
    pub(crate) fn mermaid(_: &crate::model::AppModel, _: &crate::topology::Topology) -> String { String::new() }
    pub(crate) fn json(_: &crate::model::AppModel, _: &crate::topology::Topology) -> serde_json::Value { serde_json::Value::Null }
}
mod placement {
    #[derive(Debug, thiserror::Error)] #[error("x")] pub struct PlacementError;
    pub(crate) fn remember(_: &std::path::Path, _: &crate::topology::Topology, _: &crate::model::AppModel) -> Result<(), PlacementError> { Ok(()) }
}
mod supervisor {
    pub(crate) async fn run(_: &crate::topology::Topology, _: Option<&std::path::Path>, _: &std::path::Path, _: &str, _: &str, _: crate::control::Control) -> anyhow::Result<std::process::ExitCode> { unreachable!() }
}

pub use app::App;
pub use cli::{Command, main};
pub use client::{Running, start_program, started};
pub use host::StartError;
pub use model::{AppModel, ModuleModel};
pub use module::{Links, Module, Setup, SetupError};
pub use mount::Mounted;
