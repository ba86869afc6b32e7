//! The front door of a split application: each path goes to the service that hosts its module.
//!
//! It knows prefixes and addresses, no modules, and stands behind an [`Edge`](crate::Edge), which has judged the
//! request and put its context there.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use modulith_core::Context;
use tower::Service;

use crate::http::Problem;
use crate::{RouteTable, Upstream};

/// Where the requests of a prefix go.
#[derive(Debug, Clone)]
pub enum Target {
    /// To a service, in frames of the transport.
    Service(Upstream),
    /// To a router in this process: health, documents.
    Here(Router),
}

/// A tower service that forwards by prefix: `edge.layer(Gateway::new(routes))`.
#[derive(Debug, Clone)]
pub struct Gateway(RouteTable<Target>);

impl Gateway {
    pub fn new(routes: RouteTable<Target>) -> Self {
        Self(routes)
    }
}

impl Service<Request> for Gateway {
    type Response = Response;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut TaskContext<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request) -> Self::Future {
        match self.0.lookup(request.uri().path()) {
            Some(Target::Here(router)) => Box::pin(router.clone().call(request)),
            Some(Target::Service(upstream)) => {
                let upstream = upstream.clone();
                Box::pin(async move {
                    // Behind an edge there is one; a request without it has the task's.
                    let context =
                        request.extensions().get::<Context>().cloned().unwrap_or_else(Context::current);
                    Ok(upstream.forward(request, &context).await)
                })
            }
            None => Box::pin(std::future::ready(Ok(Problem::not_found().into_response()))),
        }
    }
}
