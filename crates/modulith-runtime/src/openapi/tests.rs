use modulith_core::{RefusalCase, Secret};
use schemars::{JsonSchema, schema_for};

use super::*;

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct Line {
    product: String,
    /// A type that refers to itself.
    parts: Vec<Line>,
    pin: Option<Secret<String>>,
}

mod other {
    #[derive(schemars::JsonSchema)]
    #[expect(dead_code, reason = "only its schema is used")]
    pub(super) struct Line {
        pub(super) text: String,
    }
}

#[derive(JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
enum Refused {
    Closed,
    SoldOut { line: Line },
}

const CASES: &[RefusalCase] = &[
    RefusalCase { name: "Closed", code: "closed", status: 409, text: "closed" },
    RefusalCase { name: "SoldOut", code: "sold_out", status: 410, text: "sold out" },
];

fn contract(
    name: &'static str,
    kind: Kind,
    request: Value,
    refusals: &'static [RefusalCase],
) -> ContractModel {
    let method = MethodModel {
        name: "ask",
        kind,
        request,
        answer: schema_for!(Vec<Line>).to_value(),
        refused: schema_for!(Refused).to_value(),
        refusals,
        provider: None,
    };
    ContractModel { name, version: 3, methods: vec![method] }
}

fn documented() -> Value {
    let request = schema_for!((Line, u8)).to_value();
    let lines = contract("lines", Kind::Query, request, CASES);
    let texts = contract("texts", Kind::Effect, schema_for!(other::Line).to_value(), &[]);
    document("shop", &[lines, texts])
}

/// Every reference of the document, which all have to be of something in it.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

/// What the specification asks of a document with these parts; a validator of its own was run by hand.
#[test]
fn the_document_holds_together() {
    let document = documented();
    assert_eq!(document["openapi"], json!("3.1.0"));
    assert_eq!(document["info"]["version"], json!("lines 3, texts 3"));
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 20, "{found:?}");
    for reference in found {
        let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(target.is_some(), "{reference} leads nowhere in {document:#}");
    }
    let mut operations = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        let post = &item["post"];
        assert!(operations.insert(post["operationId"].as_str().unwrap()), "{path}");
        assert!(post["requestBody"]["content"]["application/json"]["schema"].is_object(), "{path}");
        for (status, response) in post["responses"].as_object().unwrap() {
            let described = response.get("$ref").or(response.get("description"));
            assert!(status.parse::<u16>().is_ok() && described.is_some(), "{path} {status}: {response}");
        }
    }
    let mut names = document["components"]["schemas"].as_object().unwrap().keys();
    assert!(names.all(|name| plain(name) == *name));
}

#[test]
fn equal_names_of_two_contracts_are_two_schemas() {
    let document = documented();
    let of = |contract: &str| {
        let reference = match contract {
            "lines" => {
                &document["paths"]["/call/lines/ask"]["post"]["responses"]["200"]["content"]["application/json"]
                    ["schema"]["items"]["$ref"]
            }
            _ => {
                &document["paths"]["/call/texts/ask"]["post"]["requestBody"]["content"]["application/json"]["schema"]
                    ["$ref"]
            }
        };
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        document.pointer(pointer).unwrap().clone()
    };
    assert_eq!(of("texts")["properties"]["text"]["type"], json!("string"));
    let line = of("lines");
    assert_eq!(line["properties"]["parts"]["items"]["$ref"], json!("#/components/schemas/lines.Line"));
}

#[test]
fn refusals_stand_at_their_status_with_code_and_fields() {
    let document = documented();
    let responses = |contract| &document["paths"][format!("/call/{contract}/ask")]["post"]["responses"];
    let schema = |status| &responses("lines")[status]["content"]["application/problem+json"]["schema"];
    let sold_out = &schema("410")["allOf"][1];
    assert_eq!(sold_out["properties"]["code"], json!({"const": "sold_out"}));
    assert_eq!(sold_out["properties"]["line"], json!({"$ref": "#/components/schemas/lines.Line"}));
    assert_eq!(sold_out["required"], json!(["code", "line"]));
    let closed_or_running = schema("409")["anyOf"].as_array().unwrap();
    assert_eq!(closed_or_running.len(), 2);
    assert_eq!(closed_or_running[0]["allOf"][1]["properties"]["code"], json!({"const": "closed"}));
    assert_eq!(responses("texts")["409"], json!({"$ref": "#/components/responses/Running"}));
    let parameters =
        |contract| document["paths"][format!("/call/{contract}/ask")]["post"]["parameters"].to_string();
    assert!(!parameters("lines").contains("IdempotencyKey"), "a query has none");
    assert!(parameters("texts").contains("IdempotencyKey"));
}
