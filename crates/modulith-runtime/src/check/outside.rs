//! What is wrong with what the topology says of programs that are none of ours.

use modulith_core::{ContractModel, Kind};

use super::{listed, meant};
use crate::model::AppModel;
use crate::topology::{CallerSection, ExternalSection, Problem, Topology, is_loopback};

pub(super) fn check(model: &AppModel, topology: &Topology, problems: &mut Vec<Problem>) {
    exposed(model, topology, problems);
    for caller in &topology.callers {
        self::caller(model, topology, caller, problems);
    }
    for (number, external) in topology.externals.iter().enumerate() {
        let before = &topology.externals[..number];
        another(topology, external, problems);
        url(topology, external, problems);
        contracts(model, topology, external, before, problems);
    }
}

fn exposed(model: &AppModel, topology: &Topology, problems: &mut Vec<Problem>) {
    let served: Vec<&str> =
        model.modules.iter().flat_map(|module| &module.contracts).map(|contract| contract.name).collect();
    for (number, contract) in topology.exposed.iter().enumerate() {
        if !served.contains(&&**contract) {
            let place = format!("expose.contracts[{number}]");
            let message = format!("no module serves contract `{contract}`");
            problems.push(topology.problem(&place, message, meant(contract, served.iter().copied())));
        }
    }
}

fn caller(model: &AppModel, topology: &Topology, caller: &CallerSection, problems: &mut Vec<Problem>) {
    let key = format!("caller.{}", caller.name);
    named(topology, &key, &caller.name, problems);
    if caller.contracts.is_empty() {
        let message = format!("`{}` may call nothing", caller.name);
        let mend = format!("list what it calls: `contracts = [..]`; exposed: {}", exposed_names(topology));
        problems.push(topology.problem(&format!("{key}.contracts"), message, mend));
    }
    for (number, allowed) in caller.contracts.iter().enumerate() {
        let place = format!("{key}.contracts[{number}]");
        let (contract, method) = match allowed.split_once('.') {
            Some((contract, method)) => (contract, Some(method)),
            None => (&**allowed, None),
        };
        if !topology.exposed.iter().any(|exposed| exposed == contract) {
            problems.push(topology.problem(
                &place,
                format!("contract `{contract}` is not exposed"),
                format!("add it to `contracts` of `[expose]`; there now: {}", exposed_names(topology)),
            ));
        } else if let (Some(method), Some(module)) = (method, model.provider(contract)) {
            let methods = module.contracts.iter().filter(|served| served.name == contract);
            let methods: Vec<&str> =
                methods.flat_map(|served| &served.methods).map(|method| method.name).collect();
            if !methods.contains(&method) {
                let message = format!("contract `{contract}` has no method `{method}`");
                problems.push(topology.problem(&place, message, meant(method, methods.iter().copied())));
            }
        }
    }
}

fn exposed_names(topology: &Topology) -> String {
    listed(topology.exposed.iter().map(String::as_str))
}

/// Names files and shows in logs.
fn named(topology: &Topology, key: &str, name: &str, problems: &mut Vec<Problem>) {
    let mut letters = name.chars();
    let well_formed = letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-');
    if !well_formed {
        let mend = "write lower-case letters, digits and dashes, a letter first";
        problems.push(topology.problem(key, format!("`{name}` cannot name a program"), mend));
    }
}

/// Metrics tell both by their names alone.
fn another(topology: &Topology, external: &ExternalSection, problems: &mut Vec<Problem>) {
    if topology.service(&external.name).is_some() {
        let message = format!("`{}` is the name of a service of this topology", external.name);
        let key = format!("external.{}", external.name);
        problems.push(topology.problem(&key, message, "give the program another name"));
    }
}

fn url(topology: &Topology, external: &ExternalSection, problems: &mut Vec<Problem>) {
    let section = format!("external.{}", external.name);
    named(topology, &section, &external.name, problems);
    let key = format!("{section}.url");
    match (external.place(), external.host()) {
        // What is no text has its own problem already.
        _ if problems.iter().any(|problem| problem.key == key) => {}
        (Err(why), _) => {
            let message = format!("`{}`: {why}", external.url);
            problems.push(topology.problem(&key, message, "write `url = \"http://127.0.0.1:9400\"`"));
        }
        (Ok(_), Some(host)) if !external.unencrypted && !is_loopback(&format!("{host}:80")) => problems.push(topology.problem(
            &key,
            format!("requests to {host} would leave this host in the clear, and the token with them"),
            "put a proxy that speaks TLS on loopback, or write `unencrypted = true` where the network is trusted",
        )),
        (Ok(_), _) => {}
    }
}

fn contracts(
    model: &AppModel,
    topology: &Topology,
    external: &ExternalSection,
    before: &[ExternalSection],
    problems: &mut Vec<Problem>,
) {
    let key = format!("external.{}.contracts", external.name);
    let needed: Vec<&ContractModel> = model.modules.iter().flat_map(|module| &module.needs).collect();
    if external.contracts.is_empty() && !problems.iter().any(|problem| problem.key == key) {
        let message = format!("`{}` serves nothing", external.name);
        problems.push(topology.problem(&key, message, "list what it serves: `contracts = [..]`"));
    }
    for (number, name) in external.contracts.iter().enumerate() {
        let mut problem = |message: String, mend: String| {
            problems.push(topology.problem(&format!("{key}[{number}]"), message, mend));
        };
        if let Some(module) = model.provider(name) {
            problem(
                format!("contract `{name}` is served by module `{}` already", module.name),
                "remove it here; a contract is served in one place".to_owned(),
            );
            continue;
        }
        if let Some(other) = before.iter().find(|other| other.contracts.contains(name)) {
            problem(
                format!("contract `{name}` is served by external service `{}` already", other.name),
                "remove it here or there".to_owned(),
            );
        }
        let Some(contract) = needed.iter().find(|need| need.name == name) else {
            let known = needed.iter().map(|need| need.name).filter(|need| model.provider(need).is_none());
            problem(
                format!("no module needs contract `{name}`"),
                meant(name, known.collect::<Vec<_>>().iter().copied()),
            );
            continue;
        };
        for command in contract.methods.iter().filter(|method| method.kind == Kind::Command) {
            problem(
                format!(
                    "`{name}.{}` is a command, and an external service has no inbox that would run it once",
                    command.name
                ),
                "an external service serves queries and effects: put the command into a module".to_owned(),
            );
        }
        for plan in model.modules.iter().flat_map(|module| &module.plans) {
            if let Some(step) = plan.steps.iter().find(|step| step.contract == name) {
                problem(
                    format!(
                        "saga {}, step `{}` asks it, and no saga can ask an external service",
                        plan.name, step.name
                    ),
                    "put an effect into a module and let that ask it".to_owned(),
                );
            }
        }
    }
}
