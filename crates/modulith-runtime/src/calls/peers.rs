//! The other services that this one calls: one connection each, and what a failed call means here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use modulith_core::{CallFault, NotRun, NotRunReason, Unknown, UnknownReason};
use modulith_transport::{Payload, Peer, RepeatBudget, Terms};

use super::wire::Told;

/// The other services that this one calls.
pub(crate) struct Peers {
    services: Vec<(String, Peer)>,
    /// The repeats that each of them may get.
    budgets: Vec<RepeatBudget>,
    /// By contract: the position of the service that serves it.
    of_contract: BTreeMap<&'static str, usize>,
}

impl Peers {
    pub(crate) fn new(services: Vec<(String, Peer)>, of_contract: BTreeMap<&'static str, usize>) -> Self {
        let budgets = services.iter().map(|_| RepeatBudget::new(Instant::now())).collect();
        Self { services, budgets, of_contract }
    }

    pub(crate) fn of(&self, contract: &str) -> Option<usize> {
        self.of_contract.get(contract).copied()
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = (&str, &Peer)> {
        self.services.iter().map(|(name, peer)| (&**name, peer))
    }

    /// The services that cannot be reached at this moment, with what was last wrong.
    pub(crate) fn missing(&self) -> Vec<(String, String)> {
        let lost = self.services.iter().filter(|(_, peer)| !peer.is_connected());
        lost.map(|(name, peer)| {
            (name.clone(), peer.last_error().unwrap_or_else(|| "not connected yet".into()))
        })
        .collect()
    }

    /// Connects to all of them and stays at it, so that readiness does not wait for a first call.
    pub(crate) async fn connect(&self) {
        let waits = self.services.iter().map(|(_, peer)| async move {
            loop {
                let soon = Instant::now() + Duration::from_secs(5);
                if peer.connected(soon).await.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        futures_util::future::join_all(waits).await;
    }

    /// A call is made for the first time.
    pub(super) fn earn(&self, service: usize) {
        self.budgets[service].earn();
    }

    /// Whether a call may be repeated now; if so, its share is spent.
    pub(super) fn spend(&self, service: usize) -> bool {
        self.budgets[service].spend(Instant::now())
    }

    /// Asks once. `Told::NotRun` and `Told::Unknown` come back as faults.
    pub(crate) async fn send(
        &self,
        service: usize,
        payload: impl Into<Payload<'_>>,
        terms: Terms,
    ) -> Result<Told, CallFault> {
        let (name, peer) = &self.services[service];
        let answer = peer.open(terms, payload, None).await;
        match Told::decode(answer.map_err(|fault| fault_of(name, fault))?.payload) {
            Ok(Told::NotRun(not_run)) => Err(not_run.into()),
            Ok(Told::Unknown(unknown)) => Err(unknown.into()),
            Ok(told) => Ok(told),
            Err(fault) => {
                Err(Unknown::new(UnknownReason::Unreadable, format!("{name}: {}", fault.message)).into())
            }
        }
    }
}

pub(super) fn fault_of(service: &str, fault: modulith_transport::CallFault) -> CallFault {
    use modulith_transport::{CallFault as C, NotRun as N, Unknown as U};
    match fault {
        C::NotRun(not_run) => {
            let reason = match &not_run {
                N::Unreachable(_) | N::CircuitOpen { .. } => NotRunReason::Unavailable,
                N::Refused(_) => NotRunReason::Incompatible,
                N::QueueFull | N::Rejected(_) | N::HeldBack { .. } => NotRunReason::Overloaded,
                N::Deadline => NotRunReason::Deadline,
                N::TooLarge { .. } => NotRunReason::Fault,
            };
            let retry_after_ms = match &not_run {
                N::CircuitOpen { retry_after_ms } | N::HeldBack { retry_after_ms } => Some(*retry_after_ms),
                N::Rejected(rejection) => rejection.retry_after_ms,
                _ => None,
            };
            NotRun::new(reason, format!("{service}: {not_run}")).retry_after_ms(retry_after_ms).into()
        }
        C::Unknown(unknown) => {
            let reason = match &unknown {
                U::ConnectionLost => UnknownReason::ConnectionLost,
                U::Deadline => UnknownReason::Deadline,
                U::NoAnswer(_) => UnknownReason::Unreadable,
            };
            Unknown::new(reason, format!("{service}: {unknown}")).into()
        }
    }
}
