//! Large payloads and streamed bodies: they pass between small calls, wait for their readers, and end by name.

mod support;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use modulith_transport::{
    Answer, BODY_WINDOW_BYTES, Body, BodyError, BodyReader, CallFault, ConnectionError, Handled, Handler,
    Incoming, Limits, Listener, NotRun, Priority, Reply, Unknown,
};
use support::*;
use tokio::{
    io::AsyncWriteExt,
    sync::{Semaphore, mpsc},
    task::JoinSet,
};

const LARGE: usize = 8 << 20;
const CHUNK: usize = 64 << 10;

/// Answers with what it was sent, payload and body.
fn mirror() -> Arc<dyn Handler> {
    Arc::new(|call: Incoming| {
        Handled::Later(Box::pin(async move {
            Ok(Reply { payload: call.payload, body: call.body.map(Body::new) })
        }))
    })
}

/// Bytes that differ everywhere, so that a piece that is lost, doubled or in another's place is noticed.
fn pattern(seed: usize, bytes: usize) -> Bytes {
    (0..bytes).map(|at| (at.wrapping_mul(31) ^ (at >> 8) ^ seed) as u8).collect()
}

fn pieces(whole: &Bytes, piece: usize) -> Body {
    let whole = whole.clone();
    let pieces = (0..whole.len().div_ceil(piece))
        .map(move |at| Ok(whole.slice(at * piece..whole.len().min((at + 1) * piece))));
    Body::new(stream::iter(pieces))
}

/// A piece that a test hands over when it likes; the stream ends when the sender is dropped.
fn fed() -> (mpsc::UnboundedSender<Result<Bytes, BodyError>>, Body) {
    let (feed, mut fed) = mpsc::unbounded_channel();
    (feed, Body::new(stream::poll_fn(move |cx| fed.poll_recv(cx))))
}

async fn read_all(mut body: BodyReader) -> Result<Vec<u8>, BodyError> {
    let mut all = Vec::new();
    while let Some(piece) = in_time(body.next()).await {
        all.extend_from_slice(&piece?);
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_come_back_as_they_went() {
    let folder = tempfile::tempdir().expect("a folder");
    for address in [unix(&folder), tcp()] {
        let served = Served::start(&address, Limits::default(), mirror()).await;
        let peer = peer(&served.address);
        let mut calls = JoinSet::new();
        for (at, (head, body, piece)) in [
            (0, 0, 1),
            (5, 1, 1),
            (CHUNK, CHUNK, CHUNK),
            (CHUNK + 1, BODY_WINDOW_BYTES, 1000),
            (100, BODY_WINDOW_BYTES + 1, 300_000),
            (3 << 20, 5 << 20, 70_000),
            (1, 20_000, 1),
            (LARGE, 1 << 20, 1 << 20),
        ]
        .into_iter()
        .enumerate()
        {
            let peer = peer.clone();
            calls.spawn(async move {
                let (head, body) = (pattern(at, head), pattern(at + 100, body));
                let sent = Some(pieces(&body, piece));
                let answer =
                    peer.open(soon(), Priority::Ordinary, head.clone(), sent).await.expect("an answer");
                assert!(answer.payload == head, "head {at}");
                let back = read_all(answer.body.expect("a body")).await.expect("a clean end");
                assert!(back == body, "body {at}");
            });
        }
        while let Some(call) = in_time(calls.join_next()).await {
            call.expect("no complaints");
        }
        assert_eq!(peer.in_flight(), 0);
    }
}
