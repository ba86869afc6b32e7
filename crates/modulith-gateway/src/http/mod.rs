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

pub use body::{IDEMPOTENCY_KEY, Json, Keyed, Raw};
pub use caller::{Admin, Calling, SignedIn};
pub use params::{Path, Query};
pub use problem::{Invalid, Problem, finish};
