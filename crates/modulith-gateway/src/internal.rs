//! The service's side of the gateway: who may speak to it, and what it is told.
//!
//! A service believes what a request says about its caller, so it answers nobody but a peer that shows the
//! installation's internal token. Whoever lacks it is told nothing, not even what is missing.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task;

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use tower::{Layer, Service};
use tracing::Instrument;

use crate::edge::Limits;
use crate::guard::{self, Line};
use crate::http::Problem;
use crate::{AccessToken, proxy};

/// The middleware of a service behind a gateway: a [`Layer`] that rebuilds the
/// [`Context`](modulith_core::Context) and runs the service within it, as [`crate::Edge`] does in a monolith.
///
/// 401 without the internal token; 400 for a context that cannot be read. Panics and late answers end as they
/// do at the edge. Of the limits, the deadlines are the gateway's.
#[derive(Clone)]
pub struct Internal(Arc<Door>);

struct Door {
    token: AccessToken,
    limits: Limits,
}

impl Internal {
    pub fn new(token: AccessToken, limits: Limits) -> Self {
        Self(Arc::new(Door { token, limits }))
    }
}

impl std::fmt::Debug for Internal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Internal").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl<S> Layer<S> for Internal {
    type Service = Trusted<S>;

    fn layer(&self, inner: S) -> Trusted<S> {
        Trusted { door: self.0.clone(), inner }
    }
}

/// A service behind the [`Internal`] door.
#[derive(Clone)]
pub struct Trusted<S> {
    door: Arc<Door>,
    inner: S,
}

impl<S> Service<Request> for Trusted<S>
where
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut task::Context<'_>) -> task::Poll<Result<(), Infallible>> {
        // The clone that takes a request is made ready there.
        task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let door = self.door.clone();
        let inner = self.inner.clone();
        Box::pin(async move { Ok(door.pass(request, inner).await) })
    }
}

impl Door {
    async fn pass<S>(&self, mut request: Request, inner: S) -> Response
    where
        S: Service<Request, Response = Response, Error = Infallible>,
    {
        let token = request.headers_mut().remove(proxy::INTERNAL);
        if !token
            .as_ref()
            .and_then(|token| token.to_str().ok())
            .is_some_and(|token| self.token.matches(token))
        {
            tracing::warn!(path = request.uri().path(), "request without the internal token");
            return Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "Unauthorized").into_response();
        }
        let Some(context) = proxy::told(request.headers_mut()) else {
            tracing::warn!(path = request.uri().path(), "context of the gateway cannot be read");
            return Problem::new(StatusCode::BAD_REQUEST, "context-unreadable", "Bad request")
                .into_response();
        };
        let line = Line::of(&request);
        self.limits.mark(&mut request);
        request.extensions_mut().insert(context.clone());
        let request_id = context.request_id.clone();
        let span = guard::span(context.trace.as_ref(), &request_id);
        let run = guard::run(inner, request, context, self.limits.grace);
        let response = run.instrument(span.clone()).await;
        span.in_scope(|| line.log(&request_id, response.status()));
        response
    }
}
