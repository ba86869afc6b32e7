//! The static model of an application: what every product (checks, routes, diagrams, files) is made from.

use modulith_core::{ContractModel, PlanModel, PlanProblem};

use crate::module::Module;

/// An application's modules with everything that they declared.
pub struct AppModel {
    pub name: &'static str,
    pub modules: Vec<ModuleModel>,
}

/// One module's declarations.
pub struct ModuleModel {
    pub name: &'static str,
    /// The contracts it serves.
    pub contracts: Vec<ContractModel>,
    /// The contracts it calls.
    pub needs: Vec<ContractModel>,
    /// The names of those that it does without where nobody serves them.
    pub optional: Vec<&'static str>,
    pub plans: Vec<PlanModel>,
    /// Plans that cannot be used, by name.
    pub plan_problems: Vec<(&'static str, Vec<PlanProblem>)>,
    /// The HTTP paths it answers.
    pub prefixes: &'static [&'static str],
    /// It has migrations, and so data of its own.
    pub has_tables: bool,
}

impl AppModel {
    pub(crate) fn of(name: &'static str, modules: &[Module]) -> Self {
        Self { name, modules: modules.iter().map(ModuleModel::of).collect() }
    }

    /// The module that serves a contract.
    pub fn provider(&self, contract: &str) -> Option<&ModuleModel> {
        self.modules.iter().find(|module| module.contracts.iter().any(|served| served.name == contract))
    }
}

impl ModuleModel {
    fn of(module: &Module) -> Self {
        let mut plans = Vec::new();
        let mut plan_problems = Vec::new();
        for entry in &module.plans {
            match &entry.plan {
                Ok(plan) => plans.push(plan.clone()),
                Err(problems) => plan_problems.push((entry.name, problems.clone())),
            }
        }
        Self {
            name: module.name,
            contracts: module.serves.iter().map(|served| served.contract.clone()).collect(),
            needs: module.needs.clone(),
            optional: module.optional.clone(),
            plans,
            plan_problems,
            prefixes: module.prefixes,
            has_tables: !module.migrations.is_empty(),
        }
    }
}
