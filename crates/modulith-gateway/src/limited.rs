//! A request's body that ends in an error at its limit.
//!
//! A body that tells its length is judged by that and passed on as it is; only one without a length is counted.
//! What is over the limit is read and thrown away for a while before it is refused: a server that stops reading
//! resets the connection, and the client would see that instead of the 413.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::StreamExt;
use hyper::body::{Body as _, Frame, SizeHint};

/// What is thrown away at most, in limits, and for how long.
const DISCARD_FACTOR: usize = 4;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(1);

/// Tells whether a counted body went over its limit.
#[derive(Clone)]
pub(crate) struct Overflow(Arc<AtomicBool>);

impl Overflow {
    pub(crate) fn happened(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The body within its limit; the body itself if its length alone is too much.
pub(crate) fn body(body: Body, bytes_max: usize) -> Result<(Body, Option<Overflow>), Body> {
    let hint = body.size_hint();
    if hint.upper().is_some_and(|upper| upper <= bytes_max as u64) {
        return Ok((body, None));
    }
    if hint.lower() > bytes_max as u64 {
        return Err(body);
    }
    let overflow = Overflow(Arc::default());
    let limited = Limited { inner: body, left: bytes_max, discard: 0, bytes_max, overflow: overflow.clone() };
    Ok((Body::new(limited), Some(overflow)))
}

/// Reads a refused body for a while.
pub(crate) async fn discard(body: Body, bytes_max: usize) {
    let _ = tokio::time::timeout(DISCARD_TIME_MAX, async {
        let mut left = bytes_max.saturating_mul(DISCARD_FACTOR);
        let mut body: BodyDataStream = body.into_data_stream();
        while let Some(Ok(bytes)) = body.next().await {
            left = left.saturating_sub(bytes.len());
            if left == 0 {
                break;
            }
        }
    })
    .await;
}

#[derive(Debug, thiserror::Error)]
#[error("the body is over its limit of {0} bytes")]
struct OverLimit(usize);

struct Limited {
    inner: Body,
    left: usize,
    /// What may still be thrown away, once the limit is passed.
    discard: usize,
    bytes_max: usize,
    overflow: Overflow,
}

impl hyper::body::Body for Limited {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        loop {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
            let bytes = match &frame {
                Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
                _ => 0,
            };
            if self.overflow.happened() {
                self.discard = self.discard.saturating_sub(bytes);
                if self.discard == 0 || !matches!(frame, Some(Ok(_))) {
                    return Poll::Ready(Some(Err(axum::Error::new(OverLimit(self.bytes_max)))));
                }
            } else if bytes > self.left {
                self.discard = self.bytes_max.saturating_mul(DISCARD_FACTOR);
                self.overflow.0.store(true, Ordering::Relaxed);
            } else {
                self.left -= bytes;
                return Poll::Ready(frame);
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream() && !self.overflow.happened()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
