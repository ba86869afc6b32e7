//! The front door of a split application: each path goes to the service that hosts its module.
//!
//! It knows prefixes and addresses, no modules, and stands behind an [`Edge`](crate::Edge), which has judged the
//! request and put its context there.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::HeaderValue;
use modulith_core::Context;
use tower::Service;

use crate::http::Problem;
use crate::proxy::{self, Broken};
use crate::{AccessToken, RouteTable, Upstream};

/// Where the requests of a prefix go.
#[derive(Debug, Clone)]
pub enum Target {
    /// To one of these replicas, at least one: the less busy of two (Mitzenmacher: The power of two choices in
    /// randomized load balancing, 2001). One that cannot be reached is passed over, since nothing was sent.
    Service(Arc<[Upstream]>),
    /// To a router in this process: health, documents.
    Here(Router),
}

/// A tower service that forwards by prefix: `edge.layer(Gateway::new(routes, &token))`.
#[derive(Debug, Clone)]
pub struct Gateway(Arc<Doors>);

#[derive(Debug)]
struct Doors {
    routes: RouteTable<Target>,
    token: HeaderValue,
    turn: AtomicUsize,
}

impl Gateway {
    /// `token` is the installation's internal token, which opens the services.
    pub fn new(routes: RouteTable<Target>, token: &AccessToken) -> Self {
        Self(Arc::new(Doors { routes, token: proxy::token_value(token), turn: AtomicUsize::new(0) }))
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
        match self.0.routes.lookup(request.uri().path()) {
            Some(Target::Here(router)) => Box::pin(router.clone().call(request)),
            Some(Target::Service(replicas)) => {
                let (doors, replicas) = (self.0.clone(), replicas.clone());
                Box::pin(async move { Ok(doors.forward(request, &replicas).await) })
            }
            None => Box::pin(std::future::ready(Ok(Problem::not_found().into_response()))),
        }
    }
}

impl Doors {
    async fn forward(&self, request: Request, replicas: &[Upstream]) -> Response {
        let context = request.extensions().get::<Context>().cloned().unwrap_or_else(Context::current);
        let mut request = proxy::outgoing(request, &self.token, &context);
        let first = self.choose(replicas);
        let mut last = Problem::unavailable("service-unavailable");
        for at in 0..replicas.len() {
            let replica = &replicas[(first + at) % replicas.len()];
            match replica.send(request, &context).await {
                Ok(response) => return response,
                Err(Broken::Sent(problem)) => return problem.into_response(),
                Err(Broken::NotSent { request: unsent, problem }) => (request, last) = (*unsent, problem),
            }
        }
        last.into_response()
    }

    /// The first of two by turn and not by chance: both cost the same, and a turn reaches every pair.
    fn choose(&self, replicas: &[Upstream]) -> usize {
        let count = replicas.len();
        if count < 2 {
            return 0;
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let one = turn % count;
        let other = (one + 1 + (turn / count) % (count - 1)) % count;
        if replicas[other].load() < replicas[one].load() { other } else { one }
    }
}
