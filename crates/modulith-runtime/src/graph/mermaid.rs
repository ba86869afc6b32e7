//! The picture as Mermaid: services with their modules and contracts, needs, and each saga with its runs.

use std::fmt::Write;

use modulith_core::{ContractModel, PlanModel};

use super::runs::{Run, RunKind, runs};
use super::{kind, resolved};
use crate::model::{AppModel, ModuleModel};
use crate::topology::Topology;

/// A flowchart. Dotted needs cross a process; a saga's boxes are its transactions.
pub(crate) fn mermaid(model: &AppModel, topology: &Topology) -> String {
    let mut text = String::from("flowchart LR\n");
    for service in &topology.services {
        let database = service.database_file();
        let label = format!("service {} · {}", service.name, database.display());
        line(&mut text, 1, &format!("subgraph {}[\"{label}\"]", id("service", &service.name)));
        for module in
            model.modules.iter().filter(|module| service.modules.iter().any(|name| name == module.name))
        {
            module_lines(&mut text, module);
        }
        line(&mut text, 1, "end");
    }
    for external in &topology.externals {
        let label = format!("external {}<br/>{}", external.name, external.contracts.join("<br/>"));
        let node = id("external", &external.name);
        line(&mut text, 1, &format!("{node}[/{}/]", quoted(&label)));
        for contract in &external.contracts {
            line(&mut text, 1, &format!("{node} --- {}", id("contract", contract)));
        }
    }
    for module in &model.modules {
        for contract in &module.contracts {
            let serves = format!("{} --- {}", id("module", module.name), id("contract", contract.name));
            line(&mut text, 1, &serves);
        }
        for need in &module.needs {
            let arrow = if resolved(model, topology, module, need) == "local" { "-->" } else { "-.->" };
            let needs = format!("{} {arrow} {}", id("module", module.name), id("contract", need.name));
            line(&mut text, 1, &needs);
        }
    }
    if !topology.is_monolith() {
        line(&mut text, 1, "gateway{{\"gateway\"}}");
        for module in &model.modules {
            for prefix in module.prefixes {
                line(&mut text, 1, &format!("gateway -->|{}| {}", quoted(prefix), id("module", module.name)));
            }
        }
    }
    for plan in model.modules.iter().flat_map(|module| &module.plans) {
        saga_lines(&mut text, plan, &runs(model, topology, plan));
    }
    text
}

fn module_lines(text: &mut String, module: &ModuleModel) {
    let prefixes = module.prefixes.join("<br/>");
    let label =
        if prefixes.is_empty() { module.name.to_owned() } else { format!("{}<br/>{prefixes}", module.name) };
    line(text, 2, &format!("{}[{}]", id("module", module.name), quoted(&label)));
    for contract in &module.contracts {
        line(text, 2, &format!("{}([{}])", id("contract", contract.name), quoted(&contract_label(contract))));
    }
}

fn contract_label(contract: &ContractModel) -> String {
    let mut label = format!("{} v{} · {}", contract.name, contract.version, contract.fingerprint());
    for method in &contract.methods {
        let _ = write!(label, "<br/>{} {}", kind(method.kind), method.name);
    }
    label
}

fn saga_lines(text: &mut String, plan: &PlanModel, runs: &[Run<'_>]) {
    let saga = id("saga", plan.name);
    line(text, 1, &format!("subgraph {saga}[\"saga {} v{}\"]", plan.name, plan.version));
    line(text, 2, "direction LR");
    let node = |step: usize| format!("{saga}_{step}");
    for (number, run) in runs.iter().enumerate() {
        let what = match run.kind {
            RunKind::Transaction => "one transaction",
            RunKind::Effect => "effect",
        };
        let label = format!("{what} · {}", run.service.unwrap_or("nowhere"));
        line(text, 2, &format!("subgraph {saga}_run{number}[{}]", quoted(&label)));
        for step in run.steps.clone() {
            let model = &plan.steps[step];
            let pivot = if step == plan.pivot { "<br/>pivot" } else { "" };
            let label = format!("{}<br/>{}.{}{pivot}", model.name, model.contract, model.method);
            line(text, 3, &format!("{}[{}]", node(step), quoted(&label)));
        }
        line(text, 2, "end");
    }
    let order: Vec<String> = (0..plan.steps.len()).map(node).collect();
    if order.len() > 1 {
        line(text, 2, &order.join(" --> "));
    }
    line(text, 1, "end");
}

fn line(text: &mut String, depth: usize, content: &str) {
    let _ = writeln!(text, "{:1$}{content}", "", depth * 2);
}

/// With its kind in front: two things may have one name, and a bare `end` would end a subgraph.
fn id(kind: &str, name: &str) -> String {
    let name: String =
        name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
    format!("{kind}_{name}")
}

fn quoted(label: &str) -> String {
    format!("\"{}\"", label.replace('"', "#quot;"))
}
