//! Requests at the edge, by the prefix that answers them: a path is the client's and would be a label without end.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use axum::extract::Request;
use axum::response::Response;
use modulith_gateway::{RouteProblem, RouteTable};
use tower::Service;

use super::meter::{Meter, OTHER};
use super::text::Text;

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// By the status' first digit.
type RouteMeter = Meter<{ CLASSES.len() }>;

/// Requests by prefix.
pub(crate) struct HttpMeters {
    routes: RouteTable<Arc<RouteMeter>>,
    other: Arc<RouteMeter>,
}

impl HttpMeters {
    /// # Errors
    ///
    /// What is wrong with the prefixes.
    pub(crate) fn new<'a>(prefixes: impl IntoIterator<Item = &'a str>) -> Result<Self, Vec<RouteProblem>> {
        let routes = prefixes.into_iter().map(|prefix| (prefix, Arc::default()));
        Ok(Self { routes: RouteTable::new(routes)?, other: Arc::default() })
    }

    pub(super) fn write(&self, text: &mut Text<'_>) {
        let name = "modulith_http_requests_total";
        text.family(
            name,
            "counter",
            "Requests at the edge by the prefix that answers them and class of status.",
        );
        let all = || self.routes.iter().chain([(OTHER, &self.other)]);
        for (route, meter) in all() {
            for (class, count) in CLASSES.iter().zip(meter.ends()) {
                text.sample(name, &[("route", route), ("status", class)], count);
            }
        }
        let name = "modulith_http_request_duration_seconds";
        text.family(name, "histogram", "Time to the head of an answer at the edge.");
        for (route, meter) in all() {
            text.histogram(name, &[("route", route)], &meter.times());
        }
    }
}

/// Counts the requests of the service within.
#[derive(Clone)]
pub(crate) struct Metered<S> {
    meters: Arc<HttpMeters>,
    inner: S,
}

impl<S> Metered<S> {
    pub(crate) fn new(meters: Arc<HttpMeters>, inner: S) -> Self {
        Self { meters, inner }
    }
}

impl<S> Service<Request> for Metered<S>
where
    S: Service<Request, Response = Response, Error = Infallible>,
    S::Future: Unpin,
{
    type Response = Response;
    type Error = Infallible;
    type Future = Timed<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Timed<S::Future> {
        let meter = self.meters.routes.lookup(request.uri().path()).unwrap_or(&self.meters.other).clone();
        Timed { inner: self.inner.call(request), meter, started: Instant::now() }
    }
}

/// The answer to come.
pub(crate) struct Timed<F> {
    inner: F,
    meter: Arc<RouteMeter>,
    started: Instant,
}

impl<F: Future<Output = Result<Response, Infallible>> + Unpin> Future for Timed<F> {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Ok(response) = ready!(Pin::new(&mut self.inner).poll(cx));
        // What HTTP does not define counts with the errors.
        let class = usize::from(response.status().as_u16() / 100).min(CLASSES.len()) - 1;
        self.meter.observe(class, self.started.elapsed());
        Poll::Ready(Ok(response))
    }
}
