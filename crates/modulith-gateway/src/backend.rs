//! A service's side of the gateway: requests that come as calls of the transport, run by its routers.
//!
//! It believes what a call says about its caller, because the handshake has proved that the other side is the
//! gateway: whoever hands calls to this has to refuse everybody else.

use std::future::{poll_fn, ready};
use std::task::{self, Poll, Waker};
use std::time::Instant;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use modulith_core::Context;
use modulith_transport::{BodyReader, Handled, Rejection, Reply};
use tracing::Instrument;

use crate::body::{Gathered, arrived};
use crate::edge::Limits;
use crate::guard::{self, Line};
use crate::http::Problem;
use crate::pressure::{Pressure, RETRY_AFTER_MS};
use crate::upstream::GRACE;
use crate::{Merged, RouteTable, routes, wire};

/// Room for what stands before an answer's body; more is made as needed.
const HEAD_BYTES: usize = 256;

/// Answers the gateway's requests from a service's routers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Backend {
    routes: Merged,
    limits: Limits,
    pressure: Pressure,
}

impl Backend {
    /// Panics and late answers end as they do at the edge. Of the limits, the deadlines are the gateway's.
    pub fn new(routes: RouteTable<axum::Router>, limits: Limits) -> Self {
        Self { routes: Merged::new(routes), limits, pressure: Pressure::default() }
    }

    /// The same, whose requests count together with others of this process.
    #[must_use]
    pub fn under(self, pressure: Pressure) -> Self {
        Self { pressure, ..self }
    }

    /// Runs a request: of the payload of a call, `request` is what is left behind the head, and `body` streams
    /// behind it. `context` has the deadline that the call brought.
    ///
    /// Most handlers answer without waiting, and then the call is over here: nothing is kept for it. A process that cannot
    /// keep up rejects a share ([`Pressure`]), and what is too late already is a 504 at once.
    ///
    /// # Errors
    ///
    /// If the request cannot be read, what is wrong with it. Nothing has run then.
    pub fn handle(
        &self,
        mut context: Context,
        request: &Bytes,
        body: Option<BodyReader>,
    ) -> Result<Handled, &'static str> {
        let (head, content) = wire::read_request(request)?;
        let (now, deadline) = (Instant::now(), context.deadline_or_default());
        let mut place = match routes::is_operators(head.uri().path()) {
            true => None,
            false => match self.pressure.enter(now, || deadline.saturating_duration_since(now)) {
                Some(place) => Some(place),
                // In the transport's own words, so that the gateway sends less.
                None => {
                    let rejection = Rejection::retry_after("the process cannot keep up", RETRY_AFTER_MS);
                    return Ok(Handled::Now(Err(rejection)));
                }
            },
        };
        let body = arrived(content, body)?;
        let mut request = head.map(|()| body);
        // The gateway waits longer than its client, for the sake of answers that come at the last moment.
        context.deadline = context.deadline.and_then(|deadline| deadline.checked_sub(GRACE));
        let (modules, limits) = (self.routes.clone(), self.limits);
        let mut answer = Box::pin(async move {
            let line = Line::of(&request);
            if let Some(place) = &mut place {
                place.turn().await;
            }
            limits.mark(&mut request);
            request.extensions_mut().insert(context.clone());
            let request_id = context.request_id.clone();
            let span = guard::span(context.trace.as_ref(), &request_id);
            let response = match context.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                // Nobody waits for it any more.
                true => Problem::deadline().into_response(),
                false => {
                    let run = guard::run(modules, request, context, limits.grace);
                    run.instrument(span.clone()).await
                }
            };
            drop(place);
            span.in_scope(|| line.log(&request_id, response.status()));
            Ok(reply(response).await)
        });
        // If it has to wait, whoever polls it next is whom it wakes.
        Ok(match answer.as_mut().poll(&mut task::Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(Reply { payload, body: None })) => Handled::Now(Ok(payload)),
            Poll::Ready(reply) => Handled::Later(Box::pin(ready(reply))),
            Poll::Pending => Handled::Later(answer),
        })
    }
}

async fn reply(response: Response) -> Reply {
    let (head, body) = response.into_parts();
    let mut body = Gathered::new(body);
    // What is there without waiting goes with the head; for the rest nobody should have to wait.
    let is_whole =
        body.is_short() && poll_fn(|cx| Poll::Ready(matches!(body.poll_read(cx), Poll::Ready(Ok(()))))).await;
    let (content, body) = if is_whole {
        (body.into_whole(), None)
    } else {
        let (content, body) = body.into_stream();
        (content, Some(body))
    };
    let mut payload = Vec::with_capacity(HEAD_BYTES + content.bytes_within());
    wire::put_answer(&mut payload, head.status, &head.headers, &content);
    Reply { payload, body }
}
