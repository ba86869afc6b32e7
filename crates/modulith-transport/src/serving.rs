//! One connection of the called side.
//!
//! Owns the running calls and the outgoing bytes. A single task reads whatever has arrived, runs it, and writes all
//! the answers together; calls that wait are polled by the same task, so a call costs no task of its own. It stops
//! reading and running when its peer does not read, and refuses what is beyond the limits.

use std::{
    collections::{HashMap, hash_map::Entry},
    future::{Future, poll_fn},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::{
    FutureExt, StreamExt,
    future::{AbortHandle, Abortable, BoxFuture, CatchUnwind},
    stream::FuturesUnordered,
};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    ConnectionError, Handled, Handler, Incoming, Limits, PeerInfo, Rejection, Stream,
    frame::{self, Frame, Kind},
    handshake::Opened,
    keep_alive::{Beat, KeepAlive},
    stream::{ReadHalf, WriteHalf, poll_read},
};

/// When a call that found everything full may come again.
const FULL_RETRY_MS: u32 = 50;

/// Reads in one go before others get their turn.
const READS_MAX: usize = 8;

pub(crate) struct Serving {
    other: Arc<PeerInfo>,
    limits: Limits,
    handler: Arc<dyn Handler>,
    read: ReadHalf,
    write: WriteHalf,
    inbound: BytesMut,
    out: Vec<u8>,
    out_written: usize,
    /// The socket took no more when last asked.
    blocked: bool,
    calls: FuturesUnordered<Running>,
    by_id: HashMap<u64, AbortHandle>,
    /// Payload bytes of the calls that run.
    payload_bytes: usize,
    /// The calls that run for the same caller, over all its connections.
    running: Arc<AtomicUsize>,
    keep_alive: KeepAlive,
    /// Armed when the caller was told to send no new calls.
    draining: Option<Pin<Box<Sleep>>>,
}

type Answering = BoxFuture<'static, Result<Bytes, Rejection>>;

struct Running {
    id: u64,
    payload_bytes: usize,
    _place: Place,
    future: Abortable<CatchUnwind<AssertUnwindSafe<Answering>>>,
}

/// One of the caller's places, given back on drop.
struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(running: &Arc<AtomicUsize>) -> Self {
        running.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(running))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Ended {
    id: u64,
    payload_bytes: usize,
    /// `None` if it was cancelled.
    result: Option<std::thread::Result<Result<Bytes, Rejection>>>,
}

impl Future for Running {
    type Output = Ended;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended> {
        let result = ready!(self.future.poll_unpin(cx));
        Poll::Ready(Ended { id: self.id, payload_bytes: self.payload_bytes, result: result.ok() })
    }
}

impl Serving {
    pub(crate) fn new(
        stream: Stream,
        opened: Opened,
        limits: Limits,
        handler: Arc<dyn Handler>,
        running: Arc<AtomicUsize>,
    ) -> Self {
        let (read, write) = stream.split();
        let keep_alive = KeepAlive::new(&limits);
        Self {
            other: opened.other,
            limits,
            handler,
            read,
            write,
            inbound: opened.inbound,
            out: Vec::new(),
            out_written: 0,
            blocked: false,
            calls: FuturesUnordered::new(),
            by_id: HashMap::new(),
            payload_bytes: 0,
            running,
            keep_alive,
            draining: None,
        }
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), ConnectionError> {
        let mut told = pin!(shutdown.cancelled());
        let ended = poll_fn(|cx| {
            if self.draining.is_none() && told.as_mut().poll(cx).is_ready() {
                frame::put_text(&mut self.out, Kind::Goaway, 0, frame::DRAINING);
                self.draining = Some(Box::pin(tokio::time::sleep(self.limits.drain_max)));
            }
            self.poll(cx)
        })
        .await;
        if let Err(error) = &ended {
            // Best effort: the other side's log should name the rule that it broke.
            frame::put_text(&mut self.out, Kind::Goaway, 0, &error.to_string());
            let _ = self.write.try_write(&self.out[self.out_written..]);
        }
        ended
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectionError>> {
        loop {
            // Everything below is skipped while the peer does not read, and taken up again once it did.
            let had_room = self.has_room();
            if had_room {
                if self.poll_calls_in(cx)?.is_ready() {
                    return Poll::Ready(Ok(()));
                }
                self.poll_running(cx);
            }
            while let Poll::Ready(beat) = self.keep_alive.poll(cx) {
                match beat {
                    Beat::Dead => return Poll::Ready(Err(ConnectionError::Silent(self.limits.dead_after))),
                    Beat::Ping => frame::put(&mut self.out, Kind::Ping, 0, &[]),
                }
            }
            let lacked_room = !self.has_room();
            let _ = self.poll_flush(cx)?;
            if let Some(limit) = &mut self.draining
                && limit.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(match self.calls.len() {
                    0 => Ok(()),
                    calls => Err(ConnectionError::DrainTimeout { calls }),
                });
            }
            if !(lacked_room && self.has_room()) {
                return Poll::Pending;
            }
        }
    }

    fn has_room(&self) -> bool {
        self.out.len() - self.out_written < self.limits.write_buffer_bytes_max
    }

    /// Reads and starts calls; ready at the end of the stream.
    fn poll_calls_in(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ConnectionError> {
        let mut reads = 0;
        // Frames that came behind the handshake, or were left when there was no room, are in the buffer already.
        self.take_frames()?;
        while self.has_room() {
            if reads == READS_MAX {
                cx.waker().wake_by_ref();
                break;
            }
            reads += 1;
            match poll_read(&mut self.read, cx, &mut self.inbound)? {
                Poll::Pending => break,
                Poll::Ready(0) if self.inbound.is_empty() => return Ok(Poll::Ready(())),
                Poll::Ready(0) => return Err(ConnectionError::Truncated),
                Poll::Ready(_) => {
                    self.keep_alive.heard(tokio::time::Instant::now());
                    self.take_frames()?;
                }
            }
        }
        Ok(Poll::Pending)
    }

    fn take_frames(&mut self) -> Result<(), ConnectionError> {
        let body_max = frame::body_bytes_max(&self.limits);
        let now = Instant::now();
        while self.has_room()
            && let Some(frame) = Frame::take(&mut self.inbound, body_max)?
        {
            match frame.kind {
                Kind::Call => self.start(frame, now)?,
                Kind::Cancel => {
                    frame.expect_empty()?;
                    // It may have been answered meanwhile. The future is dropped when it is next polled, below.
                    if let Some(call) = self.by_id.get(&frame.id) {
                        call.abort();
                    }
                }
                Kind::Ping => {
                    frame.expect_empty()?;
                    frame::put(&mut self.out, Kind::Pong, 0, &[]);
                }
                Kind::Pong => frame.expect_empty()?,
                Kind::Void => {}
                // The caller looked at our hello last, and declined.
                Kind::Refused => return Err(ConnectionError::RefusedByPeer(frame.text())),
                Kind::Challenge
                | Kind::Hello
                | Kind::Answer
                | Kind::Rejected
                | Kind::NoAnswer
                | Kind::Goaway => return Err(ConnectionError::Malformed("a frame that has no place here")),
            }
        }
        Ok(())
    }

    fn start(&mut self, frame: Frame, now: Instant) -> Result<(), ConnectionError> {
        let (id, priority) = (frame.id, frame.priority);
        let (remaining_ms, payload) = frame.into_call()?;
        let place = match self.by_id.entry(id) {
            Entry::Vacant(place) => place,
            Entry::Occupied(_) => return Err(ConnectionError::Malformed("a call's id is in use")),
        };
        let payload_bytes = payload.len();
        let refused = if self.draining.is_some() {
            Some(frame::DRAINING)
        } else if self.running.load(Ordering::Relaxed) >= self.limits.in_flight_for(priority) {
            Some("too many calls of this caller in flight")
        } else if self.payload_bytes > 0
            && self.payload_bytes + payload_bytes > self.limits.in_flight_bytes_max
        {
            Some("too many bytes in flight")
        } else {
            None
        };
        if let Some(reason) = refused {
            frame::put_rejected(&mut self.out, id, &Rejection::retry_after(reason, FULL_RETRY_MS));
            return Ok(());
        }
        let call = Incoming {
            peer: Arc::clone(&self.other),
            deadline: now + Duration::from_millis(remaining_ms.into()),
            priority,
            payload,
        };
        match catch_unwind(AssertUnwindSafe(|| self.handler.handle_now(call))) {
            Ok(Handled::Now(result)) => self.answer(id, Ok(result)),
            Ok(Handled::Later(future)) => {
                let (handle, registration) = AbortHandle::new_pair();
                place.insert(handle);
                self.payload_bytes += payload_bytes;
                let future = Abortable::new(AssertUnwindSafe(future).catch_unwind(), registration);
                let _place = Place::take(&self.running);
                self.calls.push(Running { id, payload_bytes, _place, future });
            }
            Err(panic) => self.answer(id, Err(panic)),
        }
        Ok(())
    }

    /// Polls the calls that were woken, as long as their answers have room.
    fn poll_running(&mut self, cx: &mut Context<'_>) {
        while self.has_room()
            && let Poll::Ready(Some(ended)) = self.calls.poll_next_unpin(cx)
        {
            self.by_id.remove(&ended.id);
            self.payload_bytes -= ended.payload_bytes;
            if let Some(result) = ended.result {
                self.answer(ended.id, result);
            }
        }
    }

    fn answer(&mut self, id: u64, result: std::thread::Result<Result<Bytes, Rejection>>) {
        match result {
            Ok(Ok(answer)) if answer.len() > self.limits.frame_bytes_max => {
                let text =
                    format!("answer of {} bytes, {} are allowed", answer.len(), self.limits.frame_bytes_max);
                frame::put_text(&mut self.out, Kind::NoAnswer, id, &text);
            }
            Ok(Ok(answer)) => frame::put(&mut self.out, Kind::Answer, id, &answer),
            Ok(Err(rejection)) => frame::put_rejected(&mut self.out, id, &rejection),
            // The panic's text stays here, where the hook has already printed it.
            Err(_) => frame::put_text(&mut self.out, Kind::NoAnswer, id, "the handler panicked"),
        }
    }

    /// Writes until everything is gone or the socket takes no more.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Result<Poll<()>, ConnectionError> {
        while self.out_written < self.out.len() {
            match self.write.try_write(&self.out[self.out_written..]) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => {
                    self.out_written += written;
                    if std::mem::take(&mut self.blocked) {
                        // A peer that reads slowly is alive, though nothing may be heard from it: this side
                        // has stopped reading.
                        self.keep_alive.heard(tokio::time::Instant::now());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    // A peer that never reads everything must not make the written part pile up.
                    if self.out_written > self.out.len() / 2 {
                        self.out.drain(..self.out_written);
                        self.out_written = 0;
                    }
                    match self.write.poll_write_ready(cx) {
                        Poll::Ready(ready) => ready?,
                        Poll::Pending => return Ok(Poll::Pending),
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.out.clear();
        self.out.shrink_to(frame::KEPT_MAX);
        self.out_written = 0;
        Ok(Poll::Ready(()))
    }
}
