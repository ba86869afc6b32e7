//! Large payloads and streamed bodies: they pass between small calls, wait for their readers, and end by name.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use modulith_transport::{
    BODY_WINDOW_BYTES, Body, BodyError, BodyReader, CallFault, ConnectionError, Handled, Handler, Incoming,
    Limits, Listener, NotRun, Peer, Priority, Rejection, Reply, Stream, Terms, Unknown,
};
use support::*;
use tokio::{io::AsyncWriteExt, sync::mpsc, task::JoinSet};

const LARGE: usize = 8 << 20;
const CHUNK: usize = 64 << 10;

/// Answers with what it was sent, payload and body.
fn mirror() -> Arc<dyn Handler> {
    Arc::new(|call: Incoming| {
        Handled::Later(Box::pin(async move {
            Ok(Reply { payload: call.payload.into(), body: call.body.map(Body::new) })
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

/// A body of what a test hands over when it likes; it ends when the sender is dropped.
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
                    peer.open(Terms::new(soon(), Priority::Ordinary), &head, sent).await.expect("an answer");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_payloads_go_beside_thousands_of_small_calls() {
    let folder = tempfile::tempdir().expect("a folder");
    for address in [unix(&folder), tcp()] {
        let served = Served::start(&address, Limits::default(), echo()).await;
        let peer = peer(&served.address);
        let mut calls = JoinSet::new();
        for large in 0..3 {
            let peer = peer.clone();
            calls.spawn(async move {
                let payload = pattern(large, LARGE);
                let answer = peer.call(soon(), Priority::Ordinary, payload.clone()).await;
                assert!(answer.expect("an answer") == payload, "large {large}");
            });
        }
        for small in 0..32u64 {
            let peer = peer.clone();
            calls.spawn(async move {
                for call in 0..100 {
                    let payload = Bytes::from([small, call].map(u64::to_le_bytes).concat());
                    let answer = peer.call(soon(), Priority::Ordinary, payload.clone()).await;
                    assert_eq!(answer, Ok(payload));
                }
            });
        }
        while let Some(call) = in_time(calls.join_next()).await {
            call.expect("no complaints");
        }
        assert_eq!(peer.in_flight(), 0);
    }
}

/// Reads frames until one is as wanted; says how many parts of each of two calls came before it.
async fn parts_before(stream: &mut Stream, wanted: impl Fn(u8, u64) -> bool) -> [usize; 2] {
    let mut parts = [0; 2];
    loop {
        let (kind, id, _) = in_time(read_frame(stream)).await.expect("a frame");
        if wanted(kind, id) {
            return parts;
        }
        if kind == PART {
            parts[id as usize % 2] += 1;
        }
    }
}

#[tokio::test]
async fn a_small_answer_overtakes_a_large_one_and_large_ones_share() {
    let folder = tempfile::tempdir().expect("a folder");
    let handler = |call: Incoming| match &call.payload[..] {
        b"large" => Handled::Now(Ok(pattern(0, LARGE).into())),
        _ => Handled::Now(Ok(call.payload.into())),
    };
    let served = Served::start(&unix(&folder), Limits::default(), Arc::new(handler)).await;
    let mut stream = raw_caller(&served.address).await;
    stream.write_all(&call_with(0, 2, b"large")).await.expect("written");
    let before = parts_before(&mut stream, |kind, _| kind == PART).await;
    assert_eq!(before, [0, 0]);
    // The large answer is on its way. What is asked now is answered long before its last part.
    stream.write_all(&call_with(0, 7, b"small")).await.expect("written");
    let before = parts_before(&mut stream, |kind, id| (kind, id) == (ANSWER, 7)).await;
    assert!(before[0] < LARGE / CHUNK / 2, "{before:?}");
    stream.write_all(&call_with(0, 3, b"large")).await.expect("written");
    parts_before(&mut stream, |kind, id| (kind, id) == (PART, 3)).await;
    // From now on they take turns, as long as both have parts.
    let mut ahead = 0i64;
    for _ in 0..64 {
        let (kind, id, body) = in_time(read_frame(&mut stream)).await.expect("a frame");
        assert_eq!((kind, body.len()), (PART, CHUNK));
        ahead += if id == 2 { 1 } else { -1 };
        assert!(ahead.abs() <= 1, "{ahead} parts ahead");
    }
}

#[tokio::test]
async fn a_small_call_overtakes_a_large_one_which_has_not_run_until_it_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::bind(&unix(&folder)).await.expect("a free address");
    let peer = peer(&unix(&folder));
    let (connected, mut stream) = tokio::join!(peer.connected(soon()), raw_served(&listener));
    connected.expect("a handshake");
    let call = |deadline, payload| {
        let peer = peer.clone();
        tokio::spawn(async move { peer.call(deadline, Priority::Ordinary, payload).await })
    };
    let payload = pattern(0, LARGE);
    for is_cut_by_deadline in [true, false] {
        let deadline = if is_cut_by_deadline { Instant::now() + Duration::from_secs(1) } else { soon() };
        let large = call(deadline, payload.clone());
        parts_before(&mut stream, |kind, _| kind == PART).await;
        let small = call(soon(), Bytes::from_static(b"small"));
        let before = parts_before(&mut stream, |kind, _| kind == CALL).await;
        assert!(before[0] + before[1] < LARGE / CHUNK / 2, "{before:?}");
        small.abort();
        // Nobody reads any further, so the last part has not left.
        if is_cut_by_deadline {
            assert_eq!(in_time(large).await.expect("no panic"), Err(CallFault::NotRun(NotRun::Deadline)));
            // Whoever then reads on finds that it was withdrawn, and not its end.
            let before = parts_before(&mut stream, |kind, _| kind == CANCEL).await;
            assert!(before[0] + before[1] < LARGE / CHUNK, "{before:?}");
            parts_before(&mut stream, |kind, _| kind == CANCEL).await;
        } else {
            drop(stream);
            let outcome = in_time(large).await.expect("no panic");
            assert!(matches!(outcome, Err(CallFault::NotRun(NotRun::Unreachable(_)))), "{outcome:?}");
            return;
        }
    }
}

/// A body that never ends by itself, and the number of its bytes that were taken.
fn endless(piece: usize) -> (Arc<AtomicUsize>, Body) {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&made);
    let piece = pattern(0, piece);
    let body = stream::repeat_with(move || {
        counted.fetch_add(piece.len(), Ordering::SeqCst);
        Ok(piece.clone())
    });
    (made, Body::new(body))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_read_holds_a_window_and_nobody_else() {
    const PIECE: usize = 10_000;
    let (made, body) = endless(PIECE);
    let body = parking_lot::Mutex::new(Some(body));
    let (readers, mut unread) = mpsc::unbounded_channel();
    let mirror = mirror();
    let handler = move |call: Incoming| match &call.payload[..] {
        b"down" => {
            let reply = Reply { payload: Vec::new(), body: body.lock().take() };
            Handled::Later(Box::pin(async { Ok(reply) }))
        }
        b"up" => {
            readers.send(call.body.expect("a body")).expect("a test");
            Handled::Now(Ok(Vec::new()))
        }
        _ => mirror.handle_now(call),
    };
    let served = Served::start(&tcp(), Limits::default(), Arc::new(handler)).await;
    let peer = peer(&served.address);
    let open = async |head: &'static [u8], body| {
        in_time(peer.open(Terms::new(soon(), Priority::Ordinary), head, body)).await
    };
    let mut down = open(b"down", None).await.expect("an answer").body.expect("a body");
    let (made_up, body) = endless(PIECE);
    let answer = open(b"up", Some(body)).await.expect("an answer");
    assert!(answer.body.is_none());
    let mut up = unread.recv().await.expect("a body");
    // The second half of each is read: by then the first has been, and a window was allowed again.
    for read in [0, BODY_WINDOW_BYTES] {
        for (made, body) in [(&made, &mut down), (&made_up, &mut up)] {
            let mut left = read;
            while left > 0 {
                let piece = in_time(body.next()).await.expect("no end").expect("no error");
                left = left.saturating_sub(piece.len());
            }
            while made.load(Ordering::SeqCst) < read + BODY_WINDOW_BYTES / 2 {
                tokio::task::yield_now().await;
            }
        }
        // Others go on, with calls and with bodies of several windows.
        for round in 0..10 {
            let sent = pattern(round, 3 * BODY_WINDOW_BYTES);
            let answer = open(b"others", Some(pieces(&sent, CHUNK))).await.expect("an answer");
            assert!(read_all(answer.body.expect("a body")).await.expect("a clean end") == sent);
        }
        for made in [&made, &made_up] {
            // A reader may have been given a piece more than it asked for.
            let allowed = read + CHUNK + BODY_WINDOW_BYTES + PIECE;
            let made = made.load(Ordering::SeqCst);
            assert!(made <= allowed, "{made} bytes were made, {allowed} have a place");
        }
    }
    assert_eq!(peer.in_flight(), 1);
}

/// A body that waits for ever, and a word when it is dropped.
fn watched() -> (mpsc::Receiver<()>, Body) {
    let (alive, gone) = mpsc::channel(1);
    let never = stream::pending().map(move |item| {
        let _ = &alive;
        item
    });
    (gone, Body::new(stream::iter([Ok(Bytes::from_static(b"begin"))]).chain(never)))
}

async fn is_dropped(mut gone: mpsc::Receiver<()>) {
    assert_eq!(in_time(gone.recv()).await, None);
}

/// A server that answers each call with the next body.
async fn serving(limits: Limits, bodies: Vec<Body>) -> Served {
    let bodies = parking_lot::Mutex::new(bodies.into_iter());
    let handler = move |_: Incoming| {
        let reply = Reply { payload: Vec::new(), body: bodies.lock().next() };
        Handled::Later(Box::pin(async { Ok(reply) }))
    };
    Served::start(&tcp(), limits, Arc::new(handler)).await
}

async fn open(peer: &Peer, body: Option<Body>) -> Result<Option<BodyReader>, CallFault> {
    let answer = in_time(peer.open(Terms::new(soon(), Priority::Ordinary), &[][..], body)).await;
    answer.map(|answer| answer.body)
}

async fn reader(peer: &Peer) -> BodyReader {
    open(peer, None).await.expect("an answer").expect("a body")
}

async fn begun(body: &mut BodyReader) {
    assert_eq!(in_time(body.next()).await, Some(Ok(Bytes::from_static(b"begin"))));
}

#[tokio::test]
async fn dropping_a_reader_stops_the_sender() {
    let (gone, body) = watched();
    let served = serving(Limits::default(), vec![body]).await;
    let peer = peer(&served.address);
    let mut body = reader(&peer).await;
    begun(&mut body).await;
    assert_eq!(peer.in_flight(), 1);
    drop(body);
    is_dropped(gone).await;
    assert_eq!(peer.in_flight(), 0);
    // A handler that answers without reading, and an answer that arrives meanwhile.
    let (gone, body) = watched();
    assert!(open(&peer, Some(body)).await.expect("an answer").is_none());
    is_dropped(gone).await;
    assert!(open(&peer, None).await.expect("an answer").is_none());
}

#[tokio::test]
async fn a_caller_that_gives_up_ends_both_bodies() {
    let (bodies, mut begin) = mpsc::unbounded_channel();
    let handler = move |call: Incoming| {
        bodies.send(call.body.expect("a body")).expect("a test");
        Handled::Later(Box::pin(std::future::pending()))
    };
    let served = Served::start(&tcp(), Limits::default(), Arc::new(handler)).await;
    let peer = peer(&served.address);
    let (gone, body) = watched();
    let call = tokio::spawn({
        let peer = peer.clone();
        async move { open(&peer, Some(body)).await }
    });
    let mut body = in_time(begin.recv()).await.expect("a body");
    begun(&mut body).await;
    call.abort();
    let error = in_time(body.next()).await;
    assert_eq!(error, Some(Err(BodyError::Reset("the caller gave up".to_owned()))));
    assert_eq!(in_time(body.next()).await, None);
    is_dropped(gone).await;
}

#[tokio::test]
async fn whoever_dies_in_the_middle_leaves_no_clean_end() {
    let (gone, body) = watched();
    let served = serving(Limits::default(), vec![body]).await;
    let peer = peer(&served.address);
    let mut body = reader(&peer).await;
    begun(&mut body).await;
    served.kill().await;
    assert_eq!(in_time(body.next()).await, Some(Err(BodyError::ConnectionLost)));
    assert_eq!(in_time(body.next()).await, None);
    is_dropped(gone).await;

    let (bodies, mut begin) = mpsc::unbounded_channel();
    let handler = move |call: Incoming| {
        bodies.send(call.body.expect("a body")).expect("a test");
        Handled::Later(Box::pin(std::future::pending()))
    };
    let served = Served::start(&tcp(), Limits::default(), Arc::new(handler)).await;
    let mut stream = raw_caller(&served.address).await;
    let bytes = [call_with(STREAMED, 1, b""), frame(DATA, 1, b"begin")].concat();
    stream.write_all(&bytes).await.expect("written");
    let mut body = in_time(begin.recv()).await.expect("a body");
    begun(&mut body).await;
    drop(stream);
    assert_eq!(in_time(body.next()).await, Some(Err(BodyError::ConnectionLost)));
}

#[tokio::test]
async fn an_error_or_a_panic_of_a_body_reaches_its_reader() {
    let broken = Body::new(stream::iter([
        Ok(Bytes::from_static(b"begin")),
        Err(BodyError::Reset("the disk is full".to_owned())),
        Ok(Bytes::from_static(b"never sent")),
    ]));
    let panics = Body::new(stream::iter([Ok(Bytes::from_static(b"begin")), Ok(Bytes::new())]).map(
        |piece: Result<Bytes, BodyError>| {
            assert!(piece.as_ref().is_ok_and(|piece| !piece.is_empty()), "on purpose");
            piece
        },
    ));
    let served = serving(Limits::default(), vec![broken, panics]).await;
    let peer = peer(&served.address);
    for text in ["the disk is full", "the body panicked"] {
        let mut body = reader(&peer).await;
        begun(&mut body).await;
        assert_eq!(in_time(body.next()).await, Some(Err(BodyError::Reset(text.to_owned()))));
        assert_eq!(in_time(body.next()).await, None);
        assert_eq!(peer.in_flight(), 0);
    }
}

#[tokio::test]
async fn a_drain_waits_for_bodies_and_not_for_ever() {
    let (feed, body) = fed();
    let mut served = serving(Limits::default(), vec![body]).await;
    let caller = peer(&served.address);
    let body = reader(&caller).await;
    served.shutdown.cancel();
    // It no longer takes calls, and finishes what it has begun.
    while caller.is_connected() {
        tokio::task::yield_now().await;
    }
    let sent = pattern(0, 2 * BODY_WINDOW_BYTES);
    feed.send(Ok(sent.clone())).expect("a body that is read");
    drop(feed);
    assert!(read_all(body).await.expect("a clean end") == sent);
    loop {
        match served.next_end().await {
            // The caller looks for a new connection, where the listener still answers.
            Err(ConnectionError::NotAdmitted(_)) => {}
            ended => break assert!(ended.is_ok(), "{ended:?}"),
        }
    }

    let limits = Limits { drain_max: Duration::from_millis(50), ..Limits::default() };
    let (gone, body) = watched();
    let mut served = serving(limits, vec![body]).await;
    let caller = peer(&served.address);
    let mut body = reader(&caller).await;
    begun(&mut body).await;
    served.shutdown.cancel();
    loop {
        match served.next_end().await {
            Err(ConnectionError::NotAdmitted(_)) => {}
            ended => {
                break assert!(matches!(ended, Err(ConnectionError::DrainTimeout { calls: 1 })), "{ended:?}");
            }
        }
    }
    is_dropped(gone).await;
    assert_eq!(in_time(body.next()).await, Some(Err(BodyError::ConnectionLost)));
}

#[tokio::test]
async fn a_call_with_a_body_that_was_sent_before_the_drain_was_heard_of_is_answered() {
    let mut served = Served::start(&tcp(), Limits::default(), mirror()).await;
    let peer = peer(&served.address);
    in_time(peer.connected(soon())).await.expect("a server");
    let sent = pattern(0, 2 * BODY_WINDOW_BYTES);
    // Both happen before the server's word can be read. Nobody comes after it.
    served.shutdown.cancel();
    let opened = peer.open(Terms::new(soon(), Priority::Ordinary), &[][..], Some(pieces(&sent, 10_000)));
    let body = in_time(opened).await.expect("an answer").body.expect("a body");
    assert!(read_all(body).await.expect("a clean end") == sent);
    while let Err(error) = served.next_end().await {
        assert!(matches!(error, ConnectionError::NotAdmitted(_)), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_does_not_move_is_broken_off() {
    let hasty = Limits { body_idle_max: Duration::from_millis(100), ..Limits::default() };
    // Whichever side is impatient: nothing is sent, or nothing is read.
    for (caller_limits, served_limits) in
        [(hasty.clone(), Limits::default()), (Limits::default(), hasty.clone())]
    {
        let (gone, silent) = watched();
        let (made, unread) = endless(1000);
        let served = serving(served_limits, vec![silent, unread]).await;
        let peer = peer_with(&served.address, caller_limits);
        let mut silent = reader(&peer).await;
        begun(&mut silent).await;
        let error = in_time(silent.next()).await.expect("no clean end").expect_err("no piece").to_string();
        assert!(error.contains("no progress for 100ms"), "{error}");
        is_dropped(gone).await;
        let mut unread = reader(&peer).await;
        while Arc::strong_count(&made) > 1 {
            tokio::task::yield_now().await;
        }
        // What had arrived is not lost.
        let mut read = 0;
        let error = loop {
            match in_time(unread.next()).await.expect("no clean end") {
                Ok(piece) => read += piece.len(),
                Err(error) => break error.to_string(),
            }
        };
        assert!(read > 0 && error.contains("no progress for 100ms"), "{read} bytes, {error}");
        assert_eq!(peer.in_flight(), 0);
    }
}

/// The sender hears of every byte in time, though what was read is far from half a window: else it would take a
/// slow reader for one that does not read.
#[tokio::test]
async fn a_slow_reader_makes_progress() {
    let hasty = Limits { body_idle_max: Duration::from_millis(100), ..Limits::default() };
    let handler = |call: Incoming| {
        Handled::Later(Box::pin(async move {
            let mut body = call.body.expect("a body");
            for _ in 0..2 {
                begun(&mut body).await;
            }
            // Reads nothing from here on.
            std::future::pending().await
        }))
    };
    let served = Served::start(&tcp(), hasty, Arc::new(handler)).await;
    let mut stream = raw_caller(&served.address).await;
    stream.write_all(&call_with(STREAMED, 1, b"")).await.expect("written");
    for _ in 0..2 {
        stream.write_all(&frame(DATA, 1, b"begin")).await.expect("written");
        let (kind, id, body) = in_time(read_frame(&mut stream)).await.expect("a frame");
        assert_eq!((kind, id, &body[..]), (WINDOW, 1, &5u32.to_le_bytes()[..]));
    }
    let (kind, id, _) = in_time(read_frame(&mut stream)).await.expect("a frame");
    assert_eq!((kind, id), (STOP, 1));
}

#[tokio::test]
async fn limits_are_named_on_both_sides() {
    let one_body = Limits { bodies_max: 1, ..Limits::default() };
    // The caller's own limit on what it sends.
    let served = Served::start(&tcp(), Limits::default(), mirror()).await;
    let peer = peer_with(&served.address, one_body.clone());
    let (_feed, body) = fed();
    let first = open(&peer, Some(body)).await.expect("an answer");
    let (_, body) = fed();
    assert_eq!(open(&peer, Some(body)).await.err(), Some(CallFault::NotRun(NotRun::QueueFull)));
    drop(first);

    // The callee's, on what it receives: of a refused call nothing is read, and its body is dropped.
    let served = Served::start(&tcp(), one_body.clone(), mirror()).await;
    let caller = support::peer(&served.address);
    let (_feed, body) = fed();
    let first = open(&caller, Some(body)).await.expect("an answer");
    let (gone, body) = watched();
    let fault = open(&caller, Some(body)).await.expect_err("one too many");
    assert_eq!(fault, CallFault::NotRun(NotRun::Rejected(Rejection::retry_after("too many bodies", 50))));
    is_dropped(gone).await;
    drop(first);

    // Either's, on the bodies of answers.
    for (caller_limits, served_limits) in
        [(one_body.clone(), Limits::default()), (Limits::default(), one_body)]
    {
        let ((_first, first), (gone, second)) = (fed(), watched());
        let served = serving(served_limits, vec![first, second]).await;
        let peer = peer_with(&served.address, caller_limits);
        let first = reader(&peer).await;
        let fault = open(&peer, None).await.expect_err("one too many");
        assert_eq!(fault, CallFault::Unknown(Unknown::NoAnswer("too many bodies".to_owned())));
        is_dropped(gone).await;
        drop(first);
        // The place is free again, and the connection still works.
        assert!(open(&peer, None).await.expect("an answer").is_none());
    }

    // Sizes in parts, where the two sides allow different ones.
    let small = Limits { payload_bytes_max: 100_000, ..Limits::default() };
    let served = Served::start(&tcp(), small.clone(), echo()).await;
    let caller = support::peer(&served.address);
    for size in [100_001, LARGE] {
        let fault =
            in_time(caller.call(soon(), Priority::Ordinary, pattern(0, size))).await.expect_err("large");
        let text = format!("payload of {size} bytes, 100000 are allowed");
        assert_eq!(fault, CallFault::NotRun(NotRun::Rejected(Rejection::new(text))));
    }
    let most = pattern(0, 100_000);
    assert!(in_time(caller.call(soon(), Priority::Ordinary, most.clone())).await == Ok(most));
    let handler = |call: Incoming| Handled::Now(Ok(pattern(0, usize::from(call.payload[0]) * 50_001).into()));
    let served = Served::start(&tcp(), Limits::default(), Arc::new(handler)).await;
    let peer = peer_with(&served.address, small);
    for (times, is_allowed) in [(1, true), (2, false), (100, false), (1, true)] {
        let answer = in_time(peer.call(soon(), Priority::Ordinary, Bytes::from(vec![times]))).await;
        match answer {
            Ok(_) => assert!(is_allowed),
            Err(fault) => {
                let size = u64::from(times) * 50_001;
                let text = format!("answer of {size} bytes, 100000 are allowed");
                assert!(!is_allowed);
                assert_eq!(fault, CallFault::Unknown(Unknown::NoAnswer(text)));
            }
        }
    }
}

/// What is received in part counts as in flight, and what is refused or cancelled is given back.
#[tokio::test]
async fn bytes_in_flight_count_what_is_received_in_part() {
    let limits = Limits { in_flight_bytes_max: 1 << 20, ..Limits::default() };
    let served = Served::start(&tcp(), limits, echo()).await;
    let mut stream = raw_caller(&served.address).await;
    let announced = |id, size: u32| call_with(PARTS, id, &size.to_le_bytes());
    for round in 0..3u64 {
        let (first, second, third) = (round * 10 + 1, round * 10 + 2, round * 10 + 3);
        stream.write_all(&announced(first, 700_000)).await.expect("written");
        // The last eighth is for undo and seal.
        stream.write_all(&announced(second, 300_000)).await.expect("written");
        let (kind, id, text) = in_time(read_frame(&mut stream)).await.expect("a frame");
        assert_eq!((kind, id), (REJECTED, second));
        assert!(String::from_utf8_lossy(&text).contains("too many bytes in flight"));
        // The refused call's parts were on their way: they are passed over.
        stream.write_all(&frame(PART, second, &[0; CHUNK])).await.expect("written");
        stream.write_all(&frame(RESET, second, b"rejected")).await.expect("written");
        let undo = call_with(PARTS | RESERVED, third, &300_000u32.to_le_bytes());
        stream.write_all(&undo).await.expect("written");
        let fourth = third + 1;
        stream
            .write_all(&call_with(PARTS | RESERVED, fourth, &100_000u32.to_le_bytes()))
            .await
            .expect("written");
        let (kind, id, _) = in_time(read_frame(&mut stream)).await.expect("a frame");
        assert_eq!((kind, id), (REJECTED, fourth), "beyond the whole");
        stream.write_all(&frame(RESET, fourth, b"rejected")).await.expect("written");
        stream.write_all(&frame(CANCEL, third, b"")).await.expect("written");
        stream.write_all(&frame(CANCEL, first, b"")).await.expect("written");
        let third = fourth + 1;
        stream.write_all(&announced(third, 65_537)).await.expect("written");
        stream.write_all(&frame(PART, third, &[7; CHUNK])).await.expect("written");
        stream.write_all(&frame(PART, third, &[8])).await.expect("written");
        let (kind, id, size) = in_time(read_frame(&mut stream)).await.expect("a frame");
        assert_eq!((kind, id, &size[..]), (ANSWER, third, &65_537u32.to_le_bytes()[..]));
        let (_, _, first_part) = in_time(read_frame(&mut stream)).await.expect("a frame");
        let (_, _, second_part) = in_time(read_frame(&mut stream)).await.expect("a frame");
        assert_eq!((first_part.len(), &second_part[..]), (CHUNK, &[8][..]));
    }
}

/// The other side reads nothing: of the large payloads that wait to be sent, the last eighth is for undo and seal.
#[tokio::test]
async fn large_payloads_leave_room_for_undo() {
    const MIB: usize = 1 << 20;
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::bind(&unix(&folder)).await.expect("a free address");
    let peer = peer_with(&unix(&folder), Limits { in_flight_bytes_max: 8 * MIB, ..Limits::default() });
    let (connected, _stream) = tokio::join!(peer.connected(soon()), raw_served(&listener));
    connected.expect("a handshake");
    let call = |priority, bytes| Box::pin(peer.call(soon(), priority, Bytes::from(vec![0; bytes])));
    let full = || Poll::Ready(Err(CallFault::NotRun(NotRun::QueueFull)));
    let mut first = call(Priority::Ordinary, 6 * MIB + MIB / 2);
    assert!(futures_util::poll!(&mut first).is_pending());
    assert_eq!(futures_util::poll!(call(Priority::Ordinary, MIB)), full());
    let mut undo = call(Priority::Reserved, MIB);
    assert!(futures_util::poll!(&mut undo).is_pending());
    assert_eq!(futures_util::poll!(call(Priority::Reserved, MIB)), full(), "the eighth ends too");
}
