//! What a hostile peer could send, as a function of bytes: for the fuzzer in `fuzz/`, and for a test over its corpus.
//!
//! The first byte says at whom the others are thrown:
//!
//! ```text
//! 0  the decoder of frames; the second byte says where the others are cut in two
//! 1  a served connection, from its first byte
//! 2  a served connection, after a handshake with the right token
//! 3  a calling connection, from its first byte
//! 4  a calling connection, after a handshake with the right token, with calls in flight
//! ```
//!
//! What must hold: nothing panics, a connection ends soon after its bytes have ended, and no call is left waiting.

use std::{
    future::poll_fn,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Admit, Answer, Body, Handled, Hello, Incoming, Limits, Payload, Priority, Rejection, Reply, Stream,
    Terms, Token,
    frame::{self, Frame},
    handshake,
    reader::Reader,
    serve_connection,
};

/// Longer than any end takes, on a slow machine under a sanitizer.
const END_MAX: Duration = Duration::from_secs(20);

/// One input.
///
/// # Panics
///
/// What must hold did not.
pub fn run(input: &[u8]) {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
    }
    let Some((at, bytes)) = input.split_first() else {
        return;
    };
    let thrown = async {
        match at % 5 {
            0 => decoded(bytes),
            1 => served(bytes, false).await,
            2 => served(bytes, true).await,
            3 => calling(bytes, false).await,
            _ => calling(bytes, true).await,
        }
    };
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            tokio::time::timeout(END_MAX, thrown).await.expect("the connection did not end");
        });
    });
}

fn hello() -> Hello {
    Hello {
        service: "fuzz".to_owned(),
        incarnation: [1; 16],
        token: Token::new("known to both"),
        about: Bytes::from_static(b"about"),
    }
}

fn anybody() -> Admit {
    Arc::new(|_| Ok(()))
}

/// Small, so that they are reached.
fn limits() -> Limits {
    Limits {
        // More than one part.
        payload_bytes_max: 3 << 16,
        bodies_max: 4,
        in_flight_max: 16,
        in_flight_reserved: 2,
        in_flight_bytes_max: 1 << 17,
        write_buffer_bytes_max: 1 << 16,
        drain_max: Duration::from_millis(100),
        ..Limits::default()
    }
}

/// Where bytes are cut changes nothing of what they say.
fn decoded(bytes: &[u8]) {
    let Some((cut, bytes)) = bytes.split_first() else {
        return;
    };
    let body_max = frame::BODY_MAX;
    let all = |parts: &[&[u8]]| {
        let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
        for part in parts {
            buffer.extend_from_slice(part);
            loop {
                match Frame::take(&mut buffer, body_max) {
                    Ok(Some(frame)) => {
                        assert!(frame.body.len() <= body_max);
                        frames.push(format!("{frame:?} {}", frame.text()));
                        // Neither may panic on what it is not for.
                        let _ = frame.into_call();
                    }
                    Ok(None) => break,
                    Err(error) => return (frames, Some(error.to_string())),
                }
            }
        }
        (frames, None)
    };
    let (front, back) = bytes.split_at(usize::from(*cut).min(bytes.len()));
    assert_eq!(all(&[bytes]), all(&[front, back]));
}

fn pair() -> (Stream, Stream) {
    let (one, other) = UnixStream::pair().expect("two sockets");
    (one.into(), other.into())
}

/// Writes everything, closes, and reads whatever still comes.
async fn throw(stream: &mut Stream, bytes: &[u8]) {
    let (mut read, mut write) = tokio::io::split(stream);
    let written = async {
        // The other side may hang up in the middle.
        let _ = write.write_all(bytes).await;
        let _ = write.shutdown().await;
    };
    let mut unread = [0; 4096];
    let heard = async { while matches!(read.read(&mut unread).await, Ok(1..)) {} };
    tokio::join!(written, heard);
}

fn handler(call: Incoming) -> Handled {
    match call.payload.first() {
        Some(0) => Handled::Now(Err(Rejection::new("not today"))),
        Some(1) => Handled::Later(Box::pin(async move {
            tokio::task::yield_now().await;
            Ok(call.payload.into())
        })),
        // Sends back what is streamed behind it.
        Some(3) => Handled::Later(Box::pin(async move {
            Ok(Reply { payload: call.payload.into(), body: call.body.map(Body::new) })
        })),
        Some(2) => Handled::Later(Box::pin(std::future::pending())),
        _ => Handled::Now(Ok(call.payload.into())),
    }
}

async fn served(bytes: &[u8], introduced: bool) {
    let (mut hostile, stream) = pair();
    let server =
        serve_connection(stream, hello(), anybody(), limits(), Arc::new(handler), CancellationToken::new());
    let caller = async {
        if introduced {
            let limits = limits();
            let opened = handshake::call(&mut hostile, &hello(), &anybody(), &limits).await;
            assert!(opened.is_ok(), "the token is right");
        }
        throw(&mut hostile, bytes).await;
    };
    // How it ended is its own matter; that it does is what is looked for.
    let _ = tokio::join!(server, caller);
}

async fn calling(bytes: &[u8], introduced: bool) {
    let (mut hostile, mut stream) = pair();
    let limits = limits();
    let (admit, hello) = (anybody(), hello());
    if !introduced {
        let caller = async move {
            let _ = handshake::call(&mut stream, &hello, &admit, &limits).await;
        };
        tokio::join!(caller, throw(&mut hostile, bytes));
        return;
    }
    let caller = handshake::call(&mut stream, &hello, &admit, &limits);
    let (admit_too, hello_too) = (anybody(), hello.clone());
    let (opened, other) =
        tokio::join!(caller, handshake::serve(&mut hostile, &hello_too, &admit_too, &limits, || false));
    assert!(other.is_ok(), "the token is right");
    let Ok(opened) = opened else { panic!("the token is right") };
    let reader = Reader::new(stream, opened, Arc::new(limits));
    let caller = async move {
        let connection = reader.connection();
        let terms = Terms::new(Instant::now() + 2 * END_MAX, Priority::Ordinary);
        let payload = Bytes::from(vec![7; (2 << 16) + 1]);
        let streamed = || futures_util::stream::iter([Ok(Bytes::from_static(b"a body"))]);
        let calls: Vec<_> = (0..3)
            .filter_map(|call| {
                // In one frame; in parts; and with a body behind it.
                let size = if call == 1 { payload.len() } else { 4 };
                let mut body = (call == 2).then(|| Body::new(streamed()));
                connection.submit(terms, Payload::Lent(&payload[..size]), &mut body, Waker::noop()).ok()
            })
            .collect();
        assert_eq!(calls.len(), 3, "there is room");
        reader.run().await;
        for mut call in calls {
            // Answered by what was thrown, or told that the connection has ended; not waiting for its deadline.
            if let Ok(Answer { body: Some(mut body), .. }) = poll_fn(|cx| call.poll_outcome(cx)).await {
                while body.next().await.is_some() {}
            }
        }
    };
    tokio::join!(caller, throw(&mut hostile, bytes));
}

#[cfg(test)]
mod tests {
    /// What the fuzzer begins with, and what it has found, stays harmless.
    #[test]
    fn the_corpus_breaks_nothing() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/peer");
        let mut inputs = 0;
        for file in std::fs::read_dir(folder).expect("the corpus") {
            let path = file.expect("a file").path();
            eprintln!("{}", path.display());
            super::run(&std::fs::read(path).expect("bytes"));
            inputs += 1;
        }
        assert!(inputs >= 20, "a corpus of {inputs}");
    }
}
