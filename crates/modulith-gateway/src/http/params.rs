//! What stands in the target of a request: the query and the segments of the path.

use axum::extract::FromRequestParts;
use axum::extract::rejection::PathRejection;
use http::StatusCode;
use http::request::Parts;
use modulith_core::JsonError;
use serde::de::DeserializeOwned;

use super::Problem;

/// The query string. Rejects with 400 `malformed-query` (a `%` without two hexadecimal digits) and 422
/// `invalid`, which names the parameter.
#[derive(Debug, Clone, Copy, Default)]
pub struct Query<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        let query = parts.uri.query().unwrap_or_default();
        if !escapes_are_whole(query) {
            return Err(Problem::new(StatusCode::BAD_REQUEST, "malformed-query", "The query cannot be read"));
        }
        let pairs = form_urlencoded::parse(query.as_bytes());
        serde_path_to_error::deserialize(serde_urlencoded::Deserializer::new(pairs)).map(Self).map_err(
            |error| {
                let path = error.path().to_string();
                JsonError::invalid(&path, &error.inner().to_string()).into()
            },
        )
    }
}

fn escapes_are_whole(query: &str) -> bool {
    query
        .split('%')
        .skip(1)
        .all(|after| after.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
}

/// The captured segments of the path. A segment that cannot be read as its type names nothing, so it is a 404.
#[derive(Debug, Clone, Copy, Default)]
pub struct Path<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match axum::extract::Path::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error))
                if error.status() == StatusCode::BAD_REQUEST =>
            {
                Err(Problem::not_found())
            }
            Err(error) => {
                // The route and the extractor do not fit together: a bug of the module, not of the client.
                tracing::error!(%error, path = parts.uri.path(), "path does not fit its handler");
                Err(Problem::internal())
            }
        }
    }
}
