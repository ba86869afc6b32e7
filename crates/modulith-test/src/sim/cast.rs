//! Who plays: modules with their plans, where they stand, and which sagas are begun.

use std::collections::BTreeMap;
use std::sync::Arc;

use modulith_core::{AnyBox, PlanModel, Served};
use modulith_data::sqlite::{InMemory, OpenError};
use modulith_data::{Migration, ModuleCode};

/// The modules and plans of a simulation.
#[derive(Default)]
pub struct Cast {
    players: Vec<Player>,
    pub(super) plans: BTreeMap<&'static str, Arc<PlanModel>>,
}

struct Player {
    name: &'static str,
    code: Arc<ModuleCode>,
    migrations: &'static [Migration],
    begins: BTreeMap<&'static str, Arc<PlanModel>>,
}

/// Which service each module stands in, by the order of [`Cast::module`]. Services are numbered from zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement(pub Vec<usize>);

impl Placement {
    pub(super) fn services(&self) -> usize {
        self.0.iter().max().map_or(0, |last| last + 1)
    }
}

/// A saga to begin: its plan, and its input for the caller of a number.
pub struct Start {
    pub(super) module: &'static str,
    pub(super) plan: &'static str,
    pub(super) input: Box<dyn Fn(i64) -> AnyBox + Send + Sync>,
}

impl Start {
    /// `input` makes the input from the caller's number, so that what each caller's saga did can be told apart.
    pub fn new<S: modulith_core::Saga>(
        module: &'static str,
        input: impl Fn(i64) -> S + Send + Sync + 'static,
    ) -> Self {
        Self { module, plan: S::NAME, input: Box::new(move |caller| Box::new(input(caller))) }
    }
}

impl Cast {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a module, with the plans that it begins. An effect's code is called as it is: it must come to its end
    /// without waiting for a socket or a clock, so a module that reaches a provider is played by a stand-in that
    /// serves the same contract.
    pub fn module(
        mut self,
        name: &'static str,
        migrations: &'static [Migration],
        serves: Vec<Served>,
        begins: Vec<PlanModel>,
    ) -> Self {
        let begins: BTreeMap<_, _> = begins.into_iter().map(|plan| (plan.name, Arc::new(plan))).collect();
        self.plans.extend(begins.clone());
        self.players.push(Player { name, code: Arc::new(ModuleCode::new(name, serves)), migrations, begins });
        self
    }

    /// All modules together.
    pub fn together(&self) -> Placement {
        Placement(vec![0; self.players.len()])
    }

    /// Each module alone.
    pub fn apart(&self) -> Placement {
        Placement((0..self.players.len()).collect())
    }

    /// One database a module, each with the tables of all, so that every placement finds a place.
    pub(super) fn databases(&self) -> Result<Vec<InMemory>, OpenError> {
        let modules: Vec<_> =
            self.players.iter().map(|player| (Arc::from(player.name), player.migrations)).collect();
        self.players.iter().map(|_| InMemory::open(&modules)).collect()
    }

    fn at<'c>(&'c self, placement: &'c Placement, service: usize) -> impl Iterator<Item = &'c Player> {
        self.players
            .iter()
            .zip(&placement.0)
            .filter(move |(_, place)| **place == service)
            .map(|(player, _)| player)
    }

    pub(super) fn codes_at(&self, placement: &Placement, service: usize) -> Vec<Arc<ModuleCode>> {
        self.at(placement, service).map(|player| player.code.clone()).collect()
    }

    pub(super) fn names_at(&self, placement: &Placement, service: usize) -> Vec<&'static str> {
        self.at(placement, service).map(|player| player.name).collect()
    }

    pub(super) fn begins_at(
        &self,
        placement: &Placement,
        service: usize,
    ) -> Vec<(&'static str, BTreeMap<&'static str, Arc<PlanModel>>)> {
        let begins = self.at(placement, service).filter(|player| !player.begins.is_empty());
        begins.map(|player| (player.name, player.begins.clone())).collect()
    }

    /// By contract: the service of the module that serves it.
    pub(super) fn places(&self, placement: &Placement) -> BTreeMap<&'static str, usize> {
        let of = |(player, place): (&Player, &usize)| {
            let place = *place;
            let contracts: Vec<_> =
                player.code.contracts.iter().map(|served| (served.contract.name, place)).collect();
            contracts
        };
        self.players.iter().zip(&placement.0).flat_map(of).collect()
    }

    pub(super) fn service_of(&self, placement: &Placement, module: &str) -> usize {
        let position = self.players.iter().position(|player| player.name == module);
        placement.0[position.unwrap_or_else(|| panic!("no module `{module}` plays"))]
    }

    pub(super) fn move_data(&self, databases: &[InMemory], from: &Placement, to: &Placement) {
        for (player, (from, to)) in self.players.iter().zip(from.0.iter().zip(&to.0)) {
            if from != to {
                databases[*to]
                    .take_module(&databases[*from], player.name)
                    .unwrap_or_else(|error| panic!("moving `{}`: {error}", player.name));
            }
        }
    }
}
