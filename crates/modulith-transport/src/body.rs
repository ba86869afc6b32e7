//! Streamed bodies, as applications see them.
//!
//! Owns what a body is on either side, and the place between a connection's task and whoever reads. The frames are
//! made and read elsewhere: `sending.rs` takes from a [`Body`], `receiving.rs` fills a [`BodyReader`].

use std::{
    any::Any,
    collections::VecDeque,
    fmt,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, stream::BoxStream, task::AtomicWaker};
use parking_lot::Mutex;

use crate::frame::{BODY_WINDOW_BYTES, CHUNK};

/// Bytes to be sent behind the payload of a call or an answer, while they are being made.
///
/// The connection's own task polls it, and only while the other side has room for it: 256 KiB
/// ([`crate::BODY_WINDOW_BYTES`]) more than was read there. So it must not block. It is dropped at its end, at
/// its first error, and as soon as nobody wants it: the reader was dropped, the call was cancelled, or the
/// connection ended. The other side sees a stream of bytes; where one piece ends and the next begins is not
/// kept.
///
/// An error reaches the reader as [`BodyError::Reset`] with its text, and so does a panic, without its text.
pub struct Body(BoxStream<'static, Result<Bytes, BodyError>>);

/// Why a body has no clean end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Its sender broke it off and says why, in at most 1024 bytes. Also what a sender makes its own errors of.
    #[error("{0}")]
    Reset(String),
    /// The connection ended in the middle of the body.
    #[error("connection lost in the middle of a body")]
    ConnectionLost,
    /// No byte was sent or read for [`crate::Limits::body_idle_max`].
    #[error("a body made no progress for {0:?}")]
    Idle(Duration),
}

impl Body {
    /// A body of what this stream gives. A [`BodyReader`] is such a stream, so what is read from one call can
    /// be sent on with another.
    pub fn new(stream: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static) -> Self {
        Self(Box::pin(stream))
    }

    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Body")
    }
}

/// What a handler answers: a payload, and perhaps a body behind it.
#[derive(Debug)]
pub struct Reply {
    pub payload: Vec<u8>,
    pub body: Option<Body>,
}

impl From<Vec<u8>> for Reply {
    fn from(payload: Vec<u8>) -> Self {
        Self { payload, body: None }
    }
}

impl From<Bytes> for Reply {
    fn from(payload: Bytes) -> Self {
        Vec::from(payload).into()
    }
}

/// What a caller gets: a payload, and perhaps a body behind it.
#[derive(Debug)]
pub struct Answer {
    pub payload: Bytes,
    pub body: Option<BodyReader>,
}

/// The bytes of a body, as they arrive: a stream of pieces of at most 64 KiB.
///
/// It ends cleanly only if the other side ended it; everything else is an error, once, and then the end.
/// Whoever does not read keeps the sender waiting, after 256 KiB ([`crate::BODY_WINDOW_BYTES`]), and nobody
/// else on the connection. Dropping it tells the sender to stop.
pub struct BodyReader {
    inbound: Arc<Inbound>,
    /// What is given back when the body is no longer read.
    held: Option<Box<dyn Any + Send + Sync>>,
}

impl BodyReader {
    pub(crate) fn new(inbound: Arc<Inbound>) -> Self {
        Self { inbound, held: None }
    }

    /// Keeps this until the body has ended or nobody reads it.
    pub(crate) fn hold(&mut self, held: impl Any + Send + Sync) {
        self.held = Some(Box::new(held));
    }
}

impl Stream for BodyReader {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = self.inbound.poll_take(cx);
        if matches!(piece, Poll::Ready(None | Some(Err(_)))) {
            self.held = None;
        }
        piece
    }
}

impl Drop for BodyReader {
    fn drop(&mut self) {
        self.inbound.leave();
    }
}

impl fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BodyReader")
    }
}

/// Where readers tell their connection's task that they took bytes or left.
#[derive(Default)]
pub(crate) struct Desk {
    /// Each body stands here at most twice: once for what was taken, once for having left.
    notes: Mutex<VecDeque<u64>>,
    pub(crate) task: AtomicWaker,
    /// Bodies that are announced, or that somebody still reads, be it after their end: each may hold a window.
    pub(crate) bodies: AtomicUsize,
}

impl Desk {
    fn note(&self, id: u64) {
        self.notes.lock().push_back(id);
        self.task.wake();
    }

    pub(crate) fn next(&self) -> Option<u64> {
        self.notes.lock().pop_front()
    }
}

/// One body between the connection's task, which fills it, and its reader.
pub(crate) struct Inbound {
    id: u64,
    desk: Arc<Desk>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What was received and not read. One buffer, not a list of pieces, so that a flood of tiny pieces takes
    /// no more memory than their bytes.
    buffer: BytesMut,
    /// Bytes read since the sender was last allowed more.
    taken: usize,
    /// The task was told of `taken`.
    noted: bool,
    /// Something was read since the task last looked.
    moved: bool,
    end: Option<Result<(), BodyError>>,
    left: bool,
    /// The reader knows the end.
    over: bool,
    reader: Option<Waker>,
}

/// What a reader has done since the task last looked.
pub(crate) struct Read {
    pub(crate) taken: usize,
    pub(crate) moved: bool,
    pub(crate) left: bool,
}

impl Inbound {
    pub(crate) fn new(id: u64, desk: &Arc<Desk>) -> Arc<Self> {
        Arc::new(Self { id, desk: Arc::clone(desk), state: Mutex::default() })
    }

    pub(crate) fn put(&self, piece: &[u8]) {
        let mut state = self.state.lock();
        // Nobody will read what arrives before the sender has heard that the reader left.
        if !state.left {
            state.buffer.extend_from_slice(piece);
        }
        state.wake();
    }

    /// The last word about this body; what was received before it can still be read.
    pub(crate) fn end(&self, end: Result<(), BodyError>) {
        let mut state = self.state.lock();
        state.end.get_or_insert(end);
        state.wake();
    }

    pub(crate) fn read(&self) -> Read {
        let mut state = self.state.lock();
        state.noted = false;
        Read {
            taken: std::mem::take(&mut state.taken),
            moved: std::mem::take(&mut state.moved),
            left: state.left,
        }
    }

    fn poll_take(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let mut state = self.state.lock();
        if !state.buffer.is_empty() {
            let bytes = state.buffer.len().min(CHUNK);
            let piece = state.buffer.split_to(bytes).freeze();
            state.taken += bytes;
            state.moved = true;
            // Half a window at once: a `window` frame for each piece would be as many frames again.
            if state.end.is_none() && !state.noted && state.taken >= BODY_WINDOW_BYTES / 2 {
                state.noted = true;
                drop(state);
                self.desk.note(self.id);
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        match &state.end {
            Some(end) => {
                let error = end.clone().err();
                self.over(&mut state);
                state.end = Some(Ok(()));
                Poll::Ready(error.map(Err))
            }
            None => {
                state.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn over(&self, state: &mut State) {
        if !std::mem::replace(&mut state.over, true) {
            self.desk.bodies.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn leave(&self) {
        let mut state = self.state.lock();
        state.left = true;
        state.buffer = BytesMut::new();
        self.over(&mut state);
        if state.end.is_none() {
            drop(state);
            self.desk.note(self.id);
        }
    }
}

impl State {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}
