//! Repeats over real sockets: how often the last service of a chain is asked when it fails.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use modulith_core::{
    CallFault, Context, JsonCodec, Kind, Never, NotRun, NotRunReason, Outcome, RemoteCall, RemoteCalls,
    Repeats,
};
use modulith_transport::{
    Address, Admit, Handled, Handler, Hello, Incoming, Limits, Listener, Peer, Rejection, Token, serve,
};
use tokio_util::sync::CancellationToken;

use super::{Peers, RemoteLink, Told};
use crate::check::fixture::contract;
use crate::hosted::ProcessKeys;
use crate::metrics::Metrics;

pub(super) fn hello(service: &str) -> Hello {
    let token = Token::new("one token for all");
    Hello { service: service.to_owned(), incarnation: [3; 16], token, about: Bytes::new() }
}

pub(super) fn anybody() -> Admit {
    Arc::new(|_| Ok(()))
}

pub(super) async fn served(handler: impl Handler) -> Address {
    let listener = Listener::bind(&Address::Tcp("127.0.0.1:0".to_owned())).await.expect("a free port");
    let address = listener.address().expect("a bound address");
    let (limits, stop) = (Limits::default(), CancellationToken::new());
    tokio::spawn(serve(listener, hello("served"), anybody(), limits, Arc::new(handler), None, stop));
    address
}

/// A way to the service at this address. It looks at repeats alone, so nothing is held back.
fn link(to: Address) -> Arc<RemoteLink> {
    let limits = Limits { breaker_calls_min: u64::MAX, ..Limits::default() };
    let peer = Peer::new(vec![to], hello("caller"), anybody(), limits);
    let peers = Peers::new(vec![("next".to_owned(), peer)], BTreeMap::new());
    let model = contract("next", &[("ask", Kind::Query)]);
    let metrics = Metrics::new("caller", &[], [("next".to_owned(), vec![&model])]);
    let meters = metrics.peers[0].calls.contract("next").expect("declared above").clone();
    Arc::new(RemoteLink {
        peers: Arc::new(peers),
        service: 0,
        keys: Arc::new(ProcessKeys::new()),
        metrics: Arc::new(metrics),
        meters,
    })
}

fn call() -> RemoteCall {
    let json = JsonCodec::of::<(), (), Never>();
    RemoteCall { contract: "next", method: "ask", kind: Kind::Query, key: None, json }
}

/// A service that is too busy, and counts how often it is asked.
async fn busy(asked: &Arc<AtomicU32>, retry_after_ms: Option<u32>) -> Address {
    let asked = Arc::clone(asked);
    served(move |_: Incoming| {
        asked.fetch_add(1, Ordering::SeqCst);
        Handled::Now(Err(Rejection { reason: "busy".to_owned(), retry_after_ms }))
    })
    .await
}

/// A service that asks the next one for its answer, as an effect's code may.
async fn in_between(next: Address) -> Address {
    let link = link(next);
    served(move |incoming: Incoming| {
        let link = Arc::clone(&link);
        Handled::Later(Box::pin(async move {
            let (head, _) = super::wire::read(&incoming.payload).expect("a call");
            let context = super::answers::context(head, &incoming);
            let told = match context.scope(async { link.call(call(), &()).await }).await {
                Ok(outcome) => Told::Outcome(outcome),
                Err(CallFault::NotRun(not_run)) => Told::NotRun(not_run),
                Err(CallFault::Unknown(unknown)) => Told::Unknown(unknown),
            };
            Ok(told.encode().expect("short").into())
        }))
    })
    .await
}

async fn ask(link: &RemoteLink, context: Context) -> Result<Outcome, CallFault> {
    let deadline = Some(Instant::now() + Duration::from_secs(20));
    Context { deadline, ..context }.scope(async { link.call(call(), &()).await }).await
}

fn is_overloaded(outcome: &Result<Outcome, CallFault>) -> bool {
    matches!(outcome, Err(CallFault::NotRun(NotRun { reason: NotRunReason::Overloaded, .. })))
}

#[tokio::test]
async fn only_the_outermost_caller_of_a_chain_repeats() {
    let asked = Arc::new(AtomicU32::new(0));
    let chain = in_between(in_between(busy(&asked, None).await).await).await;
    let outcome = ask(&link(chain), Context::background("r-1")).await;
    assert!(is_overloaded(&outcome), "{outcome:?}");
    // Four attempts at each of three hops would be 64.
    assert_eq!(asked.load(Ordering::SeqCst), 1 + Repeats::DEFAULT);
}

#[tokio::test]
async fn all_calls_of_a_request_share_its_repeats() {
    let asked = Arc::new(AtomicU32::new(0));
    let link = link(busy(&asked, None).await);
    let request = Context::background("r-1");
    for _ in 0..5 {
        assert!(is_overloaded(&ask(&link, request.clone()).await));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 5 + Repeats::DEFAULT);
}

#[tokio::test]
async fn many_requests_share_what_one_peer_gets() {
    let asked = Arc::new(AtomicU32::new(0));
    let link = link(busy(&asked, None).await);
    let began = Instant::now();
    for _ in 0..200 {
        assert!(is_overloaded(&ask(&link, Context::background("r")).await));
    }
    // A tenth, ten to begin with, and ten a second.
    let repeats = asked.load(Ordering::SeqCst) - 200;
    let most = 20 + 10 + 10 * (began.elapsed().as_secs() as u32 + 1);
    assert!((30..=most).contains(&repeats), "{repeats} of at most {most}");
}

#[tokio::test]
async fn a_hint_beyond_the_deadline_is_not_waited_for() {
    let asked = Arc::new(AtomicU32::new(0));
    let link = link(busy(&asked, Some(3_600_000)).await);
    let outcome = tokio::time::timeout(Duration::from_secs(10), ask(&link, Context::background("r-1"))).await;
    let Ok(Err(CallFault::NotRun(not_run))) = outcome else { panic!("{outcome:?}") };
    assert_eq!((not_run.retry_after_ms, asked.load(Ordering::SeqCst)), (Some(3_600_000), 1));
}
