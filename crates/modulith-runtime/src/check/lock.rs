//! `contracts.lock`: the contracts of the build that is out there, and what this build changes about them.
//!
//! A rolling release runs both builds at once, so both directions are compared: callers of the earlier build against
//! this build's modules, and this build's callers against modules of the earlier one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use modulith_core::compat::{Difference, Document, Part, Weight, compare};
use serde::{Deserialize, Serialize};

use super::listed;
use crate::model::AppModel;
use crate::topology::Problem;

/// The layout of the file. A later one that older builds cannot read has another number.
const FORMAT: u32 = 1;

/// The file: JSON with sorted keys, so that a change of a contract is a change of its lines.
#[derive(Serialize, Deserialize)]
struct Lock {
    format: u32,
    contracts: BTreeMap<String, Document>,
}

/// What a build changes about the contracts of a lock.
pub(crate) struct Changes {
    /// What services of both builds understand, or name when they meet it: a line each.
    pub(crate) safe: Vec<String>,
    pub(crate) problems: Vec<Problem>,
}

fn contracts(model: &AppModel) -> BTreeMap<String, Document> {
    let served = model.modules.iter().flat_map(|module| &module.contracts);
    served.map(|contract| (contract.name.to_owned(), Document::of(contract))).collect()
}

/// Writes the contracts that the application serves. The same contracts give the same bytes.
pub(crate) fn write(model: &AppModel, file: &Path) -> Result<(), Problem> {
    let lock = Lock { format: FORMAT, contracts: contracts(model) };
    let text = serde_json::to_string_pretty(&lock).expect("a model of strings and JSON is JSON") + "\n";
    fs::write(file, text)
        .map_err(|error| of_file(file, format!("cannot be written: {error}"), "choose another path"))
}

/// Compares the contracts that the application serves with those of the file.
pub(crate) fn against(model: &AppModel, file: &Path) -> Result<Changes, Problem> {
    const MEND: &str = "write it again with `check --write-lock`, from the build that is released";
    let text = fs::read_to_string(file).map_err(|error| {
        of_file(file, format!("cannot be read: {error}"), "write it with `check --write-lock`")
    })?;
    let lock: Lock = serde_json::from_str(&text).map_err(|error| {
        let line = Some(error.line()).filter(|line| *line > 0);
        Problem { line, ..of_file(file, format!("is no file of contracts: {error}"), MEND) }
    })?;
    if lock.format != FORMAT {
        let message = format!("has format {}, and this build knows {FORMAT}", lock.format);
        return Err(of_file(file, message, MEND));
    }
    let present = contracts(model);
    let mut changes = Changes { safe: Vec::new(), problems: Vec::new() };
    let problem = |contract: &str, message: String, mend: String| Problem {
        file: Some(file.to_owned()),
        line: line_of(&text, contract),
        key: format!("contract {contract}"),
        message,
        mend,
    };
    for (name, earlier) in &lock.contracts {
        let Some(now) = present.get(name) else {
            let message = format!("no module serves it any more, which breaks {}", callers(model, name));
            changes.problems.push(problem(
                name,
                message,
                format!("serve `{name}` until no build that needs it is out"),
            ));
            continue;
        };
        for change in both(earlier, now) {
            let Some(broken) = change.breaks(model, name) else {
                changes.safe.push(change.to_string());
                continue;
            };
            let Change { difference, .. } = &change;
            let place =
                if difference.place.is_empty() { String::new() } else { format!("`{}`: ", difference.place) };
            let message = format!("{place}{}, which breaks {broken}", difference.what);
            changes.problems.push(problem(name, message, mend(difference)));
        }
    }
    let added = present.keys().filter(|name| !lock.contracts.contains_key(*name));
    changes.safe.extend(added.map(|name| format!("{name}: is a new contract")));
    Ok(changes)
}

/// A difference, and between whom it is.
struct Change {
    difference: Difference,
    /// The callers are of the earlier build and the callee of this one, or the other way round.
    callers_are_earlier: bool,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let builds = if self.callers_are_earlier { "earlier callers" } else { "an earlier callee" };
        write!(f, "{} ({builds})", self.difference)
    }
}

/// Each difference once: what the one direction says of a place, the other direction says in other words, so a safe one
/// is told for callers of the earlier build alone.
fn both(earlier: &Document, now: &Document) -> Vec<Change> {
    let of = |callers_are_earlier| move |difference| Change { difference, callers_are_earlier };
    let mut changes: Vec<Change> = compare(earlier, now).into_iter().map(of(true)).collect();
    let known: BTreeSet<String> = changes.iter().map(|change| change.difference.place.clone()).collect();
    let back = compare(now, earlier).into_iter().map(of(false));
    changes.extend(back.filter(|change| {
        let difference = &change.difference;
        difference.weight == Weight::Breaks || !known.contains(&difference.place)
    }));
    // Said once: a version that differs, a kind that differs.
    let mut said = BTreeSet::new();
    changes.retain(|change| {
        let difference = &change.difference;
        let is_whole = difference.part == Part::Whole && difference.weight == Weight::Breaks;
        !is_whole || said.insert(difference.place.clone())
    });
    changes
}

impl Change {
    /// Whom it breaks, if it does.
    fn breaks(&self, model: &AppModel, contract: &str) -> Option<String> {
        let difference = &self.difference;
        // What callers of the earlier build send and ask for has to be understood. What this build's callers may send,
        // and an earlier callee may not know, is named when it is met, until the callee is released as well.
        let is_taken_away = self.callers_are_earlier
            && difference.weight == Weight::WhenMet
            && matches!(difference.part, Part::Whole | Part::Request);
        if difference.weight != Weight::Breaks && !is_taken_away {
            return None;
        }
        Some(if self.callers_are_earlier {
            callers(model, contract)
        } else {
            format!("this build's {} as long as the callee is the earlier build", callers(model, contract))
        })
    }
}

fn callers(model: &AppModel, contract: &str) -> String {
    let needs = |module: &&crate::model::ModuleModel| module.needs.iter().any(|need| need.name == contract);
    let names: Vec<&str> = model.modules.iter().filter(needs).map(|module| module.name).collect();
    match names.as_slice() {
        [] => "callers outside of this application".to_owned(),
        [one] => format!("module `{one}`"),
        _ => format!("modules {}", listed(names)),
    }
}

fn mend(difference: &Difference) -> String {
    let way = match difference.part {
        Part::Whole => "keep it until no build that calls it is out",
        Part::Request | Part::Answer | Part::Refused => {
            "give a new field a default, and keep an old one; or add a method beside it"
        }
    };
    format!("{way}; or release both sides together, and write the lock with `check --write-lock`")
}

fn of_file(file: &Path, message: String, mend: &str) -> Problem {
    Problem { file: Some(file.to_owned()), line: None, key: String::new(), message, mend: mend.to_owned() }
}

/// Where a contract begins: the file is pretty-printed by this module.
fn line_of(text: &str, contract: &str) -> Option<usize> {
    let opening = format!("    \"{contract}\": {{");
    text.lines().position(|line| line == opening).map(|line| line + 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::check::fixture::{contract, module, shop};
    use modulith_core::Kind;

    /// The lock of the shop, and what is said of it once it is changed: the safe lines and the problems.
    fn changed(change: impl FnOnce(&mut AppModel)) -> (Vec<String>, Vec<String>) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("contracts.lock");
        write(&shop(), &file).expect("writes");
        let mut model = shop();
        change(&mut model);
        let changes = against(&model, &file).expect("reads");
        let shown = file.display().to_string();
        let problems =
            changes.problems.iter().map(|problem| problem.to_string().replace(&shown, "contracts.lock"));
        (changes.safe, problems.map(|line| line.split("; ").next().unwrap_or_default().to_owned()).collect())
    }

    #[test]
    fn the_same_contracts_are_the_same_bytes_and_change_nothing() {
        let folder = tempfile::tempdir().expect("a folder");
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        write(&shop(), &one).expect("writes");
        let mut turned = shop();
        turned.modules.reverse();
        turned
            .modules
            .iter_mut()
            .for_each(|module| module.contracts.iter_mut().for_each(|it| it.methods.reverse()));
        write(&turned, &other).expect("writes");
        assert_eq!(fs::read_to_string(one).expect("a file"), fs::read_to_string(other).expect("a file"));
        assert_eq!(changed(|_| ()), (vec![], vec![]));
    }

    #[test]
    fn what_breaks_is_told_with_its_line_and_whom_it_breaks() {
        let (safe, problems) = changed(|shop| {
            let products = &mut shop.modules[0].contracts[0];
            products.methods[0].request = json!({"type": "string"});
            products.methods.remove(1);
        });
        assert_eq!(safe, Vec::<String>::new());
        assert_eq!(
            problems,
            [
                "contracts.lock:46: contract products: `hold.request`: is an integer for the caller and text for the \
                 callee, which breaks module `orders`",
                "contracts.lock:46: contract products: `release`: the callee does not have this method, which breaks \
                 module `orders`",
                "contracts.lock:46: contract products: `hold.request`: is text for the caller and an integer for the \
                 callee, which breaks this build's module `orders` as long as the callee is the earlier build",
            ]
        );
    }

    /// A case more is safe to answer, and a case less is not safe to ask for.
    #[test]
    fn cases_come_and_do_not_go() {
        let enumerated = |cases: &[&str]| json!({"type": "string", "enum": cases});
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("contracts.lock");
        let shop_with = |request: &[&str], answer: &[&str]| {
            let mut shop = shop();
            shop.modules[0].contracts[0].methods[0].request = enumerated(request);
            shop.modules[0].contracts[0].methods[0].answer = enumerated(answer);
            shop
        };
        write(&shop_with(&["A", "B"], &["A", "B"]), &file).expect("writes");
        let more = against(&shop_with(&["A", "B", "C"], &["A", "B", "C"]), &file).expect("reads");
        assert_eq!(more.problems, []);
        assert_eq!(
            more.safe,
            [
                "products.hold.request::C: is a case of the callee that the caller does not know (earlier callers)",
                "products.hold.answer::C: is a case of the callee that the caller does not know (earlier callers)",
            ]
        );
        let fewer = against(&shop_with(&["A"], &["A"]), &file).expect("reads");
        assert_eq!(fewer.problems.len(), 1, "{:?}", fewer.problems);
        assert!(
            fewer.problems[0].message.starts_with("`hold.request::B`: is a case of the caller"),
            "{:?}",
            fewer.problems
        );
    }

    #[test]
    fn contracts_come_and_do_not_go() {
        let (safe, problems) = changed(|shop| {
            shop.modules.remove(0);
            shop.modules.push(module("ledger", vec![contract("ledger", &[("book", Kind::Command)])]));
        });
        assert_eq!(safe, ["ledger: is a new contract"]);
        assert_eq!(
            problems,
            [
                "contracts.lock:46: contract products: no module serves it any more, which breaks module `orders`"
            ]
        );
    }

    #[test]
    fn a_file_that_is_none_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("contracts.lock");
        let told = |text: &str| {
            fs::write(&file, text).expect("writes");
            against(&shop(), &file).err().map(|problem| problem.message).unwrap_or_default()
        };
        assert!(told("{\n  \"format\": 1\n").starts_with("is no file of contracts: "), "{}", told("{"));
        assert_eq!(told(r#"{"format": 2, "contracts": {}}"#), "has format 2, and this build knows 1");
        let missing = against(&shop(), &folder.path().join("nowhere")).err().expect("is missing");
        assert!(missing.message.starts_with("cannot be read: "), "{missing}");
    }
}
