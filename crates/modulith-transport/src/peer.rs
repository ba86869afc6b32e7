//! The calling side, as applications see it.
//!
//! Owns the places in flight, the waiting for a connection and the breaker; the choice among replicas is made in
//! `replicas.rs`. It never repeats a call that may have run: what may be repeated is not known here.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    Address, Admit, Answer, Body, BreakerState, CallFault, Hello, HelloInfo, Limits, NotRun, Priority,
    ReplicaSnapshot, Resolve, Trust,
    breaker::Ending,
    circuit::Circuit,
    client::NotTaken,
    names,
    replica::{Replica, Settings},
    replicas::{Picked, Prospect, Replicas},
};

/// Calls to one other service, which may have several replicas. Cheap to clone; clones share everything.
///
/// Nothing happens until the first [`call`](Self::call) or [`connected`](Self::connected), which must be inside a
/// tokio runtime: it starts one task an address, which connects and, when the connection is lost, connects
/// again after 20 ms, doubling to 1 s, with jitter. The tasks end when the last clone is dropped.
///
/// A host name is resolved every [`Limits::resolve_every`] and when a connection is lost. Each address behind it is a
/// replica; one that is no longer there gets no new calls and finishes those it has.
///
/// With several replicas, a call goes to the less busy of two connected ones chosen at random
/// (Mitzenmacher, "The power of two choices in randomized load balancing", 2001). A replica whose calls fail
/// while those of others do not is left out for a while ([`Limits::ejection_failures`]). When half of all calls end
/// badly, a circuit breaker refuses them early ([`Limits::breaker_window`]).
#[derive(Clone)]
pub struct Peer {
    inner: Arc<Inner>,
}

struct Inner {
    replicas: Arc<Replicas>,
    settings: Arc<Settings>,
    in_flight: AtomicUsize,
    started: AtomicBool,
}

/// What holds for one call.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// When it is made: the time of whoever has just looked at the clock.
    pub now: Instant,
    /// When its caller stops waiting.
    pub deadline: Instant,
    pub priority: Priority,
}

impl Terms {
    /// Of a call that is made now.
    pub fn new(deadline: Instant, priority: Priority) -> Self {
        Self { now: Instant::now(), deadline, priority }
    }
}

/// The bytes of a call. They are lent: nearly always they are copied into a frame at once, beside those of others.
#[derive(Debug, Clone, Copy)]
pub enum Payload<'a> {
    /// What leaves in parts is copied before.
    Lent(&'a [u8]),
    /// What leaves in parts is shared.
    Shared(&'a Bytes),
}

impl Payload<'_> {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Payload::Lent(bytes) => bytes,
            Payload::Shared(bytes) => bytes,
        }
    }

    pub(crate) fn to_bytes(self) -> Bytes {
        match self {
            Payload::Lent(bytes) => Bytes::copy_from_slice(bytes),
            Payload::Shared(bytes) => bytes.clone(),
        }
    }
}

impl<'a> From<&'a [u8]> for Payload<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Payload::Lent(bytes)
    }
}

impl<'a> From<&'a Bytes> for Payload<'a> {
    fn from(bytes: &'a Bytes) -> Self {
        Payload::Shared(bytes)
    }
}

/// What is to be seen of a peer at one moment, for telemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub breaker: BreakerState,
    /// Times that the breaker has opened.
    pub breaker_opened: u64,
    /// Calls in flight over all replicas, with those that wait for a connection.
    pub in_flight: usize,
    pub replicas: Vec<ReplicaSnapshot>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.settings.stop.cancel();
    }
}

/// One place in flight, given back on drop.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(places: &'a AtomicUsize) -> Self {
        places.fetch_add(1, Ordering::Relaxed);
        Self(places)
    }

    fn take_below(places: &'a AtomicUsize, max: usize) -> Option<Self> {
        // Adding first and giving back is exact enough: two callers at the limit may both be refused.
        let before = places.fetch_add(1, Ordering::Relaxed);
        let place = Self(places);
        (before < max).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The places of a call whose answer's body is being read, and the connections, which end with the last of the
/// peer.
struct Held {
    peer: Arc<Inner>,
    replica: Option<Arc<Replica>>,
}

impl Held {
    fn new(peer: &Arc<Inner>, replica: Option<&Arc<Replica>>) -> Self {
        peer.in_flight.fetch_add(1, Ordering::Relaxed);
        if let Some(replica) = replica {
            replica.in_flight.fetch_add(1, Ordering::Relaxed);
        }
        Self { peer: Arc::clone(peer), replica: replica.cloned() }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.peer.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(replica) = &self.replica {
            replica.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// What a call's end says about its peer.
fn ending_of(outcome: &Result<Answer, CallFault>) -> Ending {
    match outcome {
        Ok(_) => Ending::Good,
        Err(CallFault::Unknown(_) | CallFault::NotRun(NotRun::Deadline)) => Ending::Bad,
        Err(CallFault::NotRun(NotRun::QueueFull)) => Ending::Overloaded,
        // Without a time to come back it is not for want of room that it declines.
        Err(CallFault::NotRun(NotRun::Rejected(why))) if why.retry_after_ms.is_some() => Ending::Overloaded,
        // Without a connection, the attempts to make one are the probe.
        Err(CallFault::NotRun(_)) => Ending::Neutral,
    }
}

impl Peer {
    /// A peer at these addresses; each is a replica of the same service, and so is each address behind a host name.
    pub fn new(addresses: Vec<Address>, hello: Hello, admit: Admit, limits: Limits) -> Self {
        Self::resolved_by(names::operating_system(), addresses, hello, admit, limits, None)
    }

    /// The same over mutual TLS: the certificate at each address has to be that of `service`. The addresses are TCP.
    pub fn over_tls(
        addresses: Vec<Address>,
        hello: Hello,
        admit: Admit,
        limits: Limits,
        trust: Trust,
        service: &str,
    ) -> Self {
        let tls = Some((trust, service.to_owned()));
        Self::resolved_by(names::operating_system(), addresses, hello, admit, limits, tls)
    }

    /// [`Peer::new`], or [`Peer::over_tls`] with what is known there, with another way from host names to addresses.
    pub fn resolved_by(
        resolve: Resolve,
        addresses: Vec<Address>,
        hello: Hello,
        admit: Admit,
        limits: Limits,
        tls: Option<(Trust, String)>,
    ) -> Self {
        let limits = Arc::new(limits);
        let settings = Settings {
            hello,
            admit,
            tls,
            limits: Arc::clone(&limits),
            resolve,
            circuit: Circuit::new(limits),
            changed: watch::Sender::new(()),
            lost: Notify::new(),
            stop: CancellationToken::new(),
        };
        Self {
            inner: Arc::new(Inner {
                replicas: Arc::new(Replicas::new(addresses)),
                settings: Arc::new(settings),
                in_flight: AtomicUsize::new(0),
                started: AtomicBool::new(false),
            }),
        }
    }

    /// Sends one call and waits for its answer until the deadline.
    ///
    /// While a connection is being made, it waits for that, and while a replica that said that it goes is awaited, for up to
    /// [`Limits::drain_wait_max`]; else, between two attempts, it fails at once. What a draining replica did not take
    /// goes to another. At most [`Limits::in_flight_max`] calls are in flight, the next is refused. Dropping the future,
    /// or reaching the deadline, tells the callee to drop the call. Each use sends a new call: a repeat is the caller's
    /// decision.
    ///
    /// # Errors
    ///
    /// [`CallFault::NotRun`] only if that is certain, else [`CallFault::Unknown`].
    pub async fn call(
        &self,
        deadline: Instant,
        priority: Priority,
        payload: Bytes,
    ) -> Result<Bytes, CallFault> {
        self.open(Terms::new(deadline, priority), &payload, None).await.map(|answer| answer.payload)
    }

    /// Sends one call with a body behind its payload, if there is one, and waits until the deadline for the
    /// payload of its answer, behind which there may be a body too.
    ///
    /// Otherwise it is a [`call`](Self::call). Bodies are bounded by [`Limits::body_idle_max`] instead of the
    /// deadline, and by [`Limits::bodies_max`]. The body of the call goes on when the answer is there, until it
    /// ends, the callee no longer reads it, or this peer is dropped. The body of the answer keeps the call's
    /// place in flight, and its connection, until it has ended or is dropped. A call whose body is cut off may
    /// have run; what its handler makes of half a body is the handler's business.
    ///
    /// # Errors
    ///
    /// As [`call`](Self::call). What goes wrong later is told by the [`crate::BodyReader`] of either side.
    pub async fn open(
        &self,
        terms: Terms,
        payload: impl Into<Payload<'_>>,
        body: Option<Body>,
    ) -> Result<Answer, CallFault> {
        let (inner, payload) = (&*self.inner, payload.into());
        let Terms { now, deadline, priority } = terms;
        let limits = &inner.settings.limits;
        let bytes = payload.bytes().len();
        if bytes > limits.payload_bytes_max {
            return Err(NotRun::TooLarge { bytes, max: limits.payload_bytes_max }.into());
        }
        let max = limits.in_flight_for(priority);
        let _place = Place::take_below(&inner.in_flight, max).ok_or(NotRun::QueueFull)?;
        if deadline <= now {
            return Err(NotRun::Deadline.into());
        }
        let leave = inner.settings.circuit.enter(now, priority)?;
        let (outcome, ending) = self.send(terms, payload, body).await;
        leave.ended(ending);
        outcome
    }

    async fn send(
        &self,
        mut terms: Terms,
        payload: Payload<'_>,
        mut body: Option<Body>,
    ) -> (Result<Answer, CallFault>, Ending) {
        let Inner { replicas, settings, .. } = &*self.inner;
        let deadline = terms.deadline;
        let patience = deadline.min(terms.now + settings.limits.drain_wait_max);
        let has_body = body.is_some();
        loop {
            let (replica, connection) = match replicas.pick() {
                Some(picked) => picked,
                None => match self.wait_for_connection(deadline, patience, false).await {
                    Ok(picked) => {
                        terms.now = Instant::now();
                        picked
                    }
                    // The attempts to make a connection are the probe, even if the deadline passes meanwhile.
                    Err(fault) => return (Err(fault), Ending::Neutral),
                },
            };
            let mut outcome = {
                let _place = replica.as_deref().map(|replica| Place::take(&replica.in_flight));
                match connection.call(terms, payload, &mut body).await {
                    Ok(outcome) => outcome,
                    Err(NotTaken::Full) => Err(NotRun::QueueFull.into()),
                    Err(NotTaken::Ended(text)) => Err(NotRun::Unreachable(text).into()),
                    Err(NotTaken::Draining) => Err(NotRun::Unreachable("draining".to_owned()).into()),
                }
            };
            if let Ok(Answer { body: Some(body), .. }) = &mut outcome {
                body.hold(Held::new(&self.inner, replica.as_ref()));
            }
            let did_not_run =
                matches!(outcome, Err(CallFault::NotRun(NotRun::Unreachable(_) | NotRun::Rejected(_))));
            // A body that was handed over cannot be sent again.
            let is_left = did_not_run
                && has_body == body.is_some()
                && (connection.is_retired.load(Ordering::Acquire) || connection.is_over());
            if is_left {
                terms.now = Instant::now();
            }
            if !is_left || terms.now >= patience {
                let ending = ending_of(&outcome);
                if let Some(replica) = replica {
                    replicas.ended(&replica, ending, settings);
                }
                return (outcome, ending);
            }
            // It did not run there, and another connection is about to take the place of this one: look again, once
            // the task that replaces it has had its turn.
            tokio::task::yield_now().await;
        }
    }

    /// Whether a call would find a connection now.
    pub fn is_connected(&self) -> bool {
        self.inner.replicas.all().iter().any(|replica| replica.usable().is_some())
    }

    /// Waits until there is a connection, through failed and refused attempts, until the deadline.
    ///
    /// # Errors
    ///
    /// Why there is none at the deadline: [`NotRun::Refused`], [`NotRun::Unreachable`], or [`NotRun::Deadline`] if the
    /// first attempt has not ended.
    pub async fn connected(&self, deadline: Instant) -> Result<(), CallFault> {
        if self.inner.replicas.pick().is_none() {
            self.wait_for_connection(deadline, deadline, true).await?;
        }
        Ok(())
    }

    /// Why replicas are not connected at the moment, or `None` if there is nothing to complain about.
    pub fn last_error(&self) -> Option<String> {
        let errors: Vec<_> = self.inner.replicas.faults().iter().map(NotRun::to_string).collect();
        (!errors.is_empty()).then(|| errors.join("; "))
    }

    /// What the connected replicas said about themselves.
    pub fn replicas(&self) -> Vec<Arc<HelloInfo>> {
        let replicas = self.inner.replicas.all();
        let connections = replicas.iter().filter_map(|replica| replica.connection());
        connections.map(|connection| Arc::clone(&connection.other)).collect()
    }

    /// Calls in flight over all replicas, for telemetry.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.load(Ordering::Relaxed)
    }

    /// The breaker and every replica, for telemetry.
    pub fn snapshot(&self) -> Snapshot {
        let now = Instant::now();
        let (breaker, breaker_opened) = self.inner.settings.circuit.state();
        Snapshot {
            breaker,
            breaker_opened,
            in_flight: self.in_flight(),
            replicas: self.inner.replicas.snapshot(now, self.in_flight()),
        }
    }

    fn start(&self) {
        if !self.inner.started.swap(true, Ordering::Relaxed) {
            self.inner.replicas.start(&self.inner.settings);
        }
    }

    /// Waits for an attempt that is under way, and until `patience` for a replica that said that it goes; with
    /// `through_failures`, also for attempts to come.
    async fn wait_for_connection(
        &self,
        deadline: Instant,
        patience: Instant,
        through_failures: bool,
    ) -> Result<Picked, CallFault> {
        self.start();
        let Inner { replicas, settings, .. } = &*self.inner;
        let mut changed = settings.changed.subscribe();
        loop {
            if let Some(picked) = replicas.pick() {
                return Ok(picked);
            }
            let until = match replicas.prospect(Instant::now()) {
                _ if through_failures => deadline,
                Prospect::UnderWay => deadline,
                Prospect::Until(until) if Instant::now() < patience => until.min(patience),
                Prospect::Until(_) | Prospect::None => return Err(replicas.why_not().into()),
            };
            if tokio::time::timeout_at(until.into(), changed.changed()).await.is_err() && until == deadline {
                return Err(if through_failures { replicas.why_not() } else { NotRun::Deadline }.into());
            }
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer")
            .field("addresses", &self.inner.replicas.addresses())
            .field("connected", &self.is_connected())
            .finish()
    }
}
