//! What is wrong with the declarations of the modules: names, contracts, needs, HTTP prefixes.

use modulith_core::ContractModel;
use modulith_core::compat::{Document, compare};
use modulith_gateway::{CALL, OPENAPI};

use crate::model::AppModel;
use crate::topology::{Problem, Topology};

/// The framework's own HTTP paths.
const PREFIXES_RESERVED: [&str; 5] = ["/admin", CALL, "/healthz", OPENAPI, "/readyz"];

pub(super) fn check(model: &AppModel, topology: &Topology, problems: &mut Vec<Problem>) {
    names(model, problems);
    served_twice(model, problems);
    needs(model, topology, problems);
    prefixes(model, problems);
}

fn declared(module: &str) -> String {
    format!("module {module}")
}

fn names(model: &AppModel, problems: &mut Vec<Problem>) {
    for (number, module) in model.modules.iter().enumerate() {
        let mut letters = module.name.chars();
        let well_formed = letters.next().is_some_and(|first| first.is_ascii_lowercase())
            && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit());
        if !well_formed {
            problems.push(Problem::in_code(
                declared(module.name),
                format!("`{}` cannot name a module, since it begins the names of its tables", module.name),
                "write lower-case letters and digits, a letter first, in `Module::new(..)`",
            ));
        }
        if model.modules[..number].iter().any(|other| other.name == module.name) {
            problems.push(Problem::in_code(
                declared(module.name),
                "two modules have this name",
                "rename one in its `Module::new(..)`, or list it once in `main`",
            ));
        }
    }
}

fn served_twice(model: &AppModel, problems: &mut Vec<Problem>) {
    let served: Vec<(&str, &str)> = (model.modules.iter())
        .flat_map(|module| module.contracts.iter().map(|contract| (contract.name, module.name)))
        .collect();
    for (number, (contract, module)) in served.iter().enumerate() {
        if let Some((_, first)) = served[..number].iter().find(|(other, _)| other == contract) {
            problems.push(Problem::in_code(
                declared(module),
                format!("contract `{contract}` is served by module `{first}` already"),
                "remove `.serves(..)` from one of them; a contract has one module",
            ));
        }
    }
}

fn needs(model: &AppModel, topology: &Topology, problems: &mut Vec<Problem>) {
    for module in &model.modules {
        for need in &module.needs {
            let Some(provider) = model.provider(need.name) else {
                if topology.external_of(need.name).is_some() || module.optional.contains(&need.name) {
                    continue;
                }
                problems.push(Problem::in_code(
                    declared(module.name),
                    format!("it needs contract `{}`, which no module serves", need.name),
                    format!(
                        "list the module that serves `{0}` in `main`, or name who serves it elsewhere with `[external.{0}]`, or \
                         remove the `.needs::<..>()` from `{1}`",
                        need.name, module.name
                    ),
                ));
                continue;
            };
            let served = provider.contracts.iter().find(|contract| contract.name == need.name);
            let Some(served) = served.filter(|served| served.fingerprint() != need.fingerprint()) else {
                continue;
            };
            for difference in differences(need, served) {
                problems.push(Problem::in_code(
                    declared(module.name),
                    format!(
                        "it was built against another contract `{}` than module `{}` serves: {difference}",
                        need.name, provider.name
                    ),
                    format!("let both depend on the same version of the crate of contract `{}`", need.name),
                ));
            }
        }
    }
}

/// What differs between two contracts of one name. They are of one build, whose modules exchange values of Rust, so
/// what services of two builds may differ in is a problem here as well.
fn differences(need: &ContractModel, served: &ContractModel) -> Vec<String> {
    let differences = compare(&Document::of(need), &Document::of(served));
    let mut lines: Vec<String> = (differences.iter())
        .map(|difference| match &*difference.place {
            "" => difference.what.clone(),
            place => format!("`{place}`: {}", difference.what),
        })
        .collect();
    if lines.is_empty() {
        lines
            .push("its methods stand in another order, or its types have other names or defaults".to_owned());
    }
    lines
}

fn prefixes(model: &AppModel, problems: &mut Vec<Problem>) {
    let claimed: Vec<(&str, &str)> = (model.modules.iter())
        .flat_map(|module| module.prefixes.iter().map(|prefix| (*prefix, module.name)))
        .collect();
    for (number, (prefix, module)) in claimed.iter().enumerate() {
        if !prefix.starts_with('/')
            || (*prefix != "/" && prefix.ends_with('/'))
            || prefix.contains(['{', '}', '*'])
        {
            problems.push(Problem::in_code(
                declared(module),
                format!("`{prefix}` is no HTTP prefix"),
                "write a path such as `/orders`, without a slash at its end and without parameters",
            ));
        }
        let reserved = PREFIXES_RESERVED.iter().find(|reserved| {
            prefix.strip_prefix(**reserved).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        });
        if let Some(reserved) = reserved {
            problems.push(Problem::in_code(
                declared(module),
                format!("HTTP prefix `{prefix}` is below `{reserved}`, which the framework answers"),
                "choose another prefix in `.routes(..)`",
            ));
        }
        let same = |other: &str| other.trim_end_matches('/') == prefix.trim_end_matches('/');
        if let Some((_, first)) = claimed[..number].iter().find(|(other, _)| same(other)) {
            problems.push(Problem::in_code(
                declared(module),
                format!("HTTP prefix `{prefix}` is claimed by module `{first}` already"),
                "choose another prefix in `.routes(..)` of one of them",
            ));
        }
    }
}
