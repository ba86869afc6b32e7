//! Calls that leave the process, and those that enter it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use modulith_core::{
    BoxFuture, CallFault, Context, ContractModel, Fault, Kind, NotRun, NotRunReason, Outcome, RemoteCall,
    RemoteCalls, Unknown, UnknownReason, decode, encode,
};
use modulith_data::inbox::body_hash;
use modulith_data::saga::{Ask as SagaAsk, Asked};
use modulith_transport::{Handled, Handler, HelloInfo, Incoming, Peer, Priority, Rejection};

use crate::hosted::{AUTOMATIC_KEYS_KEPT_MS, CLIENT_KEYS_KEPT_MS, Hosted, ProcessKeys, client_step_key};
use crate::wire::{About, Ask, ContractFacts, Envelope, Told};

/// Attempts at one call, the first one included. Only what is idempotent is repeated, within the deadline.
const ATTEMPTS_MAX: u32 = 4;
/// The pause before the second attempt; it doubles, with jitter.
const PAUSE_FIRST: Duration = Duration::from_millis(10);

/// The other services that this one calls.
pub(crate) struct Peers {
    services: Vec<(String, Peer)>,
    /// By contract: the position of the service that serves it.
    of_contract: BTreeMap<&'static str, usize>,
}

impl Peers {
    pub(crate) fn new(services: Vec<(String, Peer)>, of_contract: BTreeMap<&'static str, usize>) -> Self {
        Self { services, of_contract }
    }

    pub(crate) fn of(&self, contract: &str) -> Option<usize> {
        self.of_contract.get(contract).copied()
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

    /// Asks once. `Told::NotRun` and `Told::Unknown` come back as faults.
    pub(crate) async fn ask(
        &self,
        service: usize,
        ask: &Envelope,
        deadline: Instant,
        priority: Priority,
    ) -> Result<Told, CallFault> {
        let payload = encode(ask).map_err(NotRun::from)?;
        self.send(service, payload.into(), deadline, priority).await
    }

    async fn send(
        &self,
        service: usize,
        payload: bytes::Bytes,
        deadline: Instant,
        priority: Priority,
    ) -> Result<Told, CallFault> {
        let (name, peer) = &self.services[service];
        let answer = peer.call(deadline, priority, payload).await.map_err(|fault| fault_of(name, fault))?;
        match decode(&answer) {
            Ok(Told::NotRun(not_run)) => Err(not_run.into()),
            Ok(Told::Unknown(unknown)) => Err(unknown.into()),
            Ok(told) => Ok(told),
            Err(fault) => {
                Err(Unknown::new(UnknownReason::Unreadable, format!("{name}: {}", fault.message)).into())
            }
        }
    }
}

fn fault_of(service: &str, fault: modulith_transport::CallFault) -> CallFault {
    use modulith_transport::{CallFault as C, NotRun as N, Unknown as U};
    match fault {
        C::NotRun(not_run) => {
            let reason = match &not_run {
                N::Unreachable(_) => NotRunReason::Unavailable,
                N::Refused(_) => NotRunReason::Incompatible,
                N::QueueFull | N::Rejected(_) => NotRunReason::Overloaded,
                N::Deadline => NotRunReason::Deadline,
                N::TooLarge { .. } => NotRunReason::Fault,
            };
            NotRun::new(reason, format!("{service}: {not_run}")).into()
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

/// A client's way to a module of another process.
pub(crate) struct RemoteLink {
    pub(crate) peers: Arc<Peers>,
    pub(crate) service: usize,
    pub(crate) keys: Arc<ProcessKeys>,
}

impl RemoteCalls for RemoteLink {
    fn call(&self, call: RemoteCall) -> BoxFuture<'_, Result<Outcome, CallFault>> {
        Box::pin(self.repeat(call))
    }
}

impl RemoteLink {
    async fn repeat(&self, call: RemoteCall) -> Result<Outcome, CallFault> {
        let context = Context::current();
        let deadline = context.deadline_or_default();
        let kind = call.kind;
        let payload: bytes::Bytes = encode(&self.envelope(call, &context)).map_err(NotRun::from)?.into();
        let mut pause = PAUSE_FIRST;
        // Once an attempt is unknown, a later one that was refused a place says nothing about it.
        let mut unknown: Option<Unknown> = None;
        for attempt in 1.. {
            let fault =
                match self.peers.send(self.service, payload.clone(), deadline, Priority::Ordinary).await {
                    Ok(Told::Outcome(outcome)) => return Ok(outcome),
                    Ok(_) => {
                        Unknown::new(UnknownReason::Unreadable, "an answer of another kind than asked").into()
                    }
                    Err(fault) => fault,
                };
            let again =
                may_repeat(kind, &fault) && attempt < ATTEMPTS_MAX && Instant::now() + pause < deadline;
            if let CallFault::Unknown(fault) = &fault {
                unknown.get_or_insert_with(|| fault.clone());
            }
            if !again {
                return Err(match unknown {
                    Some(unknown) if kind != Kind::Query => unknown.into(),
                    _ => fault,
                });
            }
            tokio::time::sleep(jittered(pause)).await;
            pause *= 2;
        }
        unreachable!("the loop ends by its attempts")
    }

    fn envelope(&self, call: RemoteCall, context: &Context) -> Envelope {
        let (contract, method, request) = (call.contract.to_owned(), call.method.to_owned(), call.request);
        let ask = match (call.kind, call.key) {
            (Kind::Query, _) => Ask::Query { contract, method, request },
            (Kind::Effect, _) => Ask::Call { contract, method, request },
            (Kind::Command, Some(key)) => Ask::Command {
                key: client_step_key(&key, &contract, &method),
                hash: key.body[..16].try_into().expect("16 bytes of 32"),
                expires_ms: CLIENT_KEYS_KEPT_MS,
                contract,
                method,
                request,
            },
            (Kind::Command, None) => Ask::Command {
                key: self.keys.next(),
                hash: body_hash(&request),
                expires_ms: AUTOMATIC_KEYS_KEPT_MS,
                contract,
                method,
                request,
            },
        };
        Envelope { ask, principal: context.principal.clone(), request_id: context.request_id.to_string() }
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

/// Between half and all of `pause`, so that callers who failed together do not come back together.
pub(crate) fn jittered(pause: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    pause / 2 + pause.mul_f64(f64::from(random) / f64::from(u32::MAX) / 2.0)
}

/// Answers the calls of other services.
pub(crate) struct Answers {
    pub(crate) hosted: Arc<Hosted>,
}

impl Handler for Answers {
    fn handle_now(&self, call: Incoming) -> Handled {
        let envelope: Envelope = match decode(&call.payload) {
            Ok(envelope) => envelope,
            Err(fault) => return incompatible(format!("unreadable call: {}", fault.message)),
        };
        if let Err(reason) = self.declared(&call.peer, &envelope.ask) {
            return incompatible(reason);
        }
        let context = Context {
            principal: envelope.principal,
            deadline: Some(call.deadline),
            request_id: envelope.request_id.into(),
            key: None,
        };
        if let Ask::Query { contract, method, request } = &envelope.ask
            && !self.hosted.is_heavy(contract, method)
        {
            return Handled::Now(told_bytes(&self.hosted.query(contract, method, request)));
        }
        let hosted = self.hosted.clone();
        Handled::Later(Box::pin(async move {
            told_bytes(&hosted.answer(envelope.ask, context).await).map(Into::into)
        }))
    }
}

fn told_bytes(told: &Told) -> Result<bytes::Bytes, Rejection> {
    match encode(told) {
        Ok(bytes) => Ok(bytes.into()),
        // The call may have run, so this cannot be a rejection.
        Err(Fault { message, .. }) => {
            let told = Told::Unknown(Unknown::new(UnknownReason::Unreadable, message));
            encode(&told).map(Into::into).map_err(|fault| Rejection::new(fault.message))
        }
    }
}

/// Certainly not run, and not worth repeating.
fn incompatible(reason: String) -> Handled {
    Handled::Now(told_bytes(&Told::NotRun(NotRun::new(NotRunReason::Incompatible, reason))))
}

impl Answers {
    /// A caller whose modules did not declare the need is refused.
    fn declared(&self, peer: &HelloInfo, ask: &Ask) -> Result<(), String> {
        let about: About = decode(&peer.about).map_err(|fault| fault.message)?;
        let undeclared = |contract: &&str| !about.needs.iter().any(|need| need.name == *contract);
        let missing = match ask {
            // A run's contracts are those of its steps. A plan that is not known here is answered as such.
            Ask::Saga(Asked { ask: SagaAsk::Run { plan, first, last, .. }, .. }) => {
                let plans = self.hosted.participant.plans();
                let steps = plans.get(&**plan).and_then(|plan| plan.steps.get(*first..*last));
                steps.unwrap_or_default().iter().map(|step| step.contract).find(undeclared)
            }
            _ => ask.contract().filter(undeclared),
        };
        match missing {
            Some(contract) => Err(format!(
                "service `{}` calls contract `{contract}` and none of its modules declared that need",
                peer.service
            )),
            None => Ok(()),
        }
    }
}

/// What this service says about itself.
pub(crate) fn about(serves: &[ContractModel], needs: &[ContractModel]) -> Result<bytes::Bytes, Fault> {
    encode(&About { serves: facts(serves), needs: facts(needs) }).map(Into::into)
}

fn facts(contracts: &[ContractModel]) -> Vec<ContractFacts> {
    let mut seen = BTreeSet::new();
    contracts
        .iter()
        .filter(|contract| seen.insert(contract.name))
        .map(|contract| ContractFacts {
            name: contract.name.to_owned(),
            version: contract.version,
            fingerprint: contract.fingerprint(),
        })
        .collect()
}

/// Refuses a peer that understands a shared contract differently, by the contract's name.
pub(crate) fn admit(own: bytes::Bytes) -> modulith_transport::Admit {
    Arc::new(move |peer: &HelloInfo| {
        let read = |bytes: &[u8]| {
            decode::<About>(bytes).map_err(|fault| format!("unreadable hello: {}", fault.message))
        };
        let (ours, theirs) = (read(&own)?, read(&peer.about)?);
        for (serves, needs) in [(&ours.serves, &theirs.needs), (&theirs.serves, &ours.needs)] {
            for need in needs {
                if let Some(served) = serves.iter().find(|served| served.name == need.name)
                    && served != need
                {
                    return Err(format!(
                        "contract `{}` is served as version {} ({}) and needed as version {} ({})",
                        need.name, served.version, served.fingerprint, need.version, need.fingerprint
                    ));
                }
            }
        }
        Ok(())
    })
}
