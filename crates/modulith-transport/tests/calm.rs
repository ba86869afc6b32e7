//! What callers notice when a peer goes away, comes back, is slow, or moves: little.

mod support;

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use modulith_transport::{
    Address, BreakerState, CallFault, Handled, Incoming, Limits, Listener, NotRun, Peer, Priority, Resolve,
    Unknown, serve,
};
use support::*;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

async fn call(peer: &Peer) -> Result<Bytes, CallFault> {
    in_time(peer.call(soon(), Priority::Ordinary, Bytes::from_static(b"work"))).await
}

/// Waits for something to be seen.
async fn until(seen: impl Fn() -> bool) {
    in_time(async {
        while !seen() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// One process after another at the same place, each told to go while callers never stop: no call fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_call() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = unix(&folder);
    let ran = Arc::new(AtomicUsize::new(0));
    let start = async || {
        let ran = Arc::clone(&ran);
        let handler = move |call: Incoming| {
            let turn = ran.fetch_add(1, Ordering::SeqCst);
            Handled::Later(Box::pin(async move {
                for _ in 0..turn % 5 {
                    tokio::task::yield_now().await;
                }
                Ok(call.payload.into())
            }))
        };
        let listener = Listener::bind(&address).await.expect("a free address");
        let shutdown = CancellationToken::new();
        let (hello, limits, stop) = (hello("served"), Limits::default(), shutdown.clone());
        let server = tokio::spawn(serve(listener, hello, anybody(), limits, Arc::new(handler), None, stop));
        (server, shutdown)
    };
    let (mut server, mut shutdown) = start().await;
    // A test on a busy machine is no reason to give up.
    let peer = peer_with(&address, Limits { drain_wait_max: Duration::from_secs(20), ..Limits::default() });
    let (stop, answered) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    let mut callers = JoinSet::new();
    for _ in 0..16 {
        let (peer, stop, answered) = (peer.clone(), stop.clone(), Arc::clone(&answered));
        callers.spawn(async move {
            while !stop.is_cancelled() {
                call(&peer).await.expect("no call fails");
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for _ in 0..8 {
        let enough = answered.load(Ordering::SeqCst) + 200;
        in_time(async {
            while answered.load(Ordering::SeqCst) < enough {
                tokio::task::yield_now().await;
            }
        })
        .await;
        shutdown.cancel();
        in_time(server).await.expect("no panic");
        (server, shutdown) = start().await;
    }
    stop.cancel();
    while let Some(caller) = in_time(callers.join_next()).await {
        caller.expect("no call failed");
    }
    assert_eq!(answered.load(Ordering::SeqCst), ran.load(Ordering::SeqCst), "each ran once");
}

/// Tells a peer's only replica to go, and ends it.
async fn went(served: Served, peer: &Peer) {
    served.shutdown.cancel();
    until(|| !peer.snapshot().replicas[0].is_connected).await;
    served.kill().await;
}

#[tokio::test]
async fn who_waits_for_a_successor_holds_a_place_and_is_answered_by_it() {
    let served = Served::start(&tcp(), Limits::default(), echo()).await;
    let address = served.address.clone();
    let limits = Limits {
        in_flight_max: 2,
        in_flight_reserved: 0,
        drain_wait_max: Duration::from_secs(20),
        ..Limits::default()
    };
    let peer = peer_with(&address, limits);
    assert!(call(&peer).await.is_ok());
    went(served, &peer).await;
    let mut waiting = JoinSet::new();
    for _ in 0..2 {
        let peer = peer.clone();
        waiting.spawn(async move { call(&peer).await });
    }
    until(|| peer.in_flight() == 2).await;
    assert_eq!(call(&peer).await, Err(NotRun::QueueFull.into()));
    let _successor = Served::start(&address, Limits::default(), echo()).await;
    while let Some(outcome) = in_time(waiting.join_next()).await {
        assert_eq!(outcome.expect("no panic"), Ok(Bytes::from_static(b"work")));
    }
}

#[tokio::test]
async fn a_successor_that_does_not_come_is_not_waited_for_without_end() {
    let served = Served::start(&tcp(), Limits::default(), echo()).await;
    let limits = Limits { drain_wait_max: Duration::from_millis(30), ..Limits::default() };
    let peer = peer_with(&served.address, limits);
    assert!(call(&peer).await.is_ok());
    went(served, &peer).await;
    // Far within the deadline of the call.
    let outcome = call(&peer).await;
    assert!(matches!(outcome, Err(CallFault::NotRun(NotRun::Unreachable(_)))), "{outcome:?}");
}

/// A handler that answers only while its switch is on; else the call waits until its caller gives up.
fn switched(on: &Arc<AtomicBool>, entered: &Arc<AtomicUsize>) -> Arc<dyn modulith_transport::Handler> {
    let (on, entered) = (Arc::clone(on), Arc::clone(entered));
    Arc::new(move |call: Incoming| {
        entered.fetch_add(1, Ordering::SeqCst);
        match on.load(Ordering::SeqCst) {
            true => Handled::Now(Ok(call.payload.into())),
            false => Handled::Later(Box::pin(std::future::pending())),
        }
    })
}

#[tokio::test]
async fn a_slow_peer_opens_the_breaker_and_one_probe_closes_it() {
    let (on, entered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let served = Served::start(&tcp(), Limits::default(), switched(&on, &entered)).await;
    let limits = Limits { breaker_open_min: Duration::from_millis(40), ..Limits::default() };
    let peer = peer_with(&served.address, limits);
    in_time(peer.connected(soon())).await.expect("a server");
    let hasty = async || {
        let deadline = Instant::now() + Duration::from_millis(5);
        in_time(peer.call(deadline, Priority::Ordinary, Bytes::new())).await
    };
    for _ in 0..20 {
        assert!(matches!(
            hasty().await,
            Err(CallFault::Unknown(Unknown::Deadline) | CallFault::NotRun(NotRun::Deadline))
        ));
    }
    assert_eq!(peer.snapshot().breaker, BreakerState::Open);
    let reached = entered.load(Ordering::SeqCst);
    let refused = hasty().await;
    assert!(matches!(refused, Err(CallFault::NotRun(NotRun::CircuitOpen { .. }))), "{refused:?}");
    assert_eq!(entered.load(Ordering::SeqCst), reached, "nothing was sent");
    // Undo is not left waiting for the circuit.
    let undo = peer.call(Instant::now() + Duration::from_millis(5), Priority::Reserved, Bytes::new());
    assert!(!matches!(in_time(undo).await, Err(CallFault::NotRun(NotRun::CircuitOpen { .. }))));

    // When its time is over, one of many callers is the probe; it fails, and the circuit opens again.
    let callers = async || {
        let mut callers = JoinSet::new();
        for _ in 0..50 {
            let peer = peer.clone();
            callers.spawn(async move {
                peer.call(Instant::now() + Duration::from_millis(200), Priority::Ordinary, Bytes::new()).await
            });
        }
        in_time(callers.join_all()).await
    };
    let was_sent = |outcome: &&Result<Bytes, CallFault>| {
        !matches!(outcome, Err(CallFault::NotRun(NotRun::CircuitOpen { .. })))
    };
    let probes = in_time(async {
        loop {
            match callers().await.iter().filter(was_sent).count() {
                0 => tokio::task::yield_now().await,
                probes => break probes,
            }
        }
    })
    .await;
    assert_eq!(probes, 1);
    assert_eq!(peer.snapshot().breaker, BreakerState::Open);
    assert_eq!(peer.snapshot().breaker_opened, 2);

    on.store(true, Ordering::SeqCst);
    in_time(async {
        while hasty().await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(peer.snapshot().breaker, BreakerState::Closed);
    assert!(callers().await.iter().all(Result::is_ok));
}

/// A host that does not answer is found out by the attempts to connect, and not by the calls that wait for one.
#[tokio::test]
async fn waiting_for_a_connection_opens_no_breaker() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let peer = peer(&Address::Tcp(silent.local_addr().expect("a bound address").to_string()));
    for _ in 0..40 {
        let deadline = Instant::now() + Duration::from_millis(1);
        let outcome = in_time(peer.call(deadline, Priority::Ordinary, Bytes::new())).await;
        assert_eq!(outcome, Err(CallFault::NotRun(NotRun::Deadline)));
    }
    assert_eq!(peer.snapshot().breaker, BreakerState::Closed);
}

/// Calls that a killed process took with it open the breaker; the process that comes in its place is asked at once.
#[tokio::test]
async fn a_restart_ends_the_wait_of_an_open_breaker() {
    let (on, entered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let served = Served::start(&tcp(), Limits::default(), switched(&on, &entered)).await;
    let hour = Duration::from_secs(3600);
    let limits = Limits { breaker_open_min: hour, breaker_open_max: hour, ..Limits::default() };
    let peer = peer_with(&served.address, limits);
    in_time(peer.connected(soon())).await.expect("a server");
    let mut callers = JoinSet::new();
    for _ in 0..20 {
        let peer = peer.clone();
        callers.spawn(async move { peer.call(soon(), Priority::Ordinary, Bytes::new()).await });
    }
    until(|| entered.load(Ordering::SeqCst) == 20).await;
    let address = served.address.clone();
    served.kill().await;
    for outcome in in_time(callers.join_all()).await {
        assert!(matches!(outcome, Err(CallFault::Unknown(Unknown::ConnectionLost))), "{outcome:?}");
    }
    let refused = call(&peer).await;
    assert!(matches!(refused, Err(CallFault::NotRun(NotRun::CircuitOpen { .. }))), "{refused:?}");

    let _served = Served::start(&address, Limits::default(), echo()).await;
    in_time(peer.connected(soon())).await.expect("a server");
    assert_eq!(call(&peer).await.expect("the first call is the probe"), "work");
    assert_eq!(peer.snapshot().breaker, BreakerState::Closed);
}

/// A peer that is up and down again: what fails is told truthfully, and once it stays, everything works again
/// without waiting for a breaker that has nothing to do with it.
#[tokio::test]
async fn a_flapping_peer_is_used_again_as_soon_as_it_stays() {
    let mut served = Served::start(&tcp(), Limits::default(), echo()).await;
    let peer = peer(&served.address);
    for _ in 0..10 {
        in_time(peer.connected(soon())).await.expect("a server");
        assert!(call(&peer).await.is_ok());
        let address = served.address.clone();
        served.kill().await;
        in_time(async {
            while !matches!(call(&peer).await, Err(CallFault::NotRun(NotRun::Unreachable(_)))) {
                tokio::task::yield_now().await;
            }
        })
        .await;
        for _ in 0..30 {
            let fault = call(&peer).await.expect_err("nobody is there");
            assert!(matches!(fault, CallFault::NotRun(NotRun::Unreachable(_))), "{fault}");
        }
        served = Served::start(&address, Limits::default(), echo()).await;
    }
    in_time(peer.connected(soon())).await.expect("a server");
    assert_eq!((call(&peer).await.is_ok(), peer.snapshot().breaker), (true, BreakerState::Closed));
}

#[tokio::test]
async fn a_replica_that_fails_is_left_out_and_never_more_than_half() {
    let switches: Vec<_> = (0..3).map(|_| Arc::new(AtomicBool::new(true))).collect();
    let entered: Vec<_> = (0..3).map(|_| Arc::new(AtomicUsize::new(0))).collect();
    let mut served = Vec::new();
    for (on, entered) in switches.iter().zip(&entered) {
        served.push(Served::start(&tcp(), Limits::default(), switched(on, entered)).await);
    }
    let addresses: Vec<_> = served.iter().map(|served| served.address.clone()).collect();
    let limits = Limits {
        ejection_min: Duration::from_secs(3600),
        ejection_max: Duration::from_secs(3600),
        // Only the replicas are looked at here.
        breaker_calls_min: u64::MAX,
        ..Limits::default()
    };
    let peer = Peer::new(addresses, hello("caller"), anybody(), limits);
    let all_connected = || peer.snapshot().replicas.iter().all(|replica| replica.is_connected);
    in_time(peer.connected(soon())).await.expect("a server");
    until(all_connected).await;
    let out = || -> Vec<bool> { peer.snapshot().replicas.iter().map(|replica| replica.is_ejected).collect() };
    let hasty = async || {
        let deadline = Instant::now() + Duration::from_millis(5);
        in_time(peer.call(deadline, Priority::Ordinary, Bytes::new())).await
    };
    switches[1].store(false, Ordering::SeqCst);
    in_time(async {
        while out() != [false, true, false] {
            let _ = hasty().await;
        }
    })
    .await;
    let reached = entered[1].load(Ordering::SeqCst);
    for _ in 0..50 {
        assert!(call(&peer).await.is_ok());
    }
    assert_eq!(entered[1].load(Ordering::SeqCst), reached, "no call goes there");
    // A second one of three would be more than half.
    switches[0].store(false, Ordering::SeqCst);
    let failed = entered[0].load(Ordering::SeqCst);
    in_time(async {
        while entered[0].load(Ordering::SeqCst) < failed + 20 {
            let _ = hasty().await;
        }
    })
    .await;
    assert_eq!(out(), [false, true, false]);
}

#[tokio::test]
async fn another_replica_takes_over_at_once_when_one_drains() {
    let mut served = [
        Served::start(&tcp(), Limits::default(), echo()).await,
        Served::start(&tcp(), Limits::default(), echo()).await,
    ];
    let addresses = served.iter().map(|served| served.address.clone()).collect();
    let peer = Peer::new(addresses, hello("caller"), anybody(), Limits::default());
    in_time(peer.connected(soon())).await.expect("a server");
    until(|| peer.replicas().len() == 2).await;
    served[0].shutdown.cancel();
    // Some of these reach it before it has been heard, and are sent on.
    for _ in 0..100 {
        assert!(call(&peer).await.is_ok());
    }
    served[0].next_end().await.expect("nothing was cut");
}

/// A name server in the hand of the test.
#[derive(Clone, Default)]
struct Names {
    leads_to: Arc<Mutex<Vec<SocketAddr>>>,
    fails: Arc<AtomicBool>,
    asked: Arc<Notify>,
}

impl Names {
    fn resolve(&self) -> Resolve {
        let names = self.clone();
        Arc::new(move |host_port| {
            assert_eq!(host_port, "products.internal:7001");
            let found = match names.fails.load(Ordering::SeqCst) {
                true => Err(io::Error::other("no name server")),
                false => Ok(names.leads_to.lock().expect("no panic").clone()),
            };
            names.asked.notify_one();
            Box::pin(async move { found })
        })
    }

    fn lead_to(&self, served: &[&Served]) {
        *self.leads_to.lock().expect("no panic") = served.iter().map(|served| socket(served)).collect();
    }

    async fn asked(&self) {
        in_time(self.asked.notified()).await;
    }
}

fn socket(served: &Served) -> SocketAddr {
    served.address.to_string().parse().expect("a port")
}

#[tokio::test]
async fn a_name_is_as_many_replicas_as_it_has_addresses_and_follows_them() {
    let gates: Vec<_> = (0..3).map(|_| Gate::new()).collect();
    let mut served = Vec::new();
    for gate in &gates {
        served.push(Served::start(&tcp(), Limits::default(), Arc::new(gate.clone())).await);
    }
    let names = Names::default();
    names.lead_to(&[&served[0], &served[1]]);
    let limits = Limits {
        resolve_every: Duration::from_millis(10),
        back_off_max: Duration::from_millis(10),
        back_off_min: Duration::from_millis(10),
        ..Limits::default()
    };
    let address: Address = "products.internal:7001".parse().expect("an address");
    let peer = Peer::resolved_by(names.resolve(), vec![address], hello("caller"), anybody(), limits, None);
    let connected = || -> BTreeSet<String> {
        let replicas = peer.snapshot().replicas;
        let up = replicas.iter().filter(|replica| replica.is_connected);
        up.map(|replica| replica.address.to_string()).collect()
    };
    let settle = async |on: &[&Served]| {
        let wanted: BTreeSet<_> = on.iter().map(|served| served.address.to_string()).collect();
        in_time(async {
            while connected() != wanted {
                tokio::task::yield_now().await;
            }
        })
        .await;
    };
    in_time(peer.connected(soon())).await.expect("a server");
    settle(&[&served[0], &served[1]]).await;
    let mut calls = JoinSet::new();
    let mut start = || {
        let peer = peer.clone();
        calls.spawn(async move { peer.call(soon(), Priority::Ordinary, Bytes::new()).await });
    };
    start();
    start();
    gates[0].entered(1).await;
    gates[1].entered(1).await;

    // One is replaced: it gets no more calls, and the one that it has is answered.
    names.lead_to(&[&served[1], &served[2]]);
    settle(&[&served[1], &served[2]]).await;
    for _ in 0..4 {
        start();
    }
    gates[1].entered(1).await;
    gates[2].entered(2).await;
    for gate in &gates {
        gate.open.add_permits(10);
    }
    while let Some(outcome) = in_time(calls.join_next()).await {
        outcome.expect("no panic").expect("nothing is lost by a change of addresses");
    }
    served[0].next_end().await.expect("closed when it had its answers");

    // A name server that fails, or says nothing, changes nothing.
    names.fails.store(true, Ordering::SeqCst);
    names.asked().await;
    names.asked().await;
    names.fails.store(false, Ordering::SeqCst);
    names.lead_to(&[]);
    names.asked().await;
    names.asked().await;
    assert!(call(&peer).await.is_ok());
    assert_eq!(connected().len(), 2);
}

#[tokio::test]
async fn a_successor_with_another_address_is_found_and_waited_for_until_it_listens() {
    let served = Served::start(&tcp(), Limits::default(), echo()).await;
    let names = Names::default();
    names.lead_to(&[&served]);
    let limits = Limits {
        // Only what is awaited is looked for so soon.
        resolve_every: Duration::from_secs(60 * 60),
        back_off_max: Duration::from_millis(10),
        drain_wait_max: Duration::from_secs(20),
        ..Limits::default()
    };
    let address: Address = "products.internal:7001".parse().expect("an address");
    let peer = Peer::resolved_by(names.resolve(), vec![address], hello("caller"), anybody(), limits, None);
    assert!(call(&peer).await.is_ok());
    names.asked().await;
    went(served, &peer).await;
    // At the loss, and when nobody was there: the name leads where it did.
    names.asked().await;
    names.asked().await;
    let later = bound(&tcp()).await.address().expect("a bound address");
    let at = later.to_string();
    *names.leads_to.lock().expect("no panic") = vec![at.parse().expect("a port")];
    let waiting = tokio::spawn({
        let peer = peer.clone();
        async move { call(&peer).await }
    });
    until(|| peer.last_error().is_some_and(|error| error.contains(&at))).await;
    assert!(!waiting.is_finished());
    let _successor = Served::start(&later, Limits::default(), echo()).await;
    assert_eq!(in_time(waiting).await.expect("no panic"), Ok(Bytes::from_static(b"work")));
}

#[tokio::test]
async fn a_name_that_leads_nowhere_is_named() {
    let names = Names::default();
    names.fails.store(true, Ordering::SeqCst);
    let address: Address = "products.internal:7001".parse().expect("an address");
    let peer = Peer::resolved_by(
        names.resolve(),
        vec![address],
        hello("caller"),
        anybody(),
        Limits::default(),
        None,
    );
    let fault = call(&peer).await.expect_err("nobody is there").to_string();
    assert!(fault.contains("products.internal:7001: cannot resolve: no name server"), "{fault}");
    assert_eq!(peer.last_error().as_deref(), Some(&fault["not run: ".len()..]));
    // It is found as soon as it can be.
    let served = Served::start(&tcp(), Limits::default(), echo()).await;
    names.lead_to(&[&served]);
    names.fails.store(false, Ordering::SeqCst);
    in_time(peer.connected(soon())).await.expect("a server");
    assert!(call(&peer).await.is_ok());
}

/// Two processes of one service share its places, and leave those of another alone.
#[tokio::test]
async fn a_calling_service_has_so_many_places_over_all_its_connections() {
    let gate = Gate::new();
    let limits = Limits { in_flight_max: 4, in_flight_reserved: 1, ..Limits::default() };
    let listener = Listener::bind(&tcp()).await.expect("a free port");
    let address = listener.address().expect("a bound address");
    let (handler, shutdown) = (Arc::new(gate.clone()), CancellationToken::new());
    let server =
        tokio::spawn(serve(listener, hello("served"), anybody(), limits, handler, None, shutdown.clone()));
    let caller = |service| Peer::new(vec![address.clone()], hello(service), anybody(), Limits::default());
    let (first, second, other) = (caller("orders"), caller("orders"), caller("carts"));
    let mut calls = JoinSet::new();
    let mut start = |peer: &Peer, priority| {
        let peer = peer.clone();
        calls.spawn(async move { peer.call(soon(), priority, Bytes::new()).await });
    };
    start(&first, Priority::Ordinary);
    start(&first, Priority::Ordinary);
    start(&second, Priority::Ordinary);
    gate.entered(3).await;
    for peer in [&first, &second] {
        let fault = call(peer).await.expect_err("three of four places are for ordinary calls");
        let CallFault::NotRun(NotRun::Rejected(rejection)) = fault else { panic!("{fault}") };
        assert!(rejection.reason.contains("too many calls of this caller"), "{rejection}");
        assert_eq!(rejection.retry_after_ms, Some(50));
    }
    start(&second, Priority::Reserved);
    start(&other, Priority::Ordinary);
    gate.entered(2).await;
    gate.open.add_permits(10);
    while let Some(outcome) = in_time(calls.join_next()).await {
        assert_eq!(outcome.expect("no panic"), Ok(Bytes::new()));
    }
    // Places come back.
    assert!(call(&first).await.is_ok());
    shutdown.cancel();
    in_time(server).await.expect("no panic");
}
