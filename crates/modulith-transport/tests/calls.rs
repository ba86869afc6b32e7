//! What a caller is told about its call: answers, and the line between *not run* and *unknown*.

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
use modulith_transport::{
    CallFault, Handled, Incoming, Limits, Listener, NotRun, Priority, Rejection, Unknown,
};
use support::*;
use tokio::{io::AsyncWriteExt, task::JoinSet};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_get_their_own_answers() {
    for wire in Wire::all() {
        // Every third call waits, so that answers overtake each other.
        let turn = AtomicUsize::new(0);
        let handler = move |call: Incoming| {
            assert_eq!((&*call.peer.service, &call.peer.about[..]), ("caller", &b"contracts"[..]));
            match turn.fetch_add(1, Ordering::Relaxed) % 3 {
                0 => Handled::Later(Box::pin(async move {
                    for _ in 0..call.payload.len() % 7 {
                        tokio::task::yield_now().await;
                    }
                    Ok(call.payload.into())
                })),
                _ => Handled::Now(Ok(call.payload.into())),
            }
        };
        let served = wire.serve(None, Limits::default(), Arc::new(handler)).await;
        let peer = wire.peer(&served.address);
        let mut callers = JoinSet::new();
        for caller in 0..64u64 {
            let peer = peer.clone();
            callers.spawn(async move {
                for call in 0..100u64 {
                    // Sizes from nothing to beyond the read buffer, and over the limit below which bodies are copied.
                    let bytes = match (caller * 31 + call * 17) % 97 {
                        0 => 300_000,
                        size => size * size,
                    } as usize;
                    let mut payload = vec![(caller ^ call) as u8; bytes];
                    payload.extend_from_slice(&(caller << 32 | call).to_le_bytes());
                    let payload = Bytes::from(payload);
                    let answer = peer.call(soon(), Priority::Ordinary, payload.clone()).await;
                    assert_eq!(answer.as_ref(), Ok(&payload), "caller {caller}, call {call}");
                }
            });
        }
        while let Some(caller) = in_time(callers.join_next()).await {
            caller.expect("a caller without complaints");
        }
        assert_eq!(peer.in_flight(), 0);
        assert_eq!(&*peer.replicas()[0].service, "served");
        served.kill().await;
    }
}

#[tokio::test]
async fn nobody_there_is_not_run() {
    let folder = tempfile::tempdir().expect("a folder");
    let peer = peer(&unix(&folder));
    let fault = peer.call(soon(), Priority::Ordinary, Bytes::new()).await.expect_err("nobody there");
    assert!(matches!(fault, CallFault::NotRun(NotRun::Unreachable(_))), "{fault}");
    assert!(!peer.is_connected());
    assert!(peer.last_error().is_some_and(|text| text.contains("served.sock")));
    let fault = peer.connected(Instant::now() + Duration::from_millis(50)).await.expect_err("still nobody");
    assert!(matches!(fault, CallFault::NotRun(NotRun::Unreachable(_))), "{fault}");
}

#[tokio::test]
async fn a_kill_in_flight_is_unknown() {
    for wire in Wire::all() {
        let gate = Gate::new();
        let served = wire.serve(None, Limits::default(), Arc::new(gate.clone())).await;
        let peer = wire.peer(&served.address);
        let call = tokio::spawn({
            let peer = peer.clone();
            async move { peer.call(soon(), Priority::Ordinary, Bytes::new()).await }
        });
        gate.entered(1).await;
        served.kill().await;
        let outcome = in_time(call).await.expect("no panic");
        assert_eq!(outcome, Err(CallFault::Unknown(Unknown::ConnectionLost)));
    }
}

#[tokio::test]
async fn rejections_panics_and_sizes_are_told_apart() {
    let limits = Limits { payload_bytes_max: 2000, ..Limits::default() };
    let handler = |call: Incoming| match &call.payload[..] {
        b"reject" => Handled::Now(Err(Rejection::retry_after("not today", 250))),
        b"reject later" => Handled::Later(Box::pin(async { Err(Rejection::new("r".repeat(5000))) })),
        b"panic" => panic!("on purpose"),
        b"panic later" => Handled::Later(Box::pin(async { panic!("on purpose") })),
        b"large" => Handled::Now(Ok(vec![0; 2001])),
        _ => Handled::Now(Ok(call.payload.into())),
    };
    let served = Served::start(&tcp(), limits.clone(), Arc::new(handler)).await;
    let peer = peer_with(&served.address, limits);
    let call = async |payload: &'static [u8]| {
        in_time(peer.call(soon(), Priority::Ordinary, Bytes::from_static(payload))).await
    };
    let rejected = NotRun::Rejected(Rejection::retry_after("not today", 250));
    assert_eq!(call(b"reject").await, Err(CallFault::NotRun(rejected)));
    // A text longer than what travels is cut.
    let cut = NotRun::Rejected(Rejection::new("r".repeat(1024)));
    assert_eq!(call(b"reject later").await, Err(CallFault::NotRun(cut)));
    for (payload, text) in [
        (&b"panic"[..], "panicked"),
        (b"panic later", "panicked"),
        (b"large", "2001 bytes, 2000 are allowed"),
    ] {
        let fault = call(payload).await.expect_err("no answer");
        assert!(
            matches!(&fault, CallFault::Unknown(Unknown::NoAnswer(why)) if why.contains(text)),
            "{fault}"
        );
    }
    let too_large = NotRun::TooLarge { bytes: 2001, max: 2000 };
    assert_eq!(call(&[0; 2001]).await, Err(CallFault::NotRun(too_large)));
    // All of it on one connection, which still works.
    assert_eq!(call(&[0; 2000]).await.map(|answer| answer.len()), Ok(2000));
}

#[tokio::test]
async fn a_full_queue_refuses_early_and_keeps_its_reserve() {
    let limits = Limits { in_flight_max: 4, in_flight_reserved: 1, ..Limits::default() };
    for (caller_limits, served_limits) in [
        // Whichever side is full says so.
        (limits.clone(), Limits::default()),
        (Limits::default(), limits),
    ] {
        let gate = Gate::new();
        let served = Served::start(&tcp(), served_limits, Arc::new(gate.clone())).await;
        let peer = peer_with(&served.address, caller_limits);
        let mut calls = JoinSet::new();
        let mut start = |priority| {
            let peer = peer.clone();
            calls.spawn(async move { peer.call(soon(), priority, Bytes::new()).await })
        };
        for _ in 0..3 {
            start(Priority::Ordinary);
        }
        gate.entered(3).await;
        let is_full = |fault: CallFault| match fault {
            CallFault::NotRun(NotRun::QueueFull) => true,
            CallFault::NotRun(NotRun::Rejected(rejection)) => rejection.reason.contains("too many calls"),
            _ => false,
        };
        let fault = in_time(peer.call(soon(), Priority::Ordinary, Bytes::new())).await.expect_err("full");
        assert!(is_full(fault));
        start(Priority::Reserved);
        gate.entered(1).await;
        let fault = in_time(peer.call(soon(), Priority::Reserved, Bytes::new())).await.expect_err("full");
        assert!(is_full(fault));
        gate.open.add_permits(4);
        while let Some(call) = in_time(calls.join_next()).await {
            assert_eq!(call.expect("no panic"), Ok(Bytes::new()));
        }
        assert_eq!(peer.in_flight(), 0);
    }
}

#[tokio::test]
async fn a_deadline_after_sending_is_unknown_and_drops_the_work() {
    let gate = Gate::new();
    let served = Served::start(&tcp(), Limits::default(), Arc::new(gate.clone())).await;
    let peer = peer(&served.address);
    peer.connected(soon()).await.expect("a server");
    let passed = Instant::now();
    assert_eq!(
        peer.call(passed, Priority::Ordinary, Bytes::new()).await,
        Err(CallFault::NotRun(NotRun::Deadline))
    );
    let deadline = Instant::now() + Duration::from_millis(60);
    let outcome = in_time(peer.call(deadline, Priority::Ordinary, Bytes::new())).await;
    assert_eq!(outcome, Err(CallFault::Unknown(Unknown::Deadline)));
    assert!(Instant::now() >= deadline);
    gate.entered(1).await;
    gate.gone(1).await;
}

#[tokio::test]
async fn a_caller_that_leaves_stops_the_work() {
    let gate = Gate::new();
    let served = Served::start(&tcp(), Limits::default(), Arc::new(gate.clone())).await;
    let peer = peer(&served.address);
    let call = tokio::spawn({
        let peer = peer.clone();
        async move { peer.call(soon(), Priority::Ordinary, Bytes::new()).await }
    });
    gate.entered(1).await;
    assert_eq!(gate.dropped.load(Ordering::SeqCst), 0);
    call.abort();
    gate.gone(1).await;
    // The slot is used again, and a late answer to its first user would not reach the second.
    gate.open.add_permits(1);
    let answer = in_time(peer.call(soon(), Priority::Ordinary, Bytes::from_static(b"second"))).await;
    assert_eq!(answer, Ok(Bytes::from_static(b"second")));
    assert_eq!(peer.in_flight(), 0);
}

/// The other side takes nothing: what has not begun to leave is *not run*, at its deadline as well as when the
/// connection is lost, and a withdrawn call arrives as nothing.
#[tokio::test]
async fn what_never_left_is_not_run() {
    const CALLS: usize = 32;
    let folder = tempfile::tempdir().expect("a folder");
    let limits = Limits { write_buffer_bytes_max: 1 << 20, ..Limits::default() };
    for loses_connection in [false, true] {
        let listener = Listener::bind(&unix(&folder)).await.expect("a free address");
        let peer = peer_with(&unix(&folder), limits.clone());
        let (connected, mut stream) = tokio::join!(peer.connected(soon()), raw_served(&listener));
        connected.expect("a handshake");
        let deadline = if loses_connection { soon() } else { Instant::now() + Duration::from_millis(200) };
        let mut calls = JoinSet::new();
        for call in 0..CALLS {
            let peer = peer.clone();
            // As large as goes in one frame: the kernel takes a few of them, the buffer fourteen.
            let payload = Bytes::from(vec![call as u8; 64 << 10]);
            calls.spawn(async move { (call, peer.call(deadline, Priority::Ordinary, payload).await) });
        }
        // All of them have been submitted when those without a place are refused.
        let mut outcomes = vec![None; CALLS];
        while outcomes[CALLS - 1].is_none() {
            let (call, outcome) = in_time(calls.join_next()).await.expect("calls").expect("no panic");
            outcomes[call] = Some(outcome);
        }
        assert_eq!(outcomes[CALLS - 1], Some(Err(CallFault::NotRun(NotRun::QueueFull))));
        // The last eighth is for undo and seal, and ends too.
        let undo = || Box::pin(peer.call(deadline, Priority::Reserved, Bytes::from(vec![0; 64 << 10])));
        let mut undos = Vec::new();
        while undos.len() < CALLS {
            let mut undo = undo();
            if let Poll::Ready(refused) = futures_util::poll!(&mut undo) {
                assert_eq!(refused, Err(CallFault::NotRun(NotRun::QueueFull)));
                break;
            }
            undos.push(undo);
        }
        assert!((1..=3).contains(&undos.len()), "{} found a place", undos.len());
        if loses_connection {
            stream.shutdown().await.expect("half closed");
        }
        while let Some(call) = in_time(calls.join_next()).await {
            let (call, outcome) = call.expect("no panic");
            outcomes[call] = Some(outcome);
        }
        // In the order in which they were submitted: left, not left, not accepted.
        let ended = |at: &usize| match &outcomes[*at] {
            Some(Err(CallFault::Unknown(Unknown::ConnectionLost | Unknown::Deadline))) => 0,
            Some(Err(CallFault::NotRun(NotRun::Unreachable(_) | NotRun::Deadline))) => 1,
            Some(Err(CallFault::NotRun(NotRun::QueueFull))) => 2,
            other => panic!("{other:?}"),
        };
        assert!((0..CALLS).is_sorted_by_key(|at| ended(&at)), "{outcomes:?}");
        let left = (0..CALLS).filter(|at| ended(at) == 0).count();
        let stayed = (0..CALLS).filter(|at| ended(at) == 1).count();
        assert!(left > 0 && stayed > 0, "{outcomes:?}");
        let stayed = stayed + undos.len();
        for undo in in_time(futures_util::future::join_all(undos)).await {
            assert!(
                matches!(undo, Err(CallFault::NotRun(NotRun::Unreachable(_) | NotRun::Deadline))),
                "{undo:?}"
            );
        }
        if loses_connection {
            continue;
        }
        let mut kinds = Vec::new();
        for _ in 0..left * 2 + stayed {
            kinds.push(in_time(read_frame(&mut stream)).await.expect("a frame").0);
        }
        kinds.sort_unstable();
        let expected = [vec![CALL; left], vec![CANCEL; left], vec![VOID; stayed]].concat();
        assert_eq!(kinds, expected);
    }
}
