//! Answers the calls of other services.
//!
//! Refuses what the caller's modules did not declare as a need, whatever the caller says. A query runs at once, on the
//! connection's task; everything else is waited for.

use std::sync::Arc;

use bytes::Bytes;
use modulith_core::{
    CallFault, Context, Fault, NotRun, NotRunReason, Repeats, Unknown, UnknownReason, decode,
};
use modulith_data::saga::{Ask as SagaAsk, Asked};
use modulith_transport::{Handled, Handler, HelloInfo, Incoming, Rejection};

use super::hello::Neighbour;
use super::wire::{self, Ask, Head, Told};
use crate::hosted::Hosted;

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
        let (head, request) = wire::read(&call.payload)?;
        let neighbour: &Neighbour = call.peer.note.get().ok_or("the caller was never admitted")?;
        if head.ask == Ask::Saga {
            let asked: Asked = decode(&request).map_err(|fault| fault.message)?;
            self.may_ask(neighbour, &asked).map_err(|contract| undeclared(&call.peer, contract))?;
            let (hosted, context) = (self.hosted.clone(), context(head, call));
            return Ok(later(async move {
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
        let hosted = self.hosted.clone();
        Ok(match head.ask {
            Ask::Query if !method.is_heavy() => {
                Handled::Now(told_bytes(&self.hosted.query(&method, &request)))
            }
            Ask::Query => {
                let deadline = call.deadline;
                later(async move { hosted.heavy_query(deadline, method, request).await })
            }
            Ask::Command => {
                let keyed = head.keyed.ok_or("a command without a key")?;
                let deadline = call.deadline;
                later(async move {
                    hosted.command(deadline, method, keyed, request).await.unwrap_or_else(Told::from)
                })
            }
            Ask::Effect => {
                let context = context(head, call);
                // What it says about overload is said of the outside world, not of this service.
                Handled::Later(Box::pin(async move {
                    told_bytes(&hosted.call_effect(method, request, context).await)
                }))
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

/// The context of another service's call: its deadline is inherited as what was left of it when it was sent.
pub(super) fn context(head: Head<'_>, call: &Incoming) -> Context {
    Context {
        principal: head.principal,
        deadline: Some(call.deadline),
        // Its caller repeats, if anybody does.
        repeats: Repeats::none(),
        ..Context::background(head.request_id)
    }
}

fn later(answer: impl Future<Output = Told> + Send + 'static) -> Handled {
    Handled::Later(Box::pin(async move {
        match answer.await {
            // In the transport's own words, so that the caller's side of the connection hears it too.
            Told::NotRun(NotRun { reason: NotRunReason::Overloaded, detail, retry_after_ms }) => {
                Err(Rejection { reason: detail, retry_after_ms })
            }
            told => told_bytes(&told),
        }
    }))
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
