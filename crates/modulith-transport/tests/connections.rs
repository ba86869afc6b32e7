//! Connections come and go; calls are told the truth about it.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use modulith_transport::{
    CallFault, ConnectionError, Handled, Incoming, Limits, Listener, NotRun, Peer, Priority, Unknown, serve,
};
use support::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    for wire in Wire::all() {
        let mut served = wire.serve(None, Limits::default(), echo()).await;
        let peer = wire.peer(&served.address);
        for _ in 0..3 {
            in_time(peer.connected(soon())).await.expect("a server");
            let answer = in_time(peer.call(soon(), Priority::Ordinary, Bytes::from_static(b"again"))).await;
            assert_eq!(answer, Ok(Bytes::from_static(b"again")));
            assert_eq!(peer.last_error(), None);
            let address = served.address.clone();
            served.kill().await;
            while peer.is_connected() {
                tokio::task::yield_now().await;
            }
            served = wire.serve(Some(&address), Limits::default(), echo()).await;
        }
    }
}

/// Callers never stop while the server drains: each call is answered or certainly did not run, and the server
/// ran exactly the answered ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_loses_no_call() {
    for round in 0..10 {
        let ran = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&ran);
        let handler = move |call: Incoming| {
            let turn = counted.fetch_add(1, Ordering::SeqCst);
            Handled::Later(Box::pin(async move {
                for _ in 0..turn % 5 {
                    tokio::task::yield_now().await;
                }
                Ok(call.payload.into())
            }))
        };
        let wire = &Wire::all()[round % 3];
        let listener = wire.listener().await;
        let address = listener.address().expect("a bound address");
        let shutdown = CancellationToken::new();
        let server = tokio::spawn(serve(
            listener,
            hello("served"),
            anybody(),
            Limits::default(),
            Arc::new(handler),
            None,
            shutdown.clone(),
        ));
        // Nobody comes after it, so nobody is waited for.
        let limits = Limits { drain_wait_max: Duration::ZERO, ..Limits::default() };
        let peer = wire.peer_with(&address, limits);
        let mut callers = JoinSet::new();
        for _ in 0..32 {
            let peer = peer.clone();
            callers.spawn(async move {
                let mut answered = 0;
                loop {
                    match peer.call(soon(), Priority::Ordinary, Bytes::from_static(b"work")).await {
                        Ok(_) => answered += 1,
                        Err(CallFault::NotRun(_)) => return answered,
                        Err(fault @ CallFault::Unknown(_)) => panic!("round {round}: {fault}"),
                    }
                }
            });
        }
        while ran.load(Ordering::SeqCst) < 500 {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
        // Well before the time to drain is over, since the caller closes when it has all its answers.
        tokio::time::timeout(Duration::from_secs(8), server).await.expect("an end").expect("no panic");
        let mut answered = 0;
        while let Some(caller) = in_time(callers.join_next()).await {
            answered += caller.expect("no unknown outcome");
        }
        assert_eq!(answered, ran.load(Ordering::SeqCst), "round {round}");
    }
}

#[tokio::test]
async fn what_outlives_the_drain_is_dropped_and_unknown() {
    let gate = Gate::new();
    let limits = Limits { drain_max: Duration::from_millis(50), ..Limits::default() };
    let mut served = Served::start(&tcp(), limits, Arc::new(gate.clone())).await;
    let peer = peer(&served.address);
    let call = tokio::spawn(async move { peer.call(soon(), Priority::Ordinary, Bytes::new()).await });
    gate.entered(1).await;
    served.shutdown.cancel();
    let ended = loop {
        match served.next_end().await {
            // The caller looks for a new connection at once, where the listener still answers.
            Err(ConnectionError::NotAdmitted(text)) => assert_eq!(text, "shutting down"),
            ended => break ended,
        }
    };
    assert!(matches!(ended, Err(ConnectionError::DrainTimeout { calls: 1 })), "{ended:?}");
    gate.gone(1).await;
    assert_eq!(in_time(call).await.expect("no panic"), Err(CallFault::Unknown(Unknown::ConnectionLost)));
}

#[tokio::test]
async fn replicas_share_the_calls_and_cover_for_each_other() {
    let gates = [Gate::new(), Gate::new()];
    let first = Served::start(&tcp(), Limits::default(), Arc::new(gates[0].clone())).await;
    let second = Served::start(&tcp(), Limits::default(), Arc::new(gates[1].clone())).await;
    let addresses = vec![first.address.clone(), second.address.clone()];
    let peer = Peer::new(addresses, hello("caller"), anybody(), Limits::default());
    in_time(peer.connected(soon())).await.expect("a server");
    while peer.replicas().len() < 2 {
        tokio::task::yield_now().await;
    }
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let peer = peer.clone();
        calls.spawn(async move { peer.call(soon(), Priority::Ordinary, Bytes::new()).await });
    }
    // With two replicas the less busy one is always among the two choices, so they fill evenly.
    gates[0].entered(5).await;
    gates[1].entered(5).await;
    first.kill().await;
    gates[1].open.add_permits(7);
    let mut lost = 0;
    while let Some(call) = in_time(calls.join_next()).await {
        match call.expect("no panic") {
            Ok(_) => {}
            Err(fault) => {
                assert_eq!(fault, CallFault::Unknown(Unknown::ConnectionLost));
                lost += 1;
            }
        }
    }
    assert_eq!(lost, 5);
    while peer.replicas().len() > 1 {
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        assert_eq!(in_time(peer.call(soon(), Priority::Ordinary, Bytes::new())).await, Ok(Bytes::new()));
    }
}

fn impatient() -> Limits {
    Limits {
        keep_alive_interval: Duration::from_millis(40),
        dead_after: Duration::from_millis(120),
        ..Limits::default()
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::bind(&unix(&folder)).await.expect("a free address");
    let peer = peer_with(&unix(&folder), impatient());
    let (connected, _stream) = tokio::join!(peer.connected(soon()), raw_served(&listener));
    connected.expect("a handshake");
    let outcome = in_time(peer.call(soon(), Priority::Ordinary, Bytes::new())).await;
    assert_eq!(outcome, Err(CallFault::Unknown(Unknown::ConnectionLost)));
    while peer.is_connected() {
        tokio::task::yield_now().await;
    }
    assert!(peer.last_error().is_some_and(|text| text.contains("nothing heard")), "{:?}", peer.last_error());
}

#[tokio::test]
async fn a_quiet_connection_stays() {
    let gate = Gate::new();
    let served = Served::start(&tcp(), impatient(), Arc::new(gate.clone())).await;
    let peer = peer_with(&served.address, impatient());
    let call = {
        let peer = peer.clone();
        tokio::spawn(async move { peer.call(soon(), Priority::Ordinary, Bytes::new()).await })
    };
    gate.entered(1).await;
    // The passing of time is what is tested: several times the patience of both sides.
    tokio::time::sleep(Duration::from_millis(500)).await;
    gate.open.add_permits(1);
    assert_eq!(in_time(call).await.expect("no panic"), Ok(Bytes::new()));
}

#[tokio::test]
async fn a_caller_that_never_reads_is_stopped_and_given_up() {
    let ran = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ran);
    let handler = move |call: Incoming| {
        counted.fetch_add(1, Ordering::SeqCst);
        Handled::Now(Ok(call.payload.into()))
    };
    let limits = Limits { write_buffer_bytes_max: 64 << 10, ..impatient() };
    let mut served = Served::start(&tcp(), limits, Arc::new(handler)).await;
    let mut stream = raw_caller(&served.address).await;
    let body = [&60_000u32.to_le_bytes()[..], &[0; 32 << 10]].concat();
    let mut id = 0;
    // Writing fails once the other side has closed.
    let flood = async {
        loop {
            id += 1;
            if stream.write_all(&frame(CALL, id, &body)).await.is_err() {
                return;
            }
        }
    };
    let (ended, ()) = tokio::join!(served.next_end(), in_time(flood));
    assert!(matches!(ended, Err(ConnectionError::Silent(_))), "{ended:?}");
    // The answers are what the kernel's buffers took (some MiB on loopback) and one buffer of ours.
    assert!(ran.load(Ordering::SeqCst) * (32 << 10) < 64 << 20);
}

#[tokio::test]
async fn frames_and_http_share_a_port() {
    let listener = Listener::bind(&tcp()).await.expect("a free port");
    let address = listener.address().expect("a bound address");
    let shutdown = CancellationToken::new();
    let http: modulith_transport::HttpTask = Arc::new(|mut stream| {
        Box::pin(async move {
            let mut request = [0; 4];
            stream.read_exact(&mut request).await.expect("the bytes that were looked at");
            assert_eq!(&request, b"GET ");
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.expect("written");
        })
    });
    let limits = Limits { connections_max: 2, ..Limits::default() };
    let server = tokio::spawn(serve(
        listener,
        hello("served"),
        anybody(),
        limits,
        echo(),
        Some(http),
        shutdown.clone(),
    ));
    let limits = Limits { drain_wait_max: Duration::ZERO, ..Limits::default() };
    let peer = peer_with(&address, limits);
    // More connections than may be open at once: each takes the place of the one before it.
    for _ in 0..4 {
        let mut browser = modulith_transport::Stream::connect(&address).await.expect("a listener");
        browser.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("written");
        let mut answer = [0; 12];
        in_time(browser.read_exact(&mut answer)).await.expect("an answer");
        assert_eq!(&answer, b"HTTP/1.1 204");
        let answer = in_time(peer.call(soon(), Priority::Ordinary, Bytes::from_static(b"x"))).await;
        assert_eq!(answer, Ok(Bytes::from_static(b"x")));
    }
    shutdown.cancel();
    in_time(server).await.expect("no panic");
    let fault = in_time(peer.call(soon(), Priority::Ordinary, Bytes::new())).await.expect_err("gone");
    assert!(matches!(fault, CallFault::NotRun(NotRun::Unreachable(_))), "{fault}");
}
