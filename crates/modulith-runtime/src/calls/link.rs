//! A client's calls to a module of another process, and their repeats.
//!
//! Repeats what is idempotent, and only for the outermost caller: within the deadline, the repeats of its request
//! ([`Context::repeats`]) and the peer's share ([`RepeatBudget`](modulith_transport::RepeatBudget)). What a saga asks does not come here; its walk repeats.

use std::future::ready;
use std::sync::Arc;
use std::time::{Duration, Instant};

use modulith_core::{
    BoxFuture, CallFault, Context, Encode, Fault, Kind, NotRun, NotRunReason, Outcome, RemoteCall,
    RemoteCalls, Repeats, Trace, Unknown, UnknownReason,
};
use modulith_data::inbox::body_hash;
use modulith_transport::{Priority, Terms};
use tracing::{Instrument, Span};

use super::peers::Peers;
use super::wire::{Ask, Asker, Head, Keyed, Told};
use crate::hosted::{AUTOMATIC_KEYS_KEPT_MS, CLIENT_KEYS_KEPT_MS, ProcessKeys, client_step_key, effect_key};
use crate::metrics::{ContractMeters, Ended, Metrics};
use crate::spans;

/// The longest pause before the second attempt; it doubles. Each pause is a random part of it ("full jitter": Brooker,
/// "Exponential Backoff And Jitter", 2015).
const PAUSE_FIRST: Duration = Duration::from_millis(20);

/// A client's way to a module of another process.
pub(crate) struct RemoteLink {
    pub(crate) peers: Arc<Peers>,
    pub(crate) service: usize,
    pub(crate) keys: Arc<ProcessKeys>,
    pub(crate) metrics: Arc<Metrics>,
    /// Of the contract.
    pub(crate) meters: Arc<ContractMeters>,
}

/// What a call takes from the context that it is made in.
struct Asked {
    payload: Vec<u8>,
    deadline: Instant,
    repeats: Repeats,
    span: Span,
}

impl RemoteCalls for RemoteLink {
    fn call<'a>(
        &'a self,
        call: RemoteCall,
        request: &dyn Encode,
    ) -> BoxFuture<'a, Result<Outcome, CallFault>> {
        let (meter, now) = (self.meters.of(call.method), Instant::now());
        let Asked { payload, deadline, repeats, span } =
            match Context::with(|c| self.asked(&call, request, c, now)) {
                Ok(asked) => asked,
                Err(not_run) => {
                    meter.ended(Ended::NotRun, now.elapsed());
                    return Box::pin(ready(Err(not_run.into())));
                }
            };
        let kind = call.kind;
        let called = async move {
            self.peers.earn(self.service);
            let result = match self.attempt(&payload, now, deadline).await {
                Ok(outcome) => Ok(outcome),
                // Apart, so that a call which needs no repeat has a small future.
                Err(fault) => Box::pin(self.repeat(kind, fault, payload, deadline, repeats)).await,
            };
            meter.ended(Ended::of(&result), now.elapsed());
            result
        };
        if span.is_none() { Box::pin(called) } else { Box::pin(called.instrument(span)) }
    }
}

/// Attempts at one call behind one that failed, until there is an answer or none is to be expected. Of what must not be
/// repeated there is none. `spend` asks for the peer's share of a repeat; `retried` is told before each.
pub(super) async fn repeated<A>(
    kind: Kind,
    mut fault: CallFault,
    repeats: &Repeats,
    deadline: Instant,
    spend: impl Fn() -> bool,
    retried: impl Fn(),
    mut attempt: impl FnMut() -> A,
) -> Result<Outcome, CallFault>
where
    A: Future<Output = Result<Outcome, CallFault>>,
{
    let mut pause = PAUSE_FIRST;
    // Once an attempt is unknown, a later one that was refused a place says nothing about it.
    let mut unknown: Option<Unknown> = None;
    loop {
        if let CallFault::Unknown(fault) = &fault {
            unknown.get_or_insert_with(|| fault.clone());
        }
        let wait = retry_after(&fault) + full_jitter(pause);
        // The repeats of the request are taken last, so that none is spent on what is not repeated.
        let again = may_repeat(kind, &fault)
            && Instant::now() + wait < deadline
            && repeats.left() > 0
            && spend()
            && repeats.take();
        if !again {
            return Err(match unknown {
                Some(unknown) if kind != Kind::Query => unknown.into(),
                _ => fault,
            });
        }
        retried();
        tokio::time::sleep(wait).await;
        pause *= 2;
        fault = match attempt().await {
            Ok(outcome) => return Ok(outcome),
            Err(fault) => fault,
        };
    }
}

impl RemoteLink {
    async fn attempt(&self, payload: &[u8], now: Instant, deadline: Instant) -> Result<Outcome, CallFault> {
        let terms = Terms { now, deadline, priority: Priority::Ordinary };
        match self.peers.send(self.service, payload, terms).await? {
            Told::Outcome(outcome) => Ok(outcome),
            _ => Err(Unknown::new(UnknownReason::Unreadable, "an answer of another kind than asked").into()),
        }
    }

    async fn repeat(
        &self,
        kind: Kind,
        fault: CallFault,
        payload: Vec<u8>,
        deadline: Instant,
        repeats: Repeats,
    ) -> Result<Outcome, CallFault> {
        let spend = || self.peers.spend(self.service);
        let retried = || self.metrics.peers[self.service].retries.add(1);
        let attempt = || self.attempt(&payload, Instant::now(), deadline);
        repeated(kind, fault, &repeats, deadline, spend, retried, attempt).await
    }

    fn asked(
        &self,
        call: &RemoteCall,
        request: &dyn Encode,
        context: &Context,
        now: Instant,
    ) -> Result<Asked, NotRun> {
        let trace = context.trace.clone().map(Trace::next);
        Ok(Asked {
            deadline: context.deadline.unwrap_or_else(|| now + Context::DEADLINE_DEFAULT),
            repeats: context.repeats.clone(),
            span: spans::call(trace.as_ref(), &context.request_id, call.contract, call.method),
            payload: self.payload(call, request, context, trace)?,
        })
    }

    /// Under which key the callee runs it.
    fn keyed(&self, call: &RemoteCall, context: &Context, request: &[u8]) -> Keyed {
        let RemoteCall { contract, method, .. } = *call;
        let key = match (call.kind, &call.key) {
            (Kind::Command, Some(key)) => {
                let (key, hash) = (client_step_key(key, contract, method), key.body_hash());
                return Keyed { key, hash, kept_ms: CLIENT_KEYS_KEPT_MS };
            }
            (Kind::Effect, _) => effect_key(context, &self.keys, contract, method, request),
            _ => self.keys.next(),
        };
        Keyed { key, hash: body_hash(request), kept_ms: AUTOMATIC_KEYS_KEPT_MS }
    }

    fn payload(
        &self,
        call: &RemoteCall,
        request: &dyn Encode,
        context: &Context,
        trace: Option<Trace>,
    ) -> Result<Vec<u8>, Fault> {
        let mut head = Head {
            ask: match call.kind {
                Kind::Query => Ask::Query,
                Kind::Command => Ask::Command,
                Kind::Effect => Ask::Effect,
            },
            contract: call.contract,
            method: call.method,
            request_id: &context.request_id,
            principal: context.principal.as_ref().map(Asker::from),
            keyed: None,
            trace,
        };
        // The callee makes the key of an effect that is not within another.
        if call.kind == Kind::Command || (call.kind == Kind::Effect && context.key.is_some()) {
            // Its hash stands before it.
            let mut body = Vec::new();
            request.encode_onto(&mut body)?;
            head.keyed = Some(self.keyed(call, context, &body));
            return head.with_body(&body);
        }
        let mut out = head.with_body(&[])?;
        request.encode_onto(&mut out)?;
        Ok(out)
    }
}

fn may_repeat(kind: Kind, fault: &CallFault) -> bool {
    match (kind, fault) {
        (_, CallFault::NotRun(not_run)) => {
            matches!(
                not_run.reason,
                NotRunReason::Unavailable | NotRunReason::Overloaded | NotRunReason::Stopping
            )
        }
        (Kind::Query | Kind::Command, CallFault::Unknown(unknown)) => {
            unknown.reason == UnknownReason::ConnectionLost
        }
        (Kind::Effect, CallFault::Unknown(_)) => false,
    }
}

/// How long whoever declined wants to be left alone.
fn retry_after(fault: &CallFault) -> Duration {
    let ms = match fault {
        CallFault::NotRun(not_run) => not_run.retry_after_ms.unwrap_or(0),
        CallFault::Unknown(_) => 0,
    };
    Duration::from_millis(ms.into())
}

/// Between nothing and all of `pause`.
fn full_jitter(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    pause.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

/// Between half and all of `pause`, so that callers who failed together do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    pause / 2 + full_jitter(pause / 2)
}
