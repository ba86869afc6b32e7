//! Each rule, by the words and the place that it is told with, in both directions.

use modulith_core::compat::{Document, Weight, compare};
use modulith_core::{ContractModel, Kind, MethodModel, Never, RefusalRecord, Wire, decode, encode};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

fn contract(methods: Vec<MethodModel>) -> Document {
    Document::of(&ContractModel { name: "products", version: 1, methods })
}

fn takes<T: Wire>() -> Document {
    contract(vec![MethodModel::of::<T, (), Never>("hold", Kind::Command)])
}

fn gives<T: Wire>() -> Document {
    contract(vec![MethodModel::of::<(), T, Never>("hold", Kind::Command)])
}

/// What a comparison says, a line each, with its weight.
fn told(caller: &Document, callee: &Document) -> Vec<String> {
    let line =
        |difference: &modulith_core::compat::Difference| format!("{:?} {difference}", difference.weight);
    compare(caller, callee).iter().map(line).collect()
}

mod old {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    pub(crate) struct Basket {
        pub(crate) lines: Vec<Line>,
        pub(crate) note: Option<String>,
    }
    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    pub(crate) struct Line {
        pub(crate) product: String,
        pub(crate) quantity: u32,
        pub(crate) unit: Unit,
    }
    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    pub(crate) enum Unit {
        Piece,
        Kilogram,
    }
}

mod new {
    use super::*;

    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    pub(crate) struct Basket {
        pub(crate) lines: Vec<Line>,
        pub(crate) note: String,
    }
    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    pub(crate) struct Line {
        pub(crate) product: String,
        pub(crate) quantity: u64,
        pub(crate) unit: Unit,
        #[serde(default)]
        pub(crate) gift: bool,
        pub(crate) weight: u32,
    }
    #[derive(Debug, Serialize, Deserialize, JsonSchema)]
    pub(crate) enum Unit {
        Piece,
        Kilogram,
        Crate,
    }
}

#[test]
fn every_difference_of_a_request_is_told_with_its_path() {
    assert_eq!(
        told(&takes::<old::Basket>(), &takes::<new::Basket>()),
        [
            "Safe products.hold.request.lines[].quantity: is an integer (uint32) for the caller and an integer (uint64), \
             which is wider, for the callee",
            "Safe products.hold.request.lines[].unit::Crate: is a case of the callee that the caller does not know",
            "Safe products.hold.request.lines[].gift: is not written by the caller; the callee fills it in",
            "Breaks products.hold.request.lines[].weight: is required by the callee and not written by the caller",
            "Breaks products.hold.request.note: may be left out by the caller and is required by the callee",
        ]
    );
    assert_eq!(
        told(&takes::<new::Basket>(), &takes::<old::Basket>()),
        [
            "Safe products.hold.request.lines[].gift: is written by the caller and skipped by the callee",
            "Breaks products.hold.request.lines[].quantity: is an integer (uint64) for the caller and an integer (uint32) \
             for the callee",
            "WhenMet products.hold.request.lines[].unit::Crate: is a case of the caller that the callee does not know",
            "Safe products.hold.request.lines[].weight: is written by the caller and skipped by the callee",
            "Safe products.hold.request.note: may be null for the callee; the caller always has a value",
        ]
    );
}

/// In an answer the callee writes: the same differences, with the names the other way round.
#[test]
fn an_answer_is_read_by_the_caller() {
    let lines = told(&gives::<old::Basket>(), &gives::<new::Basket>());
    let breaking: Vec<_> = lines.iter().filter(|line| line.starts_with("Breaks")).collect();
    assert_eq!(
        breaking,
        [
            "Breaks products.hold.answer.lines[].quantity: is an integer (uint64) for the callee and an integer (uint32) for \
          the caller"
        ]
    );
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
enum Refused {
    SoldOut { products: Vec<String> },
}
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
enum RefusedMore {
    SoldOut { products: Vec<u8> },
    Closed,
}
macro_rules! refusal {
    ($($name:ident)*) => {$(
        impl modulith_core::Refusal for $name {
            fn code(&self) -> &str {
                "a_code"
            }
            fn text(&self) -> String {
                "a text".to_owned()
            }
        }
    )*};
}
refusal!(Refused RefusedMore);

#[test]
fn a_refusal_is_read_as_one_whatever_its_body_is() {
    let old = contract(vec![MethodModel::of::<(), (), Refused>("hold", Kind::Command)]);
    let new = contract(vec![MethodModel::of::<(), (), RefusedMore>("hold", Kind::Command)]);
    assert_eq!(
        told(&old, &new),
        [
            "Safe products.hold.refused::Closed: is a case of the callee that the caller does not know",
            "WhenMet products.hold.refused::SoldOut.products[]: is an integer (uint8) for the callee and text for the caller",
        ]
    );
    let never = contract(vec![MethodModel::of::<(), (), Never>("hold", Kind::Command)]);
    assert_eq!(
        told(&never, &old),
        ["Safe products.hold.refused::SoldOut: is a case of the callee that the caller does not know"]
    );
    assert_eq!(told(&old, &never), ["Safe products.hold.refused: is never written by the callee"]);
    for refusal in [RefusedMore::Closed, RefusedMore::SoldOut { products: vec![1] }] {
        let record = RefusalRecord::of(&refusal).expect("encodes");
        assert!(record.typed::<Refused>().is_none(), "{refusal:?}");
        assert_eq!((&*record.code, &*record.text), ("a_code", "a text"));
    }
}

#[test]
fn methods_and_versions() {
    let method = |name, kind| MethodModel::of::<(), (), Never>(name, kind);
    let old = contract(vec![method("hold", Kind::Command), method("find", Kind::Query)]);
    let new = contract(vec![
        method("find", Kind::Query),
        method("hold", Kind::Command),
        method("sell", Kind::Command),
    ]);
    assert_eq!(told(&old, &new), ["Safe products.sell: the caller does not know this method"]);
    assert_eq!(told(&new, &old), ["WhenMet products.sell: the callee does not have this method"]);
    let other = contract(vec![method("hold", Kind::Effect), method("find", Kind::Query)]);
    assert_eq!(
        told(&old, &other),
        ["Breaks products.hold: is a command for the caller and an effect for the callee"]
    );
    let bumped = Document { version: 2, ..old.clone() };
    let lines = told(&old, &bumped);
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0].starts_with("Breaks products: the caller has version 1 and the callee version 2"),
        "{lines:?}"
    );
}

#[test]
fn what_the_rules_do_not_know_is_incompatible_by_name() {
    let with = |schema: serde_json::Value| {
        let method =
            MethodModel { request: schema, ..MethodModel::of::<(), (), Never>("hold", Kind::Command) };
        contract(vec![method])
    };
    let text = serde_json::json!({"type": "string"});
    for (other, keyword) in [
        (serde_json::json!({"type": "string", "pattern": "^a$"}), "`pattern`"),
        (serde_json::json!({"type": "string", "contentEncoding": "base64"}), "`contentEncoding`"),
        (serde_json::json!({"type": "string", "keyword-of-tomorrow": {}}), "`keyword-of-tomorrow`"),
        (serde_json::json!({"allOf": [{"type": "string"}]}), "no rule"),
        (serde_json::json!({"if": {}, "then": {"type": "string"}}), "no rule"),
        (serde_json::json!({"$ref": "#/$defs/Nowhere"}), "no rule"),
        (serde_json::json!([]), "no rule"),
    ] {
        for (caller, callee) in [(&text, &other), (&other, &text)] {
            let found = compare(&with(caller.clone()), &with(callee.clone()));
            assert!(
                found.iter().any(|one| one.weight == Weight::Breaks && one.what.contains(keyword)),
                "{found:?}"
            );
        }
        assert_eq!(compare(&with(other.clone()), &with(other.clone())), [], "{other}");
    }
    // Neither for ever, nor past the stack.
    let mut deep = text.clone();
    for _ in 0..500 {
        deep = serde_json::json!({"type": "array", "items": deep});
    }
    let found = compare(&with(deep.clone()), &with(deep));
    assert!(found.iter().any(|one| one.what.contains("nested deeper")), "{found:?}");
    let mut circle = with(serde_json::json!({"$ref": "#/$defs/A"}));
    circle.types.insert("A".into(), serde_json::json!({"$ref": "#/$defs/A"}));
    assert_eq!(compare(&circle, &circle), []);
    assert_eq!(compare(&circle, &with(text)).len(), 1);
}

#[test]
fn types_of_one_name_stay_two_types() {
    let of = |first: fn() -> MethodModel, second: fn() -> MethodModel| contract(vec![first(), second()]);
    let hold = || MethodModel::of::<old::Basket, (), Never>("hold", Kind::Command);
    let sell = || MethodModel::of::<new::Basket, (), Never>("sell", Kind::Command);
    let both = of(hold, sell);
    let names: Vec<_> = both.types.keys().map(String::as_str).collect();
    assert_eq!(names, ["Line", "Line~2", "Unit", "Unit~2"]);
    // In another order they have other names, and are the same types.
    assert_eq!(compare(&both, &of(sell, hold)), []);
}

#[test]
fn descriptions_defaults_and_marks_change_nothing() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[schemars(rename = "Other")]
    struct Bare {
        a: String,
        #[serde(default)]
        b: u8,
    }
    fn seven() -> u8 {
        7
    }
    /// Described.
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Described {
        /// Also this one.
        a: modulith_core::Secret<String>,
        #[serde(default = "seven")]
        b: u8,
    }
    assert_eq!(takes::<Bare>(), takes::<Described>());
    assert_eq!(takes::<Vec<Bare>>().methods, {
        let mut described = takes::<Vec<Described>>();
        let method = described.methods.remove("hold").expect("it has it");
        let text = serde_json::to_string(&method).expect("is JSON").replace("Described", "Other");
        [("hold".to_owned(), serde_json::from_str(&text).expect("is a method"))].into()
    });
}

#[test]
fn an_error_names_the_type_the_field_and_the_case() {
    let line = new::Line { product: "p".into(), quantity: 1, unit: new::Unit::Crate, gift: true, weight: 1 };
    let bytes = encode(&new::Basket { lines: vec![line], note: String::new() }).expect("encodes");
    let fault = decode::<old::Basket>(&bytes).expect_err("a case that is not known");
    assert_eq!(
        fault.message,
        "cannot decode compat::rules::old::Basket: lines[0].unit: unknown variant `Crate`, expected `Piece` or `Kilogram`"
    );
    let fault = decode::<u8>(&encode(&300).expect("encodes")).expect_err("too large");
    assert_eq!(fault.message, "cannot decode u8: invalid value: integer `300`, expected u8");
}
