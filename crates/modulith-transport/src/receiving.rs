//! What arrives in several frames: payloads in parts, and streamed bodies.
//!
//! Owns the other side's direction of each call from its first frame to its last word (`frame.rs` has the
//! rules), and holds both sides to the limits: a piece of nothing, for nobody, or beyond what was allowed
//! breaks a rule and closes the connection. What is no longer wanted is passed over until its last word, and
//! counted, since it was on its way when its sender heard of it.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    task::Context,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::time::Instant;

use crate::{
    BodyError, BodyReader, ConnectionError,
    body::{Desk, Inbound},
    frame::{self, BODY_WINDOW_BYTES, Frame, Kind, LAST},
};

/// How much may be passed over at once. An honest sender has as many calls in flight as its own limits allow,
/// and ends each when it hears that it is not wanted.
const UNWANTED_MAX: usize = 1 << 16;
/// So much a note of it takes, whatever stands in front of payloads; the table has up to twice as many places.
const _: () = assert!(size_of::<(u64, Arriving<[u8; 1024]>)>() <= 48);

/// `H` is what stands in front of a payload in parts.
pub(crate) struct Receiving<H> {
    desk: Arc<Desk>,
    streams: HashMap<u64, Arriving<H>>,
    /// The announced sizes of the payloads that are not whole.
    payload_bytes: usize,
    payloads: usize,
    unwanted: usize,
}

enum Arriving<H> {
    /// Boxed, since a peer can make many times as many notes of the last kind.
    Payload(Box<Partial<H>>),
    Body(Incoming),
    /// What may still come: of the payload, and of the body, if there is one.
    Unwanted {
        payload: usize,
        body: Option<usize>,
    },
}

struct Partial<H> {
    head: H,
    buffer: BytesMut,
    size: usize,
    is_streamed: bool,
}

struct Incoming {
    inbound: Arc<Inbound>,
    /// So much may still be sent.
    window: usize,
    moved: Instant,
}

/// A payload of which all parts have arrived.
pub(crate) struct Whole<H> {
    pub(crate) head: H,
    pub(crate) payload: Bytes,
    pub(crate) body: Option<BodyReader>,
}

impl<H> Receiving<H> {
    pub(crate) fn new() -> Self {
        Self { desk: Arc::default(), streams: HashMap::new(), payload_bytes: 0, payloads: 0, unwanted: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// Nothing that anybody waits for is under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.streams.len() == self.unwanted
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        self.payload_bytes
    }

    pub(crate) fn payloads(&self) -> usize {
        self.payloads
    }

    /// Bodies that are announced, are being received, or have ended and are still read.
    pub(crate) fn bodies(&self) -> usize {
        self.desk.bodies.load(Ordering::Relaxed)
    }

    pub(crate) fn contains(&self, id: u64) -> bool {
        self.streams.contains_key(&id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = u64> {
        let wanted =
            self.streams.iter().filter(|(_, arriving)| !matches!(arriving, Arriving::Unwanted { .. }));
        wanted.map(|(id, _)| *id)
    }

    /// The parts of a payload of this size are to come.
    pub(crate) fn expect_parts(&mut self, id: u64, head: H, size: usize, is_streamed: bool) {
        self.payload_bytes += size;
        self.payloads += 1;
        self.desk.bodies.fetch_add(usize::from(is_streamed), Ordering::Relaxed);
        // The buffer grows with what arrives, never by what was announced.
        let partial = Partial { head, buffer: BytesMut::new(), size, is_streamed };
        self.streams.insert(id, Arriving::Payload(Box::new(partial)));
    }

    /// A body is to come.
    pub(crate) fn expect_body(&mut self, id: u64) -> BodyReader {
        self.desk.bodies.fetch_add(1, Ordering::Relaxed);
        self.open_body(id)
    }

    fn open_body(&mut self, id: u64) -> BodyReader {
        let inbound = Inbound::new(id, &self.desk);
        let reader = BodyReader::new(Arc::clone(&inbound));
        let incoming = Incoming { inbound, window: BODY_WINDOW_BYTES, moved: Instant::now() };
        self.streams.insert(id, Arriving::Body(incoming));
        reader
    }

    /// What was announced is refused, and passed over as it comes.
    pub(crate) fn pass_over(
        &mut self,
        id: u64,
        size: usize,
        is_streamed: bool,
    ) -> Result<(), ConnectionError> {
        self.add_unwanted(id, size, is_streamed.then_some(BODY_WINDOW_BYTES))
    }

    fn add_unwanted(&mut self, id: u64, payload: usize, body: Option<usize>) -> Result<(), ConnectionError> {
        if self.unwanted == UNWANTED_MAX {
            return Err(ConnectionError::Malformed("too many streams that nobody wants"));
        }
        self.unwanted += 1;
        self.streams.insert(id, Arriving::Unwanted { payload, body });
        Ok(())
    }

    fn remove(&mut self, id: u64) {
        match self.streams.remove(&id) {
            Some(Arriving::Payload(partial)) => {
                self.payload_bytes -= partial.size;
                self.payloads -= 1;
                self.desk.bodies.fetch_sub(usize::from(partial.is_streamed), Ordering::Relaxed);
            }
            Some(Arriving::Unwanted { .. }) => self.unwanted -= 1,
            Some(Arriving::Body(_)) | None => {}
        }
    }

    /// Takes a part of a payload; gives the payload with its last.
    pub(crate) fn part(&mut self, frame: Frame) -> Result<Option<Whole<H>>, ConnectionError> {
        let (id, piece) = (frame.id, frame.body);
        if piece.is_empty() {
            return Err(ConnectionError::Malformed("an empty part"));
        }
        let beyond = Err(ConnectionError::Malformed("parts beyond the announced size"));
        match self.streams.get_mut(&id) {
            Some(Arriving::Payload(partial)) => {
                let Partial { buffer, size, .. } = &mut **partial;
                let missing = *size - buffer.len();
                if piece.len() > missing {
                    return beyond;
                }
                if buffer.capacity() - buffer.len() < piece.len() {
                    buffer.reserve(missing.min(buffer.len().max(piece.len())));
                }
                buffer.extend_from_slice(&piece);
                if buffer.len() < *size {
                    return Ok(None);
                }
                let Some(Arriving::Payload(partial)) = self.streams.remove(&id) else {
                    return beyond;
                };
                let Partial { head, buffer, size, is_streamed } = *partial;
                self.payload_bytes -= size;
                self.payloads -= 1;
                let body = is_streamed.then(|| self.open_body(id));
                Ok(Some(Whole { head, payload: buffer.freeze(), body }))
            }
            Some(Arriving::Unwanted { payload, body }) => {
                *payload = match payload.checked_sub(piece.len()) {
                    Some(left) => left,
                    None => return beyond,
                };
                if *payload == 0 && body.is_none() {
                    self.remove(id);
                }
                Ok(None)
            }
            Some(Arriving::Body(_)) => beyond,
            None => Err(ConnectionError::Malformed("a part of a payload that was not announced")),
        }
    }

    /// Takes a piece of a body.
    pub(crate) fn data(&mut self, frame: &Frame) -> Result<(), ConnectionError> {
        let (id, piece, is_last) = (frame.id, &frame.body, frame.is(LAST));
        if piece.is_empty() && !is_last {
            return Err(ConnectionError::Malformed("an empty piece of a body"));
        }
        let window = match self.streams.get_mut(&id) {
            Some(Arriving::Body(incoming)) => &mut incoming.window,
            Some(Arriving::Unwanted { payload: 0, body: Some(window) }) => window,
            _ => return Err(ConnectionError::Malformed("a piece of a body that is not open")),
        };
        *window = window
            .checked_sub(piece.len())
            .ok_or(ConnectionError::Malformed("more of a body than its window"))?;
        if let Some(Arriving::Body(incoming)) = self.streams.get_mut(&id) {
            incoming.moved = Instant::now();
            incoming.inbound.put(piece);
            if is_last {
                incoming.inbound.end(Ok(()));
            }
        }
        if is_last {
            self.remove(id);
        }
        Ok(())
    }

    /// The sender broke it off. Says whether that was in the middle of a payload that is waited for.
    pub(crate) fn reset(&mut self, frame: &Frame) -> Result<bool, ConnectionError> {
        let is_payload = match self.streams.get(&frame.id) {
            Some(Arriving::Payload(_)) => true,
            Some(Arriving::Body(incoming)) => {
                incoming.inbound.end(Err(BodyError::Reset(frame.text())));
                false
            }
            Some(Arriving::Unwanted { .. }) => false,
            None => return Err(ConnectionError::Malformed("a reset of nothing")),
        };
        self.remove(frame.id);
        Ok(is_payload)
    }

    /// The caller gave up, and sends nothing more.
    pub(crate) fn cancel(&mut self, id: u64) {
        if let Some(Arriving::Body(incoming)) = self.streams.get(&id) {
            incoming.inbound.end(Err(BodyError::Reset("the caller gave up".to_owned())));
        }
        self.remove(id);
    }

    /// Allows senders more as readers took it, and stops those whose readers left.
    pub(crate) fn attend(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        self.desk.task.register(cx.waker());
        while let Some(id) = self.desk.next() {
            self.look_at(id, out)?;
        }
        Ok(())
    }

    fn look_at(&mut self, id: u64, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        // It may have ended meanwhile.
        let Some(Arriving::Body(incoming)) = self.streams.get_mut(&id) else {
            return Ok(());
        };
        let read = incoming.inbound.read();
        if read.moved {
            incoming.moved = Instant::now();
        }
        if read.left {
            return self.stop(id, out);
        }
        if read.taken > 0 {
            incoming.window += read.taken;
            // Never more than a window, which is far below 4 GiB.
            frame::put(out, Kind::Window, id, &(read.taken as u32).to_le_bytes());
        }
        Ok(())
    }

    fn stop(&mut self, id: u64, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        if let Some(Arriving::Body(incoming)) = self.streams.get(&id) {
            let window = incoming.window;
            self.remove(id);
            frame::put(out, Kind::Stop, id, &[]);
            self.add_unwanted(id, 0, Some(window))?;
        }
        Ok(())
    }

    /// Ends the bodies in which nothing moved for so long, and tells the other senders of every byte that was
    /// read, so that a slow reader is seen to make progress.
    pub(crate) fn end_idle(&mut self, idle_max: Duration, out: &mut Vec<u8>) -> Result<(), ConnectionError> {
        let bodies: Vec<_> = self.ids().collect();
        for id in bodies {
            self.look_at(id, out)?;
            if let Some(Arriving::Body(incoming)) = self.streams.get(&id)
                && incoming.moved.elapsed() >= idle_max
            {
                incoming.inbound.end(Err(BodyError::Idle(idle_max)));
                self.stop(id, out)?;
            }
        }
        Ok(())
    }
}

impl<H> Drop for Receiving<H> {
    fn drop(&mut self) {
        for arriving in self.streams.values() {
            if let Arriving::Body(incoming) = arriving {
                incoming.inbound.end(Err(BodyError::ConnectionLost));
            }
        }
    }
}
