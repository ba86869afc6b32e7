//! What a JSON schema, as `schemars` 1 makes it of a Rust type, says about the bytes of a value.
//!
//! One level at a time, since types refer to themselves. What is not recognised stays a schema, and is compared as
//! text.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::document::Document;

/// References that are followed to find a shape. Types of Rust need one; only a hostile schema needs more.
const REFERENCES_MAX: usize = 32;

/// A place in a value.
pub(super) struct Place<'d> {
    pub(super) nullable: bool,
    pub(super) shape: Shape<'d>,
    /// The named type, where it has one.
    pub(super) name: Option<&'d str>,
    /// Keywords that say more about the value and for which there is no rule.
    pub(super) more: BTreeMap<&'d str, &'d Value>,
}

pub(super) enum Shape<'d> {
    /// Values of free form: `serde_json::Value`.
    Anything,
    /// `()`, or a unit struct, which is written differently.
    Nothing {
        is_struct: bool,
    },
    Flag,
    Integer {
        low: i128,
        high: i128,
        format: &'d str,
    },
    Number {
        format: &'d str,
    },
    /// Text, or what the format says: a `uuid` is 16 bytes.
    Text {
        format: &'d str,
        least: u64,
        most: u64,
    },
    List {
        items: &'d Value,
        unique: bool,
        least: u64,
        most: u64,
    },
    Tuple(Vec<&'d Value>),
    /// `keys`: a pattern, for keys that are no text.
    Map {
        keys: &'d str,
        values: &'d Value,
    },
    Struct(Fields<'d>),
    Enum(Cases<'d>),
    Unknown,
}

/// The fields of a struct.
pub(super) struct Fields<'d> {
    pub(super) fields: BTreeMap<&'d str, &'d Value>,
    pub(super) required: Vec<&'d str>,
    /// Other fields are refused, not skipped.
    pub(super) closed: bool,
}

/// The cases of an enum, by name.
pub(super) struct Cases<'d> {
    /// The field that names the case, of an internally or adjacently tagged enum.
    pub(super) tag: Option<&'d str>,
    pub(super) cases: BTreeMap<&'d str, Case<'d>>,
}

pub(super) enum Case<'d> {
    Unit,
    Of(&'d Value),
    /// The fields beside the tag.
    Beside(Fields<'d>),
}

impl<'d> Place<'d> {
    pub(super) fn of(document: &'d Document, schema: &'d Value) -> Self {
        Self::below(document, schema, 0)
    }

    fn below(document: &'d Document, schema: &'d Value, references: usize) -> Self {
        let plain = |shape| Self { nullable: false, shape, name: None, more: BTreeMap::new() };
        let keywords = match schema {
            Value::Bool(true) => return plain(Shape::Anything),
            Value::Bool(false) => return plain(Shape::Enum(Cases { tag: None, cases: BTreeMap::new() })),
            Value::Object(keywords) => keywords,
            _ => return plain(Shape::Unknown),
        };
        if let Some(reference) = keywords.get("$ref") {
            let named = reference.as_str().and_then(|reference| document.named(reference));
            let Some((name, target)) = named.filter(|_| references < REFERENCES_MAX) else {
                return plain(Shape::Unknown);
            };
            let mut place = Self::below(document, target, references + 1);
            if let Shape::Nothing { is_struct } = &mut place.shape {
                *is_struct = true;
            }
            place.more.extend(rest(keywords, &["$ref"]));
            return Self { name: Some(name), ..place };
        }
        if let Some(some) = optional(keywords) {
            let place = Self::below(document, some, references + 1);
            let mut more = place.more;
            more.extend(rest(keywords, &["anyOf"]));
            return Self { nullable: true, more, ..place };
        }
        let (kind, nullable) = kind(keywords);
        let (shape, known) = shape(keywords, kind);
        Self { nullable, shape, name: None, more: rest(keywords, known) }
    }
}

/// What is left over of a schema's keywords.
fn rest<'d>(keywords: &'d Map<String, Value>, known: &[&str]) -> BTreeMap<&'d str, &'d Value> {
    let left =
        keywords.iter().filter(|(keyword, _)| !known.contains(&keyword.as_str()) && *keyword != "title");
    left.map(|(keyword, value)| (keyword.as_str(), value)).collect()
}

/// Of `Option<T>`, the schema of `T`, where it stands apart.
fn optional(keywords: &Map<String, Value>) -> Option<&Value> {
    let is_null = |schema: &Value| schema.get("type").and_then(Value::as_str) == Some("null");
    match keywords.get("anyOf")?.as_array()?.as_slice() {
        [some, none] if is_null(none) && !is_null(some) => Some(some),
        _ => None,
    }
}

/// The value's type, and whether it may be null as well.
fn kind(keywords: &Map<String, Value>) -> (Option<&str>, bool) {
    match keywords.get("type") {
        Some(Value::String(kind)) => (Some(kind), false),
        Some(Value::Array(kinds)) => match kinds.as_slice() {
            [Value::String(kind), Value::String(null)] if null == "null" => (Some(kind), true),
            _ => (None, false),
        },
        _ => (None, false),
    }
}

/// The shape and the keywords that it accounts for.
fn shape<'d>(keywords: &'d Map<String, Value>, kind: Option<&str>) -> (Shape<'d>, &'static [&'static str]) {
    if let Some(cases) = cases(keywords) {
        return (Shape::Enum(cases), &["oneOf", "enum", "const", "type"]);
    }
    let text = |keyword: &str| keywords.get(keyword).and_then(Value::as_str).unwrap_or_default();
    let count = |keyword: &str| keywords.get(keyword).and_then(Value::as_u64);
    match kind {
        Some("null") => (Shape::Nothing { is_struct: keywords.contains_key("title") }, &["type"]),
        Some("boolean") => (Shape::Flag, &["type"]),
        Some("integer") => {
            let format = text("format");
            let (low, high) = range(format);
            let bound = |keyword: &str, default: i128| {
                let value = keywords.get(keyword).map_or(Some(default), |value| {
                    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
                });
                value.ok_or(())
            };
            match (bound("minimum", low), bound("maximum", high)) {
                (Ok(minimum), Ok(maximum)) => {
                    let (low, high) = (low.max(minimum), high.min(maximum));
                    (Shape::Integer { low, high, format }, &["type", "format", "minimum", "maximum"])
                }
                _ => (Shape::Unknown, &[]),
            }
        }
        Some("number") => (Shape::Number { format: text("format") }, &["type", "format"]),
        Some("string") => {
            let (least, most) = (count("minLength").unwrap_or(0), count("maxLength").unwrap_or(u64::MAX));
            (
                Shape::Text { format: text("format"), least, most },
                &["type", "format", "minLength", "maxLength"],
            )
        }
        Some("array") => {
            list(keywords, count("minItems").unwrap_or(0), count("maxItems").unwrap_or(u64::MAX))
        }
        Some("object") => object(keywords),
        _ => (Shape::Unknown, &[]),
    }
}

/// What the integer types of Rust hold, by the names that `schemars` gives them. Without a name, anything.
fn range(format: &str) -> (i128, i128) {
    match format {
        "uint8" => (0, u8::MAX.into()),
        "uint16" => (0, u16::MAX.into()),
        "uint32" => (0, u32::MAX.into()),
        "uint64" | "uint" => (0, u64::MAX.into()),
        "int8" => (i8::MIN.into(), i8::MAX.into()),
        "int16" => (i16::MIN.into(), i16::MAX.into()),
        "int32" => (i32::MIN.into(), i32::MAX.into()),
        "int64" | "int" => (i64::MIN.into(), i64::MAX.into()),
        _ => (i128::MIN, i128::MAX),
    }
}

fn list(keywords: &Map<String, Value>, least: u64, most: u64) -> (Shape<'_>, &'static [&'static str]) {
    const KNOWN: &[&str] = &["type", "items", "prefixItems", "minItems", "maxItems", "uniqueItems"];
    match (keywords.get("prefixItems").and_then(Value::as_array), keywords.get("items")) {
        (Some(items), None) if least == items.len() as u64 && most == least => {
            (Shape::Tuple(items.iter().collect()), KNOWN)
        }
        // A tuple of nothing: `case()`.
        (None, None) if most == 0 => (Shape::Tuple(Vec::new()), KNOWN),
        (None, Some(items)) => {
            let unique = keywords.get("uniqueItems") == Some(&Value::Bool(true));
            (Shape::List { items, unique, least, most }, KNOWN)
        }
        _ => (Shape::Unknown, &[]),
    }
}

fn object(keywords: &Map<String, Value>) -> (Shape<'_>, &'static [&'static str]) {
    let other = keywords.get("additionalProperties");
    match (keywords.contains_key("properties"), keywords.get("patternProperties"), other) {
        (false, None, Some(values)) if *values != Value::Bool(false) => {
            (Shape::Map { keys: "", values }, &["type", "additionalProperties"])
        }
        (false, Some(Value::Object(patterns)), Some(Value::Bool(false))) if patterns.len() == 1 => {
            let (keys, values) = patterns.iter().next().expect("one pattern");
            (Shape::Map { keys, values }, &["type", "additionalProperties", "patternProperties"])
        }
        (_, None, None | Some(Value::Bool(false))) => {
            (Shape::Struct(fields(keywords)), &["type", "properties", "required", "additionalProperties"])
        }
        _ => (Shape::Unknown, &[]),
    }
}

fn fields(keywords: &Map<String, Value>) -> Fields<'_> {
    let fields = keywords.get("properties").and_then(Value::as_object).into_iter().flatten();
    let required = keywords.get("required").and_then(Value::as_array).into_iter().flatten();
    Fields {
        fields: fields.map(|(name, schema)| (name.as_str(), schema)).collect(),
        required: required.filter_map(Value::as_str).collect(),
        closed: keywords.get("additionalProperties") == Some(&Value::Bool(false)),
    }
}

/// What may stand in the schema of one case.
const CASE_KEYWORDS: &[&str] = &["type", "const", "enum", "properties", "required", "additionalProperties"];

/// The cases of an enum, if the schema is one in a form that is known.
fn cases(keywords: &Map<String, Value>) -> Option<Cases<'_>> {
    if let Some(names) = unit_names(keywords) {
        return Some(Cases { tag: None, cases: names.into_iter().map(|name| (name, Case::Unit)).collect() });
    }
    let schemas: Vec<&Map<String, Value>> =
        keywords.get("oneOf")?.as_array()?.iter().map(Value::as_object).collect::<Option<_>>()?;
    let is_known = |schema: &&Map<String, Value>| rest(schema, CASE_KEYWORDS).is_empty();
    if !schemas.iter().all(is_known) {
        return None;
    }
    let tag = tag(&schemas);
    let mut cases = BTreeMap::new();
    for schema in schemas {
        let own: Vec<(&str, Case<'_>)> = match (unit_names(schema), tag) {
            (Some(names), None) => names.into_iter().map(|name| (name, Case::Unit)).collect(),
            (None, None) => vec![of_one_field(schema)?],
            (_, Some(tag)) => {
                let mut beside = fields(schema);
                let name = beside.fields.remove(tag)?.get("const")?.as_str()?;
                beside.required.retain(|field| *field != tag);
                vec![(name, Case::Beside(beside))]
            }
        };
        for (name, case) in own {
            if cases.insert(name, case).is_some() {
                return None;
            }
        }
    }
    Some(Cases { tag, cases })
}

/// The names of cases without fields.
fn unit_names(keywords: &Map<String, Value>) -> Option<Vec<&str>> {
    match (keywords.get("const"), keywords.get("enum")) {
        (Some(name), None) => Some(vec![name.as_str()?]),
        (None, Some(names)) => names.as_array()?.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// An externally tagged case: an object with its name as the one field.
fn of_one_field(schema: &Map<String, Value>) -> Option<(&str, Case<'_>)> {
    let fields = fields(schema);
    let (name, value) = fields.fields.iter().next()?;
    (fields.fields.len() == 1 && fields.required == [*name]).then_some((*name, Case::Of(value)))
}

/// The field that has another constant in every case.
fn tag<'d>(schemas: &[&'d Map<String, Value>]) -> Option<&'d str> {
    let properties = |schema: &'d Map<String, Value>| schema.get("properties").and_then(Value::as_object);
    let is_tag = |tag: &str| {
        schemas.iter().all(|schema| {
            properties(schema)
                .and_then(|fields| fields.get(tag))
                .is_some_and(|field| field.get("const").is_some())
        })
    };
    properties(schemas.first()?)?.keys().map(String::as_str).find(|name| is_tag(name))
}

impl Shape<'_> {
    /// For people.
    pub(super) fn word(&self) -> Cow<'static, str> {
        let of = |word: &str, format: &str| {
            if format.is_empty() { word.to_owned() } else { format!("{word} ({format})") }
        };
        match self {
            Self::Anything => "of free form".into(),
            Self::Nothing { is_struct: false } => "nothing".into(),
            Self::Nothing { is_struct: true } => "a struct without fields".into(),
            Self::Flag => "a boolean".into(),
            Self::Integer { format, .. } => of("an integer", format).into(),
            Self::Number { format } => of("a number", format).into(),
            Self::Text { format, most: 1, .. } => of("a character", format).into(),
            Self::Text { format, .. } => of("text", format).into(),
            Self::List { least, most, .. } if least == most => format!("an array of {least}").into(),
            Self::List { unique: true, .. } => "a set".into(),
            Self::List { .. } => "a list".into(),
            Self::Tuple(items) => format!("a tuple of {}", items.len()).into(),
            Self::Map { .. } => "a map".into(),
            Self::Struct(_) => "a struct".into(),
            Self::Enum(Cases { tag: None, .. }) => "an enum".into(),
            Self::Enum(Cases { tag: Some(tag), .. }) => format!("an enum with its case in `{tag}`").into(),
            Self::Unknown => "described in a way for which there is no rule".into(),
        }
    }
}
