//! The calling side, as applications see it.
//!
//! Owns the choice among replicas and the places in flight. It never repeats a call: what may be repeated is not
//! known here.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    Address, Admit, Answer, Body, CallFault, Hello, HelloInfo, Limits, NotRun, Priority, Trust,
    client::{Connection, NotTaken},
    random,
    replica::{Replica, Settings, State},
};

/// Calls to one other service, which may have several replicas. Cheap to clone; clones share everything.
///
/// Nothing happens until the first [`call`](Self::call) or [`connected`](Self::connected), which must be inside a
/// tokio runtime: it starts one task an address, which connects and, when the connection is lost, connects
/// again after 20 ms, doubling to 1 s, with jitter. The tasks end when the last clone is dropped.
///
/// With several addresses, a call goes to the less busy of two connected replicas chosen at random
/// (Mitzenmacher, "The power of two choices in randomized load balancing", 2001).
#[derive(Clone)]
pub struct Peer {
    inner: Arc<Inner>,
}

struct Inner {
    replicas: Vec<Arc<Replica>>,
    settings: Arc<Settings>,
    in_flight: AtomicUsize,
    started: AtomicBool,
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
    replica: Arc<AtomicUsize>,
}

impl Held {
    fn new(peer: &Arc<Inner>, replica: &Arc<AtomicUsize>) -> Self {
        peer.in_flight.fetch_add(1, Ordering::Relaxed);
        replica.fetch_add(1, Ordering::Relaxed);
        Self { peer: Arc::clone(peer), replica: Arc::clone(replica) }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.peer.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.replica.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Peer {
    /// A peer at these addresses; each is a replica of the same service.
    pub fn new(addresses: Vec<Address>, hello: Hello, admit: Admit, limits: Limits) -> Self {
        Self::with(addresses, hello, admit, limits, None)
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
        Self::with(addresses, hello, admit, limits, Some((trust, service.to_owned())))
    }

    fn with(
        addresses: Vec<Address>,
        hello: Hello,
        admit: Admit,
        limits: Limits,
        tls: Option<(Trust, String)>,
    ) -> Self {
        let settings = Settings {
            hello,
            admit,
            tls,
            limits: Arc::new(limits),
            changed: watch::Sender::new(()),
            stop: CancellationToken::new(),
        };
        Self {
            inner: Arc::new(Inner {
                replicas: addresses.into_iter().map(|address| Arc::new(Replica::new(address))).collect(),
                settings: Arc::new(settings),
                in_flight: AtomicUsize::new(0),
                started: AtomicBool::new(false),
            }),
        }
    }

    /// Sends one call and waits for its answer until the deadline.
    ///
    /// While a connection is being made, it waits for that; between two attempts it fails at once. At most
    /// [`Limits::in_flight_max`] calls are in flight, the next is refused. Dropping the future, or reaching the deadline, tells
    /// the callee to drop the call. Each use sends a new call: a repeat is the caller's decision.
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
        self.open(deadline, priority, payload, None).await.map(|answer| answer.payload)
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
        deadline: Instant,
        priority: Priority,
        payload: Bytes,
        mut body: Option<Body>,
    ) -> Result<Answer, CallFault> {
        let limits = &self.inner.settings.limits;
        if payload.len() > limits.payload_bytes_max {
            return Err(NotRun::TooLarge { bytes: payload.len(), max: limits.payload_bytes_max }.into());
        }
        let max = limits.in_flight_for(priority);
        let _place = Place::take_below(&self.inner.in_flight, max).ok_or(NotRun::QueueFull)?;
        if deadline <= Instant::now() {
            return Err(NotRun::Deadline.into());
        }
        loop {
            let (replica, connection) = match self.pick() {
                Some(picked) => picked,
                None => self.wait_for_connection(deadline, false).await?,
            };
            let _place = Place::take(&replica.in_flight);
            match connection.submit(deadline, priority, &payload, &mut body) {
                Ok(submitted) => {
                    let mut answer = submitted.outcome(deadline).await?;
                    if let Some(body) = &mut answer.body {
                        body.hold(Held::new(&self.inner, &replica.in_flight));
                    }
                    return Ok(answer);
                }
                Err(NotTaken::Full) => return Err(NotRun::QueueFull.into()),
                Err(NotTaken::Ended(text)) => return Err(NotRun::Unreachable(text).into()),
                // Its task is about to replace it: let it, and look again.
                Err(NotTaken::Draining) => {
                    if deadline <= Instant::now() {
                        return Err(NotRun::Deadline.into());
                    }
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Whether a call would find a connection now.
    pub fn is_connected(&self) -> bool {
        self.inner.replicas.iter().any(|replica| replica.connection().is_some())
    }

    /// Waits until there is a connection, through failed and refused attempts, until the deadline.
    ///
    /// # Errors
    ///
    /// Why there is none at the deadline: [`NotRun::Refused`], [`NotRun::Unreachable`], or [`NotRun::Deadline`] if the
    /// first attempt has not ended.
    pub async fn connected(&self, deadline: Instant) -> Result<(), CallFault> {
        if self.pick().is_none() {
            self.wait_for_connection(deadline, true).await?;
        }
        Ok(())
    }

    /// Why replicas are not connected at the moment, or `None` if there is nothing to complain about.
    pub fn last_error(&self) -> Option<String> {
        let errors: Vec<_> = self.inner.replicas.iter().filter_map(|replica| replica.fault()).collect();
        let errors: Vec<_> = errors.iter().map(NotRun::to_string).collect();
        (!errors.is_empty()).then(|| errors.join("; "))
    }

    /// What the connected replicas said about themselves.
    pub fn replicas(&self) -> Vec<Arc<HelloInfo>> {
        let connections = self.inner.replicas.iter().filter_map(|replica| replica.connection());
        connections.map(|connection| Arc::clone(&connection.other)).collect()
    }

    /// Calls in flight over all replicas, for telemetry.
    pub fn in_flight(&self) -> usize {
        self.inner.in_flight.load(Ordering::Relaxed)
    }

    fn start(&self) {
        if self.inner.started.swap(true, Ordering::Relaxed) {
            return;
        }
        for replica in &self.inner.replicas {
            tokio::spawn(Arc::clone(replica).maintain(Arc::clone(&self.inner.settings)));
        }
    }

    /// A connected replica, by two random choices.
    fn pick(&self) -> Option<(&Replica, Arc<Connection>)> {
        let replicas = &self.inner.replicas;
        let found = |replica: &'_ Arc<Replica>| replica.connection().filter(|c| !c.retired.is_cancelled());
        if let [only] = &replicas[..] {
            return found(only).map(|connection| (&**only, connection));
        }
        let up: Vec<_> = replicas.iter().filter_map(|replica| Some((&**replica, found(replica)?))).collect();
        let first = random::below(up.len());
        // The second choice is among the others.
        let second = (first + 1 + random::below(up.len().saturating_sub(1))) % up.len().max(1);
        let busy = |at: usize| up.get(at).map(|(replica, _)| replica.in_flight.load(Ordering::Relaxed));
        let chosen = if busy(second) < busy(first) { second } else { first };
        up.into_iter().nth(chosen)
    }

    /// Waits for an attempt that is under way; with `through_failures`, also for those to come.
    async fn wait_for_connection(
        &self,
        deadline: Instant,
        through_failures: bool,
    ) -> Result<(&Replica, Arc<Connection>), CallFault> {
        self.start();
        let mut changed = self.inner.settings.changed.subscribe();
        loop {
            if let Some(picked) = self.pick() {
                return Ok(picked);
            }
            let under_way = self
                .inner
                .replicas
                .iter()
                .any(|replica| matches!(replica.state(), State::Connecting | State::Up(_)));
            if !under_way && !through_failures {
                return Err(self.why_not().into());
            }
            if tokio::time::timeout_at(deadline.into(), changed.changed()).await.is_err() {
                return Err(if through_failures { self.why_not() } else { NotRun::Deadline }.into());
            }
        }
    }

    /// The refusal of a replica that was reached says more than the silence of one that was not.
    fn why_not(&self) -> NotRun {
        let mut why = if self.inner.replicas.is_empty() {
            NotRun::Unreachable("no address".to_owned())
        } else {
            NotRun::Deadline
        };
        for replica in &self.inner.replicas {
            match replica.fault() {
                Some(fault @ NotRun::Refused(_)) => return fault,
                Some(fault) => why = fault,
                None => {}
            }
        }
        why
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let addresses: Vec<_> =
            self.inner.replicas.iter().map(|replica| replica.address.to_string()).collect();
        f.debug_struct("Peer")
            .field("addresses", &addresses)
            .field("connected", &self.is_connected())
            .finish()
    }
}
