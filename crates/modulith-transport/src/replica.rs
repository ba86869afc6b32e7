//! One address of a peer: keeps a connection to it, again and again.
//!
//! Owns connecting, back-off, and the state that callers look at. It carries no calls; `client.rs` does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::{
    Address, Admit, ConnectionError, Hello, Limits, NotRun, Resolve, Stream, Trust, circuit::Circuit,
    client::Connection, ejection::Ejection, handshake, random, reader::Reader,
};

pub(crate) struct Replica {
    pub(crate) address: Address,
    /// The host name that led here, if one did.
    pub(crate) name: Option<String>,
    /// Calls that wait for an answer from here, where a call has a choice.
    pub(crate) in_flight: AtomicUsize,
    pub(crate) ejection: Mutex<Ejection>,
    /// Fires when the name no longer leads here: no new calls, those that run are finished.
    pub(crate) leave: CancellationToken,
    /// It said that it goes, and until then its successor is worth waiting for.
    awaited_until: Mutex<Option<Instant>>,
    /// Each call looks at it, and it changes with its connection.
    state: ArcSwap<State>,
    /// Why there was no connection, until there is one again.
    fault: Mutex<Option<NotRun>>,
}

#[derive(Clone)]
pub(crate) enum State {
    /// The first attempt is being made, at all or after a connection that had worked; its end is worth waiting for.
    Connecting,
    Up(Arc<Connection>),
    /// The last attempt failed or the connection was lost. The next attempt comes after the back-off, and nobody
    /// waits for its end: where packets are dropped without a word, that is seconds away.
    Down(NotRun),
}

/// What is to be seen of one replica, for telemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReplicaSnapshot {
    pub address: Address,
    /// Takes new calls.
    pub is_connected: bool,
    /// Left out for a while, because calls to it failed.
    pub is_ejected: bool,
    pub in_flight: usize,
}

/// What the replicas of one peer share.
pub(crate) struct Settings {
    pub(crate) hello: Hello,
    pub(crate) admit: Admit,
    /// Mutual TLS, and the service that the certificate has to name.
    pub(crate) tls: Option<(Trust, String)>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) resolve: Resolve,
    pub(crate) circuit: Circuit,
    /// Marked at each change of a replica's state.
    pub(crate) changed: watch::Sender<()>,
    /// Told when a connection is lost: its name may lead elsewhere by now.
    pub(crate) lost: Notify,
    /// Fires when the last clone of the peer is gone.
    pub(crate) stop: CancellationToken,
}

impl Replica {
    /// `awaited_until`: it succeeds one that is awaited, and may not listen yet.
    pub(crate) fn new(address: Address, name: Option<String>, awaited_until: Option<Instant>) -> Self {
        Self {
            address,
            name,
            in_flight: AtomicUsize::new(0),
            ejection: Mutex::default(),
            leave: CancellationToken::new(),
            awaited_until: Mutex::new(awaited_until),
            state: ArcSwap::from_pointee(State::Connecting),
            fault: Mutex::new(None),
        }
    }

    pub(crate) fn state(&self) -> State {
        State::clone(&self.state.load())
    }

    pub(crate) fn awaited_until(&self) -> Option<Instant> {
        *self.awaited_until.lock()
    }

    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        match &**self.state.load() {
            State::Up(connection) => Some(Arc::clone(connection)),
            State::Connecting | State::Down(_) => None,
        }
    }

    /// The connection, if it takes new calls.
    pub(crate) fn usable(&self) -> Option<Arc<Connection>> {
        self.connection().filter(|connection| !connection.is_retired.load(Ordering::Acquire))
    }

    /// What went wrong last, if nothing has gone right since.
    pub(crate) fn fault(&self) -> Option<NotRun> {
        self.fault.lock().clone()
    }

    pub(crate) fn snapshot(&self, now: Instant, in_flight: usize) -> ReplicaSnapshot {
        ReplicaSnapshot {
            address: self.address.clone(),
            is_connected: self.usable().is_some(),
            is_ejected: self.ejection.lock().is_out(now),
            in_flight,
        }
    }

    fn set(&self, state: State, settings: &Settings) {
        match &state {
            State::Connecting => {}
            State::Up(_) => *self.fault.lock() = None,
            State::Down(fault) => *self.fault.lock() = Some(fault.clone()),
        }
        self.state.store(Arc::new(state));
        settings.changed.send_replace(());
    }

    /// Keeps connecting until the peer is dropped or the replica is left.
    pub(crate) async fn maintain(self: Arc<Self>, settings: Arc<Settings>) {
        let stopped = settings.stop.clone();
        // Dropping an attempt in its middle closes its socket, which is all there is to clean up.
        let connected = self.leave.run_until_cancelled(self.connect_for_ever(&settings));
        stopped.run_until_cancelled(connected).await;
        if let Some(connection) = self.connection() {
            if stopped.is_cancelled() {
                connection.close();
            } else {
                connection.drain("its name no longer leads there");
            }
        }
        let fault = NotRun::Unreachable("this peer was dropped".to_owned());
        self.set(State::Down(fault), &settings);
    }

    async fn connect_for_ever(&self, settings: &Settings) {
        let limits = &settings.limits;
        let mut back_off = BackOff::new(limits);
        loop {
            match self.connect(settings).await {
                Ok(reader) => {
                    let connection = reader.connection();
                    tracing::debug!(address = %self.address, peer = %connection.other.service, "connected");
                    let since = Instant::now();
                    tokio::spawn(reader.run());
                    settings.circuit.connected();
                    self.set(State::Up(Arc::clone(&connection)), settings);
                    connection.retired.cancelled().await;
                    settings.lost.notify_waiters();
                    let (text, announced) = connection.retirement();
                    tracing::debug!(address = %self.address, reason = %text, "connection retired");
                    *self.awaited_until.lock() = announced.then(|| Instant::now() + limits.drain_wait_max);
                    let fault = NotRun::Unreachable(text);
                    // A connection that ends as soon as it is made says that the other side is not well.
                    if since.elapsed() >= limits.back_off_max {
                        back_off.reset();
                        // It worked until just now: whoever calls waits for the next attempt.
                        *self.fault.lock() = Some(fault);
                        self.set(State::Connecting, settings);
                        if announced {
                            continue;
                        }
                    } else {
                        self.set(State::Down(fault), settings);
                    }
                }
                Err(error) => {
                    tracing::debug!(address = %self.address, %error, "no connection");
                    if error.is_draining() {
                        let until = Instant::now() + limits.drain_wait_max;
                        self.awaited_until.lock().get_or_insert(until);
                    }
                    let text = format!("{}: {error}", self.address);
                    let fault =
                        if error.is_refusal() { NotRun::Refused(text) } else { NotRun::Unreachable(text) };
                    self.set(State::Down(fault), settings);
                }
            }
            if self.awaited_until().is_some_and(|until| Instant::now() < until) {
                // Callers wait for the successor, so it is looked for at the shortest interval, also elsewhere.
                back_off.reset();
                settings.lost.notify_waiters();
            }
            tokio::time::sleep(back_off.next()).await;
        }
    }

    async fn connect(&self, settings: &Settings) -> Result<Reader, ConnectionError> {
        let limits = &settings.limits;
        let mut stream = timeout(limits.handshake_max, Stream::connect(&self.address))
            .await
            .map_err(|_| ConnectionError::HandshakeTimeout)??;
        if let Some((trust, service)) = &settings.tls {
            stream = trust.connect(stream, service, limits.handshake_max).await?;
        }
        let opened = handshake::call(&mut stream, &settings.hello, &settings.admit, limits).await?;
        Ok(Reader::new(stream, opened, Arc::clone(limits)))
    }
}

/// Waits that double from the least to the most; half of each is random, so that callers of a process that
/// restarts do not return in step.
pub(crate) struct BackOff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl BackOff {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { min: limits.back_off_min, max: limits.back_off_max, next: limits.back_off_min }
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.min;
    }

    pub(crate) fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        let half = (wait / 2).as_micros() as usize;
        wait / 2 + Duration::from_micros(random::below(half + 1) as u64)
    }
}
