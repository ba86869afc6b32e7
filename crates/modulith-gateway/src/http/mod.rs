//! What the axum handlers of a module use: problems, extractors, and [`finish`].
//!
//! Extractors reject with a [`Problem`] and never with axum's plain text; nothing here knows a module. A handler
//! returns `Result<_, Problem>`, and `?` turns a failed call of a contract into the right problem.

mod body;
mod call;
mod caller;
mod params;
mod problem;

pub use axum::Router;
pub use axum::routing::{delete, get, patch, post, put};
pub use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

pub use body::{IDEMPOTENCY_KEY, Json, Keyed};
pub use caller::{Admin, SignedIn};
pub use params::{Path, Query};
pub use problem::{Invalid, Problem, finish};

/// What serde says about a value of the wrong shape, as a field and a reason.
fn mismatch(path: &str, message: &str) -> (String, String) {
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
    (field, reason.to_owned())
}
