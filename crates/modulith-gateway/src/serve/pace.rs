//! How long a client may keep a connection without a request.
//!
//! One timer a connection, and none a request: it is moved only when what is waited for comes earlier than what
//! it is set to, and looks again when it fires. A connection that works is never interrupted here.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// From the first byte of a head to its last.
const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// From an answer to the first byte of the next head.
const IDLE_TIME_MAX: Duration = Duration::from_secs(75);

/// What a connection waits for. Its lock is never contended: one task holds the connection.
pub(super) struct Pace(Mutex<State>);

#[derive(Clone, Copy)]
enum State {
    Idle(Instant),
    Head(Instant),
    Busy,
}

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(State::Idle(Instant::now())))
    }
}

impl Pace {
    /// A request has come; until the guard is dropped the connection works.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        *self.0.lock() = State::Busy;
        Busy(self.clone())
    }

    pub(super) fn alarm(&self) -> Sleep {
        tokio::time::sleep(IDLE_TIME_MAX)
    }

    /// Ready when the client has used up its time.
    pub(super) fn poll_overdue(&self, mut alarm: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let state = *self.0.lock();
            let due = match state {
                State::Idle(since) => since + IDLE_TIME_MAX,
                State::Head(since) => since + HEAD_TIME_MAX,
                // Looked at again when the alarm fires, and then set as far ahead.
                State::Busy => Instant::now() + IDLE_TIME_MAX,
            };
            if due < alarm.deadline() {
                alarm.as_mut().reset(due);
            }
            ready!(alarm.as_mut().poll(cx));
            if due <= Instant::now() {
                tracing::debug!("connection without a request closed");
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
    }
}

/// Lives from a request's head to the end of its answer's body.
pub(super) struct Busy(Arc<Pace>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.0.lock() = State::Idle(Instant::now());
    }
}

/// A body whose end ends the request.
pub(super) struct PacedBody {
    inner: Body,
    _busy: Busy,
}

impl PacedBody {
    pub(super) fn new(inner: Body, busy: Busy) -> Self {
        Self { inner, _busy: busy }
    }
}

impl hyper::body::Body for PacedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// A stream that notes the first byte of a head.
pub(super) struct Paced<I> {
    inner: I,
    pace: Arc<Pace>,
}

impl<I> Paced<I> {
    pub(super) fn new(inner: I, pace: Arc<Pace>) -> Self {
        Self { inner, pace }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Paced<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        if buf.filled().len() > before {
            let mut state = self.pace.0.lock();
            if let State::Idle(_) = *state {
                *state = State::Head(Instant::now());
            }
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Paced<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
