//! An application: its name and its modules. `main.rs` lists them, and nothing else.

use crate::check::check;
use crate::cli::Command;
use crate::model::AppModel;
use crate::module::{Module, Setup, SetupError};
use crate::topology::{Problem, Problems, Topology};

type DeclareFn = fn(&Setup<'_>) -> Result<Module, SetupError>;

/// An application. Hand it to [`crate::main`], or mount it in a program of your own with [`App::mount`].
pub struct App {
    pub(crate) name: &'static str,
    declare: Vec<DeclareFn>,
    pub(crate) commands: Vec<Command>,
}

impl App {
    /// `name` is the name of the binary and of the monolith's service and database.
    pub fn new(name: &'static str) -> Self {
        Self { name, declare: Vec::new(), commands: Vec::new() }
    }

    pub fn module(mut self, declare: DeclareFn) -> Self {
        self.declare.push(declare);
        self
    }

    /// A command of the application's own, beside the framework's.
    pub fn command(mut self, command: Command) -> Self {
        self.commands.push(command);
        self
    }

    /// The modules as this topology configures them, with their model; or everything that is wrong with it.
    pub(crate) fn declare(&self, topology: &Topology) -> Result<(Vec<Module>, AppModel), Problems> {
        let config = |module: &str| topology.module_config(module);
        let setup = Setup { module: &config };
        let mut modules = Vec::new();
        let mut problems = Vec::new();
        for declare in &self.declare {
            match declare(&setup) {
                Ok(module) => modules.push(module),
                Err(error) => problems.push(self.config_problem(topology, &error)),
            }
        }
        // Without all modules the other checks would report what is only a consequence.
        if !problems.is_empty() {
            return Err(Problems(problems));
        }
        let model = AppModel::of(self.name, &modules);
        match check(&model, topology) {
            problems if problems.is_empty() => Ok((modules, model)),
            problems => Err(Problems(problems)),
        }
    }

    fn config_problem(&self, topology: &Topology, error: &SetupError) -> Problem {
        topology.problem(
            &format!("module.{}", error.module),
            error.message.clone(),
            format!("set the key in section `[module.{}]`, or in the environment", error.module),
        )
    }

    /// The topology in `file`, or the built-in one: everything in one service.
    pub(crate) fn topology(&self, file: Option<&std::path::Path>) -> Result<Topology, Problems> {
        match file {
            Some(file) => Topology::load(file),
            None => {
                let names = self.module_names();
                Ok(Topology::built_in(self.name, &names))
            }
        }
    }

    /// Names come with the declarations, so the modules are declared with an empty configuration first; one that
    /// cannot be is reported when it is declared for good.
    fn module_names(&self) -> Vec<&'static str> {
        let config = |_: &str| toml::Table::new();
        let setup = Setup { module: &config };
        let declared = self.declare.iter().map(|declare| declare(&setup));
        declared.map(|module| module.map_or_else(|error| error.module, |module| module.name)).collect()
    }
}
