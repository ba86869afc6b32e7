//! What an operator sees of a stored value.

use std::collections::{BTreeMap, HashMap};

use modulith_core::{ContractModel, Kind, MethodModel, Never, REDACTED, Secret, decode, encode, redacted};
use schemars::{JsonSchema, schema_for};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Every value with a secret holds this, and nothing that is shown does.
const PIN: &str = "4711";

fn pin() -> Secret<String> {
    Secret::new(PIN.to_owned())
}

fn shown<T: Serialize + JsonSchema>(value: &T) -> Value {
    let shown = redacted(&encode(value).unwrap(), schema_for!(T).as_value());
    assert!(!shown.to_string().contains(PIN), "{shown}");
    shown
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Card {
    holder: String,
    number: Secret<String>,
}

fn card() -> Card {
    Card { holder: "Ada".to_owned(), number: pin() }
}

fn card_shown() -> Value {
    json!({"holder": "Ada", "number": REDACTED})
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Wallet {
    id: uuid::Uuid,
    cards: Vec<Card>,
    main: Option<Card>,
    spare: Option<Card>,
    hidden: Secret<Card>,
    maybe_hidden: Option<Secret<Card>>,
    note: Option<Secret<String>>,
    limits: (u32, Secret<String>, f64),
    #[serde(flatten)]
    more: More,
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct More {
    color: Color,
    pins: HashMap<String, Secret<String>>,
    by_number: BTreeMap<i64, Card>,
    unit: (),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Color {
    Red,
    /// With a description of its own, and so with a schema of its own.
    Green,
}

#[test]
fn secrets_are_hidden_wherever_they_stand() {
    let wallet = Wallet {
        id: uuid::Uuid::from_u128(7),
        cards: vec![card(), card()],
        main: Some(card()),
        spare: None,
        hidden: Secret::new(card()),
        maybe_hidden: Some(Secret::new(card())),
        note: Some(pin()),
        limits: (7, pin(), 0.5),
        more: More {
            color: Color::Green,
            pins: HashMap::from([("home".to_owned(), pin())]),
            by_number: BTreeMap::from([(-3, card())]),
            unit: (),
        },
    };
    assert_eq!(
        shown(&wallet),
        json!({
            "id": "00000000-0000-0000-0000-000000000007",
            "cards": [card_shown(), card_shown()],
            "main": card_shown(),
            "spare": null,
            "hidden": REDACTED,
            "maybe_hidden": REDACTED,
            "note": REDACTED,
            "limits": [7, REDACTED, 0.5],
            "color": "green",
            "pins": {"home": REDACTED},
            "by_number": {"-3": card_shown()},
            "unit": null,
        })
    );
    assert_eq!(shown(&vec![Some(Color::Red), None]), json!(["red", null]));
}

#[derive(Serialize, Deserialize, JsonSchema)]
enum Outside {
    Card(Card),
    Pin(Secret<String>),
    Both { card: Card, pin: Secret<String> },
    Two(String, Secret<String>),
    Nothing,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Inside {
    Card(Card),
    /// Calls what is secret in `Card` a plain text.
    Invoice {
        number: String,
        street: String,
    },
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", content = "is")]
enum Beside {
    Pin(Secret<String>),
    Name(String),
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Unsaid {
    Pin { number: Secret<String> },
    Name { number: String, name: String },
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Drawer {
    label: String,
    #[serde(flatten)]
    pins: HashMap<String, Secret<String>>,
}

#[test]
fn a_field_is_not_hidden_for_a_map_beside_it() {
    let drawer = Drawer { label: "top".to_owned(), pins: HashMap::from([("home".to_owned(), pin())]) };
    assert_eq!(shown(&drawer), json!({"label": "top", "home": REDACTED}));
}

#[test]
fn secrets_are_hidden_in_every_kind_of_enum() {
    for (value, expected) in [
        (Outside::Card(card()), json!({"Card": card_shown()})),
        (Outside::Pin(pin()), json!({"Pin": REDACTED})),
        (
            Outside::Both { card: card(), pin: pin() },
            json!({"Both": {"card": card_shown(), "pin": REDACTED}}),
        ),
        (Outside::Two("Ada".to_owned(), pin()), json!({"Two": ["Ada", REDACTED]})),
        (Outside::Nothing, json!("Nothing")),
    ] {
        assert_eq!(shown(&value), expected);
    }
    assert_eq!(shown(&Inside::Card(card())), json!({"kind": "card", "holder": "Ada", "number": REDACTED}));
    // What one case hides is hidden in all.
    let invoice = Inside::Invoice { number: "12".to_owned(), street: "Mill Lane".to_owned() };
    assert_eq!(shown(&invoice), json!({"kind": "invoice", "number": REDACTED, "street": "Mill Lane"}));
    assert_eq!(shown(&Beside::Pin(pin())), json!({"kind": "Pin", "is": REDACTED}));
    assert_eq!(shown(&Beside::Name("Ada".to_owned())), json!({"kind": "Name", "is": REDACTED}));
    assert_eq!(shown(&Unsaid::Pin { number: pin() }), json!({"number": REDACTED}));
    let name = Unsaid::Name { number: "12".to_owned(), name: "Ada".to_owned() };
    assert_eq!(shown(&name), json!({"number": REDACTED, "name": "Ada"}));
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Tree {
    name: String,
    secret: Secret<String>,
    left: Option<Box<Tree>>,
    either: Vec<Either>,
}

#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Either {
    One { tree: Box<Tree> },
    Other { tree: Box<Tree>, more: bool },
}

#[test]
fn a_type_may_hold_itself() {
    let mut tree = Tree { name: "0".to_owned(), secret: pin(), left: None, either: Vec::new() };
    for depth in 1..20 {
        let either = vec![Either::Other { tree: Box::new(tree), more: true }];
        tree = Tree { name: depth.to_string(), secret: pin(), left: None, either };
    }
    let shown = shown(&tree);
    let below = shown.pointer(&"/either/0/tree".repeat(19)).unwrap();
    assert_eq!(*below, json!({"name": "0", "secret": REDACTED, "left": null, "either": []}));
}

#[test]
fn what_the_schema_does_not_account_for_is_hidden() {
    // A reader with an older schema: a new field, a new case, another type.
    #[derive(Serialize)]
    struct Newer {
        holder: u32,
        number: &'static str,
        cvc: &'static str,
    }
    let newer = encode(&Newer { holder: 7, number: PIN, cvc: PIN }).unwrap();
    let schema = schema_for!(Card).to_value();
    assert_eq!(
        redacted(&newer, &schema),
        json!({"holder": REDACTED, "number": REDACTED, REDACTED: REDACTED})
    );
    assert_eq!(redacted(&encode("blue").unwrap(), schema_for!(Color).as_value()), REDACTED);

    let pair = encode(&json!({"holder": "Ada"})).unwrap();
    let holder = json!({"type": "object", "properties": {"holder": {"type": "string"}}});
    assert_eq!(redacted(&pair, &holder), json!({"holder": "Ada"}));
    let beside = |keyword: &str, value: Value| {
        let mut schema = holder.clone();
        schema[keyword] = value;
        schema
    };
    for schema in [
        json!(true),
        json!({}),
        json!({"type": "string"}),
        json!({"$ref": "#"}),
        beside("x-secret", json!(true)),
        beside("$ref", json!("#/$defs/Absent")),
        beside("$ref", json!("https://example.org/card.json")),
        beside("anyOf", json!([{"description": "anything"}])),
        beside("allOf", json!([true])),
        beside("then", json!({"x-secret": true})),
    ] {
        assert_eq!(redacted(&pair, &schema), REDACTED, "{schema}");
    }
    for schema in [json!({"type": "object"}), json!({"type": "object", "additionalProperties": false})] {
        assert_eq!(redacted(&pair, &schema), json!({REDACTED: REDACTED}), "{schema}");
    }
    let free = json!({"type": "object", "additionalProperties": true});
    assert_eq!(redacted(&pair, &free), json!({"holder": REDACTED}));

    // Bytes, and what cannot be decoded.
    let schema = schema_for!(Vec<u8>).to_value();
    assert_eq!(redacted(&[0xc4, 2, 1, 2], &schema), REDACTED);
    assert_eq!(redacted(&[0x92, 1], &schema), REDACTED);
    assert_eq!(redacted(&[], &schema), REDACTED);
    let nested: Vec<u8> = [0x91].repeat(4_000).into_iter().chain([0xc0]).collect();
    assert_eq!(redacted(&nested, &json!({"type": "array", "items": {"$ref": "#"}})), REDACTED);
}

#[test]
fn a_secret_is_stored_and_sent_like_its_value() {
    fn same<T: Serialize + DeserializeOwned>(secret: &Secret<T>) {
        let plain = encode(secret.expose()).unwrap();
        assert_eq!(encode(secret).unwrap(), plain);
        assert_eq!(encode(decode::<Secret<T>>(&plain).unwrap().expose()).unwrap(), plain);
    }
    same(&pin());
    same(&Secret::new(card()));
    same(&Secret::new(Some(7_u64)));
    assert_eq!(serde_json::to_value(pin()).unwrap(), PIN);
}

#[test]
fn nothing_that_is_printed_shows_a_secret() {
    assert_eq!(format!("{:?} {}", card(), pin()), "Card { holder: \"Ada\", number: Secret(…) } …");
    // An error of serde's quotes what it cannot read.
    let error = serde_json::from_value::<Secret<u32>>(json!(PIN)).unwrap_err();
    assert_eq!(error.to_string(), "a secret cannot be read");
    let wrong = encode(&BTreeMap::from([("holder", json!("Ada")), ("number", json!(4711))])).unwrap();
    let fault = decode::<Card>(&wrong).unwrap_err();
    assert!(fault.message.ends_with("a secret cannot be read"), "{fault}");
}

#[test]
fn secrets_are_compared() {
    assert_eq!(pin(), pin());
    for other in ["", "4712", "471", "47111"] {
        assert_ne!(pin(), Secret::new(other.to_owned()));
    }
}

/// Two services may disagree on what is secret, since they exchange the same bytes.
#[test]
fn a_fingerprint_is_the_same_with_and_without_a_secret() {
    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Plain {
        holder: String,
        number: String,
    }
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[schemars(rename = "Plain")]
    struct Marked {
        holder: String,
        number: Secret<String>,
    }
    #[derive(Serialize, Deserialize, JsonSchema)]
    #[schemars(rename = "Plain")]
    struct Other {
        holder: String,
        number: Secret<u64>,
    }
    let fingerprint =
        |method| ContractModel { name: "cards", version: 1, methods: vec![method] }.fingerprint();
    let plain = fingerprint(MethodModel::of::<Plain, (), Never>("add", Kind::Command));
    assert_eq!(plain, fingerprint(MethodModel::of::<Marked, (), Never>("add", Kind::Command)));
    assert_ne!(plain, fingerprint(MethodModel::of::<Other, (), Never>("add", Kind::Command)));
}
