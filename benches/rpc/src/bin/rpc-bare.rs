//! The ceiling: frames on one connection and nothing else. No types, no deadlines, no limits, no errors of a call.
//!
//! A frame is the length of its payload and the number of its caller, four bytes each, and the payload. Both sides write
//! what has come together in one system call, and read as much as there is.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use anyhow::ensure;
use clap::Parser;
use rpc::{Caller, Role, Sockets, TEXT, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;

const READ_BYTES: usize = 64 * 1024;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Role::parse() {
        Role::Serve { address } => {
            let sockets = Sockets::listen(&address).await?;
            loop {
                tokio::spawn(serve(sockets.next().await?));
            }
        }
        Role::Call { address, load } => {
            let (from, to) = connect(&address).await?.into_split();
            let connection = Arc::new(Connection::new(load.callers));
            let to = Arc::new(to);
            tokio::spawn(receive(from, connection.clone()));
            tokio::spawn(send(to.clone(), connection.clone()));
            rpc::call(load, |number| Calling { number, to: to.clone(), connection: connection.clone() })
                .await;
            Ok(())
        }
    }
}

fn put(bytes: &mut Vec<u8>, caller: u32, payload: &[u8]) {
    bytes.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&caller.to_le_bytes());
    bytes.extend_from_slice(payload);
}

/// Reads once and hands over every whole frame; false at the end.
async fn frames<R: AsyncReadExt + Unpin>(
    from: &mut R,
    received: &mut Vec<u8>,
    mut each: impl FnMut(u32, &[u8]),
) -> io::Result<bool> {
    received.reserve(READ_BYTES);
    if from.read_buf(received).await? == 0 {
        return Ok(false);
    }
    let mut rest = &received[..];
    while let Some((length, behind)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((caller, behind)) = behind.split_first_chunk::<4>() else { break };
        let Some((payload, behind)) = behind.split_at_checked(length) else { break };
        each(u32::from_le_bytes(*caller), payload);
        rest = behind;
    }
    let taken = received.len() - rest.len();
    received.drain(..taken);
    Ok(true)
}

async fn serve(mut stream: TcpStream) -> io::Result<()> {
    let (mut received, mut answers) = (Vec::new(), Vec::new());
    while frames(&mut stream, &mut received, |caller, payload| put(&mut answers, caller, payload)).await? {
        stream.write_all(&answers).await?;
        answers.clear();
    }
    Ok(())
}

/// What callers share.
struct Connection {
    slots: Vec<Mutex<Slot>>,
    outgoing: Mutex<Outgoing>,
    /// Callers between their frame and having its answer.
    in_flight: AtomicUsize,
    /// Something waits in `outgoing`.
    waits: Notify,
}

/// Where a caller's answer is put.
#[derive(Default)]
struct Slot {
    answer: Vec<u8>,
    is_answered: bool,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Outgoing {
    bytes: Vec<u8>,
    /// The sending task has taken bytes and not yet written all of them, so nobody may write past it.
    is_sending: bool,
}

impl Connection {
    fn new(callers: usize) -> Self {
        Self {
            slots: (0..callers).map(|_| Mutex::default()).collect(),
            outgoing: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            waits: Notify::new(),
        }
    }

    fn slot(&self, caller: usize) -> MutexGuard<'_, Slot> {
        self.slots[caller].lock().expect("nothing here panics")
    }

    fn outgoing(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().expect("nothing here panics")
    }
}

async fn receive(mut from: OwnedReadHalf, connection: Arc<Connection>) -> io::Result<()> {
    let mut received = Vec::new();
    let answered = |caller: u32, payload: &[u8]| {
        let mut slot = connection.slot(caller as usize);
        slot.answer.clear();
        slot.answer.extend_from_slice(payload);
        slot.is_answered = true;
        if let Some(waker) = slot.waker.take() {
            drop(slot);
            waker.wake();
        }
    };
    while frames(&mut from, &mut received, answered).await? {}
    Ok(())
}

async fn send(to: Arc<OwnedWriteHalf>, connection: Arc<Connection>) -> io::Result<()> {
    let mut sending = Vec::new();
    loop {
        connection.waits.notified().await;
        // Behind the callers that are ready too, whose frames leave in the same write.
        tokio::task::yield_now().await;
        loop {
            {
                let mut outgoing = connection.outgoing();
                sending.clear();
                std::mem::swap(&mut outgoing.bytes, &mut sending);
                outgoing.is_sending = !sending.is_empty();
            }
            if sending.is_empty() {
                break;
            }
            let mut rest = &sending[..];
            while !rest.is_empty() {
                to.writable().await?;
                match to.try_write(rest) {
                    Ok(written) => rest = &rest[written..],
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    }
}

struct Calling {
    number: usize,
    to: Arc<OwnedWriteHalf>,
    connection: Arc<Connection>,
}

impl Caller for Calling {
    async fn call(&mut self) -> anyhow::Result<()> {
        let connection = &*self.connection;
        let is_alone = connection.in_flight.fetch_add(1, Ordering::Relaxed) == 0;
        {
            let mut outgoing = connection.outgoing();
            put(&mut outgoing.bytes, self.number as u32, TEXT.as_bytes());
            // Nobody else has anything to send, so that waiting for others would only cost a task switch.
            if is_alone
                && !outgoing.is_sending
                && let Ok(written) = self.to.try_write(&outgoing.bytes)
            {
                outgoing.bytes.drain(..written);
            }
            if !outgoing.bytes.is_empty() {
                connection.waits.notify_one();
            }
        }
        let answer_bytes = Answered { connection, number: self.number }.await;
        connection.in_flight.fetch_sub(1, Ordering::Relaxed);
        ensure!(answer_bytes == TEXT.len(), "an answer of {answer_bytes} bytes");
        Ok(())
    }
}

/// The length of the caller's answer, when it is there.
struct Answered<'a> {
    connection: &'a Connection,
    number: usize,
}

impl Future for Answered<'_> {
    type Output = usize;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<usize> {
        let mut slot = self.connection.slot(self.number);
        if !std::mem::take(&mut slot.is_answered) {
            slot.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(slot.answer.len())
    }
}
