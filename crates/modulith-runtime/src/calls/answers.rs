//! Answers the calls of other services.
//!
//! Refuses what the caller's modules did not declare as a need when it connected, and requests from outside by
//! anybody but the gateway, since they say who asks. A query runs at once, on the connection's task; everything else is
//! waited for.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use modulith_core::{
    CallFault, Context, Fault, NotRun, NotRunReason, Repeats, Trace, Unknown, UnknownReason, decode,
};
use modulith_data::saga::{Ask as SagaAsk, Asked};
use modulith_gateway::Backend;
use modulith_transport::{BodyReader, Handled, Handler, HelloInfo, Incoming, Rejection};
use tracing::{Instrument, Span};

use super::hello::Neighbour;
use super::methods::Methods;
use super::wire::{self, Ask, Head, Told};
use crate::hosted::{Hosted, not_served};
use crate::metrics::{CallMeter, Ended};
use crate::spans;
use crate::topology::GATEWAY;

/// See the module's documentation.
pub(crate) struct Answers {
    pub(crate) hosted: Arc<Hosted>,
    pub(crate) methods: Methods,
    pub(crate) http: Backend,
}

impl Handler for Answers {
    fn handle_now(&self, mut call: Incoming) -> Handled {
        let started = call.arrived;
        let body = call.body.take();
        self.handle(&call, body, started).unwrap_or_else(|reason| {
            self.hosted.metrics.answers.unknown().ended(Ended::NotRun, started.elapsed());
            // Certainly not run, and not worth repeating.
            Handled::Now(told_bytes(NotRun::new(NotRunReason::Incompatible, reason).into()))
        })
    }
}

impl Answers {
    fn handle(&self, call: &Incoming, body: Option<BodyReader>, started: Instant) -> Result<Handled, String> {
        let meters = &self.hosted.metrics.answers;
        let names = wire::names(&call.payload).unwrap_or_default();
        let known = self.methods.get(names);
        let (mut head, request) = match known {
            Some(method) => wire::read_behind(&call.payload, names, method.contract, method.name),
            None => wire::read(&call.payload),
        }?;
        head.trace = head.trace.map(Trace::next);
        let neighbour: &Neighbour = call.peer.note.get().ok_or("the caller was never admitted")?;
        if head.ask == Ask::Http {
            return Ok(self.http(head, &call.payload.slice_ref(request), body, call).unwrap_or_else(
                |reason| {
                    tracing::warn!(service = call.peer.service, reason, "request refused");
                    Handled::Now(Err(Rejection::new(reason)))
                },
            ));
        }
        if head.ask == Ask::Saga {
            let asked: Asked = decode(request).map_err(|fault| fault.message)?;
            self.may_ask(neighbour, &asked).map_err(|contract| undeclared(&call.peer, contract))?;
            let contract = asked.ask.contract().unwrap_or_default();
            let span = spans::answer(head.trace.as_ref(), head.request_id, contract, asked.ask.name());
            let seen = Seen { span, meter: meters.ask(&asked.ask).clone(), started };
            let (hosted, context) = (self.hosted.clone(), context(head, call));
            let of = if asked.ask.goes_outside() { Of::TheOutsideWorld } else { Of::ThisService };
            return Ok(later(seen, of, async move {
                hosted.participant.answer(asked, context).await.map_or_else(Told::from, Told::Saga)
            }));
        }
        if !neighbour.needs(head.contract) {
            return Err(undeclared(&call.peer, head.contract));
        }
        let Some(method) = known.or_else(|| self.methods.find(head.contract, head.method)) else {
            meters.call(head.contract, head.method).ended(Ended::NotRun, started.elapsed());
            return Ok(Handled::Now(told_bytes(not_served(head.contract, head.method).into())));
        };
        let span = spans::answer(head.trace.as_ref(), head.request_id, head.contract, head.method);
        if head.ask == Ask::Query && !method.is_heavy() {
            return Ok(Handled::Now(span.in_scope(|| {
                let began = method.pace.began(started);
                let told = self.hosted.query(&method.found, request);
                let ended = count(&method.meter, &span, started, &told);
                method.pace.took(ended.saturating_duration_since(began));
                told_bytes(told)
            })));
        }
        let seen = Seen { span, meter: method.meter.clone(), started };
        let (hosted, found) = (self.hosted.clone(), method.found.clone());
        let request = call.payload.slice_ref(request);
        Ok(match head.ask {
            Ask::Query => {
                let deadline = call.deadline;
                let method = method.clone();
                let took = move |time| method.pace.took(time);
                later(seen, Of::ThisService, async move {
                    hosted.heavy_query(deadline, found, request, took).await
                })
            }
            Ask::Command => {
                let keyed = head.keyed.ok_or("a command without a key")?;
                let deadline = call.deadline;
                later(seen, Of::ThisService, async move {
                    hosted.command(deadline, found, keyed, request).await.unwrap_or_else(Told::from)
                })
            }
            Ask::Effect => {
                let key = head.keyed.as_ref().map(|keyed| keyed.key);
                let context = Context { key, ..context(head, call) };
                later(
                    seen,
                    Of::TheOutsideWorld,
                    async move { hosted.call_effect(found, request, context).await },
                )
            }
            Ask::Saga | Ask::Http => unreachable!("answered above"),
        })
    }

    fn http(
        &self,
        head: Head<'_>,
        request: &Bytes,
        body: Option<BodyReader>,
        call: &Incoming,
    ) -> Result<Handled, String> {
        let service = &call.peer.service;
        if service != GATEWAY {
            return Err(format!("service `{service}` is not the gateway and sends a request from outside"));
        }
        // The gateway repeats only what no handler has seen, so this is where the request's repeats begin.
        let context = Context { repeats: Repeats::default(), ..context(head, call) };
        let handled = self.http.handle(context, request, body);
        handled.map_err(|why| format!("the request cannot be read: {why}"))
    }

    /// The first contract that the caller would need and did not declare. A run's contracts are those of its steps; a
    /// plan that is not known here is answered as such.
    fn may_ask<'a>(&'a self, neighbour: &Neighbour, asked: &'a Asked) -> Result<(), &'a str> {
        let is_missing = |contract: &&str| !neighbour.needs(contract);
        let missing = match &asked.ask {
            SagaAsk::Run { plan, first, last, .. } => {
                let plans = self.hosted.participant.plans();
                let steps = plans.get(&**plan).and_then(|plan| plan.steps.get(*first..*last));
                steps.unwrap_or_default().iter().map(|step| step.contract).find(is_missing)
            }
            ask => ask.contract().filter(is_missing),
        };
        missing.map_or(Ok(()), Err)
    }
}

fn undeclared(peer: &HelloInfo, contract: &str) -> String {
    let service = &peer.service;
    format!("service `{service}` calls contract `{contract}` and none of its modules declared that need")
}

/// The context of another service's call: its deadline is inherited as what was left of it when it was sent.
pub(super) fn context(head: Head<'_>, call: &Incoming) -> Context {
    Context {
        principal: head.principal.map(Into::into),
        deadline: Some(call.deadline),
        // Its caller repeats, if anybody does.
        repeats: Repeats::none(),
        trace: head.trace,
        ..Context::background(head.request_id)
    }
}

/// What is seen of one call.
struct Seen {
    span: Span,
    meter: Arc<CallMeter>,
    started: Instant,
}

impl Seen {
    fn count(&self, told: &Told) {
        count(&self.meter, &self.span, self.started, told);
    }
}

/// The call is counted, and of a sampled one there is a line that ends it; when it ended.
fn count(meter: &CallMeter, span: &Span, started: Instant, told: &Told) -> Instant {
    let (ended, now) = (told.ended(), Instant::now());
    let took = now.saturating_duration_since(started);
    meter.ended(ended, took);
    if !span.is_none() {
        tracing::debug!(outcome = ended.name(), us = took.as_micros() as u64, "answered");
    }
    now
}

/// Whose overload it is that an answer tells of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    ThisService,
    TheOutsideWorld,
}

/// A caller that leaves drops the future: then nobody learns an outcome, and none is counted.
fn later(seen: Seen, of: Of, answer: impl Future<Output = Told> + Send + 'static) -> Handled {
    let span = seen.span.clone();
    let answer = async move {
        let told = answer.await;
        seen.count(&told);
        match told {
            // In the transport's own words, so that the caller's side of the connection hears it too.
            Told::NotRun(NotRun { reason: NotRunReason::Overloaded, detail, retry_after_ms })
                if of == Of::ThisService =>
            {
                Err(Rejection { reason: detail, retry_after_ms })
            }
            told => told_bytes(told).map(Into::into),
        }
    };
    Handled::Later(Box::pin(answer.instrument(span)))
}

fn told_bytes(told: Told) -> Result<Vec<u8>, Rejection> {
    match told.encode() {
        Ok(bytes) => Ok(bytes),
        // The call may have run, so this cannot be a rejection.
        Err(Fault { message, .. }) => {
            let told = Told::Unknown(Unknown::new(UnknownReason::Unreadable, message));
            told.encode().map_err(|fault| Rejection::new(fault.message))
        }
    }
}

impl From<NotRun> for Told {
    fn from(not_run: NotRun) -> Self {
        Told::NotRun(not_run)
    }
}

impl From<CallFault> for Told {
    fn from(fault: CallFault) -> Self {
        match fault {
            CallFault::NotRun(not_run) => Told::NotRun(not_run),
            CallFault::Unknown(unknown) => Told::Unknown(unknown),
        }
    }
}

#[cfg(test)]
mod tests {
    use modulith_data::saga::Ask as SagaAsk;

    use super::*;

    /// Only what this service says of itself makes its callers send it less.
    #[tokio::test]
    async fn a_providers_overload_is_not_ours() {
        let effect = SagaAsk::Effect {
            contract: "bank".to_owned(),
            method: "charge".to_owned(),
            step: 0,
            request: Vec::new(),
        };
        assert!(effect.goes_outside());
        for of in [Of::ThisService, Of::TheOutsideWorld] {
            let seen = Seen { span: Span::none(), meter: Arc::default(), started: Instant::now() };
            let full = NotRun::new(NotRunReason::Overloaded, "full").retry_after_ms(5);
            let Handled::Later(answer) = later(seen, of, std::future::ready(Told::NotRun(full))) else {
                panic!("it is answered later");
            };
            assert_eq!(answer.await.is_err(), of == Of::ThisService);
        }
    }
}
