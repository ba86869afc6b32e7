//! Answers the calls of other services.
//!
//! Refuses what the caller's modules did not declare as a need, whatever the caller says. A query runs at once, on the
//! connection's task; everything else is waited for.

use std::sync::Arc;

use bytes::Bytes;
use modulith_core::{CallFault, Context, Fault, NotRun, NotRunReason, Trace, Unknown, UnknownReason, decode};
use modulith_data::saga::{Ask as SagaAsk, Asked};
use modulith_transport::{Handled, Handler, HelloInfo, Incoming, Rejection};
use tracing::{Instrument, Span};

use super::hello::Neighbour;
use super::wire::{self, Ask, Head, Told};
use crate::hosted::Hosted;
use crate::spans;

/// See the module's documentation.
pub(crate) struct Answers {
    pub(crate) hosted: Arc<Hosted>,
}

impl Handler for Answers {
    fn handle_now(&self, call: Incoming) -> Handled {
        self.handle(&call).unwrap_or_else(|reason| {
            // Certainly not run, and not worth repeating.
            Handled::Now(told_bytes(&NotRun::new(NotRunReason::Incompatible, reason).into()))
        })
    }
}

impl Answers {
    fn handle(&self, call: &Incoming) -> Result<Handled, String> {
        let (mut head, request) = wire::read(&call.payload)?;
        head.trace = head.trace.map(Trace::next);
        let neighbour: &Neighbour = call.peer.note.get().ok_or("the caller was never admitted")?;
        if head.ask == Ask::Saga {
            let asked: Asked = decode(&request).map_err(|fault| fault.message)?;
            self.may_ask(neighbour, &asked).map_err(|contract| undeclared(&call.peer, contract))?;
            let contract = asked.ask.contract().unwrap_or_default();
            let span = spans::answer(head.trace.as_ref(), head.request_id, contract, asked.ask.name());
            let (hosted, context) = (self.hosted.clone(), context(head, call));
            return Ok(later(span, async move {
                hosted.participant.answer(asked, context).await.map_or_else(Told::from, Told::Saga)
            }));
        }
        if !neighbour.needs(head.contract) {
            return Err(undeclared(&call.peer, head.contract));
        }
        let method = match self.hosted.find(head.contract, head.method) {
            Ok(method) => method,
            Err(not_run) => return Ok(Handled::Now(told_bytes(&not_run.into()))),
        };
        let span = spans::answer(head.trace.as_ref(), head.request_id, head.contract, head.method);
        let hosted = self.hosted.clone();
        Ok(match head.ask {
            Ask::Query if !method.is_heavy() => {
                Handled::Now(span.in_scope(|| answered(&span, &self.hosted.query(&method, &request))))
            }
            Ask::Query => later(span, async move { hosted.heavy_query(method, request).await }),
            Ask::Command => {
                let keyed = head.keyed.ok_or("a command without a key")?;
                let deadline = call.deadline;
                later(span, async move {
                    hosted.command(deadline, method, keyed, request).await.unwrap_or_else(Told::from)
                })
            }
            Ask::Effect => {
                let context = context(head, call);
                later(span, async move { hosted.call_effect(method, request, context).await })
            }
            Ask::Saga => unreachable!("answered above"),
        })
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

fn context(head: Head<'_>, call: &Incoming) -> Context {
    Context {
        principal: head.principal,
        deadline: Some(call.deadline),
        trace: head.trace,
        ..Context::background(head.request_id)
    }
}

fn later(span: Span, answer: impl Future<Output = Told> + Send + 'static) -> Handled {
    let within = span.clone();
    Handled::Later(Box::pin(async move { answered(&within, &answer.await).map(Into::into) }.instrument(span)))
}

/// The answer's bytes; of a sampled call also the line that ends it.
fn answered(span: &Span, told: &Told) -> Result<Bytes, Rejection> {
    if !span.is_none() {
        tracing::debug!(outcome = told.outcome(), "answered");
    }
    told_bytes(told)
}

fn told_bytes(told: &Told) -> Result<Bytes, Rejection> {
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
