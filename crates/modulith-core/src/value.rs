//! What crosses the border between Rust and a database: values, parameters, rows.
//!
//! Portable types only: 64-bit integers, text, bytes, booleans; times are integer milliseconds. There is no
//! floating-point value: money and quantities are integers.

use crate::outcome::{Fault, FaultKind};

/// One value of a statement or a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    Integer(i64),
    Boolean(bool),
    Text(&'a str),
    Bytes(&'a [u8]),
}

impl Value<'_> {
    fn name(&self) -> &'static str {
        match self {
            Value::Null => "null",
            Value::Integer(_) => "an integer",
            Value::Boolean(_) => "a boolean",
            Value::Text(_) => "text",
            Value::Bytes(_) => "bytes",
        }
    }
}

/// What may stand in a parameter list.
pub trait Param {
    fn param(&self) -> Value<'_>;
}

/// A Rust type that a column can hold. `#[derive(Column)]` gives it to a newtype.
pub trait Column: Param + Sized {
    fn from_value(value: Value<'_>) -> Result<Self, Fault>;
}

impl<T: Param + ?Sized> Param for &T {
    fn param(&self) -> Value<'_> {
        (**self).param()
    }
}

impl<T: Param> Param for Option<T> {
    fn param(&self) -> Value<'_> {
        self.as_ref().map_or(Value::Null, Param::param)
    }
}

impl Param for str {
    fn param(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Param for [u8] {
    fn param(&self) -> Value<'_> {
        Value::Bytes(self)
    }
}

fn mismatch<T>(wanted: &str, found: Value<'_>) -> Result<T, Fault> {
    Err(Fault::new(FaultKind::Type, format!("column holds {}, not {wanted}", found.name())))
}

macro_rules! integer_column {
    ($($type:ty),*) => {$(
        impl Param for $type {
            fn param(&self) -> Value<'_> {
                Value::Integer(i64::from(*self))
            }
        }

        impl Column for $type {
            fn from_value(value: Value<'_>) -> Result<Self, Fault> {
                match value {
                    Value::Integer(number) => number.try_into().map_err(|_| {
                        Fault::new(FaultKind::Type, format!("{number} does not fit {}", stringify!($type)))
                    }),
                    other => mismatch("an integer", other),
                }
            }
        }
    )*};
}
integer_column!(i64, i32, u32, u16, u8);

impl Param for bool {
    fn param(&self) -> Value<'_> {
        Value::Boolean(*self)
    }
}

impl Column for bool {
    fn from_value(value: Value<'_>) -> Result<Self, Fault> {
        match value {
            Value::Boolean(flag) => Ok(flag),
            // SQLite has no boolean type: the portable column type is an integer there.
            Value::Integer(0) => Ok(false),
            Value::Integer(1) => Ok(true),
            other => mismatch("a boolean", other),
        }
    }
}

impl Param for String {
    fn param(&self) -> Value<'_> {
        Value::Text(self)
    }
}

impl Column for String {
    fn from_value(value: Value<'_>) -> Result<Self, Fault> {
        match value {
            Value::Text(text) => Ok(text.to_owned()),
            other => mismatch("text", other),
        }
    }
}

impl Param for Vec<u8> {
    fn param(&self) -> Value<'_> {
        Value::Bytes(self)
    }
}

impl Column for Vec<u8> {
    fn from_value(value: Value<'_>) -> Result<Self, Fault> {
        match value {
            Value::Bytes(bytes) => Ok(bytes.to_owned()),
            other => mismatch("bytes", other),
        }
    }
}

impl Param for uuid::Uuid {
    fn param(&self) -> Value<'_> {
        Value::Bytes(self.as_bytes())
    }
}

impl Column for uuid::Uuid {
    fn from_value(value: Value<'_>) -> Result<Self, Fault> {
        match value {
            Value::Bytes(bytes) => uuid::Uuid::from_slice(bytes)
                .map_err(|_| Fault::new(FaultKind::Type, format!("{} bytes are no UUID", bytes.len()))),
            other => mismatch("a UUID's 16 bytes", other),
        }
    }
}

impl<T: Column> Column for Option<T> {
    fn from_value(value: Value<'_>) -> Result<Self, Fault> {
        match value {
            Value::Null => Ok(None),
            other => T::from_value(other).map(Some),
        }
    }
}

/// The parameters of a statement, `$1` first: a tuple of up to twelve, or `()`.
pub trait Params {
    fn with<R>(&self, run: impl FnOnce(&[Value<'_>]) -> R) -> R;
}

impl Params for () {
    fn with<R>(&self, run: impl FnOnce(&[Value<'_>]) -> R) -> R {
        run(&[])
    }
}

impl Params for [Value<'_>] {
    fn with<R>(&self, run: impl FnOnce(&[Value<'_>]) -> R) -> R {
        run(self)
    }
}

impl<P: Params + ?Sized> Params for &P {
    fn with<R>(&self, run: impl FnOnce(&[Value<'_>]) -> R) -> R {
        (**self).with(run)
    }
}

/// A row as the code wants it: a tuple of up to thirteen [`Column`]s.
pub trait FromRow: Sized {
    fn from_row(row: &dyn crate::tx::Columns) -> Result<Self, Fault>;
}

macro_rules! tuples {
    ($($name:ident . $index:tt),+) => {
        impl<$($name: Param),+> Params for ($($name,)+) {
            fn with<R>(&self, run: impl FnOnce(&[Value<'_>]) -> R) -> R {
                run(&[$(self.$index.param()),+])
            }
        }
        impl<$($name: Column),+> FromRow for ($($name,)+) {
            fn from_row(row: &dyn crate::tx::Columns) -> Result<Self, Fault> {
                Ok(($($name::from_value(row.value($index)?)
                    .map_err(|fault| Fault::new(fault.kind, format!("column {}: {}", $index + 1, fault.message)))?,)+))
            }
        }
    };
}
tuples!(A.0);
tuples!(A.0, B.1);
tuples!(A.0, B.1, C.2);
tuples!(A.0, B.1, C.2, D.3);
tuples!(A.0, B.1, C.2, D.3, E.4);
tuples!(A.0, B.1, C.2, D.3, E.4, F.5);
tuples!(A.0, B.1, C.2, D.3, E.4, F.5, G.6);
tuples!(A.0, B.1, C.2, D.3, E.4, F.5, G.6, H.7);
tuples!(A.0, B.1, C.2, D.3, E.4, F.5, G.6, H.7, I.8);
tuples!(A.0, B.1, C.2, D.3, E.4, F.5, G.6, H.7, I.8, J.9);
tuples!(A.0, B.1, C.2, D.3, E.4, F.5, G.6, H.7, I.8, J.9, K.10);
tuples!(A.0, B.1, C.2, D.3, E.4, F.5, G.6, H.7, I.8, J.9, K.10, L.11);
tuples!(A.0, B.1, C.2, D.3, E.4, F.5, G.6, H.7, I.8, J.9, K.10, L.11, M.12);
