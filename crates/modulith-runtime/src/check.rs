//! Everything that is wrong with an application and its topology, at once and before anything starts.
//!
//! Static: looks at declarations and at the topology file, never at a port, a socket or a database.

mod code;
pub(crate) mod lock;
mod outside;
mod plans;
mod services;
mod trust;

use crate::model::AppModel;
use crate::topology::{Problem, Topology};

pub(crate) use services::stored_by;
pub(crate) use trust::missing as missing_certificates;

/// Lists every problem: first the topology file's, in the order of its lines, then those of the application's
/// code. Nothing may be started while the list is not empty.
pub(crate) fn check(model: &AppModel, topology: &Topology) -> Vec<Problem> {
    let mut problems = topology.problems.clone();
    services::check(topology, &mut problems);
    services::check_modules(model, topology, &mut problems);
    services::check_addresses(model, topology, &mut problems);
    outside::check(model, topology, &mut problems);
    problems.sort_by_key(|problem| problem.line);
    code::check(model, topology, &mut problems);
    services::check_hellos(model, topology, &mut problems);
    plans::check(model, &mut problems);
    problems
}

/// "`a`, `b`, `c`", or "none" where there is nothing.
fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// "did you mean `cart`?", or what else there is.
fn meant<'a>(name: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    match crate::topology::nearest(name, known.clone()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("known: {}", listed(known)),
    }
}

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;
