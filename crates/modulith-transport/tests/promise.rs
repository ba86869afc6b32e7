//! *Not run* is a promise. Callers give up, run into deadlines and fill the buffers while the server is killed and
//! restarted; afterwards no call that was said not to have run may be among those that the servers saw.

mod support;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt;
use modulith_transport::{
    Body, CallFault, ConnectionError, Handled, Incoming, Limits, Priority, Rejection, Reply, Terms,
};
use support::*;
use tokio::task::JoinSet;

/// Whatever callers do, their side of the connection keeps to the protocol.
fn no_rule_was_broken(served: &mut Served) {
    while let Ok(ended) = served.ended.try_recv() {
        assert!(!matches!(ended, Err(ConnectionError::Malformed(_))), "{ended:?}");
    }
}

#[derive(Default)]
struct Counts {
    answered: usize,
    not_run: Vec<u64>,
    unknown: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn not_run_is_never_said_of_a_call_that_ran() {
    const CALLERS: u64 = 48;
    const CALLS: u64 = 100;
    let folder = tempfile::tempdir().expect("a folder");
    for address in [unix(&folder), tcp()] {
        let ran = Arc::new(Mutex::new(HashSet::new()));
        let seen = Arc::clone(&ran);
        let handler = move |call: Incoming| {
            let id = u64::from_le_bytes(call.payload[..8].try_into().expect("eight bytes"));
            if id.is_multiple_of(11) {
                return Handled::Now(Err(Rejection::new("eleven")));
            }
            assert!(seen.lock().expect("no panic").insert(id), "call {id} ran twice");
            if id.is_multiple_of(3) {
                return Handled::Now(Ok(call.payload.into()));
            }
            Handled::Later(Box::pin(async move {
                for _ in 0..id % 50 {
                    tokio::task::yield_now().await;
                }
                // Some bodies come back, some are read a little, and some not at all.
                let body = match (call.body, id % 3) {
                    (Some(body), 0) => Some(Body::new(body)),
                    (Some(mut body), 1) => {
                        let _ = body.next().await;
                        None
                    }
                    _ => None,
                };
                Ok(Reply { payload: call.payload.into(), body })
            }))
        };
        let handler = Arc::new(handler);
        // Small enough that callers meet it.
        let limits = Limits {
            write_buffer_bytes_max: 1 << 20,
            in_flight_max: 45,
            in_flight_reserved: 3,
            // The breaker would keep the calls away from what they are to meet.
            breaker_calls_min: u64::MAX,
            ..Limits::default()
        };
        let mut served = Served::start(&address, limits.clone(), handler.clone()).await;
        let peer = peer_with(&served.address, limits.clone());
        let mut callers = JoinSet::new();
        for caller in 0..CALLERS {
            let peer = peer.clone();
            callers.spawn(async move {
                let mut counts = Counts::default();
                for call in 0..CALLS {
                    let id = caller * CALLS + call;
                    let mut payload = id.to_le_bytes().to_vec();
                    payload
                        .resize(8 + (id * id % 977) as usize * if id.is_multiple_of(5) { 200 } else { 1 }, 7);
                    let payload = Bytes::from(payload);
                    let deadline = match id % 4 {
                        0 => Instant::now() + Duration::from_micros(id % 3000),
                        _ => soon(),
                    };
                    let body = id.is_multiple_of(4).then(|| {
                        let pieces = vec![Ok(Bytes::from(vec![5; (id * 31 % 100_000) as usize])); 3];
                        Body::new(futures_util::stream::iter(pieces))
                    });
                    let call = async {
                        let answer =
                            peer.open(Terms::new(deadline, Priority::Ordinary), &payload, body).await?;
                        if let Some(mut body) = answer.body
                            && !id.is_multiple_of(5)
                        {
                            while let Some(Ok(_)) = body.next().await {}
                        }
                        Ok(answer.payload)
                    };
                    let outcome = if id.is_multiple_of(7) {
                        // Left alone after a moment; what became of it is nobody's business.
                        match tokio::time::timeout(Duration::from_micros(id % 500), call).await {
                            Ok(outcome) => outcome,
                            Err(_) => continue,
                        }
                    } else {
                        call.await
                    };
                    match outcome {
                        Ok(answer) => {
                            assert_eq!(answer, payload);
                            counts.answered += 1;
                        }
                        Err(CallFault::Unknown(_)) => counts.unknown += 1,
                        Err(CallFault::NotRun(_)) => {
                            counts.not_run.push(id);
                            // Not to use up all calls while nobody is there, or while there is no place.
                            let _ = peer.connected(soon()).await;
                            while peer.in_flight() > 30 {
                                tokio::task::yield_now().await;
                            }
                        }
                    }
                }
                counts
            });
        }
        let address = served.address.clone();
        for kill in 1..=6 {
            let enough = kill * 200;
            let progress = async {
                while ran.lock().expect("no panic").len() < enough {
                    tokio::task::yield_now().await;
                }
            };
            in_time(progress).await;
            no_rule_was_broken(&mut served);
            served.kill().await;
            served = Served::start(&address, limits.clone(), handler.clone()).await;
        }
        let mut total = Counts::default();
        while let Some(caller) = in_time(callers.join_next()).await {
            let counts = caller.expect("a promise kept");
            total.answered += counts.answered;
            total.not_run.extend(counts.not_run);
            total.unknown += counts.unknown;
        }
        let ran = ran.lock().expect("no panic").clone();
        for id in &total.not_run {
            assert!(!ran.contains(id), "call {id} ran");
        }
        println!("{} answered, {} not run, {} unknown", total.answered, total.not_run.len(), total.unknown);
        // All three ends were met, else this has shown nothing.
        assert!(total.answered > 0 && !total.not_run.is_empty() && total.unknown > 0);
        assert_eq!(peer.in_flight(), 0);
        no_rule_was_broken(&mut served);
        served.kill().await;
    }
}
