//! Walks the two schemas of one part of a method side by side, as its writer and its reader have them.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::document::Document;
use super::shape::{Case, Cases, Fields, Place, Shape};
use super::{Difference, Part, Weight};

/// Values that are nested deeper are not compared, and so incompatible. Types that refer to themselves are no deeper
/// than their definition.
const DEPTH_MAX: usize = 128;

/// The differences of one part of a method.
pub(super) fn part(
    contract: &str,
    method: &str,
    part: Part,
    writer: (&Document, &Value),
    reader: (&Document, &Value),
) -> Vec<Difference> {
    let (suffix, names) = match part {
        Part::Whole | Part::Request => ("request", ["caller", "callee"]),
        Part::Answer => ("answer", ["callee", "caller"]),
        Part::Refused => ("refused", ["callee", "caller"]),
    };
    let mut walk = Walk {
        writer: writer.0,
        reader: reader.0,
        names,
        contract,
        part,
        seen: BTreeSet::new(),
        depth: 0,
        found: Vec::new(),
    };
    walk.value(writer.1, reader.1, &format!("{method}.{suffix}"), false);
    walk.found
}

struct Walk<'d> {
    writer: &'d Document,
    reader: &'d Document,
    /// Of the writer and of the reader, for messages.
    names: [&'static str; 2],
    contract: &'d str,
    part: Part,
    /// Pairs of named types that were begun: they are equal as far as they are not found to differ.
    seen: BTreeSet<(&'d str, &'d str)>,
    depth: usize,
    found: Vec<Difference>,
}

impl<'d> Walk<'d> {
    fn push(&mut self, place: &str, what: String, weight: Weight) {
        // A refusal is read as one by its code and its text, whatever its body is.
        let weight = match self.part {
            Part::Refused => weight.min(Weight::WhenMet),
            _ => weight,
        };
        self.found.push(Difference {
            contract: self.contract.to_owned(),
            part: self.part,
            place: place.to_owned(),
            what,
            weight,
        });
    }

    fn breaks(&mut self, place: &str, what: String) {
        self.push(place, what, Weight::Breaks);
    }

    fn safe(&mut self, place: &str, what: String) {
        self.push(place, what, Weight::Safe);
    }

    /// `said` is true where it was said already that the value may be missing.
    fn value(&mut self, written: &'d Value, read: &'d Value, place: &str, said: bool) {
        let [writer, reader] = self.names;
        if self.depth == DEPTH_MAX {
            return self
                .breaks(place, format!("is nested deeper than the {DEPTH_MAX} levels that are compared"));
        }
        let (from, to) = (Place::of(self.writer, written), Place::of(self.reader, read));
        match (from.nullable, to.nullable) {
            (true, false) if !said => {
                self.breaks(place, format!("may be null for the {writer}; the {reader} requires a value"));
            }
            (false, true) => {
                self.safe(place, format!("may be null for the {reader}; the {writer} always has a value"))
            }
            _ => {}
        }
        for (keyword, more) in &from.more {
            if to.more.get(keyword).is_none_or(|other| other != more) {
                self.no_rule(place, keyword);
            }
        }
        for keyword in to.more.keys().filter(|keyword| !from.more.contains_key(*keyword)) {
            self.no_rule(place, keyword);
        }
        if let (Some(from), Some(to)) = (from.name, to.name)
            && !self.seen.insert((from, to))
        {
            return;
        }
        self.depth += 1;
        self.shapes(&from.shape, &to.shape, (written, read), place);
        self.depth -= 1;
    }

    fn no_rule(&mut self, place: &str, keyword: &str) {
        self.breaks(place, format!("differs in `{keyword}`, for which there is no rule"));
    }

    fn shapes(&mut self, from: &Shape<'d>, to: &Shape<'d>, schemas: (&'d Value, &'d Value), place: &str) {
        match (from, to) {
            (Shape::Anything, Shape::Anything) | (Shape::Flag, Shape::Flag) => {}
            (Shape::Nothing { is_struct: a }, Shape::Nothing { is_struct: b }) if a == b => {}
            (Shape::Number { format: a }, Shape::Number { format: b }) if a == b => {}
            (Shape::Number { format: "float" }, Shape::Number { format: "double" }) => {
                self.wider(from, to, place)
            }
            (
                Shape::Integer { low: least, high: most, format: a },
                Shape::Integer { low, high, format: b },
            ) if low <= least
                && high >= most
                && (a == b || ![*a, *b].iter().any(|format| is_wide(format))) =>
            {
                if a != b || low != least || high != most {
                    self.wider(from, to, place);
                }
            }
            (Shape::Text { format: a, least, most }, Shape::Text { format: b, least: low, most: high })
                if a == b && low <= least && high >= most =>
            {
                if low != least || high != most {
                    self.wider(from, to, place);
                }
            }
            (
                Shape::List { items, unique, least, most },
                Shape::List { items: others, unique: only, least: low, most: high },
            ) if low <= least && high >= most && (unique == only || *unique) => {
                if unique != only || low != least || high != most {
                    self.wider(from, to, place);
                }
                self.value(items, others, &format!("{place}[]"), false);
            }
            (Shape::Tuple(items), Shape::Tuple(others)) if items.len() == others.len() => {
                for (index, (item, other)) in items.iter().zip(others).enumerate() {
                    self.value(item, other, &format!("{place}[{index}]"), false);
                }
            }
            (Shape::Map { keys: a, values }, Shape::Map { keys: b, values: others }) if a == b => {
                self.value(values, others, &format!("{place}{{}}"), false);
            }
            (Shape::Struct(from), Shape::Struct(to)) => self.fields(from, to, place),
            // An enum without cases is never written.
            (Shape::Enum(from), _) if from.cases.is_empty() => {
                if !matches!(to, Shape::Enum(to) if to.cases.is_empty()) {
                    let [writer, _] = self.names;
                    self.safe(place, format!("is never written by the {writer}"));
                }
            }
            (Shape::Enum(from), Shape::Enum(to)) if from.tag == to.tag || to.cases.is_empty() => {
                self.cases(from, to, place);
            }
            (Shape::Unknown, Shape::Unknown)
                if text(self.writer, schemas.0) == text(self.reader, schemas.1) => {}
            _ => {
                let [writer, reader] = self.names;
                let (from, to) = (from.word(), to.word());
                let what = if from == to {
                    format!("is {from}, and for the {reader} with fewer values than for the {writer}")
                } else {
                    format!("is {from} for the {writer} and {to} for the {reader}")
                };
                self.breaks(place, what);
            }
        }
    }

    /// The reader takes all that the writer has, and more.
    fn wider(&mut self, from: &Shape<'_>, to: &Shape<'_>, place: &str) {
        let [writer, reader] = self.names;
        let what = format!(
            "is {} for the {writer} and {}, which is wider, for the {reader}",
            from.word(),
            to.word()
        );
        self.safe(place, what);
    }

    fn fields(&mut self, from: &Fields<'d>, to: &Fields<'d>, place: &str) {
        let [writer, reader] = self.names;
        for (name, written) in &from.fields {
            let place = format!("{place}.{name}");
            let Some(read) = to.fields.get(name) else {
                if to.closed {
                    let what =
                        format!("is written by the {writer}; the {reader} refuses fields it does not know");
                    self.breaks(&place, what);
                } else {
                    self.safe(&place, format!("is written by the {writer} and skipped by the {reader}"));
                }
                continue;
            };
            let may_miss = to.required.contains(name) && !from.required.contains(name);
            if may_miss {
                let what = format!("may be left out by the {writer} and is required by the {reader}");
                self.breaks(&place, what);
            }
            self.value(written, read, &place, may_miss);
        }
        for name in to.fields.keys().filter(|name| !from.fields.contains_key(*name)) {
            let place = format!("{place}.{name}");
            if to.required.contains(name) {
                self.breaks(&place, format!("is required by the {reader} and not written by the {writer}"));
            } else {
                self.safe(&place, format!("is not written by the {writer}; the {reader} fills it in"));
            }
        }
    }

    fn cases(&mut self, from: &Cases<'d>, to: &Cases<'d>, place: &str) {
        let [writer, reader] = self.names;
        for (name, written) in &from.cases {
            let place = format!("{place}::{name}");
            let Some(read) = to.cases.get(name) else {
                let what = format!("is a case of the {writer} that the {reader} does not know");
                let weight = if self.part == Part::Refused { Weight::Safe } else { Weight::WhenMet };
                self.push(&place, what, weight);
                continue;
            };
            match (written, read) {
                (Case::Unit, Case::Unit) => {}
                (Case::Of(written), Case::Of(read)) => self.value(written, read, &place, false),
                // Whether a case without fields skips one that it meets depends on where its fields stand, which the
                // schema does not say.
                (Case::Beside(written), Case::Beside(read))
                    if written.fields.is_empty() == read.fields.is_empty() =>
                {
                    self.fields(written, read, &place);
                }
                _ => {
                    let what = format!("has fields for only one of {writer} and {reader}");
                    self.breaks(&place, what);
                }
            }
        }
        for name in to.cases.keys().filter(|name| !from.cases.contains_key(*name)) {
            self.safe(
                &format!("{place}::{name}"),
                format!("is a case of the {reader} that the {writer} does not know"),
            );
        }
    }
}

/// Integers of 128 bits are written as bytes.
fn is_wide(format: &str) -> bool {
    matches!(format, "int128" | "uint128")
}

/// A schema and all named types that it reaches, as text.
fn text(document: &Document, schema: &Value) -> String {
    let mut reached = BTreeMap::new();
    let mut ahead = vec![schema];
    while let Some(schema) = ahead.pop() {
        match schema {
            Value::Object(keywords) => {
                if let Some(Value::String(reference)) = keywords.get("$ref")
                    && let Some((name, target)) = document.named(reference)
                    && reached.insert(name, target).is_none()
                {
                    ahead.push(target);
                }
                ahead.extend(keywords.values());
            }
            Value::Array(schemas) => ahead.extend(schemas),
            _ => {}
        }
    }
    format!("{schema} {reached:?}")
}
