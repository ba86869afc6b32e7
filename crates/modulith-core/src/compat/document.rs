//! A contract as it is sent to another build and kept in `contracts.lock`: what is exchanged, and nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::contract::{ContractModel, Kind};
use crate::secret::SECRET_MARK;

/// One contract, without titles, descriptions, defaults and marks of secrets, which change nothing on the wire.
///
/// The same contract gives the same document, byte by byte: keys are sorted, methods by name. Types stand once, in
/// `types`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Document {
    pub name: String,
    pub version: u32,
    pub methods: BTreeMap<String, MethodDocument>,
    /// The named types of all methods: what `#/$defs/Name` refers to.
    #[serde(default, rename = "$defs", skip_serializing_if = "BTreeMap::is_empty")]
    pub types: BTreeMap<String, Value>,
}

/// One method of a [`Document`], its types as JSON schemas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodDocument {
    pub kind: Kind,
    pub request: Value,
    pub answer: Value,
    pub refused: Value,
}

const REFERENCE: &str = "#/$defs/";

impl Document {
    pub fn of(contract: &ContractModel) -> Self {
        let mut types = BTreeMap::new();
        let methods = contract.methods.iter().map(|method| {
            let document = MethodDocument {
                kind: method.kind,
                request: hoisted(&method.request, &mut types),
                answer: hoisted(&method.answer, &mut types),
                refused: hoisted(&method.refused, &mut types),
            };
            (method.name.to_owned(), document)
        });
        let methods = methods.collect();
        Self { name: contract.name.to_owned(), version: contract.version, methods, types }
    }

    pub(super) fn named(&self, reference: &str) -> Option<(&str, &Value)> {
        let name = reference.strip_prefix(REFERENCE)?;
        self.types.get_key_value(name).map(|(name, schema)| (&**name, schema))
    }
}

/// A root schema without its own definitions, which go to `types`. Two types of one name, of different methods, both
/// stay: those of the later method get a number behind their names, all of them, since they refer to each other.
fn hoisted(schema: &Value, types: &mut BTreeMap<String, Value>) -> Value {
    let own = schema.get("$defs").and_then(Value::as_object);
    for number in 1_u32.. {
        let renamed = |name: &str| if number == 1 { name.to_owned() } else { format!("{name}~{number}") };
        let own: Vec<(String, Value)> = own
            .into_iter()
            .flatten()
            .map(|(name, schema)| (renamed(name), exchanged(schema, &renamed)))
            .collect();
        if own.iter().all(|(name, schema)| types.get(name).is_none_or(|known| known == schema)) {
            types.extend(own);
            return exchanged(schema, &renamed);
        }
    }
    unreachable!("there are more numbers than types")
}

/// A schema with what is exchanged, its keys sorted, since their order depends on a feature of `serde_json` that any
/// crate may switch on.
fn exchanged(schema: &Value, renamed: &dyn Fn(&str) -> String) -> Value {
    let Value::Object(keywords) = schema else {
        return schema.clone();
    };
    let mut sorted: Vec<_> = keywords.iter().collect();
    sorted.sort_by_key(|(keyword, _)| keyword.as_str());
    let each = |schemas: &Map<String, Value>| -> Value {
        let mut sorted: Vec<_> = schemas.iter().collect();
        sorted.sort_by_key(|(name, _)| name.as_str());
        Value::Object(
            sorted.into_iter().map(|(name, schema)| (name.clone(), exchanged(schema, renamed))).collect(),
        )
    };
    let mut kept = Map::new();
    for (keyword, value) in sorted {
        let value = match (keyword.as_str(), value) {
            // A unit struct is written as an empty list and `()` as nothing. Only their names tell them apart.
            ("title", Value::String(title)) if is_unit_struct(keywords, title) => value.clone(),
            (
                "title" | "description" | "default" | "examples" | "deprecated" | "$schema" | "$comment"
                | "$defs",
                _,
            )
            | (SECRET_MARK, _) => continue,
            ("properties" | "patternProperties", Value::Object(schemas)) => each(schemas),
            ("items" | "additionalProperties" | "not", schema) => exchanged(schema, renamed),
            ("oneOf" | "anyOf" | "allOf" | "prefixItems", Value::Array(schemas)) => {
                schemas.iter().map(|schema| exchanged(schema, renamed)).collect()
            }
            ("required", Value::Array(names)) => {
                let mut names: Vec<_> = names.iter().filter_map(Value::as_str).collect();
                names.sort_unstable();
                names.into()
            }
            ("$ref", Value::String(reference)) => match reference.strip_prefix(REFERENCE) {
                Some(name) => format!("{REFERENCE}{}", renamed(name)).into(),
                None => value.clone(),
            },
            (_, value) => value.clone(),
        };
        kept.insert(keyword.clone(), value);
    }
    Value::Object(kept)
}

fn is_unit_struct(keywords: &Map<String, Value>, title: &str) -> bool {
    keywords.get("type").and_then(Value::as_str) == Some("null") && title != "null"
}
