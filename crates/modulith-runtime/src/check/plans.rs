//! What is wrong with the sagas: their plans, and whether their steps can be asked.

use modulith_core::{ContractModel, Kind, PlanModel, PlanProblem, StepKind, StepModel, UndoModel};

use super::meant;
use crate::model::{AppModel, ModuleModel};
use crate::topology::Problem;

pub(super) fn check(model: &AppModel, problems: &mut Vec<Problem>) {
    for module in &model.modules {
        for (name, found) in &module.plan_problems {
            problems.extend(found.iter().map(|problem| plan_problem(name, problem)));
        }
        for plan in &module.plans {
            for step in &plan.steps {
                Place { model, module, plan, step }.check(problems);
            }
        }
    }
    let sagas: Vec<(&str, &str)> = (model.modules.iter())
        .flat_map(|module| {
            let unusable = module.plan_problems.iter().map(|(name, _)| *name);
            module.plans.iter().map(|plan| plan.name).chain(unusable).map(|name| (name, module.name))
        })
        .collect();
    for (number, (name, module)) in sagas.iter().enumerate() {
        if let Some((_, first)) = sagas[..number].iter().find(|(other, _)| other == name) {
            problems.push(Problem::in_code(
                format!("saga {name}"),
                format!("modules `{first}` and `{module}` both declare it"),
                "rename one; a saga's name is stored and must differ from the others",
            ));
        }
    }
}

/// A plan problem's text is "message; mend", except for a forgotten undo, whose message is its mend.
fn plan_problem(saga: &str, problem: &PlanProblem) -> Problem {
    let text = problem.to_string();
    let (message, mend) = text.split_once("; ").unwrap_or((&text, "write one of them behind the step"));
    Problem::in_code(format!("saga {saga}"), message, mend)
}

/// A step where it stands.
struct Place<'a> {
    model: &'a AppModel,
    module: &'a ModuleModel,
    plan: &'a PlanModel,
    step: &'a StepModel,
}

impl Place<'_> {
    fn check(&self, problems: &mut Vec<Problem>) {
        let step = self.step;
        let kind = match step.kind {
            StepKind::Command => Kind::Command,
            StepKind::Effect => Kind::Effect,
        };
        self.method("it asks", step.contract, step.method, kind, problems);
        match step.undo {
            UndoModel::ByAnswer { contract, method } => self.undo(contract, method, Kind::Command, problems),
            UndoModel::ByKey { contract, method } => self.undo(contract, method, Kind::Effect, problems),
            UndoModel::None | UndoModel::Forgotten => {}
        }
    }

    fn undo(&self, contract: &str, method: &str, kind: Kind, problems: &mut Vec<Problem>) {
        let module = |contract| self.model.provider(contract).map(|module| module.name);
        if let (Some(step), Some(undo)) = (module(self.step.contract), module(contract))
            && step != undo
        {
            problems.push(self.problem(
                format!(
                    "it runs in module `{step}`, but its undo `{contract}.{method}` in module `{undo}`; only the module \
                     that ran a step knows what there is to undo"
                ),
                format!("undo it by a method of a contract of module `{step}`"),
            ));
        }
        // A step's own contract was looked for already.
        if contract != self.step.contract || self.declared(contract).is_some() {
            self.method("its undo is", contract, method, kind, problems);
        }
    }

    fn method(&self, what: &str, contract: &str, method: &str, kind: Kind, problems: &mut Vec<Problem>) {
        let Some(declared) = self.declared(contract) else {
            problems.push(self.problem(
                format!(
                    "{what} `{contract}.{method}`, but module `{}` neither needs nor serves contract `{contract}`",
                    self.module.name
                ),
                format!("add `.needs::<..>()` with the client of `{contract}` to module `{}`", self.module.name),
            ));
            return;
        };
        match declared.methods.iter().find(|found| found.name == method) {
            None => problems.push(self.problem(
                format!("{what} `{contract}.{method}`, but contract `{contract}` has no such method"),
                meant(method, declared.methods.iter().map(|method| method.name)),
            )),
            Some(found) if found.kind != kind => problems.push(self.problem(
                format!(
                    "{what} the {} `{contract}.{method}`, which the contract declares as a {}",
                    word(kind),
                    word(found.kind)
                ),
                "let the plan and the module depend on the same version of the contract's crate",
            )),
            Some(_) => {}
        }
    }

    /// The contract as the plan's module knows it.
    fn declared(&self, contract: &str) -> Option<&ContractModel> {
        self.module.contracts.iter().chain(&self.module.needs).find(|known| known.name == contract)
    }

    fn problem(&self, message: String, mend: impl Into<String>) -> Problem {
        Problem::in_code(format!("saga {}, step `{}`", self.plan.name, self.step.name), message, mend)
    }
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Query => "query",
        Kind::Command => "command",
        Kind::Effect => "effect",
    }
}
