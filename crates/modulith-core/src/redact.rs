//! Encoded values as an operator may see them, by the schemas of their contract.
//!
//! A value is shown as far as its schema accounts for it and calls none of it secret. Which case of an enum a value
//! has is not decided here, since a wrong guess would show a secret: a place is hidden if any of the cases hides it.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::secret::SECRET_MARK;

/// Stands for what is not shown.
pub const REDACTED: &str = "…";

/// A value that is nested deeper is not shown at all.
const DEPTH_MAX: usize = 128;

/// A request, an answer or a refusal in its stored form ([`crate::encode`]) as JSON, without what is secret.
///
/// `schema` is that of its type: [`crate::MethodModel`] has the three of each method; of a stored refusal the
/// body is meant. [`REDACTED`] stands for every [`crate::Secret`], and for everything that the schema does not account
/// for: a value of free form, a field it does not name (also by its name), bytes that are no UUID, a case it
/// does not know, or all of it if it cannot be decoded. Where cases of an enum share a field and one calls it secret,
/// it is hidden in all.
///
/// ```
/// use modulith_core::{Secret, encode, redacted};
/// use schemars::{JsonSchema, schema_for};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize, JsonSchema)]
/// struct SignIn {
///     email: String,
///     password: Secret<String>,
/// }
///
/// let stored = encode(&SignIn { email: "ada@example.org".into(), password: Secret::new("1815".into()) }).unwrap();
/// let shown = redacted(&stored, schema_for!(SignIn).as_value());
/// assert_eq!(shown, serde_json::json!({"email": "ada@example.org", "password": "…"}));
/// ```
pub fn redacted(encoded: &[u8], schema: &Value) -> Value {
    let mut bytes = rmp_serde::Deserializer::from_read_ref(encoded);
    bytes.set_max_depth(DEPTH_MAX);
    match Encoded::deserialize(&mut bytes) {
        Ok(value) => Place::of(schema, [schema]).show(&value),
        Err(_) => hidden(),
    }
}

fn hidden() -> Value {
    Value::from(REDACTED)
}

/// What a schema has to have at least one of to say anything about a value.
const SAYING: [&str; 9] =
    ["type", "const", "enum", "properties", "additionalProperties", "$ref", "allOf", "anyOf", "oneOf"];
/// What may describe a value in ways that are not followed here.
const NOT_FOLLOWED: [&str; 5] = ["if", "then", "else", "dependentSchemas", "$dynamicRef"];

/// All schemas that may apply to one place in a value, those that they refer to among them. What none of them allows is
/// not shown.
struct Place<'s> {
    root: &'s Value,
    schemas: Vec<&'s Map<String, Value>>,
    hidden: bool,
}

impl<'s> Place<'s> {
    fn of(root: &'s Value, schemas: impl IntoIterator<Item = &'s Value>) -> Self {
        let mut place = Self { root, schemas: Vec::new(), hidden: false };
        schemas.into_iter().for_each(|schema| place.add(schema));
        place
    }

    fn add(&mut self, schema: &'s Value) {
        let Value::Object(schema) = schema else {
            // `false` stands for no value, `true` for any.
            self.hidden |= *schema != Value::Bool(false);
            return;
        };
        // Types refer to themselves, and cases of an enum to the same type.
        if self.schemas.iter().any(|known| std::ptr::eq(*known, schema)) {
            return;
        }
        self.schemas.push(schema);
        let has = |keyword: &&str| schema.contains_key(*keyword);
        self.hidden |= schema.get(SECRET_MARK).is_some_and(|mark| *mark != Value::Bool(false))
            || !SAYING.iter().any(has)
            || NOT_FOLLOWED.iter().any(has);
        if let Some(reference) = schema.get("$ref") {
            match reference.as_str().and_then(|reference| self.root.pointer(reference.strip_prefix('#')?)) {
                Some(target) => self.add(target),
                None => self.hidden = true,
            }
        }
        for keyword in ["allOf", "anyOf", "oneOf"] {
            let schemas = schema.get(keyword).and_then(Value::as_array);
            schemas.into_iter().flatten().for_each(|schema| self.add(schema));
        }
    }

    fn show(&self, value: &Encoded) -> Value {
        match value {
            _ if self.hidden => hidden(),
            Encoded::Plain(value) if self.allows(value) => value.clone(),
            Encoded::Bytes(bytes) if self.schemas.iter().any(|schema| is_uuid(schema)) => {
                uuid::Uuid::from_slice(bytes).map_or_else(|_| hidden(), |uuid| Value::from(uuid.to_string()))
            }
            Encoded::Array(items) if self.has_type("array") => {
                items.iter().enumerate().map(|(index, item)| self.item(index).show(item)).collect()
            }
            Encoded::Map(fields) if self.has_type("object") => {
                let shown = |(name, value): &(Option<String>, Encoded)| match name {
                    Some(name) if self.names(name) => (name.clone(), self.field(name).show(value)),
                    _ => (REDACTED.to_owned(), hidden()),
                };
                Value::Object(fields.iter().map(shown).collect())
            }
            _ => hidden(),
        }
    }

    fn allows(&self, value: &Value) -> bool {
        self.schemas.iter().any(|schema| match (schema.get("const"), schema.get("enum")) {
            (Some(only), _) => only == value,
            (None, Some(cases)) => cases.as_array().is_some_and(|cases| cases.contains(value)),
            (None, None) => match value {
                Value::Null => has_type(schema, "null"),
                Value::Bool(_) => has_type(schema, "boolean"),
                Value::String(_) => has_type(schema, "string"),
                Value::Number(number) => {
                    has_type(schema, "number") || (!number.is_f64() && has_type(schema, "integer"))
                }
                Value::Array(_) | Value::Object(_) => false,
            },
        })
    }

    fn has_type(&self, name: &str) -> bool {
        self.schemas.iter().any(|schema| has_type(schema, name))
    }

    /// An element of this array.
    fn item(&self, index: usize) -> Self {
        let of_schema = |schema: &&'s Map<String, Value>| {
            let in_tuple = schema.get("prefixItems").and_then(|items| items.get(index));
            in_tuple.or_else(|| schema.get("items"))
        };
        Self::of(self.root, self.schemas.iter().filter_map(of_schema))
    }

    /// Whether a schema knows this field, or is of a map with any.
    fn names(&self, name: &str) -> bool {
        self.field_schemas(name).any(|schema| *schema != Value::Bool(false))
    }

    /// A field of this object.
    fn field(&self, name: &str) -> Self {
        Self::of(self.root, self.field_schemas(name))
    }

    fn field_schemas(&self, name: &str) -> impl Iterator<Item = &'s Value> {
        self.schemas.iter().flat_map(move |schema| {
            let own = schema.get("properties").and_then(|fields| fields.get(name));
            // Patterns are not matched: more schemas never show more.
            let patterns = schema.get("patternProperties").and_then(Value::as_object);
            let others = ["additionalProperties", "unevaluatedProperties"];
            let others = others.into_iter().filter_map(move |keyword| schema.get(keyword));
            let patterns = patterns.into_iter().flat_map(Map::values);
            own.into_iter().chain(patterns).chain(others.filter(move |_| own.is_none()))
        })
    }
}

fn has_type(schema: &Map<String, Value>, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(only)) => only == name,
        Some(Value::Array(names)) => names.iter().any(|known| known == name),
        _ => false,
    }
}

/// A UUID is 16 bytes when it is stored, and text in JSON.
fn is_uuid(schema: &Map<String, Value>) -> bool {
    schema.get("format").is_some_and(|format| format == "uuid")
}

/// What MessagePack can hold and JSON cannot: bytes, and fields that are named by numbers.
enum Encoded {
    Plain(Value),
    Bytes(Vec<u8>),
    Array(Vec<Encoded>),
    /// `None`: a name that is neither text nor a number.
    Map(Vec<(Option<String>, Encoded)>),
}

impl Encoded {
    fn name(self) -> Option<String> {
        match self {
            Encoded::Plain(Value::String(name)) => Some(name),
            Encoded::Plain(Value::Number(number)) => Some(number.to_string()),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Encoded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;

        impl<'de> Visitor<'de> for Any {
            type Value = Encoded;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value")
            }
            fn visit_unit<E>(self) -> Result<Encoded, E> {
                Ok(Encoded::Plain(Value::Null))
            }
            fn visit_bool<E>(self, flag: bool) -> Result<Encoded, E> {
                Ok(Encoded::Plain(flag.into()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Encoded, E> {
                Ok(Encoded::Plain(number.into()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Encoded, E> {
                Ok(Encoded::Plain(number.into()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<Encoded, E> {
                Ok(Encoded::Plain(number.into()))
            }
            fn visit_str<E>(self, text: &str) -> Result<Encoded, E> {
                Ok(Encoded::Plain(text.into()))
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Encoded, E> {
                Ok(Encoded::Bytes(bytes.to_owned()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Encoded, A::Error> {
                let mut array = Vec::new();
                while let Some(item) = items.next_element()? {
                    array.push(item);
                }
                Ok(Encoded::Array(array))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Encoded, A::Error> {
                let mut map = Vec::new();
                while let Some((name, value)) = fields.next_entry::<Encoded, Encoded>()? {
                    map.push((name.name(), value));
                }
                Ok(Encoded::Map(map))
            }
        }

        deserializer.deserialize_any(Any)
    }
}
