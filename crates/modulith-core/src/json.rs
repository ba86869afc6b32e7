//! What contracts carry, in JSON: for callers and callees that are not written in Rust.
//!
//! Inside, everything is MessagePack with field names; JSON is made from it and to it through the types themselves,
//! since the two write some values apart (a UUID is 16 bytes in one and text in the other). Function pointers only, so
//! that who calls them needs no type.

use std::any::type_name;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::contract::Wire;
use crate::outcome::{Fault, FaultKind, Refusal, RefusalRecord};

/// Why bytes are not the JSON that was asked for. Secrets are never quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// No JSON at all.
    #[error("{reason}")]
    Malformed { reason: String, line: usize, column: usize },
    /// JSON of another shape: the field, as in `lines[0].quantity`, empty for the whole.
    #[error("{field}: {reason}")]
    Invalid { field: String, reason: String },
}

impl JsonError {
    /// Of what serde says about a value of the wrong shape at a path of `serde_path_to_error`.
    pub fn invalid(path: &str, message: &str) -> Self {
        // The position says nothing about a shape, and is wrong for a value that was read to its end.
        let reason = match message.rfind(" at line ") {
            Some(at) => &message[..at],
            None => message,
        };
        let parent = if path == "." { "" } else { path };
        // A missing field is reported on what should have had it.
        let missing = reason.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`'));
        let field = match missing {
            Some(name) if parent.is_empty() => name.to_owned(),
            Some(name) => format!("{parent}.{name}"),
            None => parent.to_owned(),
        };
        let reason = if missing.is_some() { "is missing" } else { reason };
        Self::Invalid { field, reason: reason.to_owned() }
    }

    fn malformed(error: &serde_json::Error) -> Self {
        Self::Malformed { reason: error.to_string(), line: error.line(), column: error.column() }
    }
}

/// Reads JSON, and says which field is wrong.
///
/// # Errors
///
/// [`JsonError::Malformed`] wherever the text is no JSON, also behind a field of the wrong shape.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JsonError> {
    serde_json::from_slice(bytes).map_err(|_| unread::<T>(bytes))
}

/// Reads once more, since to know the field costs every value something that only errors are worth.
#[cold]
fn unread<T: DeserializeOwned>(bytes: &[u8]) -> JsonError {
    // The first mismatch stops the reading, so that JSON which is broken further down must be looked for: a client is
    // told of text that is no JSON, wherever its first mistake is.
    if let Err(error) = serde_json::from_slice::<serde::de::IgnoredAny>(bytes) {
        return JsonError::malformed(&error);
    }
    match serde_path_to_error::deserialize::<_, T>(&mut serde_json::Deserializer::from_slice(bytes)) {
        Err(error) => JsonError::invalid(&error.path().to_string(), &error.inner().to_string()),
        Ok(_) => JsonError::invalid(".", "it was read the second time only"),
    }
}

/// How what one method carries is turned from JSON into the stored and sent form ([`crate::encode`]), and back.
#[derive(Clone, Copy)]
pub struct JsonCodec {
    pub read_request: fn(&[u8]) -> Result<Vec<u8>, JsonError>,
    pub write_request: fn(&[u8]) -> Result<Vec<u8>, Fault>,
    pub read_answer: fn(&[u8]) -> Result<Vec<u8>, JsonError>,
    pub write_answer: fn(&[u8]) -> Result<Vec<u8>, Fault>,
    /// The refusal of a code with its fields. `None`: this build does not know the case, or not with these fields.
    pub read_refusal: fn(&str, &Map<String, Value>) -> Option<RefusalRecord>,
}

impl JsonCodec {
    pub const fn of<Req: Wire, T: Wire, E: Refusal>() -> Self {
        Self {
            read_request: read::<Req>,
            write_request: write::<Req>,
            read_answer: read::<T>,
            write_answer: write::<T>,
            read_refusal: refusal::<E>,
        }
    }
}

fn read<T: Wire>(json: &[u8]) -> Result<Vec<u8>, JsonError> {
    let value: T = from_json(json)?;
    crate::encode(&value).map_err(|fault| JsonError::invalid(".", &fault.message))
}

fn write<T: Wire>(encoded: &[u8]) -> Result<Vec<u8>, Fault> {
    let value: T = crate::decode(encoded)?;
    serde_json::to_vec(&value).map_err(|error| {
        Fault::new(FaultKind::Encoding, format!("{} is not JSON: {error}", type_name::<T>()))
    })
}

/// A case without fields is its name; one with fields is an object of one member; the only case of a struct is its
/// fields. What was read has to have the code, since a struct's fields would fit more than one name.
fn refusal<E: Refusal>(code: &str, fields: &Map<String, Value>) -> Option<RefusalRecord> {
    let case = E::cases().iter().find(|case| case.code == code)?;
    let fields = Value::Object(fields.clone());
    let with_fields = Value::Object(Map::from_iter([(case.name.to_owned(), fields.clone())]));
    let shapes = [with_fields, Value::from(case.name), fields];
    let mut read = shapes.into_iter().filter_map(|shape| serde_json::from_value::<E>(shape).ok());
    read.find(|refusal| refusal.code() == code)?.record().ok()
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::outcome::RefusalCase;
    use crate::{Secret, decode, encode};

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    struct Line {
        id: uuid::Uuid,
        quantity: u32,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    struct Request {
        lines: Vec<Line>,
        password: Option<Secret<String>>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    enum Refused {
        Closed,
        SoldOut { products: Vec<String> },
    }

    impl Refusal for Refused {
        fn code(&self) -> &str {
            match self {
                Self::Closed => "closed",
                Self::SoldOut { .. } => "sold_out",
            }
        }
        fn text(&self) -> String {
            "no".to_owned()
        }
        fn cases() -> &'static [RefusalCase] {
            &[
                RefusalCase { name: "Closed", code: "closed", status: 409, text: "no" },
                RefusalCase { name: "SoldOut", code: "sold_out", status: 409, text: "no" },
            ]
        }
    }

    const CODEC: JsonCodec = JsonCodec::of::<Request, Line, Refused>();

    #[test]
    fn the_two_forms_hold_the_same() {
        let json =
            br#"{"lines":[{"id":"00000000-0000-0000-0000-000000000001","quantity":2}],"password":"x"}"#;
        let encoded = (CODEC.read_request)(json).unwrap();
        let request: Request = decode(&encoded).unwrap();
        assert_eq!((request.lines[0].id.as_u128(), request.lines[0].quantity), (1, 2));
        assert_eq!((CODEC.write_request)(&encoded).unwrap(), json);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_quoted() {
        let invalid = |json: &[u8]| match (CODEC.read_request)(json) {
            Err(JsonError::Invalid { field, reason }) => (field, reason),
            other => panic!("{other:?}"),
        };
        let id = r#""id":"00000000-0000-0000-0000-000000000001""#;
        let (field, reason) = invalid(format!(r#"{{"lines":[{{{id},"quantity":-2}}]}}"#).as_bytes());
        assert_eq!(field, "lines[0].quantity");
        assert!(reason.contains("-2"), "{reason}");
        assert_eq!(invalid(br#"{"password":null}"#), ("lines".to_owned(), "is missing".to_owned()));
        let (field, reason) = invalid(br#"{"lines":[],"password":1815}"#);
        assert_eq!(field, "password");
        assert!(!reason.contains("1815"), "{reason}");
        for broken in [&b"{"[..], b"", b"{} {}", br#"{"lines":7,"#, b"\xff"] {
            assert!(matches!((CODEC.read_request)(broken), Err(JsonError::Malformed { .. })), "{broken:?}");
        }
    }

    #[test]
    fn a_refusal_is_read_by_its_code_and_fields() {
        let fields = |json: &str| serde_json::from_str::<Map<_, _>>(json).unwrap();
        let read = |code, json| {
            (CODEC.read_refusal)(code, &fields(json)).and_then(|record| record.typed::<Refused>())
        };
        assert_eq!(read("closed", r#"{"extra":1}"#), Some(Refused::Closed));
        let sold_out = Refused::SoldOut { products: vec!["a".to_owned()] };
        assert_eq!(read("sold_out", r#"{"products":["a"]}"#), Some(sold_out));
        assert_eq!(read("sold_out", "{}"), None, "its fields are missing");
        assert_eq!(read("unheard_of", "{}"), None);
        assert_eq!(
            encode(&Refused::Closed).unwrap(),
            (CODEC.read_refusal)("closed", &fields("{}")).unwrap().body
        );
    }
}
