//! Bodies: JSON in and out, and keyed requests.
//!
//! A body is read whole, up to a limit, before anything is made of it: a handler sees all of it or is not run.
//! What cannot be read is told apart: too large (413), not JSON by its media type (415), no JSON by its bytes
//! (400, with line and column), JSON of another shape (422, with the field).

use axum::body::Body;
use std::borrow::Cow;

use axum::extract::{FromRequest, MatchedPath, Request};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use modulith_core::{ClientKey, JsonError, Principal, from_json};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Problem, caller};
use crate::edge::Limits;

/// A JSON body of a request or a response.
///
/// As an extractor it asks for `application/json` or a `+json` type and reads at most
/// [`Limits::body_bytes_max`] bytes (1 MiB by default). Rejects with 400 `malformed-json`, 413 `body-too-large`,
/// 415 `unsupported-media-type` and 422 `invalid`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        media_type(request.headers())?;
        let limit = body_bytes_max(&request);
        Ok(Self(from_json(&read(request.into_body(), limit).await?)?))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => {
                let mut response = Response::new(Body::from(body));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response
            }
            Err(error) => {
                tracing::error!(%error, answer = std::any::type_name::<T>(), "answer is not JSON");
                Problem::internal().into_response()
            }
        }
    }
}

/// A JSON body under the client's `Idempotency-Key`: a repeat with the same key and body gets the first answer.
///
/// The header is required: 1 to 255 visible ASCII characters (400 `idempotency-key-missing` or
/// `idempotency-key-invalid`). The key counts per caller and per route, and covers the body's bytes: the same
/// key with another body is 422 `idempotency-key-reused`, told by the call that is given the key.
#[derive(Debug, Clone)]
pub struct Keyed<T> {
    pub key: ClientKey,
    pub body: T,
}

/// The header of [`Keyed`].
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const KEY_CHARS_MAX: usize = 255;

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Keyed<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if idempotency_key(request.headers())?.is_none() {
            return Err(key_missing());
        }
        let (key, bytes) = Raw::from_request(request, state).await?.keyed()?;
        Ok(Self { key, body: from_json(&bytes)? })
    }
}

/// A JSON body as it came, for who learns only later what it has to be. Rejects like [`Json`], except that nothing
/// is made of the bytes, and like [`Keyed`] a key that cannot be used.
#[derive(Debug, Clone)]
pub struct Raw {
    /// Of the `Idempotency-Key`, if there is one.
    pub key: Option<ClientKey>,
    pub bytes: Bytes,
}

impl Raw {
    /// With the key that has to be there.
    ///
    /// # Errors
    ///
    /// 400 `idempotency-key-missing`.
    pub fn keyed(self) -> Result<(ClientKey, Bytes), Problem> {
        Ok((self.key.ok_or_else(key_missing)?, self.bytes))
    }
}

fn key_missing() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "idempotency-key-missing", "The Idempotency-Key header is missing")
        .detail("Send a new, random Idempotency-Key with each new request, and the same one with a repeat.")
}

impl<S: Send + Sync> FromRequest<S> for Raw {
    type Rejection = Problem;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Problem> {
        let limit = body_bytes_max(&request);
        let (parts, body) = request.into_parts();
        let key = idempotency_key(&parts.headers)?;
        media_type(&parts.headers)?;
        let bytes = read(body, limit).await?;
        let key = key.map(|key| {
            let path = match parts.extensions.get::<MatchedPath>() {
                Some(matched) => matched.as_str(),
                None => parts.uri.path(),
            };
            // No subject of a session begins with NUL, so that no user shares the keys of others.
            let principal = match caller::principal(&parts.extensions) {
                Some(Principal::User(id)) => id,
                Some(Principal::Caller(name)) => format!("\0caller {name}").into(),
                Some(Principal::Admin) => "\0admin".into(),
                None => "".into(),
            };
            let asked = match parts.uri.path() {
                same if same == path => Cow::Borrowed(&bytes[..]),
                // What its parameters say is part of what is asked.
                other => [other.as_bytes(), b"\n", &bytes].concat().into(),
            };
            ClientKey::new(&principal, &route(&parts.method, path), key, &asked)
        });
        Ok(Self { key, bytes })
    }
}

fn route(method: &Method, path: &str) -> String {
    format!("{method} {path}")
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let invalid = || {
        Problem::new(StatusCode::BAD_REQUEST, "idempotency-key-invalid", "The Idempotency-Key cannot be used")
            .detail("Send one Idempotency-Key header of 1 to 255 visible ASCII characters.")
    };
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => match key.to_str() {
            Ok(text)
                if (1..=KEY_CHARS_MAX).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                Ok(Some(text))
            }
            _ => Err(invalid()),
        },
        (Some(_), Some(_)) => Err(invalid()),
    }
}

fn body_bytes_max(request: &Request) -> usize {
    request.extensions().get::<Limits>().map_or(Limits::BODY_BYTES_MAX, |limits| limits.body_bytes_max)
}

fn media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let json = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).is_some_and(|value| {
        let essence = value.split(';').next().unwrap_or_default().trim();
        essence.eq_ignore_ascii_case("application/json")
            || (essence.get(..12).is_some_and(|head| head.eq_ignore_ascii_case("application/"))
                && essence
                    .len()
                    .checked_sub(5)
                    .and_then(|at| essence.get(at..))
                    .is_some_and(|tail| tail.eq_ignore_ascii_case("+json")))
    });
    match json {
        true => Ok(()),
        false => Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported-media-type",
            "The media type is not supported",
        )
        .detail("Send the body as application/json.")),
    }
}

async fn read(body: Body, limit: usize) -> Result<Bytes, Problem> {
    match Limited::new(body, limit).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if too_large(error.as_ref()) => Err(Problem::too_large(limit)),
        Err(error) => {
            tracing::debug!(%error, "body not read");
            Err(Problem::new(StatusCode::BAD_REQUEST, "body-unreadable", "The body could not be read"))
        }
    }
}

fn too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<LengthLimitError>())
}

impl From<JsonError> for Problem {
    fn from(error: JsonError) -> Self {
        match error {
            JsonError::Malformed { reason, line, column } => {
                Problem::new(StatusCode::BAD_REQUEST, "malformed-json", "The body is not JSON")
                    .detail(reason)
                    .with("line", line)
                    .with("column", column)
            }
            JsonError::Invalid { field, reason } => Problem::invalid([(field, reason)]),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::routing::post;
    use tower::ServiceExt;

    use super::*;

    /// The same key for another path is the same key with another request, which is refused where it is kept.
    #[tokio::test]
    async fn a_key_stands_for_the_whole_request() {
        let router = || {
            let key = async |keyed: Keyed<()>| format!("{:?} {:?}", keyed.key.name, keyed.key.body);
            Router::new().route("/orders", post(key)).route("/things/{id}/close", post(key))
        };
        let key = async |target: &str| {
            let request = Request::post(target)
                .header(CONTENT_TYPE, "application/json")
                .header(IDEMPOTENCY_KEY, "k")
                .body(axum::body::Body::from("null"))
                .expect("well formed");
            let answer = router().oneshot(request).await.expect("it answers");
            assert_eq!(answer.status(), StatusCode::OK);
            let text = axum::body::to_bytes(answer.into_body(), 4096).await.expect("short");
            String::from_utf8(text.to_vec()).expect("text")
        };
        let first = key("/things/1/close").await;
        assert_eq!(key("/things/1/close").await, first);
        let other = key("/things/2/close").await;
        assert_ne!(other, first);
        assert_eq!(other.split(']').next(), first.split(']').next(), "its name is the same, so it is met");
        let plain = ClientKey::new("", "POST /orders", "k", b"null");
        assert_eq!(key("/orders").await, format!("{:?} {:?}", plain.name, plain.body));
    }
}
