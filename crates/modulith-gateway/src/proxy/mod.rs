//! Forwarding a request to the service that hosts its module.
//!
//! Bodies stream both ways and are never held. What is certain is told as such: a service that could not be
//! reached did nothing (503); one that broke off may have (502). A request is sent twice only when the first
//! time cannot matter: it was not written, or it is idempotent and has no body. A client is told nothing of the
//! inside: addresses and causes go to the log.

mod answer;
mod headers;
mod link;

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use http::header::{HOST, HeaderValue};
use http::{Method, StatusCode, Version};
use hyper::body::{Body as _, Incoming};
use hyper::client::conn::TrySendError;
use modulith_core::Context;

use crate::http::Problem;
use crate::{AccessToken, edge};
pub(crate) use headers::{INTERNAL, told};
pub use link::{Address, ByteStream, Connect};
use link::{Link, NoLink, Pool};

/// How long after its deadline a service may still answer: its answer tells more than ours. Less than the
/// edge's, so that it is the proxy, which knows what was sent, that speaks first.
const GRACE: Duration = Duration::from_millis(200);

/// One replica of a service, and the connections to it. Cheap to clone.
///
/// Keeps up to 128 idle connections for up to 60 s and opens up to 1024; one more request is 503 `overloaded`
/// with `Retry-After`. A connect that takes 2 s has failed.
#[derive(Clone)]
pub struct Upstream(Arc<Pool>);

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Upstream").field(&self.0.address).finish()
    }
}

/// What a forwarded request came to when there is no answer.
pub(crate) enum Broken {
    /// Certainly not sent. The request is as it was, for another replica.
    NotSent { request: Box<Request>, problem: Problem },
    /// Sent, at least in part.
    Sent(Problem),
}

impl Broken {
    fn problem(self) -> Problem {
        match self {
            Broken::NotSent { problem, .. } | Broken::Sent(problem) => problem,
        }
    }
}

impl Upstream {
    pub fn new(address: Address) -> Self {
        Self(Arc::new(Pool::new(address, None)))
    }

    /// One whose connections are made by `connect`; the address is only told.
    pub fn connecting(address: Address, connect: Connect) -> Self {
        Self(Arc::new(Pool::new(address, Some(connect))))
    }

    #[cfg(test)]
    fn of(pool: Arc<Pool>) -> Self {
        Self(pool)
    }

    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// Requests in flight.
    pub(crate) fn load(&self) -> usize {
        self.0.in_flight()
    }

    /// Sends the request and gives the answer as soon as its head is there.
    ///
    /// 503 `service-unavailable` if there is no connection, 503 `overloaded` at the bound, 502 for a broken
    /// answer, 504 if there is none by the context's deadline and 200 ms. What is neither safe nor certain is of
    /// the type `outcome-unknown`.
    pub async fn forward(&self, request: Request, token: &AccessToken, context: &Context) -> Response {
        let request = outgoing(request, &token_value(token), context);
        match self.send(request, context).await {
            Ok(response) => response,
            Err(broken) => broken.problem().into_response(),
        }
    }

    /// Sends a request that [`outgoing`] made.
    pub(crate) async fn send(&self, request: Request, context: &Context) -> Result<Response, Broken> {
        let method = request.method().clone();
        let late_at = context.deadline_or_default() + GRACE;
        match tokio::time::timeout_at(late_at.into(), self.exchange(request)).await {
            Ok(answered) => answered,
            Err(_late) => {
                tracing::warn!(request_id = %context.request_id, upstream = %self.0.address, "no answer in time");
                Err(Broken::Sent(Problem::late(&method)))
            }
        }
    }

    async fn exchange(&self, mut request: Request) -> Result<Response, Broken> {
        let method = request.method().clone();
        if let Some(link) = self.0.idle() {
            // Kept for the case that the peer has closed the connection and we do not know it yet.
            let spare = (is_idempotent(&method) && request.body().is_end_stream()).then(|| copy(&request));
            request = match (self.exchange_on(link, request).await, spare) {
                (Ok(response), _) => return Ok(response),
                (Err(Failed { unsent: Some(request), .. }), _) => *request,
                (Err(Failed { error, .. }), Some(spare)) if !error.is_user() => spare,
                (Err(Failed { error, .. }), _) => return Err(self.broken(&method, &error)),
            };
        }
        let link = match self.0.connect().await {
            Ok(link) => link,
            Err(why) => return Err(self.unreachable(request, &why)),
        };
        match self.exchange_on(link, request).await {
            Ok(response) => Ok(response),
            Err(Failed { unsent: Some(request), error }) => {
                Err(self.unreachable(*request, &NoLink::Handshake(error)))
            }
            Err(Failed { error, .. }) => Err(self.broken(&method, &error)),
        }
    }

    /// Sends on one connection, driving it until the head of the answer is there.
    async fn exchange_on(&self, mut link: Link, request: Request) -> Result<Response, Failed> {
        let sent = {
            let mut answer = pin!(link.requests.try_send_request(request));
            poll_fn(|cx| {
                if let Poll::Ready(answer) = answer.as_mut().poll(cx) {
                    return Poll::Ready(answer);
                }
                let _ = link.drive(cx);
                answer.as_mut().poll(cx)
            })
            .await
        };
        match sent {
            Ok(response) => Ok(self.incoming(response, link)),
            Err(failed) => Err(failed.into()),
        }
    }

    fn incoming(&self, response: http::Response<Incoming>, link: Link) -> Response {
        let (mut parts, body) = response.into_parts();
        headers::strip_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        Response::from_parts(parts, answer::body(body, link, self.0.clone()))
    }

    fn unreachable(&self, request: Request, why: &NoLink) -> Broken {
        tracing::warn!(upstream = %self.0.address, %why, "request not sent");
        let problem = match why {
            NoLink::Full => Problem::unavailable("overloaded"),
            NoLink::Refused(_) | NoLink::Handshake(_) => Problem::unavailable("service-unavailable"),
        };
        Broken::NotSent { request: Box::new(request), problem }
    }

    fn broken(&self, method: &Method, error: &hyper::Error) -> Broken {
        tracing::warn!(upstream = %self.0.address, %error, "answer broken");
        Broken::Sent(if error.is_user() {
            // The request's own body ended in an error; the edge knows if it was its length.
            Problem::new(StatusCode::BAD_REQUEST, "body-unreadable", "The body could not be read")
        } else if method.is_safe() {
            Problem::new(StatusCode::BAD_GATEWAY, "answer-broken", "The answer broke off")
        } else {
            Problem::outcome_unknown(StatusCode::BAD_GATEWAY)
        })
    }
}

struct Failed {
    error: hyper::Error,
    /// The request, if nothing of it was written.
    unsent: Option<Box<Request>>,
}

impl From<TrySendError<Request>> for Failed {
    fn from(mut failed: TrySendError<Request>) -> Self {
        let unsent = failed.take_message().map(Box::new);
        Self { error: failed.into_error(), unsent }
    }
}

pub(crate) fn token_value(token: &AccessToken) -> HeaderValue {
    let mut value = HeaderValue::from_str(token.expose()).expect("hexadecimal digits are a header value");
    value.set_sensitive(true);
    value
}

/// The request as the service gets it.
pub(crate) fn outgoing(mut request: Request, token: &HeaderValue, context: &Context) -> Request {
    let mut uri = std::mem::take(request.uri_mut());
    edge::origin_form(&mut uri, request.headers_mut());
    *request.uri_mut() = uri;
    *request.version_mut() = Version::HTTP_11;
    // They are this process's; the service makes its own.
    request.extensions_mut().clear();
    let headers = request.headers_mut();
    headers::strip_hop_by_hop(headers);
    headers::tell(headers, token, context);
    headers.entry(HOST).or_insert(HeaderValue::from_static("localhost"));
    request
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

fn copy(request: &Request) -> Request {
    let mut copy = Request::new(Body::empty());
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}
