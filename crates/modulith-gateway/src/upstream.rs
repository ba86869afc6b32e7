//! A service, as the gateway sees it: HTTP ends here and goes on as calls of the transport.
//!
//! What is certain is told as such: a service that could not be reached did nothing (503); one that broke off may
//! have (502). A request is sent twice only when the first time cannot matter: it certainly did not run, or it is safe
//! (RFC 9110, 9.2.1) and has no body; and only as far as the service's share of repeats goes. A repeated DELETE would
//! find nothing left to delete. A client is told nothing of the inside: addresses and causes go to the log.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{Method, StatusCode};
use modulith_core::{Context, Fault};
use modulith_transport::{Answer, CallFault, NotRun, Peer, Priority, RepeatBudget, Terms, Unknown};
use tokio::time::timeout_at;

use crate::body::{Gathered, arrived};
use crate::http::Problem;
use crate::wire;

/// How long after its deadline a service may still answer: its answer tells more than ours. Less than the
/// edge's, so that it is this side, which knows what was sent, that speaks first. The transport's deadline is
/// the context's and this.
pub(crate) const GRACE: Duration = Duration::from_millis(200);
/// How long a request waits for a service that is not connected at the moment; and, so that this is enough for one
/// more attempt to connect, the longest back-off of the peer given to [`Upstream::new`].
pub const BACK_OFF_MAX: Duration = Duration::from_millis(100);
/// The second one finds another replica, or the same one come back.
const ATTEMPTS_MAX: u32 = 2;
/// Room for what stands before a request's body; more is made as needed.
const HEAD_BYTES: usize = 1024;

/// Writes what a service is told about a request: who asks, and under which id. The deadline travels beside it.
///
/// # Errors
///
/// If it cannot be written; nothing is sent then.
pub type PutHead = fn(&Context, &mut Vec<u8>) -> Result<(), Fault>;

/// One service and the connections to its replicas. Cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Service>);

struct Service {
    name: String,
    peer: Peer,
    put_head: PutHead,
    budget: RepeatBudget,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Upstream").field(&self.0.name).field(&self.0.peer).finish()
    }
}

impl Upstream {
    pub fn new(name: impl Into<String>, peer: Peer, put_head: PutHead) -> Self {
        let budget = RepeatBudget::new(Instant::now());
        Self(Arc::new(Service { name: name.into(), peer, put_head, budget }))
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    pub fn peer(&self) -> &Peer {
        &self.0.peer
    }

    /// Asks a question of the gateway's own, before all ordinary requests. It ends as a client's request does.
    pub async fn ask(&self, request: Request, context: &Context) -> Response {
        self.send(request, context, Priority::Reserved).await
    }

    /// Sends a client's request and gives the answer as soon as its head is there.
    ///
    /// 503 `service-unavailable` if there is no connection, 503 `overloaded` if the service or the way to it is
    /// full, 502 for a broken answer, 504 if there is none by the context's deadline and 200 ms. What is neither
    /// safe nor certain is of the type `outcome-unknown`.
    pub(crate) async fn forward(&self, request: Request, context: &Context) -> Response {
        self.send(request, context, Priority::Ordinary).await
    }

    async fn send(&self, request: Request, context: &Context, priority: Priority) -> Response {
        let exchanged = self.0.exchange(request, context, priority).await;
        exchanged.unwrap_or_else(IntoResponse::into_response)
    }
}

impl Service {
    async fn exchange(
        &self,
        request: Request,
        context: &Context,
        priority: Priority,
    ) -> Result<Response, Problem> {
        let (head, body) = request.into_parts();
        let mut body = Gathered::new(body);
        let asked_until = context.deadline_or_default();
        let (content, mut body) = match body.is_short() {
            // Waiting for a slow client is cheap here, and what has not been sent has certainly not run.
            true => match timeout_at(asked_until.into(), poll_fn(|cx| body.poll_read(cx))).await {
                Ok(Ok(())) => (body.into_whole(), None),
                // The edge knows if it was its length.
                Ok(Err(_)) => return Err(body_unreadable()),
                Err(_) => return Err(Problem::deadline()),
            },
            false => {
                let (content, body) = body.into_stream();
                (content, Some(body))
            }
        };
        let is_streamed = body.is_some();
        let may_run_twice = head.method.is_safe() && content.is_empty();
        self.budget.earn();
        let mut payload = Vec::with_capacity(HEAD_BYTES + content.bytes_within());
        (self.put_head)(context, &mut payload).map_err(|fault| {
            tracing::error!(request_id = %context.request_id, service = self.name, %fault, "request not sent");
            Problem::internal()
        })?;
        let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
        wire::put_request(&mut payload, &head.method, target, &head.headers, &content);
        drop((head.headers, head.uri, content));
        let payload = Bytes::from(payload);

        let deadline = asked_until + GRACE;
        let mut may_have_run = false;
        for attempt in 1.. {
            if !self.peer.is_connected() {
                let soon = (Instant::now() + BACK_OFF_MAX).min(deadline);
                // Without a connection the attempt says why.
                let _ = self.peer.connected(soon).await;
            }
            let fault = match self.peer.open(Terms::new(deadline, priority), &payload, body.take()).await {
                Ok(answer) => return self.answer(answer, &head.method),
                Err(fault) => fault,
            };
            match fault {
                // As many as there are requests too many; they are counted where they are refused.
                CallFault::NotRun(NotRun::Rejected(_) | NotRun::HeldBack { .. } | NotRun::QueueFull) => {
                    tracing::debug!(request_id = %context.request_id, service = self.name, %fault, "no answer");
                }
                _ => {
                    tracing::warn!(request_id = %context.request_id, service = self.name, %fault, "no answer")
                }
            }
            let again = match &fault {
                // It was lost in between. Who refuses says so again.
                CallFault::NotRun(why) => matches!(why, NotRun::Unreachable(_)),
                CallFault::Unknown(why) => may_run_twice && *why == Unknown::ConnectionLost,
            };
            let again = again && !is_streamed && attempt < ATTEMPTS_MAX;
            if !again || !self.budget.spend(Instant::now()) {
                return Err(problem(fault, may_have_run, &head.method));
            }
            may_have_run |= matches!(fault, CallFault::Unknown(_));
        }
        unreachable!("the loop ends by its attempts")
    }

    fn answer(&self, answer: Answer, method: &Method) -> Result<Response, Problem> {
        let read = wire::read_answer(&answer.payload).and_then(|(head, content)| {
            let body = arrived(content, answer.body)?;
            Ok(head.map(|()| body))
        });
        read.map_err(|why| {
            tracing::warn!(service = self.name, why, "an answer cannot be read");
            broken(method)
        })
    }
}

fn body_unreadable() -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "body-unreadable", "The body could not be read")
}

/// What a client is told of a call without an answer. `may_have_run`: an earlier attempt.
fn problem(fault: CallFault, may_have_run: bool, method: &Method) -> Problem {
    match fault {
        CallFault::NotRun(_) if may_have_run => broken(method),
        CallFault::NotRun(NotRun::QueueFull) => Problem::unavailable("overloaded"),
        CallFault::NotRun(NotRun::Rejected(rejection)) => {
            Problem::unavailable_for("overloaded", rejection.retry_after_ms)
        }
        CallFault::NotRun(NotRun::HeldBack { retry_after_ms }) => {
            Problem::unavailable_for("overloaded", retry_after_ms)
        }
        CallFault::NotRun(NotRun::CircuitOpen { retry_after_ms }) => {
            Problem::unavailable_for("service-unavailable", retry_after_ms)
        }
        CallFault::NotRun(NotRun::Deadline) => Problem::deadline(),
        CallFault::NotRun(NotRun::TooLarge { .. }) => Problem::internal(),
        CallFault::NotRun(_) => Problem::unavailable("service-unavailable"),
        CallFault::Unknown(Unknown::Deadline) => Problem::late(method),
        CallFault::Unknown(Unknown::ConnectionLost | Unknown::NoAnswer(_)) => broken(method),
    }
}

fn broken(method: &Method) -> Problem {
    match method.is_safe() {
        true => Problem::new(StatusCode::BAD_GATEWAY, "answer-broken", "The answer broke off"),
        false => Problem::outcome_unknown(StatusCode::BAD_GATEWAY),
    }
}
