//! One connection of the called side.
//!
//! Owns the running calls; `out.rs` has the outgoing bytes. A single task reads whatever has arrived, runs it,
//! and writes all the answers together; calls that wait are polled by the same task, so a call costs no task of
//! its own, and so are the bodies of answers. It stops reading and running when its peer does not read, and
//! refuses what is beyond the limits.

mod out;

use std::{
    collections::{HashMap, HashSet},
    future::{Future, poll_fn},
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
    BodyReader, ConnectionError, Handled, Handler, Incoming, Limits, PeerInfo, Priority, Rejection, Reply,
    Stream,
    frame::{self, Frame, Kind, PARTS, STREAMED},
    handshake::Opened,
    keep_alive::{Beat, KeepAlive, Rounds},
    receiving::Receiving,
    sending::{Asked, Sending},
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
    receiving: Receiving<Head>,
    sending: Sending,
    asked: Asked,
    rounds: Rounds,
    keep_alive: KeepAlive,
    /// Armed when the caller was told to send no new calls.
    draining: Option<Pin<Box<Sleep>>>,
}

/// What is known of a call in front of its payload.
struct Head {
    priority: Priority,
    arrived: Instant,
    deadline: Instant,
}

type Answering = BoxFuture<'static, Result<Reply, Rejection>>;

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
    result: Option<std::thread::Result<Result<Reply, Rejection>>>,
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
        let (keep_alive, rounds) = (KeepAlive::new(&limits), Rounds::new(&limits));
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
            receiving: Receiving::new(),
            sending: Sending::default(),
            asked: Asked::default(),
            rounds,
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
            self.poll_streams(cx)?;
            let lacked_room = !self.has_room();
            self.poll_out(cx)?;
            if let Some(limit) = &mut self.draining
                && limit.as_mut().poll(cx).is_ready()
            {
                return Poll::Ready(match self.unfinished() {
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
        self.waiting() < self.limits.write_buffer_bytes_max
            && self.sending.payload_bytes() < self.limits.in_flight_bytes_max
    }

    /// Calls that a drain waits for.
    fn unfinished(&self) -> usize {
        let ids = self.by_id.keys().copied().chain(self.receiving.ids()).chain(self.sending.ids());
        ids.collect::<HashSet<_>>().len()
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
        let now = Instant::now();
        while self.has_room()
            && let Some(frame) = Frame::take(&mut self.inbound, frame::BODY_MAX)?
        {
            match frame.kind {
                Kind::Call => self.start(frame, now)?,
                Kind::Cancel => {
                    frame.expect_empty()?;
                    // It may have been answered meanwhile. The future is dropped when it is next polled, below.
                    if let Some(call) = self.by_id.get(&frame.id) {
                        call.abort();
                    }
                    if !self.receiving.is_empty() {
                        self.receiving.cancel(frame.id);
                    }
                    if !self.sending.is_empty() {
                        self.sending.break_off(frame.id, "cancelled", &mut self.out);
                    }
                }
                Kind::Part => {
                    let id = frame.id;
                    if let Some(whole) = self.receiving.part(frame)? {
                        self.run_call(id, Head { arrived: now, ..whole.head }, whole.payload, whole.body);
                    }
                }
                Kind::Data => self.receiving.data(&frame)?,
                Kind::Reset => {
                    self.receiving.reset(&frame)?;
                }
                Kind::Window => self.sending.allow(frame.id, Frame::number(&frame.body)?)?,
                Kind::Stop => {
                    frame.expect_empty()?;
                    self.sending.break_off(frame.id, "nobody reads it", &mut self.out);
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
        let (id, priority) = (frame.id, frame.priority());
        let (in_parts, is_streamed) = (frame.is(PARTS), frame.is(STREAMED));
        let (remaining_ms, payload) = frame.into_call()?;
        if self.by_id.contains_key(&id) || self.receiving.contains(id) || self.sending.contains(id) {
            return Err(ConnectionError::Malformed("a call's id is in use"));
        }
        let deadline = now + Duration::from_millis(remaining_ms.into());
        let head = Head { priority, arrived: now, deadline };
        let size = if in_parts { Frame::number(&payload)? } else { payload.len() };
        if let Some(rejection) = self.refused(priority, size, is_streamed) {
            frame::put_rejected(&mut self.out, id, &rejection);
            if in_parts || is_streamed {
                self.receiving.pass_over(id, if in_parts { size } else { 0 }, is_streamed)?;
            }
        } else if in_parts {
            self.receiving.expect_parts(id, head, size, is_streamed);
        } else {
            let body = is_streamed.then(|| self.receiving.expect_body(id));
            self.run_call(id, head, payload, body);
        }
        Ok(())
    }

    fn refused(&self, priority: Priority, payload_bytes: usize, is_streamed: bool) -> Option<Rejection> {
        let limits = &self.limits;
        if payload_bytes > limits.payload_bytes_max {
            let text = format!("payload of {payload_bytes} bytes, {} are allowed", limits.payload_bytes_max);
            return Some(Rejection::new(text));
        }
        // A call is in flight from the first part of its payload to the last piece of its answer.
        let calls = self.running.load(Ordering::Relaxed) + self.receiving.payloads() + self.sending.len();
        let held = self.payload_bytes + self.receiving.payload_bytes();
        // Its caller sends it to another, unless a body follows, which it no longer has. Those are few: it is told.
        let reason = if self.draining.is_some() && !is_streamed {
            frame::DRAINING
        } else if calls >= limits.in_flight_for(priority) {
            "too many calls of this caller in flight"
        } else if held > 0 && held + payload_bytes > limits.bytes_for(priority, limits.in_flight_bytes_max) {
            "too many bytes in flight"
        } else if is_streamed && self.receiving.bodies() >= limits.bodies_max {
            "too many bodies"
        } else {
            return None;
        };
        Some(Rejection::retry_after(reason, FULL_RETRY_MS))
    }

    fn run_call(&mut self, id: u64, head: Head, payload: Bytes, body: Option<BodyReader>) {
        let payload_bytes = payload.len();
        let call = Incoming {
            peer: Arc::clone(&self.other),
            arrived: head.arrived,
            deadline: head.deadline,
            priority: head.priority,
            payload,
            body,
        };
        match catch_unwind(AssertUnwindSafe(|| self.handler.handle_now(call))) {
            Ok(Handled::Now(result)) => self.answer(id, Ok(result.map(Reply::from))),
            Ok(Handled::Later(future)) => {
                let (handle, registration) = AbortHandle::new_pair();
                self.by_id.insert(id, handle);
                self.payload_bytes += payload_bytes;
                let future = Abortable::new(AssertUnwindSafe(future).catch_unwind(), registration);
                let _place = Place::take(&self.running);
                self.calls.push(Running { id, payload_bytes, _place, future });
            }
            Err(panic) => self.answer(id, Err(panic)),
        }
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
}
