//! One connection of the calling side: calls go out, answers find their callers.
//!
//! Owns the waiting callers, the outgoing bytes, and the knowledge of which bytes were handed to the socket,
//! which is what separates *not run* from *unknown*. It refuses new calls once the other side drains.
//!
//! A lone caller writes its frame itself, at once, which saves a task switch. Where several call, a system call for
//! each frame would be most of what a call costs: they only append, and the connection's task, which goes behind
//! them in the run queue, writes all their frames together. That is so while others wait for their answers, and when one
//! read has completed several callers, who are about to call again. Half of a large batch is written by the caller that
//! completes it, so that the other side does not wait for the second half. A payload above 64 KiB and a body are sent by that
//! task alone, so that no caller is kept writing.

use std::{
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::{
    Answer, Body, CallFault, ConnectionError, HelloInfo, Limits, NotRun, Payload, Priority, Terms, Unknown,
    frame::{self, CHUNK, Kind, PARTS, STREAMED},
    outgoing::Outgoing,
    sending::{Sending, Transfer},
    stream::WriteHalf,
};

pub(crate) type Outcome = Result<Answer, CallFault>;

/// Calls below which a batch is not cut in two: a system call costs as much as a few of them.
const WORTH_A_WRITE: usize = 8;

/// Where the last part of a payload begins as long as it has no place.
const NOWHERE_YET: u64 = u64::MAX;

pub(crate) struct Connection {
    pub(crate) other: Arc<HelloInfo>,
    /// Fires when no new call is taken any more: it drains, or it has ended.
    pub(crate) retired: CancellationToken,
    /// The same, for whoever looks at each call: a token has a lock.
    pub(crate) is_retired: AtomicBool,
    pub(crate) write: WriteHalf,
    pub(crate) task: AtomicWaker,
    pub(crate) limits: Arc<Limits>,
    pub(crate) state: Mutex<State>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots whose answers were not fetched yet.
    answered: usize,
    pub(crate) out: Outgoing,
    /// What goes out in turns, behind `out`.
    pub(crate) sending: Sending,
    pub(crate) gathering: Gathering,
    /// When the connection's task next looks for calls whose deadline has passed; not behind the first of them.
    pub(crate) look_at: Option<Instant>,
    /// The other side drains, for this reason.
    pub(crate) draining: Option<String>,
    /// It said so before it went, so a successor may come.
    pub(crate) announced: bool,
    /// Why the connection ended; nothing is sent or completed after that.
    ended: Option<String>,
    /// A caller's own write failed, or the peer was dropped; the connection's task ends it.
    pub(crate) failed: Option<ConnectionError>,
}

/// Whether callers' frames are gathered for the connection's task to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Gathering {
    /// Callers write.
    #[default]
    No,
    /// A caller that is not alone has appended and woken the task, which may run at once: before the others.
    Begun,
    /// The task has gone to the end of the run queue, and writes when its turn comes.
    Queued,
}

/// Where a call waits for its answer. Whoever comes later to the place is another generation.
#[derive(Default)]
pub(crate) struct Slot {
    generation: u32,
    call: Call,
}

#[derive(Default)]
enum Call {
    #[default]
    None,
    Waits(Waiting),
    /// Its caller was woken to fetch it.
    Answered(Outcome),
}

struct Waiting {
    /// Where in the stream of all outgoing bytes the frame begins without which the call does not run: its only
    /// one, or the last part of its payload.
    frame_from: u64,
    /// Other frames of the call go before or behind that one.
    has_more: bool,
    deadline: Instant,
    caller: Waker,
}

/// A call that was accepted for sending. Dropping it tells the other side that nobody waits any more.
pub(crate) struct Submitted<'a> {
    connection: &'a Connection,
    id: u64,
    is_over: bool,
}

/// Why a call was not accepted for sending; none of its bytes were taken.
pub(crate) enum NotTaken {
    /// The other side drains; another connection is about to be made.
    Draining,
    Ended(String),
    Full,
}

impl State {
    /// The slot of a call; none if it is another's by now.
    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.slots.get_mut(id as u32 as usize).filter(|slot| slot.generation == (id >> 32) as u32)
    }

    fn waiting(&mut self, id: u64) -> Option<&mut Waiting> {
        match &mut self.slot(id)?.call {
            Call::Waits(waiting) => Some(waiting),
            Call::None | Call::Answered(_) => None,
        }
    }

    /// Leaves the answer for its caller, or gives it back if the call is over. Either, woken or dropped, is the code of
    /// others, and belongs outside the lock.
    pub(crate) fn answer(&mut self, id: u64, outcome: Outcome) -> Result<Waker, Outcome> {
        let Some(slot) = self.slot(id) else { return Err(outcome) };
        match std::mem::replace(&mut slot.call, Call::Answered(outcome)) {
            Call::Waits(waiting) => {
                self.answered += 1;
                Ok(waiting.caller)
            }
            before => match std::mem::replace(&mut slot.call, before) {
                Call::Answered(outcome) => Err(outcome),
                Call::None | Call::Waits(_) => unreachable!("it was put there above"),
            },
        }
    }

    /// What was answered, if it was. Then the slot is another's.
    fn fetch(&mut self, id: u64) -> Option<Outcome> {
        let slot = self.slot(id).filter(|slot| matches!(slot.call, Call::Answered(_)))?;
        let Call::Answered(outcome) = std::mem::take(&mut slot.call) else { return None };
        slot.generation = slot.generation.wrapping_add(1);
        self.answered -= 1;
        self.free.push(id as u32);
        Some(outcome)
    }

    /// Whether there is a slot that this answer may be for, be it one whose caller gave up.
    pub(crate) fn is_known(&self, id: u64) -> bool {
        (id as u32 as usize) < self.slots.len()
    }

    /// Writes what is next in turn to the bytes that wait; whether there was any.
    pub(crate) fn put_next(&mut self) -> bool {
        let (from, before) = (self.out.end(), self.out.pending.len());
        if let Some(id) = self.sending.put_next(&mut self.out.pending)
            && let Some(waiting) = self.waiting(id)
        {
            waiting.frame_from = from;
        }
        self.out.pending.len() > before
    }

    fn waiting_calls(&self) -> impl Iterator<Item = (u64, &Waiting)> {
        self.slots.iter().zip(0u64..).filter_map(|(slot, index)| match &slot.call {
            Call::Waits(waiting) => Some((u64::from(slot.generation) << 32 | index, waiting)),
            Call::None | Call::Answered(_) => None,
        })
    }

    pub(crate) fn nobody_waits(&self) -> bool {
        self.waiting_callers() == 0
    }

    /// Half of all calls that wait for an answer have been gathered, and are worth a system call.
    fn has_half(&self) -> bool {
        let gathered = self.out.pending_calls;
        gathered >= WORTH_A_WRITE && 2 * gathered >= self.waiting_callers()
    }

    fn waiting_callers(&self) -> usize {
        self.slots.len() - self.free.len() - self.answered
    }
}

impl State {
    /// The first frame of a call that takes several; the others follow in turns.
    fn put_first_of_more(
        &mut self,
        id: u64,
        priority: Priority,
        remaining_ms: u32,
        payload: Payload<'_>,
        body: Option<Body>,
    ) {
        let bytes = payload.bytes();
        let streamed = if body.is_some() { STREAMED } else { 0 };
        let out = &mut self.out.pending;
        if bytes.len() > CHUNK {
            // Checked against `payload_bytes_max`, which is below 4 GiB.
            let size = (bytes.len() as u32).to_le_bytes();
            frame::put_call(out, id, priority, PARTS | streamed, remaining_ms, &size);
            self.sending.add(id, payload.to_bytes(), body);
        } else {
            frame::put_call(out, id, priority, streamed, remaining_ms, bytes);
            self.sending.add(id, Bytes::new(), body);
        }
    }
}

impl Connection {
    pub(crate) fn new(other: Arc<HelloInfo>, write: WriteHalf, limits: Arc<Limits>) -> Arc<Self> {
        Arc::new(Self {
            other,
            retired: CancellationToken::new(),
            is_retired: AtomicBool::new(false),
            task: AtomicWaker::new(),
            limits,
            write,
            state: Mutex::default(),
        })
    }

    /// More waits to be written than callers were allowed to add: the other side has caused it, and does not read.
    pub(crate) fn is_swamped(&self) -> bool {
        self.state.lock().out.waiting() / 2
            > self.limits.write_buffer_bytes_max.max(self.limits.payload_bytes_max)
    }

    /// Takes no new calls from now on.
    pub(crate) fn retire(&self) {
        self.is_retired.store(true, Ordering::Release);
        self.retired.cancel();
    }

    /// Sends a call and waits for its outcome.
    pub(crate) async fn call(
        &self,
        terms: Terms,
        payload: Payload<'_>,
        body: &mut Option<Body>,
    ) -> Result<Outcome, NotTaken> {
        let mut submitted = None;
        poll_fn(|cx| match &mut submitted {
            None => match self.submit(terms, payload, body, cx.waker()) {
                Ok(call) => {
                    submitted = Some(call);
                    Poll::Pending
                }
                Err(not_taken) => Poll::Ready(Err(not_taken)),
            },
            Some(call) => call.poll_outcome(cx).map(Ok),
        })
        .await
    }

    /// Takes a call for sending, and usually sends it. The body is taken only with the call. `caller` is woken when there is
    /// an answer.
    pub(crate) fn submit(
        &self,
        Terms { now, deadline, priority }: Terms,
        payload: Payload<'_>,
        body: &mut Option<Body>,
        caller: &Waker,
    ) -> Result<Submitted<'_>, NotTaken> {
        let bytes = payload.bytes();
        let remaining = deadline.saturating_duration_since(now).as_millis();
        let remaining_ms = u32::try_from(remaining).unwrap_or(u32::MAX).max(1);
        let mut state = self.state.lock();
        if let Some(text) = &state.ended {
            return Err(NotTaken::Ended(text.clone()));
        }
        if state.draining.is_some() {
            return Err(NotTaken::Draining);
        }
        let waiting = state.out.waiting();
        let in_parts = bytes.len() > CHUNK;
        let at_once = if in_parts { 0 } else { bytes.len() };
        let limits = &self.limits;
        let room = limits.bytes_for(priority, limits.write_buffer_bytes_max);
        if waiting > 0 && waiting + frame::call_bytes(at_once) > room {
            return Err(NotTaken::Full);
        }
        let has_more = in_parts || body.is_some();
        if has_more {
            let parts = state.sending.payload_bytes();
            let room = limits.bytes_for(priority, limits.in_flight_bytes_max);
            let too_large = in_parts && parts > 0 && parts + bytes.len() > room;
            if too_large || (body.is_some() && state.sending.bodies() >= limits.bodies_max) {
                return Err(NotTaken::Full);
            }
        }
        let frame_from = if in_parts { NOWHERE_YET } else { state.out.end() };
        let index = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::default());
            // The calls in flight, and so the slots, are bounded far below 2^32.
            (state.slots.len() - 1) as u32
        });
        let slot = &mut state.slots[index as usize];
        slot.call = Call::Waits(Waiting { frame_from, has_more, deadline, caller: caller.clone() });
        let id = u64::from(slot.generation) << 32 | u64::from(index);
        if state.look_at.is_none_or(|look_at| deadline < look_at) {
            state.look_at = Some(deadline);
            self.task.wake();
        }
        if has_more {
            state.put_first_of_more(id, priority, remaining_ms, payload, body.take());
            drop(state);
            self.task.wake();
        } else {
            frame::put_call(&mut state.out.pending, id, priority, 0, remaining_ms, bytes);
            state.out.pending_calls += 1;
            let is_first = state.gathering == Gathering::No;
            if state.has_half() || (is_first && state.waiting_callers() == 1) {
                self.flush(state);
            } else if is_first {
                state.gathering = Gathering::Begun;
                drop(state);
                self.task.wake();
            }
        }
        Ok(Submitted { connection: self, id, is_over: false })
    }

    /// Writes what waits, until it is gone or the socket takes no more. If somebody else is writing, he will
    /// find these bytes too.
    pub(crate) fn flush(&self, mut state: MutexGuard<'_, State>) {
        if state.out.writing || state.out.blocked {
            return;
        }
        while state.ended.is_none() && state.failed.is_none() {
            let out = &mut state.out;
            if out.waiting() == 0 {
                if state.sending.has_turns() {
                    self.task.wake();
                }
                return;
            }
            if out.written == out.pending_from {
                out.advance();
            }
            // Others must be able to append during the system call, so it runs outside the lock.
            let front = std::mem::take(&mut out.front);
            let from = front.len() - (out.pending_from - out.written) as usize;
            out.writing = true;
            let written = MutexGuard::unlocked(&mut state, || self.write.try_write(&front[from..]));
            let out = &mut state.out;
            out.writing = false;
            out.front = front;
            match written {
                Ok(0) => state.failed = Some(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(written) => out.written += written as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    out.blocked = true;
                    self.task.wake();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => state.failed = Some(error.into()),
            }
        }
        self.task.wake();
    }

    /// Ends the connection from this side; calls that wait become unknown.
    pub(crate) fn close(&self) {
        self.state.lock().failed.get_or_insert(ConnectionError::ClosedHere);
        self.task.wake();
    }

    /// Takes no new calls, and ends when those that wait have their answers.
    pub(crate) fn drain(&self, reason: &str) {
        self.state.lock().draining.get_or_insert_with(|| reason.to_owned());
        self.retire();
        self.task.wake();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.state.lock().ended.is_some()
    }

    /// What to tell those who ask why there is no connection, and whether the other side announced it.
    pub(crate) fn retirement(&self) -> (String, bool) {
        let state = self.state.lock();
        let text = state.ended.as_ref().or(state.draining.as_ref());
        (text.cloned().unwrap_or_default(), state.announced)
    }

    pub(crate) fn end(&self, error: &ConnectionError) {
        let mut state = self.state.lock();
        if state.ended.is_some() {
            return;
        }
        let text = match (&state.draining, error) {
            // Its own last words say more than the end of the stream.
            (Some(text), ConnectionError::Closed | ConnectionError::Io(_)) => {
                ConnectionError::ClosedByPeer(text.clone()).to_string()
            }
            _ => error.to_string(),
        };
        state.ended = Some(text.clone());
        let handed = state.out.handed();
        let sending = std::mem::take(&mut state.sending);
        if !state.out.writing {
            state.out = Outgoing::default();
        }
        let waiting = state.waiting_calls().map(|(id, waiting)| (id, waiting.frame_from < handed));
        let waiting: Vec<_> = waiting.collect();
        let callers: Vec<_> = waiting
            .into_iter()
            .filter_map(|(id, was_handed)| {
                let fault = if was_handed {
                    CallFault::Unknown(Unknown::ConnectionLost)
                } else {
                    CallFault::NotRun(NotRun::Unreachable(text.clone()))
                };
                state.answer(id, Err(fault)).ok()
            })
            .collect();
        drop(state);
        // Outside the lock, since dropping a body, and waking, run code of others.
        drop(sending);
        callers.into_iter().for_each(Waker::wake);
        self.retire();
    }

    /// Ends the calls whose deadline has passed. A timer a call would cost as much as the rest of it, so there is one a
    /// connection, and nearly always its calls are answered long before it fires.
    pub(crate) fn expire(&self, now: Instant) {
        let mut state = self.state.lock();
        let waiting = state.waiting_calls().map(|(id, waiting)| (id, waiting.deadline));
        let (late, in_time): (Vec<_>, Vec<_>) = waiting.partition(|(_, deadline)| *deadline <= now);
        state.look_at = in_time.into_iter().map(|(_, deadline)| deadline).min();
        drop(state);
        for (id, _) in late {
            let mut state = self.state.lock();
            // Between the two locks it may have been answered.
            let Some((withdrawn, rest)) = self.withdraw(&mut state, id) else { continue };
            let fault = if withdrawn { NotRun::Deadline.into() } else { Unknown::Deadline.into() };
            let caller = state.answer(id, Err(fault));
            self.flush(state);
            drop(rest);
            if let Ok(caller) = caller {
                caller.wake();
            }
        }
    }

    /// Nobody waits for a call any more.
    fn give_up(&self, id: u64) {
        let mut state = self.state.lock();
        let rest = self.withdraw(&mut state, id).and_then(|(_, rest)| rest);
        let caller = state.answer(id, Err(Unknown::Deadline.into()));
        let outcome = state.fetch(id);
        self.flush(state);
        // Code of others.
        drop((rest, caller, outcome));
    }

    /// Takes back what of a call has not been handed over, and tells the other side what has: whether it was all of what
    /// makes it run, and what was still to be sent. `None` if there is an answer.
    fn withdraw(&self, state: &mut State, id: u64) -> Option<(bool, Option<Transfer>)> {
        let waiting = state.waiting(id)?;
        let (frame_from, has_more) = (waiting.frame_from, waiting.has_more);
        // Nothing runs before its payload is whole, so with a part still here the call has not run.
        let is_partial = frame_from == NOWHERE_YET;
        let withdrawn = is_partial || state.out.withdraw(frame_from, has_more.then_some(id));
        let rest = if has_more { state.sending.remove(id) } else { None };
        if !withdrawn || has_more {
            frame::put(&mut state.out.pending, Kind::Cancel, id, &[]);
        }
        if state.draining.is_some() {
            // It may have been the last that the connection was kept for.
            self.task.wake();
        }
        Some((withdrawn, rest))
    }
}

impl Submitted<'_> {
    /// The answer, or what is known at the deadline.
    pub(crate) fn poll_outcome(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let mut state = self.connection.state.lock();
        if let Some(outcome) = state.fetch(self.id) {
            self.is_over = true;
            return Poll::Ready(outcome);
        }
        let before = match state.waiting(self.id) {
            Some(waiting) if !waiting.caller.will_wake(cx.waker()) => {
                Some(std::mem::replace(&mut waiting.caller, cx.waker().clone()))
            }
            _ => None,
        };
        // Outside the lock, since dropping it may run code of others.
        drop(state);
        drop(before);
        Poll::Pending
    }
}

impl Drop for Submitted<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.connection.give_up(self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::net::UnixStream;

    use super::*;
    use crate::{Note, Stream};

    /// What the socket has not been given is what the connection's task has to write.
    #[tokio::test]
    async fn a_lone_caller_writes_itself_and_the_next_leaves_it_to_the_task() {
        let (here, _there) = UnixStream::pair().expect("a pair of sockets");
        here.writable().await.expect("room");
        let other = HelloInfo {
            service: "s".to_owned(),
            incarnation: [0; 16],
            about: Bytes::new(),
            note: Note::default(),
        };
        let (_read, write) = Stream::Unix(here).split();
        let connection = Connection::new(Arc::new(other), write, Arc::default());
        let now = Instant::now();
        let submit = || {
            let payload = Bytes::from_static(b"ask");
            let deadline = now + Duration::from_secs(60);
            connection
                .submit(
                    Terms { now, deadline, priority: Priority::Ordinary },
                    (&payload).into(),
                    &mut None,
                    Waker::noop(),
                )
                .ok()
                .expect("it is taken")
        };
        let seen = || {
            let state = connection.state.lock();
            (state.out.waiting(), state.gathering)
        };
        let frame = frame::call_bytes(b"ask".len());

        let _first = submit();
        assert_eq!(seen(), (0, Gathering::No));
        let _second = submit();
        assert_eq!(seen(), (frame, Gathering::Begun));
        let _third = submit();
        assert_eq!(seen(), (2 * frame, Gathering::Begun), "all that come until its turn");
        connection.flush(connection.state.lock());
        assert_eq!(seen().0, 0, "in one go");

        // The other side begins with the first half while this one makes the second.
        let waiting: Vec<_> = (3..2 * WORTH_A_WRITE).map(|_| submit()).collect();
        assert_eq!(waiting.len(), 2 * WORTH_A_WRITE - 3);
        assert_eq!(seen().0, (WORTH_A_WRITE - 3) * frame, "eight have left");
    }
}
