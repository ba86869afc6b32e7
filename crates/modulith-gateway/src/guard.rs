//! What protects the process and the client from one handler: a time to answer by, and a floor under panics.

use std::any::Any;
use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http::{Method, StatusCode, Uri};
use modulith_core::{Context, Trace};
use tower::{Service, ServiceExt};

use crate::http::Problem;

/// Runs a service within a context, until the context's deadline and the grace behind it.
pub(crate) async fn run<S>(inner: S, request: Request, context: Context, grace: Duration) -> Response
where
    S: Service<Request, Response = Response, Error = Infallible>,
{
    let method = request.method().clone();
    let request_id = context.request_id.clone();
    let late_at = context.deadline_or_default() + grace;
    let answer = AssertUnwindSafe(context.scope(inner.oneshot(request))).catch_unwind();
    match tokio::time::timeout_at(late_at.into(), answer).await {
        Ok(Ok(Ok(response))) => response,
        Ok(Err(panic)) => {
            tracing::error!(%request_id, panic = message(&*panic), "handler panicked");
            Problem::internal().into_response()
        }
        Err(_late) => Problem::late(&method).into_response(),
    }
}

/// The span around a request. Of a trace that is not sampled there is none, and nothing is made for it. It has the level
/// of an error, so that a warning within carries the ids whatever is logged.
pub(crate) fn span(trace: Option<&Trace>, request_id: &str) -> tracing::Span {
    match trace.filter(|trace| trace.is_sampled()) {
        Some(trace) => {
            let (trace_id, span_id) = (trace.trace_id(), trace.span_id());
            tracing::error_span!("request", %trace_id, %span_id, request_id)
        }
        None => tracing::Span::none(),
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "(no text)",
    }
}

/// The one log line of a request. Without the query, in which clients put what logs should not have.
pub(crate) struct Line {
    pub(crate) started: Instant,
    method: Method,
    uri: Uri,
}

impl Line {
    pub(crate) fn of(request: &Request) -> Self {
        Self { started: Instant::now(), method: request.method().clone(), uri: request.uri().clone() }
    }

    pub(crate) fn log(&self, request_id: &str, status: StatusCode) {
        let (method, path, status) = (self.method.as_str(), self.uri.path(), status.as_u16());
        let us = self.started.elapsed().as_micros() as u64;
        match status {
            // Whoever is too busy, or is not there, has been told of; a warning for each request adds to the load.
            503 => tracing::debug!(request_id, method, path, status, us, "request"),
            500.. => tracing::warn!(request_id, method, path, status, us, "request"),
            _ => tracing::debug!(request_id, method, path, status, us, "request"),
        }
    }
}
