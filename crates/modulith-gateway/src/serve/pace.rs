//! How long a client may keep a connection without a request, and without reading its answer.
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
/// From the last byte of an answer to the first byte of the next head.
const IDLE_TIME_MAX: Duration = Duration::from_secs(75);
/// Between two writes of an answer whose client is slow to read, as nginx's `send_timeout`. A client that reads is seen when the
/// kernel has room again, which on Linux is when a third of its buffer was taken.
const UNREAD_TIME_MAX: Duration = Duration::from_secs(60);

/// What a connection waits for. Its lock is never contended: one task holds the connection.
pub(super) struct Pace(Mutex<State>);

#[derive(Clone, Copy)]
struct State {
    request: Request,
    /// Since when the client has taken nothing of what there is to write.
    unread: Option<Instant>,
}

#[derive(Clone, Copy)]
enum Request {
    Idle(Instant),
    Head(Instant),
    Busy,
}

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(State { request: Request::Idle(Instant::now()), unread: None }))
    }
}

impl Pace {
    /// A request has come; until the guard is dropped the connection works.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        self.0.lock().request = Request::Busy;
        Busy(self.clone())
    }

    pub(super) fn alarm(&self) -> Sleep {
        tokio::time::sleep(IDLE_TIME_MAX)
    }

    /// Ready when the client has used up its time.
    pub(super) fn poll_overdue(&self, mut alarm: Pin<&mut Sleep>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let state = *self.0.lock();
            let due = match (state.unread, state.request) {
                (Some(since), _) => since + UNREAD_TIME_MAX,
                (None, Request::Idle(since)) => since + IDLE_TIME_MAX,
                (None, Request::Head(since)) => since + HEAD_TIME_MAX,
                // Looked at again when the alarm fires, and then set as far ahead.
                (None, Request::Busy) => Instant::now() + IDLE_TIME_MAX,
            };
            if due < alarm.deadline() {
                alarm.as_mut().reset(due);
            }
            ready!(alarm.as_mut().poll(cx));
            if due <= Instant::now() {
                let why = if state.unread.is_some() { "its answer is not read" } else { "no request" };
                tracing::debug!(why, "connection closed");
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
    }

    fn note<T>(&self, written: &Poll<io::Result<T>>) {
        let mut state = self.0.lock();
        match written {
            Poll::Pending => {
                state.unread.get_or_insert_with(Instant::now);
            }
            // What was buffered leaves long after the body's end when its client reads slowly.
            Poll::Ready(_) if state.unread.take().is_some() => {
                if let Request::Idle(since) = &mut state.request {
                    *since = Instant::now();
                }
            }
            Poll::Ready(_) => {}
        }
    }
}

/// Lives from a request's head to the end of its answer's body.
pub(super) struct Busy(Arc<Pace>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.0.lock().request = Request::Idle(Instant::now());
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

/// A stream that notes the first byte of a head, and how its client reads.
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
            if let Request::Idle(_) = state.request {
                state.request = Request::Head(Instant::now());
            }
        }
        read
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Paced<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.pace.note(&written);
        written
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
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, slices);
        self.pace.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
