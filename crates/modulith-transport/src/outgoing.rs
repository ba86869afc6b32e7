//! The bytes that wait to be written to a calling connection.
//!
//! Owns the account of which bytes may have been handed to the socket; *not run* is decided from it. It writes
//! nothing itself.

use crate::frame::{self, Kind};

/// The outgoing bytes: `front` is being written, `pending` is what comes after it.
///
/// Places are counted in the stream of all bytes that this connection ever sends.
#[derive(Default)]
pub(crate) struct Outgoing {
    pub(crate) front: Vec<u8>,
    pub(crate) pending: Vec<u8>,
    /// Calls whose only frame is in `pending`.
    pub(crate) pending_calls: usize,
    /// Where `pending` begins, and `front` ends.
    pub(crate) pending_from: u64,
    /// Up to where the socket has taken the bytes.
    pub(crate) written: u64,
    /// Somebody is writing `front`, which is therefore not here.
    pub(crate) writing: bool,
    /// The socket took no more; the connection's task waits for it.
    pub(crate) blocked: bool,
}

impl Outgoing {
    /// Bytes before this place may have been handed to the socket; bytes from it on were certainly not.
    pub(crate) fn handed(&self) -> u64 {
        if self.writing { self.pending_from } else { self.written }
    }

    pub(crate) fn end(&self) -> u64 {
        self.pending_from + self.pending.len() as u64
    }

    /// Bytes that the socket has not taken.
    pub(crate) fn waiting(&self) -> usize {
        (self.end() - self.written) as usize
    }

    /// Makes the pending bytes the front, once the front is written.
    pub(crate) fn advance(&mut self) {
        self.front.clear();
        self.front.shrink_to(frame::KEPT_MAX);
        std::mem::swap(&mut self.front, &mut self.pending);
        self.pending_calls = 0;
        self.pending_from += self.front.len() as u64;
    }

    /// Turns a frame of which nothing was handed over into one that the other side ignores. Taking it out
    /// would move the frames behind it. Frames of the same id behind it are turned too if there may be any.
    pub(crate) fn withdraw(&mut self, frame_from: u64, followed_by: Option<u64>) -> bool {
        if frame_from < self.handed() {
            return false;
        }
        if let Some(at) = frame_from.checked_sub(self.pending_from) {
            return void(&mut self.pending, at as usize, followed_by);
        }
        let from_end = (self.pending_from - frame_from) as usize;
        let Some(at) = self.front.len().checked_sub(from_end) else {
            return false;
        };
        let voided = void(&mut self.front, at, followed_by);
        if voided && followed_by.is_some() {
            void(&mut self.pending, 0, followed_by);
        }
        voided
    }
}

fn void(frames: &mut [u8], mut at: usize, followed_by: Option<u64>) -> bool {
    let Some(kind) = frames.get_mut(at + frame::KIND_AT) else {
        return false;
    };
    let Some(id) = followed_by else {
        *kind = Kind::Void as u8;
        return true;
    };
    while let Some((length, of)) = frames.get(at..).and_then(frame::length_and_id) {
        if of == id {
            frames[at + frame::KIND_AT] = Kind::Void as u8;
        }
        at += length;
    }
    true
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::frame::{BODY_MAX, Frame};

    /// A call that is withdrawn takes what follows it along, in both buffers, and nothing of others.
    #[test]
    fn what_follows_a_withdrawn_call_is_withdrawn_too() {
        for is_followed in [true, false] {
            let mut out = Outgoing::default();
            for (at, id) in [1, 2, 1, 2].into_iter().enumerate() {
                frame::put(&mut out.pending, Kind::Data, id, &[7; 100][at..]);
            }
            out.advance();
            frame::put(&mut out.pending, Kind::Data, 1, b"behind");
            frame::put(&mut out.pending, Kind::Data, 2, b"behind");
            let first_is_handed = Outgoing { written: 1, ..Outgoing::default() }.withdraw(0, Some(1));
            assert!(!first_is_handed);
            let third_from = 2 * (frame::HEADER as u64 + 100) - 1;
            assert!(out.withdraw(third_from, is_followed.then_some(1)));
            let mut bytes = BytesMut::from(&[out.front, out.pending].concat()[..]);
            let mut voided = Vec::new();
            while let Some(frame) = Frame::take(&mut bytes, BODY_MAX).expect("well formed") {
                voided.push(frame.kind == Kind::Void);
            }
            assert_eq!(voided, [false, false, true, false, is_followed, false]);
        }
    }
}
