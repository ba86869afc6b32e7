//! What is wrong with the services: their names, places, databases, and the modules they host.

use std::path::Path;

use modulith_core::{Kind, PlanModel};
use modulith_transport::Address;

use super::{listed, meant};
use crate::model::{AppModel, ModuleModel};
use crate::topology::{
    GATEWAY, Problem, ServiceSection, Topology, UNIX_PATH_BYTES_MAX, ip, is_loopback, split,
};

pub(super) fn check(topology: &Topology, problems: &mut Vec<Problem>) {
    if let Address::Unix(_) = topology.gateway.listen {
        let message = "the front door listens on a port, not on a Unix socket";
        problems.push(topology.problem("gateway.listen", message, "write `listen = \"127.0.0.1:8080\"`"));
    }
    telemetry(topology, problems);
    for (number, service) in topology.services.iter().enumerate() {
        unix_among(topology, service, problems);
        let before = &topology.services[..number];
        name(topology, service, problems);
        listen(topology, service, before, problems);
        database(topology, service, before, problems);
        replicas(topology, service, problems);
        let key = format!("service.{}.modules", service.name);
        // A list that could not be read has its own problem already.
        if service.modules.is_empty() && !problems.iter().any(|problem| problem.key == key) {
            problems.push(topology.problem(
                &key,
                format!("service `{}` hosts no module", service.name),
                format!("list its modules, or remove `[service.{}]`", service.name),
            ));
        }
    }
}

/// What each service says about itself at the handshake has to fit into it.
pub(super) fn check_hellos(model: &AppModel, topology: &Topology, problems: &mut Vec<Problem>) {
    if topology.is_monolith() {
        return;
    }
    for service in &topology.services {
        let hosted =
            || model.modules.iter().filter(|module| service.modules.iter().any(|name| name == module.name));
        let serves: Vec<_> = hosted().flat_map(|module| module.contracts.clone()).collect();
        let needs: Vec<_> = hosted().flat_map(|module| module.needs.clone()).collect();
        if let Err(fault) = crate::calls::about(&serves, &needs) {
            problems.push(topology.problem(
                &format!("service.{}.modules", service.name),
                format!("service `{}` cannot introduce itself: {}", service.name, fault.message),
                "host its modules in more services",
            ));
        }
    }
}

/// Metrics name contracts, peers and rates, and are shown there to whoever asks.
fn telemetry(topology: &Topology, problems: &mut Vec<Problem>) {
    let Some(listen) = &topology.telemetry.listen else {
        return;
    };
    let on_loopback = matches!(listen, Address::Tcp(host_port) if is_loopback(host_port));
    if !on_loopback {
        let message = format!("metrics are shown on loopback only, not on {listen}");
        let mend = "write `listen = \"127.0.0.1:9464\"`, or read `/admin/metrics` with the admin token";
        problems.push(topology.problem("telemetry.listen", message, mend));
    }
}

fn name(topology: &Topology, service: &ServiceSection, problems: &mut Vec<Problem>) {
    let key = format!("service.{}", service.name);
    if service.name == GATEWAY {
        let message = "`gateway` is the name of the front door's own process";
        problems.push(topology.problem(&key, message, "give the service another name"));
    }
    let mut letters = service.name.chars();
    let well_formed = letters.next().is_some_and(|first| first.is_ascii_lowercase())
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '-');
    if !well_formed {
        let message =
            format!("`{}` cannot name a service, since it also names files and hosts", service.name);
        problems.push(topology.problem(
            &key,
            message,
            "write lower-case letters, digits and dashes, a letter first",
        ));
    }
}

fn listen(
    topology: &Topology,
    service: &ServiceSection,
    before: &[ServiceSection],
    problems: &mut Vec<Problem>,
) {
    let key = format!("service.{}.listen", service.name);
    let socket = format!("write `listen = \"unix:run/{}.sock\"`", service.name);
    match &service.listen {
        Some(Address::Tcp(host_port)) => {
            let (_, port) = split(host_port);
            if port == "0" {
                let message = "port 0 is another port at each start, which the other services cannot know";
                problems.push(topology.problem(&key, message, &*socket));
            }
        }
        Some(Address::Unix(path)) if path.is_absolute() && path.as_os_str().len() > UNIX_PATH_BYTES_MAX => {
            let message =
                format!("the socket's path is longer than the {UNIX_PATH_BYTES_MAX} bytes that are safe");
            problems.push(topology.problem(&key, message, &*socket));
        }
        _ => {}
    }

    let place = listen_place(service);
    if let Some(other) = before.iter().find(|other| same_place(&listen_place(other), &place)) {
        let message = format!("services `{}` and `{}` both listen at {place}", other.name, service.name);
        problems.push(topology.problem(&key, message, "give each service an address of its own"));
    }
    if !topology.is_monolith() && same_place(&topology.gateway.listen, &place) {
        let message = format!("service `{}` and the gateway both listen at {place}", service.name);
        problems.push(topology.problem(&key, message, socket));
    }
}

/// The address before it is resolved against a data folder.
fn listen_place(service: &ServiceSection) -> Address {
    service.listen.clone().unwrap_or_else(|| Address::Unix(service.socket_file()))
}

fn same_place(a: &Address, b: &Address) -> bool {
    match (a, b) {
        // `Path` compares by components, so `run//a.sock` is `run/a.sock`.
        (Address::Unix(a), Address::Unix(b)) => a == b,
        (Address::Tcp(a), Address::Tcp(b)) => {
            let ((host_a, port_a), (host_b, port_b)) = (split(a), split(b));
            let every = |host: &str| ip(host).is_some_and(|ip| ip.is_unspecified());
            let same_host = host_a.eq_ignore_ascii_case(host_b)
                || every(host_a)
                || every(host_b)
                || (ip(host_a).is_some() && ip(host_a) == ip(host_b));
            port_a != "0" && port_a.parse::<u16>() == port_b.parse::<u16>() && same_host
        }
        _ => false,
    }
}

fn database(
    topology: &Topology,
    service: &ServiceSection,
    before: &[ServiceSection],
    problems: &mut Vec<Problem>,
) {
    let key = format!("service.{}.database", service.name);
    let file = service.database_file();
    if file.file_name().is_none() || service.database.as_deref().is_some_and(is_folder) {
        let mend = format!("write `database = \"{}.db\"`", service.name);
        problems.push(topology.problem(&key, "the path names a folder, not a file", mend));
    }
    if let Some(other) = before.iter().find(|other| other.database_file() == file) {
        problems.push(topology.problem(
            &key,
            format!(
                "services `{}` and `{}` share the database {}; one process owns a database",
                other.name,
                service.name,
                file.display()
            ),
            format!("write `database = \"{}.db\"`, or put the modules into one service", service.name),
        ));
    }
}

fn is_folder(path: &Path) -> bool {
    path.as_os_str().as_encoded_bytes().ends_with(b"/")
}

fn replicas(topology: &Topology, service: &ServiceSection, problems: &mut Vec<Problem>) {
    let key = format!("service.{}.replicas", service.name);
    match service.replicas {
        0 => {
            let mend = format!("write `replicas = 1`, or remove `[service.{}]`", service.name);
            problems.push(topology.problem(&key, "no replica would serve the modules", mend));
        }
        1 => {}
        replicas => problems.push(topology.problem(
            &key,
            format!("{replicas} replicas on SQLite: a file's writes belong to one process, the others would be refused"),
            "write `replicas = 1`",
        )),
    }
}

/// A Unix socket has no TLS, so callers who expect it would never connect there.
fn unix_among(topology: &Topology, service: &ServiceSection, problems: &mut Vec<Problem>) {
    let unix = service.addresses.iter().filter(|address| matches!(address, Address::Unix(_)));
    for address in unix.filter(|_| topology.is_over_tls(service)) {
        problems.push(topology.problem(
            &format!("service.{}.addresses", service.name),
            format!("{address} is a Unix socket, and service `{}` is reached over mutual TLS", service.name),
            "write ports only, `HOST:PORT`",
        ));
    }
}

/// Several processes for one service each have a database of their own, so what a module stores would be split among
/// them.
pub(super) fn check_addresses(model: &AppModel, topology: &Topology, problems: &mut Vec<Problem>) {
    for service in topology.services.iter().filter(|service| service.addresses.len() > 1) {
        for (module, stores) in stored_by(model, service) {
            problems.push(topology.problem(
                &format!("service.{}.addresses", service.name),
                format!(
                    "module `{}` has {stores}, and {} processes would each store their own",
                    module.name,
                    service.addresses.len()
                ),
                "write one address, or move the module to a service that has one",
            ));
        }
    }
}

/// The modules of a service that store something, each with a word for it.
pub(crate) fn stored_by<'a>(
    model: &'a AppModel,
    service: &'a ServiceSection,
) -> impl Iterator<Item = (&'a ModuleModel, String)> {
    service.modules.iter().filter_map(|name| {
        let module = model.modules.iter().find(|module| module.name == name)?;
        Some((module, what_it_stores(model, module)?))
    })
}

fn what_it_stores(model: &AppModel, module: &ModuleModel) -> Option<String> {
    if module.has_tables {
        return Some("tables".to_owned());
    }
    let methods = module.contracts.iter().flat_map(|contract| &contract.methods);
    if let Some(command) = methods.into_iter().find(|method| method.kind == Kind::Command) {
        return Some(format!("the command `{}`", command.name));
    }
    let serves = |contract: &str| module.contracts.iter().any(|served| served.name == contract);
    // A step's answer is stored under its key, also that of an effect.
    let is_step = |plan: &&PlanModel| plan.steps.iter().any(|step| serves(step.contract));
    let plan =
        module.plans.first().or_else(|| model.modules.iter().flat_map(|module| &module.plans).find(is_step));
    plan.map(|plan| format!("a part in the saga `{}`", plan.name))
}

/// Every module of the application in exactly one service, and no other.
pub(super) fn check_modules(model: &AppModel, topology: &Topology, problems: &mut Vec<Problem>) {
    let known: Vec<&str> = model.modules.iter().map(|module| module.name).collect();
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for service in &topology.services {
        for (number, module) in service.modules.iter().enumerate() {
            let place = format!("service.{}.modules[{number}]", service.name);
            if !known.contains(&module.as_str()) {
                let message = format!("module `{module}` does not exist");
                problems.push(topology.problem(&place, message, meant(module, known.iter().copied())));
            } else if let Some((_, first)) = seen.iter().find(|(other, _)| other == module) {
                let message = format!("module `{module}` is in service `{first}` already");
                problems.push(topology.problem(&place, message, "remove it here or there"));
            }
            seen.push((module, &service.name));
        }
    }

    if topology.services.is_empty() {
        let message = "the topology has no service";
        let modules = known.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
        let mend = format!("write `[service.{}]` and below it `modules = [{modules}]`", model.name);
        problems.push(topology.problem("service", message, mend));
    } else {
        for module in known.iter().filter(|known| !seen.iter().any(|(module, _)| module == *known)) {
            problems.push(topology.problem(
                "service",
                format!("module `{module}` is in no service"),
                format!("add \"{module}\" to the `modules` of a service, or `[service.{module}]`"),
            ));
        }
    }
    for name in topology.modules.keys().filter(|name| !known.contains(&name.as_str())) {
        let message = format!("module `{name}` does not exist (modules: {})", listed(known.iter().copied()));
        let mend = match crate::topology::nearest(name, known.iter().copied()) {
            Some(meant) => format!("did you mean `[module.{meant}]`?"),
            None => "remove the section".to_owned(),
        };
        problems.push(topology.problem(&format!("module.{name}"), message, mend));
    }
}
