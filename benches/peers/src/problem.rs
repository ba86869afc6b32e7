//! HTTP errors as RFC 9457 problem documents. What went wrong inside goes to the log, not to the client.

use std::fmt::Display;

use axum::http::{HeaderValue, StatusCode, header::CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::orders::Answer;

/// A refusal or a failure, as the client sees it.
#[derive(Clone, Debug)]
pub struct Problem {
    /// Anything below 500 is a refusal: nothing was changed and a repeat is refused again.
    pub status: StatusCode,
    detail: String,
}

impl Problem {
    /// A problem that the client may read.
    pub fn new(status: StatusCode, detail: impl Display) -> Self {
        Self {
            status,
            detail: detail.to_string(),
        }
    }

    /// The document that is sent, and stored under a key.
    pub fn body(&self) -> String {
        json!({ "type": "about:blank", "status": self.status.as_u16(), "title": self.status.canonical_reason(), "detail": self.detail })
            .to_string()
    }

    fn internal(status: StatusCode, error: impl Display) -> Self {
        eprintln!("{error}");
        Self::new(status, "try again with the same key")
    }
}

/// Sends a body that is JSON already.
fn json_text(status: StatusCode, body: String) -> Response {
    let content_type = match status.is_success() {
        true => HeaderValue::from_static("application/json"),
        false => HeaderValue::from_static("application/problem+json"),
    };
    (status, [(CONTENT_TYPE, content_type)], body).into_response()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        json_text(self.status, self.body())
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        Self::internal(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl From<reqwest::Error> for Problem {
    fn from(error: reqwest::Error) -> Self {
        Self::internal(StatusCode::SERVICE_UNAVAILABLE, error)
    }
}

impl From<serde_json::Error> for Problem {
    fn from(error: serde_json::Error) -> Self {
        Self::internal(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl From<Problem> for Answer {
    fn from(problem: Problem) -> Self {
        Self {
            status: problem.status,
            body: problem.body(),
        }
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        json_text(self.status, self.body)
    }
}
