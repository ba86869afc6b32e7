//! Whether two builds of an application understand each other: rules over their contracts as data.
//!
//! Owns what counts as a difference, how much it weighs, and its words. Every rule is about one direction: somebody
//! writes by the one schema, somebody reads by the other. A caller writes requests; a callee writes answers and
//! refusals. What the rules do not know is incompatible, by name: a wrong *yes* would be found in production.
//!
//! The rules are about what [`crate::encode`] writes and [`crate::decode`] reads. They believe the schema, so a type
//! whose `JsonSchema` is written by hand and differs from its serde form is beyond them; so is what JSON schema does
//! not say, which is the width of a map's integer keys.

mod document;
mod shape;
mod walk;

use std::fmt;

pub use document::{Document, MethodDocument};

use crate::contract::Kind;

/// What a difference does to a call between the two builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Weight {
    /// Nothing: the reader skips it, or fills it in.
    Safe,
    /// One call may fail, with an error that names it; every other call is as before. A case that the reader does not
    /// know, a method that the callee does not have.
    WhenMet,
    /// Values of everyday calls cannot be read. Services with such a difference refuse each other.
    Breaks,
}

/// The part of a contract that a difference is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The contract or a method as a whole.
    Whole,
    /// Written by the caller, read by the callee.
    Request,
    /// Written by the callee, read by the caller.
    Answer,
    /// Likewise, beside a code and a text that every build reads.
    Refused,
}

/// One difference between what a caller and a callee were built with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub contract: String,
    pub part: Part,
    /// Below the contract: empty, `hold`, `hold.request.lines[].quantity`, `hold.refused::SoldOut.products[]`.
    pub place: String,
    /// What differs, as a fragment: "`gift` is required by the callee and not sent by the caller".
    pub what: String,
    pub weight: Weight,
}

/// `products.hold.request.gift: is required by the callee and not sent by the caller`
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.contract)?;
        if !self.place.is_empty() {
            write!(f, ".{}", self.place)?;
        }
        write!(f, ": {}", self.what)
    }
}

/// Everything in which two builds of one contract differ, in the order of methods.
///
/// An empty list, or one in which nothing [`Weight::Breaks`], means: whatever the one side writes, the other reads, or
/// names what it met and does not know.
///
/// A contract's `version` is its author's word that it is another one: with different versions nothing else is
/// compared, and the two are incompatible.
pub fn compare(caller: &Document, callee: &Document) -> Vec<Difference> {
    let whole = |place: &str, what: String, weight| Difference {
        contract: callee.name.clone(),
        part: Part::Whole,
        place: place.to_owned(),
        what,
        weight,
    };
    if caller.version != callee.version {
        let what = format!(
            "the caller has version {} and the callee version {}, which is said to be another contract",
            caller.version, callee.version
        );
        return vec![whole("", what, Weight::Breaks)];
    }
    let mut found = Vec::new();
    for (name, wanted) in &caller.methods {
        let Some(served) = callee.methods.get(name) else {
            found.push(whole(name, "the callee does not have this method".to_owned(), Weight::WhenMet));
            continue;
        };
        if wanted.kind != served.kind {
            let what =
                format!("is {} for the caller and {} for the callee", word(wanted.kind), word(served.kind));
            found.push(whole(name, what, Weight::Breaks));
            continue;
        }
        for (part, writer, reader) in [
            (Part::Request, (caller, &wanted.request), (callee, &served.request)),
            (Part::Answer, (callee, &served.answer), (caller, &wanted.answer)),
            (Part::Refused, (callee, &served.refused), (caller, &wanted.refused)),
        ] {
            found.extend(walk::part(&callee.name, name, part, writer, reader));
        }
    }
    for name in callee.methods.keys().filter(|name| !caller.methods.contains_key(*name)) {
        found.push(whole(name, "the caller does not know this method".to_owned(), Weight::Safe));
    }
    found
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Query => "a query",
        Kind::Command => "a command",
        Kind::Effect => "an effect",
    }
}
