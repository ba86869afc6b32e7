//! One address of a peer: keeps a connection to it, again and again.
//!
//! Owns connecting, back-off, and the state that callers look at. It carries no calls; `client.rs` does.

use std::{
    sync::{Arc, atomic::AtomicUsize},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    Address, Admit, ConnectionError, Hello, Limits, NotRun, Stream, Trust, client::Connection, handshake,
    random, reader::Reader,
};

pub(crate) struct Replica {
    pub(crate) address: Address,
    /// Calls that wait for an answer from here.
    pub(crate) in_flight: Arc<AtomicUsize>,
    state: Mutex<State>,
    /// Why there was no connection, until there is one again.
    fault: Mutex<Option<NotRun>>,
}

#[derive(Clone)]
pub(crate) enum State {
    /// An attempt is being made; its end is worth waiting for.
    Connecting,
    Up(Arc<Connection>),
    /// The last attempt failed or the connection was lost; the next attempt comes after the back-off.
    Down(NotRun),
}

/// What the replicas of one peer share.
pub(crate) struct Settings {
    pub(crate) hello: Hello,
    pub(crate) admit: Admit,
    /// Mutual TLS, and the service that the certificate has to name.
    pub(crate) tls: Option<(Trust, String)>,
    pub(crate) limits: Arc<Limits>,
    /// Marked at each change of a replica's state.
    pub(crate) changed: watch::Sender<()>,
    /// Fires when the last clone of the peer is gone.
    pub(crate) stop: CancellationToken,
}

impl Replica {
    pub(crate) fn new(address: Address) -> Self {
        Self {
            address,
            in_flight: Arc::default(),
            state: Mutex::new(State::Connecting),
            fault: Mutex::new(None),
        }
    }

    pub(crate) fn state(&self) -> State {
        self.state.lock().clone()
    }

    pub(crate) fn connection(&self) -> Option<Arc<Connection>> {
        match &*self.state.lock() {
            State::Up(connection) => Some(Arc::clone(connection)),
            State::Connecting | State::Down(_) => None,
        }
    }

    /// What went wrong last, if nothing has gone right since.
    pub(crate) fn fault(&self) -> Option<NotRun> {
        self.fault.lock().clone()
    }

    fn set(&self, state: State, settings: &Settings) {
        match &state {
            State::Connecting => {}
            State::Up(_) => *self.fault.lock() = None,
            State::Down(fault) => *self.fault.lock() = Some(fault.clone()),
        }
        *self.state.lock() = state;
        settings.changed.send_replace(());
    }

    /// Keeps connecting until the peer is dropped.
    pub(crate) async fn maintain(self: Arc<Self>, settings: Arc<Settings>) {
        let stopped = settings.stop.clone();
        // Dropping an attempt in its middle closes its socket, which is all there is to clean up.
        stopped.run_until_cancelled(self.connect_for_ever(&settings)).await;
        if let Some(connection) = self.connection() {
            connection.close();
        }
        self.set(State::Down(NotRun::Unreachable("this peer was dropped".to_owned())), &settings);
    }

    async fn connect_for_ever(&self, settings: &Settings) {
        let mut back_off = BackOff::new(&settings.limits);
        loop {
            self.set(State::Connecting, settings);
            match self.connect(settings).await {
                Ok(reader) => {
                    let connection = reader.connection();
                    tracing::debug!(address = %self.address, peer = %connection.other.service, "connected");
                    let since = Instant::now();
                    tokio::spawn(reader.run());
                    self.set(State::Up(Arc::clone(&connection)), settings);
                    connection.retired.cancelled().await;
                    let (text, announced) = connection.retirement();
                    tracing::debug!(address = %self.address, reason = %text, "connection retired");
                    // A connection that ends as soon as it is made says that the other side is not well.
                    if since.elapsed() >= settings.limits.back_off_max {
                        back_off.reset();
                        if announced {
                            continue;
                        }
                    }
                    self.set(State::Down(NotRun::Unreachable(text)), settings);
                }
                Err(error) => {
                    tracing::debug!(address = %self.address, %error, "no connection");
                    let text = format!("{}: {error}", self.address);
                    let fault =
                        if error.is_refusal() { NotRun::Refused(text) } else { NotRun::Unreachable(text) };
                    self.set(State::Down(fault), settings);
                }
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
struct BackOff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl BackOff {
    fn new(limits: &Limits) -> Self {
        Self { min: limits.back_off_min, max: limits.back_off_max, next: limits.back_off_min }
    }

    fn reset(&mut self) {
        self.next = self.min;
    }

    fn next(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.max);
        let half = (wait / 2).as_micros() as usize;
        wait / 2 + Duration::from_micros(random::below(half + 1) as u64)
    }
}
