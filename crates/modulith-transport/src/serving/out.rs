//! What a served connection sends.
//!
//! Owns answers, the turns of what leaves in several frames, and the writes. All of it is on the connection's task.

use std::{
    io,
    task::{Context, Poll},
};

use bytes::Bytes;

use super::Serving;
use crate::{
    ConnectionError, Rejection, Reply,
    fault::answer_too_large,
    frame::{self, CHUNK, Kind, PARTS, STREAMED},
    reader::TURNS_MAX,
};

impl Serving {
    /// Bytes that the socket has not taken.
    pub(super) fn waiting(&self) -> usize {
        self.out.len() - self.out_written
    }

    pub(super) fn answer(&mut self, id: u64, result: std::thread::Result<Result<Reply, Rejection>>) {
        match result {
            Ok(Ok(reply)) => self.reply(id, reply),
            Ok(Err(rejection)) => frame::put_rejected(&mut self.out, id, &rejection),
            // The panic's text stays here, where the hook has already printed it.
            Err(_) => frame::put_text(&mut self.out, Kind::NoAnswer, id, "the handler panicked"),
        }
    }

    fn reply(&mut self, id: u64, reply: Reply) {
        let Reply { payload, body } = reply;
        let in_parts = payload.len() > CHUNK;
        if payload.len() > self.limits.payload_bytes_max {
            let text = answer_too_large(payload.len(), self.limits.payload_bytes_max);
            frame::put_text(&mut self.out, Kind::NoAnswer, id, &text);
        } else if !in_parts && body.is_none() {
            frame::put(&mut self.out, Kind::Answer, id, &payload);
        } else if body.is_some() && self.sending.bodies() >= self.limits.bodies_max {
            frame::put_text(&mut self.out, Kind::NoAnswer, id, "too many bodies");
        } else {
            let streamed = if body.is_some() { STREAMED } else { 0 };
            if in_parts {
                // Far below 4 GiB, by the limit above.
                let size = (payload.len() as u32).to_le_bytes();
                frame::put_flagged(&mut self.out, Kind::Answer, PARTS | streamed, id, &size);
                self.sending.add(id, Bytes::from(payload), body);
            } else {
                frame::put_flagged(&mut self.out, Kind::Answer, streamed, id, &payload);
                self.sending.add(id, Bytes::new(), body);
            }
        }
    }

    /// Tells senders and readers of bodies about each other.
    pub(super) fn poll_streams(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        if !self.receiving.is_empty() {
            self.receiving.attend(cx, &mut self.out)?;
        }
        let has_streams = !self.receiving.is_idle() || !self.sending.is_empty();
        if self.rounds.poll(cx, has_streams).is_ready() {
            self.receiving.end_idle(self.limits.body_idle_max, &mut self.out)?;
            self.sending.end_idle(self.limits.body_idle_max, &mut self.out);
        }
        Ok(())
    }

    /// Writes, and lets what leaves in several frames take its turns.
    pub(super) fn poll_out(&mut self, cx: &mut Context<'_>) -> Result<(), ConnectionError> {
        let mut turns = 0;
        while !self.sending.is_empty() || !self.asked.is_empty() {
            self.asked.extend(self.sending.wanted());
            let said = self.asked.poll(cx);
            let mut moved = said.is_some();
            if let Some(said) = said {
                self.sending.said(said, &mut self.out);
            }
            // With more waiting, what is put now would only stand in the way of small frames.
            if self.waiting() >= CHUNK && self.poll_flush(cx)?.is_pending() {
                return Ok(());
            }
            let before = self.out.len();
            self.sending.put_next(&mut self.out);
            moved |= self.out.len() > before || !self.sending.wanted().is_empty();
            if !moved {
                break;
            }
            turns += 1;
            if turns == TURNS_MAX {
                cx.waker().wake_by_ref();
                break;
            }
        }
        let _ = self.poll_flush(cx)?;
        Ok(())
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
