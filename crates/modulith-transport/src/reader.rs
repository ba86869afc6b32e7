//! The task of a calling connection.
//!
//! Owns reading, the waking of those whose answers came, the writes that wait for the socket, the turns of what
//! leaves in several frames, and the pings. It ends when the connection does, and then tells everybody who
//! still waits.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::BytesMut;
use parking_lot::MutexGuard;
use tokio::time::{Sleep, sleep_until};

use crate::{
    Answer, CallFault, ConnectionError, Limits, NotRun, Unknown,
    client::{Connection, Gathering, Outcome},
    fault::answer_too_large,
    frame::{self, CHUNK, Frame, Kind, PARTS, STREAMED},
    handshake::Opened,
    keep_alive::{Beat, KeepAlive, Rounds},
    receiving::Receiving,
    sending::Asked,
    stream::{ReadHalf, Stream, poll_read},
};

/// Reads in one go before others get their turn.
const READS_MAX: usize = 8;
/// Pieces of payloads and bodies in one go: between them, what has arrived is read.
pub(crate) const TURNS_MAX: usize = 8;

const NEVER_MADE: ConnectionError = ConnectionError::Malformed("an answer to a call that was never made");

/// The connection's task: reads, completes, writes for bursts, pings.
pub(crate) struct Reader {
    connection: Arc<Connection>,
    read: ReadHalf,
    inbound: BytesMut,
    receiving: Receiving<()>,
    asked: Asked,
    rounds: Rounds,
    /// Those who are to be woken; empty between two turns.
    callers: Vec<Waker>,
    /// Something was leaving in several frames when last looked; who adds to it wakes this task.
    is_sending: bool,
    /// Fires at the first deadline of the calls that wait, or before it.
    deadlines: Option<Pin<Box<Sleep>>>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A task that is dropped, with its runtime or before its first turn, must not leave callers waiting.
        self.connection.end(&ConnectionError::ClosedHere);
    }
}

impl Reader {
    pub(crate) fn new(stream: Stream, opened: Opened, limits: Arc<Limits>) -> Self {
        let (read, write) = stream.split();
        let rounds = Rounds::new(&limits);
        let connection = Connection::new(opened.other, write, limits);
        Self {
            connection,
            read,
            inbound: opened.inbound,
            receiving: Receiving::new(),
            asked: Asked::default(),
            rounds,
            callers: Vec::new(),
            is_sending: false,
            deadlines: None,
        }
    }

    pub(crate) fn connection(&self) -> Arc<Connection> {
        Arc::clone(&self.connection)
    }

    /// Runs until the connection ends.
    pub(crate) async fn run(mut self) {
        let mut keep_alive = KeepAlive::new(&self.connection.limits);
        let mut answers = Vec::new();
        let error = poll_fn(|cx| self.poll(cx, &mut keep_alive, &mut answers)).await;
        tracing::debug!(peer = %self.connection.other.service, %error, "connection ended");
        self.connection.end(&error);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        keep_alive: &mut KeepAlive,
        answers: &mut Vec<(u64, Outcome)>,
    ) -> Poll<ConnectionError> {
        self.connection.task.register(cx.waker());
        // Bytes behind the last frame of the handshake are read before the socket.
        let mut error = self.decode(answers).err();
        let mut reads = 0;
        while error.is_none() {
            if reads == READS_MAX {
                cx.waker().wake_by_ref();
                break;
            }
            reads += 1;
            match poll_read(&mut self.read, cx, &mut self.inbound) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) if self.inbound.is_empty() => error = Some(ConnectionError::Closed),
                Poll::Ready(Ok(0)) => error = Some(ConnectionError::Truncated),
                Poll::Ready(Ok(_)) => {
                    keep_alive.heard(tokio::time::Instant::now());
                    error = self.decode(answers).err();
                }
                Poll::Ready(Err(failed)) => error = Some(failed.into()),
            }
        }
        if error.is_none() && self.connection.is_swamped() {
            error = Some(ConnectionError::Malformed("it makes this side write and does not read"));
        }
        // Answers that arrived before the end still count.
        let broken = self.complete(cx, answers).err();
        if let Some(error) = broken.or(error) {
            return Poll::Ready(error);
        }
        while let Poll::Ready(beat) = keep_alive.poll(cx) {
            match beat {
                Beat::Dead => {
                    return Poll::Ready(ConnectionError::Silent(self.connection.limits.dead_after));
                }
                Beat::Ping => {
                    let mut state = self.connection.state.lock();
                    frame::put(&mut state.out.pending, Kind::Ping, 0, &[]);
                    self.connection.flush(state);
                }
            }
        }
        self.poll_deadlines(cx);
        if let Err(error) = self.poll_streams(cx) {
            return Poll::Ready(error);
        }
        self.poll_write(cx, keep_alive)
    }

    /// Ends the calls that are late, and waits for the next deadline.
    fn poll_deadlines(&mut self, cx: &mut Context<'_>) {
        loop {
            let look_at = self.connection.state.lock().look_at;
            let Some(look_at) = look_at.map(tokio::time::Instant::from_std) else {
                return;
            };
            let timer = self.deadlines.get_or_insert_with(|| Box::pin(sleep_until(look_at)));
            if timer.deadline() != look_at {
                timer.as_mut().reset(look_at);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return;
            }
            self.connection.expire(look_at.into_std());
        }
    }

    /// Moves what arrives and leaves in several frames.
    fn poll_streams(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        if !self.receiving.is_empty() {
            let mut state = self.connection.state.lock();
            self.receiving.attend(cx, &mut state.out.pending)?;
            self.connection.flush(state);
        }
        let has_streams = self.is_sending || !self.receiving.is_idle();
        if self.rounds.poll(cx, has_streams).is_ready() {
            let idle_max = self.connection.limits.body_idle_max;
            let mut guard = self.connection.state.lock();
            let state = &mut *guard;
            self.receiving.end_idle(idle_max, &mut state.out.pending)?;
            let idle = state.sending.end_idle(idle_max, &mut state.out.pending);
            self.connection.flush(guard);
            drop(idle);
        }
        if self.is_sending || !self.asked.is_empty() {
            self.take_turns(cx);
        }
        Ok(())
    }

    fn take_turns(&mut self, cx: &mut Context<'_>) {
        let mut turns = 0;
        loop {
            let mut guard = self.connection.state.lock();
            self.asked.extend(guard.sending.wanted());
            // Bodies are the code of others, so they are asked, and dropped, outside the lock.
            let said = MutexGuard::unlocked(&mut guard, || self.asked.poll(cx));
            let mut moved = said.is_some();
            let state = &mut *guard;
            let over = said.and_then(|said| state.sending.said(said, &mut state.out.pending));
            // With more waiting, what is put now would only stand in the way of small frames.
            moved |= state.out.waiting() < CHUNK && state.put_next();
            moved |= !state.sending.wanted().is_empty();
            turns += 1;
            let is_over = !moved || turns == TURNS_MAX;
            if is_over || state.out.waiting() >= CHUNK {
                self.connection.flush(guard);
            } else {
                drop(guard);
            }
            drop(over);
            if is_over {
                if moved {
                    cx.waker().wake_by_ref();
                }
                return;
            }
        }
    }

    /// Waits for the socket to take more, and notices what others found wrong or finished.
    fn poll_write(&self, cx: &mut Context<'_>, keep_alive: &mut KeepAlive) -> Poll<ConnectionError> {
        loop {
            let mut state = self.connection.state.lock();
            if let Some(error) = state.failed.take() {
                return Poll::Ready(error);
            }
            if state.draining.is_some()
                && state.nobody_waits()
                && state.out.waiting() == 0
                && state.sending.is_empty()
                && self.receiving.is_idle()
            {
                return Poll::Ready(ConnectionError::Closed);
            }
            if !state.out.blocked {
                return Poll::Pending;
            }
            match self.connection.write.poll_write_ready(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
                Poll::Ready(Ok(())) => {
                    // Whoever takes our bytes is alive, though its answer to a ping may be far behind them.
                    keep_alive.heard(tokio::time::Instant::now());
                    state.out.blocked = false;
                    self.connection.flush(state);
                }
            }
        }
    }

    fn decode(&mut self, answers: &mut Vec<(u64, Outcome)>) -> Result<(), ConnectionError> {
        while let Some(frame) = Frame::take(&mut self.inbound, frame::BODY_MAX)? {
            let connection = &self.connection;
            let id = frame.id;
            match frame.kind {
                Kind::Answer if frame.is_whole() => {
                    let max = connection.limits.payload_bytes_max;
                    answers.push((
                        id,
                        if frame.body.len() > max {
                            Err(Unknown::NoAnswer(answer_too_large(frame.body.len(), max)).into())
                        } else {
                            Ok(Answer { payload: frame.body, body: None })
                        },
                    ));
                }
                Kind::Answer => self.begin(frame, answers)?,
                Kind::Part => {
                    if let Some(whole) = self.receiving.part(frame)? {
                        answers.push((id, Ok(Answer { payload: whole.payload, body: whole.body })));
                    }
                }
                Kind::Data => self.receiving.data(&frame)?,
                Kind::Reset => {
                    if self.receiving.reset(&frame)? {
                        answers.push((id, Err(Unknown::NoAnswer(frame.text()).into())));
                    }
                }
                Kind::Window => {
                    let bytes = Frame::number(&frame.body)?;
                    connection.state.lock().sending.allow(id, bytes)?;
                }
                Kind::Stop => {
                    frame.expect_empty()?;
                    let mut guard = connection.state.lock();
                    let state = &mut *guard;
                    let rest = state.sending.break_off(id, "nobody reads it", &mut state.out.pending);
                    connection.flush(guard);
                    drop(rest);
                }
                Kind::Rejected => answers.push((id, Err(NotRun::Rejected(frame.into_rejection()?).into()))),
                Kind::NoAnswer => answers.push((id, Err(Unknown::NoAnswer(frame.text()).into()))),
                Kind::Ping => {
                    frame.expect_empty()?;
                    let mut state = connection.state.lock();
                    // Whoever pings and does not read gets no further pongs.
                    if state.out.waiting() < connection.limits.write_buffer_bytes_max {
                        frame::put(&mut state.out.pending, Kind::Pong, 0, &[]);
                        connection.flush(state);
                    }
                }
                Kind::Pong => frame.expect_empty()?,
                Kind::Goaway => {
                    let text = frame.text();
                    let mut state = connection.state.lock();
                    state.announced |= text == frame::DRAINING;
                    state.draining = Some(text);
                    drop(state);
                    connection.retire();
                }
                Kind::Challenge | Kind::Hello | Kind::Refused | Kind::Call | Kind::Cancel | Kind::Void => {
                    return Err(ConnectionError::Malformed("a frame that has no place here"));
                }
            }
        }
        Ok(())
    }

    /// Takes the first frame of an answer that comes in several.
    fn begin(&mut self, frame: Frame, answers: &mut Vec<(u64, Outcome)>) -> Result<(), ConnectionError> {
        let (id, is_streamed) = (frame.id, frame.is(STREAMED));
        let limits = &self.connection.limits;
        let mut guard = self.connection.state.lock();
        let state = &mut *guard;
        if !state.is_known(id) {
            return Err(NEVER_MADE);
        }
        if self.receiving.contains(id) {
            return Err(ConnectionError::Malformed("an answer that has already begun"));
        }
        let in_parts = if frame.is(PARTS) { Frame::number(&frame.body)? } else { 0 };
        let size = if in_parts > 0 { in_parts } else { frame.body.len() };
        let refused = if size > limits.payload_bytes_max {
            Some(Unknown::NoAnswer(answer_too_large(size, limits.payload_bytes_max)))
        } else if in_parts > 0 && self.receiving.payload_bytes() >= limits.in_flight_bytes_max {
            Some(Unknown::NoAnswer("too many bytes of answers on their way".to_owned()))
        } else if is_streamed && self.receiving.bodies() >= limits.bodies_max {
            Some(Unknown::NoAnswer("too many bodies".to_owned()))
        } else {
            None
        };
        if let Some(fault) = refused {
            self.receiving.pass_over(id, in_parts, is_streamed)?;
            // The last word of this direction too.
            let rest = state.sending.remove(id);
            frame::put(&mut state.out.pending, Kind::Cancel, id, &[]);
            self.connection.flush(guard);
            drop(rest);
            answers.push((id, Err(fault.into())));
        } else if in_parts > 0 {
            self.receiving.expect_parts(id, (), in_parts, is_streamed);
        } else {
            let body = Some(self.receiving.expect_body(id));
            answers.push((id, Ok(Answer { payload: frame.body, body })));
        }
        Ok(())
    }

    /// Gives the answers to those who wait for them, and writes what callers have appended meanwhile.
    fn complete(
        &mut self,
        cx: &mut Context<'_>,
        answers: &mut Vec<(u64, Outcome)>,
    ) -> Result<(), ConnectionError> {
        let mut state = self.connection.state.lock();
        self.is_sending = !state.sending.is_empty();
        let gathered = state.gathering;
        state.gathering = match (answers.len(), gathered) {
            (0, Gathering::Begun) | (2.., _) => Gathering::Queued,
            _ => Gathering::No,
        };
        if state.gathering == Gathering::Queued {
            // Behind the callers: a task that wakes itself goes to the end of the queue.
            cx.waker().wake_by_ref();
        }
        if answers.is_empty() {
            if gathered == Gathering::Queued {
                self.connection.flush(state);
            }
            return Ok(());
        }
        let known = answers.iter().all(|(id, _)| state.is_known(*id));
        let mut unsent = Vec::new();
        if self.is_sending {
            // What the other side has rejected it does not want the rest of.
            for (id, _) in answers.iter().filter(|(_, outcome)| matches!(outcome, Err(CallFault::NotRun(_))))
            {
                let state = &mut *state;
                unsent.extend(state.sending.break_off(*id, "rejected", &mut state.out.pending));
            }
        }
        let mut unwanted = Vec::new();
        for (id, outcome) in answers.drain(..) {
            match state.answer(id, outcome) {
                Ok(caller) => self.callers.push(caller),
                Err(outcome) => unwanted.push(outcome),
            }
        }
        if gathered != Gathering::No || !unsent.is_empty() {
            self.connection.flush(state);
        } else {
            drop(state);
        }
        drop((unsent, unwanted));
        self.callers.drain(..).for_each(Waker::wake);
        if known { Ok(()) } else { Err(NEVER_MADE) }
    }
}
