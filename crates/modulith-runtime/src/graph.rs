//! Pictures of an application in a topology: as Mermaid, as JSON, and the table that is printed at start.
//!
//! Everything comes from the static model; nothing has to run.

mod mermaid;
mod runs;

use modulith_core::{ContractModel, Kind, PlanModel, StepModel, UndoModel};
use serde_json::{Value, json};

use crate::model::{AppModel, ModuleModel};
use crate::topology::Topology;

pub(crate) use mermaid::mermaid;
use runs::runs;

/// The service that hosts what serves a contract.
fn service_of<'t>(model: &AppModel, topology: &'t Topology, contract: &str) -> Option<&'t str> {
    let module = model.provider(contract)?;
    topology.service_of(module.name).map(|service| service.name.as_str())
}

/// Where a need of a module resolves: `local`, or the name of a service.
fn resolved(model: &AppModel, topology: &Topology, module: &ModuleModel, need: &ContractModel) -> String {
    let own = topology.service_of(module.name).map(|service| service.name.as_str());
    match service_of(model, topology, need.name) {
        None => match topology.external_of(need.name) {
            Some(external) => format!("external {}", external.name),
            None if module.optional.contains(&need.name) => "absent".to_owned(),
            None => "nowhere".to_owned(),
        },
        service if service == own => "local".to_owned(),
        Some(service) => service.to_owned(),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Query => "query",
        Kind::Command => "command",
        Kind::Effect => "effect",
    }
}

/// Modules, contracts, needs, services, HTTP prefixes, sagas and their runs, and events, as data.
pub(crate) fn json(model: &AppModel, topology: &Topology) -> Value {
    json!({
        "application": model.name,
        "topology": topology.file.as_ref().map(|file| file.display().to_string()),
        "services": topology.services.iter().map(|service| json!({
            "name": service.name,
            "modules": service.modules,
            "database": service.database_file(),
            "replicas": service.replicas,
        })).collect::<Vec<_>>(),
        "externals": topology.externals.iter().map(|external| json!({
            "name": external.name,
            "url": external.url,
            "contracts": external.contracts,
        })).collect::<Vec<_>>(),
        "modules": model.modules.iter().map(|module| json!({
            "name": module.name,
            "service": topology.service_of(module.name).map(|service| &service.name),
            "serves": module.contracts.iter().map(|contract| contract.name).collect::<Vec<_>>(),
            "needs": module.needs.iter().map(|need| json!({
                "contract": need.name,
                "module": model.provider(need.name).map(|module| module.name),
                "resolves": resolved(model, topology, module, need),
            })).collect::<Vec<_>>(),
            "prefixes": module.prefixes,
            "sagas": module.plans.iter().map(|plan| plan.name).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "contracts": model.modules.iter().flat_map(|module| {
            module.contracts.iter().map(|contract| json!({
                "name": contract.name,
                "version": contract.version,
                "module": module.name,
                "fingerprint": contract.fingerprint(),
                "methods": contract.methods.iter().map(|method| json!({
                    "name": method.name,
                    "kind": kind(method.kind),
                })).collect::<Vec<_>>(),
            }))
        }).collect::<Vec<_>>(),
        "sagas": model.modules.iter().flat_map(|module| {
            module.plans.iter().map(|plan| saga(model, topology, module, plan))
        }).collect::<Vec<_>>(),
        // Modules cannot declare events yet.
        "events": [],
    })
}

fn saga(model: &AppModel, topology: &Topology, module: &ModuleModel, plan: &PlanModel) -> Value {
    let runs = runs(model, topology, plan);
    let names = |steps: &[StepModel]| steps.iter().map(|step| step.name).collect::<Vec<_>>();
    json!({
        "name": plan.name,
        "version": plan.version,
        "module": module.name,
        "fingerprint": format!("{:016x}", plan.fingerprint),
        "pivot": plan.steps[plan.pivot].name,
        "steps": plan.steps.iter().map(|step| json!({
            "name": step.name,
            "contract": step.contract,
            "method": step.method,
            "kind": step.kind,
            "needs": step.needs.iter().map(|need| plan.steps[*need].name).collect::<Vec<_>>(),
            "undo": match step.undo {
                UndoModel::ByAnswer { contract, method } | UndoModel::ByKey { contract, method } => {
                    Value::from(format!("{contract}.{method}"))
                }
                UndoModel::None | UndoModel::Forgotten => Value::Null,
            },
        })).collect::<Vec<_>>(),
        "runs": runs.iter().map(|run| json!({
            "service": run.service,
            "kind": run.kind.word(),
            "steps": names(&plan.steps[run.steps.clone()]),
        })).collect::<Vec<_>>(),
        "cuts": runs.windows(2).map(|pair| json!({
            "after": plan.steps[pair[0].steps.end - 1].name,
            "before": plan.steps[pair[1].steps.start].name,
            "because": pair[0].cut_from(&pair[1]),
        })).collect::<Vec<_>>(),
    })
}

/// What is printed at start: each module, its service, what it serves, and where each need resolves.
pub(crate) fn table(model: &AppModel, topology: &Topology) -> String {
    let mut rows = vec![["MODULE", "SERVICE", "SERVES", "NEEDS"].map(str::to_owned)];
    for module in &model.modules {
        let needs = module
            .needs
            .iter()
            .map(|need| format!("{} -> {}", need.name, resolved(model, topology, module, need)));
        rows.push([
            module.name.to_owned(),
            topology
                .service_of(module.name)
                .map_or_else(|| "nowhere".to_owned(), |service| service.name.clone()),
            module.contracts.iter().map(|contract| contract.name).collect::<Vec<_>>().join(", "),
            needs.collect::<Vec<_>>().join(", "),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let lines = rows.iter().map(|[module, service, serves, needs]| {
        let line =
            format!("{module:0$}  {service:1$}  {serves:2$}  {needs}", widths[0], widths[1], widths[2]);
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

#[cfg(test)]
mod tests;
