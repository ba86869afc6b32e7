//! What leaves in several frames: payloads in parts, and streamed bodies.
//!
//! Owns whose turn it is. Each sender has one piece of at most 64 KiB a turn, round robin, and the connection
//! takes a turn only when little else waits to be written: so small frames pass between the pieces of large
//! ones. A body is asked for more only when it has window left and nothing of it waits, so that one piece of it
//! is held at most.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    StreamExt,
    future::{AbortHandle, Abortable, Aborted},
    stream::FuturesUnordered,
};
use tokio::time::Instant;

use crate::{
    Body, BodyError, ConnectionError,
    frame::{self, BODY_WINDOW_BYTES, CHUNK, Kind, LAST},
};

#[derive(Default)]
pub(crate) struct Sending {
    transfers: HashMap<u64, Transfer>,
    /// Who has something to send, in order. Those that were removed are passed over when their turn comes.
    turns: VecDeque<u64>,
    /// Bodies that should be asked for more.
    wanted: Vec<Asking>,
    /// Whole sizes of the payloads that are being sent: until its last part is gone, all of it is in memory.
    payload_bytes: usize,
    bodies: usize,
}

pub(crate) struct Transfer {
    payload: Bytes,
    size: usize,
    body: Option<Outgoing>,
}

struct Outgoing {
    piece: Bytes,
    window: usize,
    source: Source,
    moved: Instant,
}

enum Source {
    Resting(Body),
    Asked(AbortHandle),
}

/// One question to a body.
pub(crate) struct Ask {
    id: u64,
    /// Gone with the answer.
    body: Option<Body>,
}

type Asking = Abortable<Ask>;

/// A body, and what it said.
pub(crate) struct Said {
    id: u64,
    body: Body,
    piece: Option<Result<Bytes, BodyError>>,
}

impl Future for Ask {
    type Output = Option<Said>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Said>> {
        let id = self.id;
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let polled = catch_unwind(AssertUnwindSafe(|| body.poll_next(cx)));
        // The panic's text stays here, where the hook has already printed it.
        let panicked = |_| Poll::Ready(Some(Err(BodyError::Reset("the body panicked".to_owned()))));
        let piece = ready!(polled.unwrap_or_else(panicked));
        Poll::Ready(self.body.take().map(|body| Said { id, body, piece }))
    }
}

/// The bodies that are being asked. They are the connection's task's own: no lock is held while they run.
#[derive(Default)]
pub(crate) struct Asked(FuturesUnordered<Asking>);

impl Asked {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn extend(&mut self, wanted: &mut Vec<Asking>) {
        self.0.extend(wanted.drain(..));
    }

    /// What the next of them said that said something.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Option<Said> {
        loop {
            match self.0.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(Some(said)))) => return Some(said),
                // Removed while it was asked.
                Poll::Ready(Some(Ok(None) | Err(Aborted))) => {}
                Poll::Ready(None) | Poll::Pending => return None,
            }
        }
    }
}

impl Sending {
    /// Nothing is being sent, and no body waits to be dropped.
    pub(crate) fn is_empty(&self) -> bool {
        self.transfers.is_empty() && self.wanted.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.transfers.len()
    }

    pub(crate) fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    pub(crate) fn bodies(&self) -> usize {
        self.bodies
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.transfers.contains_key(&id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> {
        self.transfers.keys().copied()
    }

    pub(crate) fn wanted(&mut self) -> &mut Vec<Asking> {
        &mut self.wanted
    }

    /// Sends what follows a frame that announced it: the payload if it goes in parts, else nothing, and the body.
    pub(crate) fn add(&mut self, id: u64, payload: Bytes, body: Option<Body>) {
        self.payload_bytes += payload.len();
        self.bodies += usize::from(body.is_some());
        let body = body.map(|body| Outgoing {
            piece: Bytes::new(),
            window: BODY_WINDOW_BYTES,
            source: Source::Resting(body),
            moved: Instant::now(),
        });
        let size = payload.len();
        let transfer = self.transfers.entry(id).insert_entry(Transfer { payload, size, body }).into_mut();
        if size > 0 {
            self.turns.push_back(id);
        } else if let Some(body) = &mut transfer.body {
            body.ask(id, &mut self.wanted);
        }
    }

    /// Gives up the rest, if there is any. It comes back because dropping a body runs code of others, which
    /// must not be under a lock.
    pub(crate) fn remove(&mut self, id: u64) -> Option<Transfer> {
        let transfer = self.transfers.remove(&id)?;
        if !transfer.payload.is_empty() {
            self.payload_bytes -= transfer.size;
        }
        if let Some(body) = &transfer.body {
            self.bodies -= 1;
            if let Source::Asked(asked) = &body.source {
                asked.abort();
            }
        }
        if self.transfers.is_empty() {
            self.turns.clear();
        }
        Some(transfer)
    }

    /// Writes a piece of whoever is next. Says whose payload it was that is complete with it.
    pub(crate) fn put_next(&mut self, out: &mut Vec<u8>) -> Option<u64> {
        while let Some(id) = self.turns.pop_front() {
            let Some(transfer) = self.transfers.get_mut(&id) else {
                continue;
            };
            if !transfer.payload.is_empty() {
                let piece = transfer.payload.split_to(transfer.payload.len().min(CHUNK));
                frame::put(out, Kind::Part, id, &piece);
                if !transfer.payload.is_empty() {
                    self.turns.push_back(id);
                    return None;
                }
                self.payload_bytes -= transfer.size;
                match &mut transfer.body {
                    Some(body) => {
                        body.moved = Instant::now();
                        body.ask(id, &mut self.wanted);
                    }
                    None => {
                        self.transfers.remove(&id);
                    }
                }
                return Some(id);
            }
            if let Some(body) = &mut transfer.body {
                let piece = body.piece.split_to(body.piece.len().min(CHUNK).min(body.window));
                if piece.is_empty() {
                    continue;
                }
                body.window -= piece.len();
                body.moved = Instant::now();
                frame::put(out, Kind::Data, id, &piece);
                body.go_on(id, &mut self.turns, &mut self.wanted);
                return None;
            }
        }
        None
    }

    /// What a body said when it was asked for more. Its end goes out at once, behind its last piece; then it is
    /// given back.
    pub(crate) fn said(&mut self, said: Said, out: &mut Vec<u8>) -> Option<Body> {
        let Said { id, body: source, piece } = said;
        let Some(Transfer { body: Some(body), .. }) = self.transfers.get_mut(&id) else {
            return Some(source);
        };
        match piece {
            Some(Ok(piece)) => {
                body.piece = piece;
                body.source = Source::Resting(source);
                body.go_on(id, &mut self.turns, &mut self.wanted);
                return None;
            }
            Some(Err(error)) => frame::put_text(out, Kind::Reset, id, &error.to_string()),
            None => frame::put_flagged(out, Kind::Data, LAST, id, &[]),
        }
        self.remove(id);
        Some(source)
    }

    /// The receiver allows more of a body. It may have ended before that was known there.
    pub(crate) fn allow(&mut self, id: u64, bytes: usize) -> Result<(), ConnectionError> {
        let Some(transfer) = self.transfers.get_mut(&id) else {
            return Ok(());
        };
        let Some(body) = &mut transfer.body else {
            return Err(ConnectionError::Malformed("a window for a call without a body"));
        };
        let was_closed = body.window == 0;
        body.window = body.window.saturating_add(bytes);
        if body.window > BODY_WINDOW_BYTES {
            return Err(ConnectionError::Malformed("more window than a body has"));
        }
        body.moved = Instant::now();
        if was_closed {
            body.go_on(id, &mut self.turns, &mut self.wanted);
        }
        Ok(())
    }

    /// Breaks off, for this reason, what is not yet complete.
    pub(crate) fn break_off(&mut self, id: u64, reason: &str, out: &mut Vec<u8>) -> Option<Transfer> {
        let rest = self.remove(id)?;
        frame::put_text(out, Kind::Reset, id, reason);
        Some(rest)
    }

    /// Breaks off the bodies in which nothing moved for so long.
    pub(crate) fn end_idle(&mut self, idle_max: Duration, out: &mut Vec<u8>) -> Vec<Transfer> {
        let is_idle = |transfer: &Transfer| {
            let body = transfer.body.as_ref().filter(|_| transfer.payload.is_empty());
            body.is_some_and(|body| body.moved.elapsed() >= idle_max)
        };
        let idle: Vec<_> =
            self.transfers.iter().filter(|(_, transfer)| is_idle(transfer)).map(|(id, _)| *id).collect();
        let reason = BodyError::Idle(idle_max).to_string();
        idle.into_iter().filter_map(|id| self.break_off(id, &reason, out)).collect()
    }
}

impl Outgoing {
    /// The next turn if there is something to send, else the next question; without window, neither.
    fn go_on(&mut self, id: u64, turns: &mut VecDeque<u64>, wanted: &mut Vec<Asking>) {
        if self.window == 0 {
            return;
        }
        if self.piece.is_empty() {
            self.ask(id, wanted);
        } else {
            turns.push_back(id);
        }
    }

    fn ask(&mut self, id: u64, wanted: &mut Vec<Asking>) {
        let (handle, registration) = AbortHandle::new_pair();
        // One that is being asked is not asked again.
        if let Source::Resting(_) = self.source
            && let Source::Resting(body) = std::mem::replace(&mut self.source, Source::Asked(handle))
        {
            wanted.push(Abortable::new(Ask { id, body: Some(body) }, registration));
        }
    }
}
