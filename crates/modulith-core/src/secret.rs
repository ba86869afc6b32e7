//! Values that are used and not shown.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, de};
use subtle::ConstantTimeEq;

use crate::outcome::Fault;
use crate::redact::REDACTED;
use crate::value::{Column, Param, Value};

/// Stands as `true` in the JSON schema of a secret, so that whoever shows a value by its schema leaves it out. It is
/// an extension of our own, since `writeOnly` would say that no answer holds it.
pub const SECRET_MARK: &str = "x-secret";

/// A value that is stored and sent like any other, and that no log and no operator's view shows: a password, the
/// number of a card.
///
/// ```
/// use modulith_core::Secret;
///
/// let cvc = Secret::new("123".to_owned());
/// assert_eq!(format!("{cvc} {cvc:?}"), "… Secret(…)");
/// assert_eq!(cvc.expose(), "123");
/// ```
///
/// Text and bytes are compared in a time that tells their length at most. It is not encrypted: whoever reads the
/// database or the connection reads it, as whoever has the process's memory does.
#[derive(Clone, Copy, Default, Serialize)]
#[serde(transparent)]
pub struct Secret<T>(T);

impl<T> Secret<T> {
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The value itself. What is made of it is shown again.
    pub const fn expose(&self) -> &T {
        &self.0
    }

    /// Like [`Secret::expose`], for who keeps it.
    pub fn into_exposed(self) -> T {
        self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({REDACTED})")
    }
}

impl<T> fmt::Display for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl<T: AsRef<[u8]>> PartialEq for Secret<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_ref().ct_eq(other.0.as_ref()).into()
    }
}

impl<T: AsRef<[u8]>> Eq for Secret<T> {}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Secret<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // The error of the value itself may quote it.
        T::deserialize(deserializer).map(Self).map_err(|_| de::Error::custom("a secret cannot be read"))
    }
}

impl<T: JsonSchema> JsonSchema for Secret<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        format!("Secret_{}", T::schema_name()).into()
    }

    fn schema_id() -> Cow<'static, str> {
        format!("Secret<{}>", T::schema_id()).into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = generator.subschema_for::<T>();
        schema.insert(SECRET_MARK.to_owned(), true.into());
        schema
    }
}

impl<T: Param> Param for Secret<T> {
    fn param(&self) -> Value<'_> {
        self.0.param()
    }
}

impl<T: Column> Column for Secret<T> {
    fn from_value(value: Value<'_>) -> Result<Self, Fault> {
        T::from_value(value).map(Self)
    }
}
