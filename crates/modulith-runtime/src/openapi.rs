//! Contracts as an OpenAPI 3.1 document (https://spec.openapis.org/oas/v3.1.1), for programs in other languages.
//!
//! Made from the same models that `check` and the handshake read. Its schemas are those of the contracts (JSON Schema
//! 2020-12, which 3.1 takes as it stands); what a schema defines beside itself stands once under `components`.

use std::collections::{BTreeMap, BTreeSet};

use modulith_core::{ContractModel, Kind, MethodModel};
use modulith_gateway::CALL;
use serde_json::{Map, Value, json};

/// The document of some contracts: what `application` serves of them.
pub(crate) fn document(application: &str, contracts: &[ContractModel]) -> Value {
    let names = Names::of(contracts);
    let mut schemas: Map<String, Value> = names
        .of
        .iter()
        .map(|((contract, name, schema), named)| {
            (named.clone(), names.lifted(contract, &Part { name: Some(name), schema }))
        })
        .collect();
    schemas.insert("Problem".to_owned(), problem_schema());
    let mut paths = Map::new();
    for contract in contracts {
        for method in &contract.methods {
            let path = format!("{CALL}/{}/{}", contract.name, method.name);
            paths.insert(path, json!({ "post": operation(contract, method, &names) }));
        }
    }
    let versions = contracts.iter().map(|contract| format!("{} {}", contract.name, contract.version));
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": application,
            "version": versions.collect::<Vec<_>>().join(", "),
            "description": "The contracts that are open to other programs. A request that takes nothing is `null`.",
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }],
        "paths": paths,
        "components": {
            "schemas": schemas,
            "parameters": parameters(),
            "responses": responses(),
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
        },
    })
}

fn parameters() -> Value {
    json!({
        "IdempotencyKey": {
            "name": "Idempotency-Key",
            "in": "header",
            "required": true,
            "description": "New and random with each new request, the same with a repeat: a repeat within 24 hours gets the \
                            first answer of a command, and a provider is shown the same key again by an effect.",
            "schema": { "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" },
        },
        "RequestTimeoutMs": {
            "name": "Request-Timeout-Ms",
            "in": "header",
            "required": false,
            "description": "How long the caller waits, in milliseconds.",
            "schema": { "type": "integer", "minimum": 1, "default": 10_000, "maximum": 60_000 },
        },
    })
}

/// What every method may answer beside its own refusals.
const FAILURES: [(&str, &str, &str); 11] = [
    ("400", "Malformed", "The body is no JSON, or a header cannot be used. Nothing was done."),
    ("401", "NoToken", "No token, or one that counts for nothing."),
    ("403", "NotAllowed", "The contract is not among those of this caller."),
    ("404", "NotFound", "No such contract or method."),
    ("409", "Running", "The first request with this key still runs, or the key is too old."),
    ("413", "TooLarge", "The body is too large. Nothing was done."),
    ("415", "NotJson", "The body is not sent as application/json. Nothing was done."),
    (
        "422",
        "Invalid",
        "A field is wrong, named in `errors`, or the key was used with another body. Nothing was done.",
    ),
    ("500", "Broken", "Something broke; it is not known what was done."),
    ("503", "Unavailable", "Certainly not done; try again after `Retry-After`."),
    (
        "504",
        "Late",
        "`/problems/deadline-exceeded`: certainly not done. `/problems/outcome-unknown`: it may have been.",
    ),
];

fn responses() -> Value {
    let response = |(_, name, description): &(&str, &str, &str)| {
        let mut response = json!({
            "description": description,
            "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } },
        });
        if *name == "Unavailable" {
            response["headers"] = json!({
                "Retry-After": { "description": "Seconds.", "schema": { "type": "integer" } },
            });
        }
        ((*name).to_owned(), response)
    };
    Value::Object(FAILURES.iter().map(response).collect())
}

fn problem_schema() -> Value {
    json!({
        "description": "RFC 9457. With `code` it is a refusal of the contract: final, and the same for a repeat.",
        "type": "object",
        "required": ["type", "title", "status"],
        "properties": {
            "type": { "type": "string", "format": "uri-reference" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "code": { "type": "string" },
            "errors": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["field", "reason"],
                    "properties": { "field": { "type": "string" }, "reason": { "type": "string" } },
                },
            },
        },
    })
}

fn operation(contract: &ContractModel, method: &MethodModel, names: &Names<'_>) -> Value {
    let (kind, says, takes_key) = match method.kind {
        Kind::Query => ("query", "reads; may be repeated freely", false),
        Kind::Command => ("command", "one transaction, once for each key", true),
        Kind::Effect => ("effect", "reaches the outside world", true),
    };
    let mut parameters = vec![json!({ "$ref": "#/components/parameters/RequestTimeoutMs" })];
    if takes_key {
        parameters.insert(0, json!({ "$ref": "#/components/parameters/IdempotencyKey" }));
    }
    let schema = |schema| names.of_root(contract.name, schema);
    let mut answers = Map::new();
    answers.insert(
        "200".to_owned(),
        json!({
            "description": "The answer.",
            "content": { "application/json": { "schema": schema(&method.answer) } },
        }),
    );
    for (status, name, _) in FAILURES {
        answers.insert(status.to_owned(), json!({ "$ref": format!("#/components/responses/{name}") }));
    }
    for (status, response) in refusals(contract, method, names) {
        answers.insert(status, response);
    }
    json!({
        "operationId": format!("{}.{}", contract.name, method.name),
        "tags": [contract.name],
        "summary": format!("{kind}: {says}"),
        "parameters": parameters,
        "requestBody": {
            "required": true,
            "content": { "application/json": { "schema": schema(&method.request) } },
        },
        "responses": answers,
    })
}

/// By status: the refusals that have it, each with its code and its fields, and whatever else has that status.
fn refusals(contract: &ContractModel, method: &MethodModel, names: &Names<'_>) -> BTreeMap<String, Value> {
    let mut of_status: BTreeMap<u16, Vec<_>> = BTreeMap::new();
    for case in method.refusals {
        of_status.entry(case.status).or_default().push(case);
    }
    let response = |(status, cases): (u16, Vec<&modulith_core::RefusalCase>)| {
        let said: Vec<String> = cases.iter().map(|case| format!("`{}`: {}", case.code, case.text)).collect();
        let problem = json!({ "$ref": "#/components/schemas/Problem" });
        let mut schemas: Vec<Value> = (cases.iter())
            .map(|case| {
                let mut own = names.case(contract.name, &method.refused, case.name);
                own["properties"]["code"] = json!({ "const": case.code });
                own["properties"]["status"] = json!({ "const": case.status });
                let required = own["required"].as_array().cloned().unwrap_or_default();
                own["required"] = [vec![json!("code")], required].concat().into();
                json!({ "allOf": [problem, own] })
            })
            .collect();
        let key = status.to_string();
        let failure = FAILURES.iter().find(|(failure, ..)| *failure == key);
        let mut description = format!("Refused. {}.", said.join("; "));
        if let Some((_, _, other)) = failure {
            description.push_str(&format!(" Without `code`: {other}"));
            let other = json!({ "not": { "required": ["code"] } });
            schemas.push(json!({ "allOf": [problem, other] }));
        }
        let schema = match &schemas[..] {
            [only] => only.clone(),
            _ => json!({ "anyOf": schemas }),
        };
        (
            key,
            json!({ "description": description, "content": { "application/problem+json": { "schema": schema } } }),
        )
    };
    of_status.into_iter().map(response).collect()
}

/// A schema of a contract with its name, if it stands under one.
struct Part<'a> {
    name: Option<&'a str>,
    schema: &'a Value,
}

/// The names of all definitions under `components`: their own, or with the contract in front where two contracts mean
/// different things by one name, or refer to such.
struct Names<'a> {
    of: Vec<((&'a str, &'a str, Value), String)>,
}

impl<'a> Names<'a> {
    fn of(contracts: &'a [ContractModel]) -> Self {
        let mut found: Vec<(&str, &str, Value)> = Vec::new();
        for contract in contracts {
            for method in &contract.methods {
                for (root, is_named) in
                    [(&method.request, true), (&method.answer, true), (&method.refused, false)]
                {
                    let definitions = root.get("$defs").and_then(Value::as_object).into_iter().flatten();
                    let own = title(root).filter(|_| is_named).map(|title| (title, bare(root)));
                    let definitions = definitions.map(|(name, schema)| (name.as_str(), bare(schema)));
                    for (name, schema) in definitions.chain(own) {
                        let definition = (contract.name, name, schema);
                        if !found.contains(&definition) {
                            found.push(definition);
                        }
                    }
                }
            }
        }
        let mut ambiguous: BTreeSet<&str> = BTreeSet::from(["Problem"]);
        loop {
            let before = ambiguous.len();
            for (_, name, schema) in &found {
                let differs = found.iter().any(|(_, other, meant)| other == name && meant != schema);
                if differs || refers_to_any(schema, &ambiguous) {
                    ambiguous.insert(name);
                }
            }
            if ambiguous.len() == before {
                break;
            }
        }
        let mut names: Vec<((&str, &str, Value), String)> = Vec::new();
        for definition in found {
            let (contract, name, _) = definition;
            let plain = plain(name);
            let named = match ambiguous.contains(name) {
                false => plain,
                true => {
                    let before = names.iter().filter(|((of, other, _), _)| *of == contract && *other == name);
                    match before.count() {
                        0 => format!("{contract}.{plain}"),
                        before => format!("{contract}.{plain}.{}", before + 1),
                    }
                }
            };
            // The same definition in two contracts is one.
            names.push((definition, named));
        }
        Self { of: names }
    }

    /// The name of what a contract means by its own name for it. Schemas of one contract that differ under one name
    /// are told apart by the schema, where it is at hand.
    fn find(&self, contract: &str, name: &str, schema: Option<&Value>) -> Option<&str> {
        let mut of_name = self.of.iter().filter(|((of, other, _), _)| *of == contract && *other == name);
        let exact = schema.and_then(|schema| of_name.clone().find(|((_, _, known), _)| known == schema));
        exact.or_else(|| of_name.next()).map(|(_, named)| named.as_str())
    }

    /// A request or an answer: a reference, if it has a name.
    fn of_root(&self, contract: &str, root: &Value) -> Value {
        match title(root).and_then(|name| self.find(contract, name, Some(&bare(root)))) {
            Some(named) => json!({ "$ref": format!("#/components/schemas/{named}") }),
            None => self.lifted(contract, &Part { name: None, schema: &bare(root) }),
        }
    }

    /// The schema with its references to where the definitions are now.
    fn lifted(&self, contract: &str, part: &Part<'_>) -> Value {
        match part.schema {
            Value::Object(fields) => Value::Object(
                (fields.iter())
                    .map(|(key, value)| {
                        let name = match (key.as_str(), value.as_str()) {
                            ("$ref", Some("#")) => part.name,
                            ("$ref", Some(reference)) => reference.strip_prefix("#/$defs/"),
                            _ => None,
                        };
                        let named = name.and_then(|name| self.find(contract, name, None));
                        let value = match named {
                            Some(named) => Value::from(format!("#/components/schemas/{named}")),
                            None => self.lifted(contract, &Part { schema: value, ..*part }),
                        };
                        (key.clone(), value)
                    })
                    .collect(),
            ),
            Value::Array(items) => {
                items.iter().map(|item| self.lifted(contract, &Part { schema: item, ..*part })).collect()
            }
            plain => plain.clone(),
        }
    }

    /// The fields of one case of a refusal, as an object's schema; of a struct, which is its only case, its own.
    fn case(&self, contract: &str, refused: &Value, case: &str) -> Value {
        let cases = ["oneOf", "anyOf"].iter().filter_map(|keyword| refused.get(keyword)?.as_array());
        let mut of_case = cases.flatten().filter_map(|schema| schema.get("properties")?.get(case));
        let fields = of_case.next().or(refused.get("properties").map(|_| refused));
        match fields {
            Some(fields) => self.lifted(contract, &Part { name: None, schema: &bare(fields) }),
            None => json!({ "type": "object", "properties": {} }),
        }
    }
}

/// The name of a type that is worth one: an object or a choice, not a number or a list.
fn title(root: &Value) -> Option<&str> {
    let worth = ["properties", "oneOf", "anyOf", "enum"].iter().any(|keyword| root.get(keyword).is_some());
    root.get("title").and_then(Value::as_str).filter(|_| worth)
}

/// Without what only a document of its own has.
fn bare(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Value::Object(fields) = &mut schema {
        for key in ["$schema", "$defs", "title"] {
            fields.remove(key);
        }
    }
    schema
}

fn refers_to_any(schema: &Value, names: &BTreeSet<&str>) -> bool {
    match schema {
        Value::Object(fields) => fields.iter().any(|(key, value)| {
            let name = value.as_str().filter(|_| key == "$ref").and_then(|to| to.strip_prefix("#/$defs/"));
            name.is_some_and(|name| names.contains(name)) || refers_to_any(value, names)
        }),
        Value::Array(items) => items.iter().any(|item| refers_to_any(item, names)),
        _ => false,
    }
}

/// As a name under `components` may be: letters, digits, `.`, `-`, `_`.
fn plain(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_');
    name.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect()
}

#[cfg(test)]
mod tests;
