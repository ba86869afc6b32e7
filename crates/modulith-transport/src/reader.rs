//! The task of a calling connection.
//!
//! Owns reading, the waking of those whose answers came, the writes that wait for the socket, and the pings. It
//! ends when the connection does, and then tells everybody who still waits.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::BytesMut;

use crate::{
    ConnectionError, Limits, NotRun, Unknown,
    client::{Connection, Outcome},
    frame::{self, Frame, Kind},
    handshake::Opened,
    keep_alive::{Beat, KeepAlive},
    stream::{ReadHalf, Stream, poll_read},
};

/// Reads in one go before others get their turn.
const READS_MAX: usize = 8;

/// The connection's task: reads, completes, writes for bursts, pings.
pub(crate) struct Reader {
    connection: Arc<Connection>,
    read: ReadHalf,
    inbound: BytesMut,
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
        let connection = Connection::new(opened.other, write, limits);
        Self { connection, read, inbound: opened.inbound }
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
        self.poll_write(cx, keep_alive)
    }

    /// Waits for the socket to take more, and notices what others found wrong or finished.
    fn poll_write(&self, cx: &mut Context<'_>, keep_alive: &mut KeepAlive) -> Poll<ConnectionError> {
        loop {
            let mut state = self.connection.state.lock();
            if let Some(error) = state.failed.take() {
                return Poll::Ready(error);
            }
            if state.draining.is_some() && state.nobody_waits() && state.out.waiting() == 0 {
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
        let connection = &self.connection;
        let body_max = frame::body_bytes_max(&connection.limits);
        while let Some(frame) = Frame::take(&mut self.inbound, body_max)? {
            let id = frame.id;
            match frame.kind {
                Kind::Answer => answers.push((id, Ok(frame.body))),
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
                    connection.retired.cancel();
                }
                Kind::Challenge | Kind::Hello | Kind::Refused | Kind::Call | Kind::Cancel | Kind::Void => {
                    return Err(ConnectionError::Malformed("a frame that has no place here"));
                }
            }
        }
        Ok(())
    }

    /// Gives the answers to those who wait for them, and writes what a burst of callers appended meanwhile.
    fn complete(
        &self,
        cx: &mut Context<'_>,
        answers: &mut Vec<(u64, Outcome)>,
    ) -> Result<(), ConnectionError> {
        let mut state = self.connection.state.lock();
        let was_burst = std::mem::replace(&mut state.burst, answers.len() > 1);
        let is_burst = state.burst;
        if answers.is_empty() {
            if was_burst {
                self.connection.flush(state);
            }
            return Ok(());
        }
        let slots = state.slots.len();
        let known = answers.iter().all(|(id, _)| (*id as u32 as usize) < slots);
        let taken: Vec<_> = answers.drain(..).map(|(id, outcome)| (state.take(id), outcome)).collect();
        if was_burst {
            self.connection.flush(state);
        } else {
            drop(state);
        }
        for (waiting, outcome) in taken {
            if let Some(waiting) = waiting {
                // A receiver that is gone has given up.
                let _ = waiting.answer.send(outcome);
            }
        }
        if is_burst {
            // Behind the callers that were just woken: a task that wakes itself goes to the end of the queue.
            cx.waker().wake_by_ref();
        }
        if known {
            Ok(())
        } else {
            Err(ConnectionError::Malformed("an answer to a call that was never made"))
        }
    }
}
