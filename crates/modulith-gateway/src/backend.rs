//! A service's side of the gateway: requests that come as calls of the transport, run by its routers.
//!
//! It believes what a call says about its caller, because the handshake has proved that the other side is the
//! gateway: whoever hands calls to this has to refuse everybody else.

use axum::response::IntoResponse;
use bytes::Bytes;
use modulith_core::Context;

use crate::edge::Limits;
use crate::guard::{self, Line};
use crate::http::Problem;
use crate::upstream::GRACE;
use crate::whole::Gather;
use crate::wire::{self, Content};
use crate::{Merged, RouteTable};

/// Answers the gateway's requests from a service's routers. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Backend {
    routes: Merged,
    limits: Limits,
}

impl Backend {
    /// Panics and late answers end as they do at the edge. Of the limits, the deadlines are the gateway's.
    pub fn new(routes: RouteTable<axum::Router>, limits: Limits) -> Self {
        Self { routes: Merged::new(routes), limits }
    }

    /// The answer to a request, as the payload of an answer. `context` has the deadline that the call brought.
    ///
    /// # Errors
    ///
    /// If the request cannot be read, what is wrong with it. Nothing has run then.
    pub fn answer(
        &self,
        mut context: Context,
        request: &Bytes,
    ) -> Result<impl Future<Output = Bytes> + Send + 'static, &'static str> {
        let (head, content) = wire::read_request(request)?;
        let body = match content {
            Content::Whole(body) if body.is_empty() => axum::body::Body::empty(),
            Content::Whole(body) => body.into(),
            Content::Streamed(_) => return Err("it has a body that streams"),
        };
        let mut request = head.map(|()| body);
        // The gateway waits longer than its client, for the sake of answers that come at the last moment.
        context.deadline = context.deadline.and_then(|deadline| deadline.checked_sub(GRACE));
        let (routes, limits) = (self.routes.clone(), self.limits);
        Ok(async move {
            let line = Line::of(&request);
            limits.mark(&mut request);
            request.extensions_mut().insert(context.clone());
            let request_id = context.request_id.clone();
            let response = guard::run(routes, request, context, limits.grace).await;
            line.log(&request_id, response.status());
            let (mut head, body) = response.into_parts();
            let body = match Gather::of(body) {
                Ok(body) => body.whole().await,
                Err(body) => axum::body::to_bytes(body, usize::MAX).await,
            };
            let body = match body {
                Ok(body) => body,
                Err(error) => {
                    tracing::error!(%request_id, %error, "an answer's body broke");
                    let (problem, _) = Problem::internal().into_response().into_parts();
                    head = problem;
                    Bytes::new()
                }
            };
            let mut payload = Vec::with_capacity(256 + body.len());
            wire::put_answer(&mut payload, head.status, &head.headers, &Content::Whole(body));
            payload.into()
        })
    }
}
