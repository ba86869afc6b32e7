//! The called side, as applications see it.
//!
//! Owns the interface of a handler and the accept loop. One task a connection runs everything; `serving.rs` has it.

use std::{
    collections::HashMap,
    sync::{Arc, Weak, atomic::AtomicUsize},
    time::Instant,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    Admit, BodyReader, ConnectionError, Hello, Limits, Listener, PeerInfo, Priority, Protocol, Rejection,
    Reply, Stream, handshake, serving::Serving,
};

/// One call, as it arrives.
#[derive(Debug)]
pub struct Incoming {
    pub peer: Arc<PeerInfo>,
    /// When it was read, together with those that came with it.
    pub arrived: Instant,
    /// When the caller stops waiting, by this process's clock; the time on the network is not subtracted.
    pub deadline: Instant,
    pub priority: Priority,
    pub payload: Bytes,
    /// What the caller streams behind the payload. Dropping it tells the caller to stop; so does an answer that
    /// drops it.
    pub body: Option<BodyReader>,
}

/// What a handler makes of a call.
pub enum Handled {
    /// Done within the call of `handle_now`: no allocation, no task switch.
    Now(Result<Vec<u8>, Rejection>),
    /// To be waited for. The connection's own task polls it, together with its other calls, so it must not
    /// block. It is dropped when the caller gives up or the connection ends. A body of its [`Reply`] is polled
    /// by the same task, behind the payload.
    Later(BoxFuture<'static, Result<Reply, Rejection>>),
}

/// Runs calls.
///
/// A [`Rejection`] promises that the call did not run; what went wrong in a call that ran belongs into the
/// answer's bytes. A panic is caught and reaches the caller as [`crate::Unknown::NoAnswer`].
pub trait Handler: Send + Sync + 'static {
    /// Runs on the connection's task: while it runs, no other call of this connection moves. What takes longer
    /// than some ten microseconds belongs into [`Handled::Later`], and onto a thread of its own if it blocks.
    fn handle_now(&self, call: Incoming) -> Handled;
}

impl<F> Handler for F
where
    F: Fn(Incoming) -> Handled + Send + Sync + 'static,
{
    fn handle_now(&self, call: Incoming) -> Handled {
        self(call)
    }
}

/// The calls that run for each calling service, over all its connections. Clones share them.
#[derive(Clone, Default)]
struct Callers(Arc<Mutex<HashMap<String, Weak<AtomicUsize>>>>);

impl Callers {
    /// The count of one service; it lasts as long as one of its connections.
    fn running(&self, service: &str) -> Arc<AtomicUsize> {
        let mut callers = self.0.lock();
        if let Some(running) = callers.get(service).and_then(Weak::upgrade) {
            return running;
        }
        // No more names than connections are kept.
        callers.retain(|_, running| running.strong_count() > 0);
        let running = Arc::default();
        callers.insert(service.to_owned(), Arc::downgrade(&running));
        running
    }
}

/// Serves one connection, from its preface to its end.
///
/// When `shutdown` fires, the caller is told to send no new calls; those that still arrive are rejected, unless a body
/// follows them, since their caller cannot send it again; those that run are finished, and their bodies with them, for up to [`Limits::drain_max`], and the connection ends
/// when the caller, having all its answers, closes it. So no call is lost. Dropping this future ends the
/// connection at once and drops its calls.
///
/// # Errors
///
/// Why the connection ended, unless the other side closed it between frames, which is the usual end.
pub async fn serve_connection(
    stream: Stream,
    hello: Hello,
    admit: Admit,
    limits: Limits,
    handler: Arc<dyn Handler>,
    shutdown: CancellationToken,
) -> Result<(), ConnectionError> {
    serve_one(stream, hello, admit, limits, handler, shutdown, &Callers::default()).await
}

async fn serve_one(
    mut stream: Stream,
    hello: Hello,
    admit: Admit,
    limits: Limits,
    handler: Arc<dyn Handler>,
    shutdown: CancellationToken,
    callers: &Callers,
) -> Result<(), ConnectionError> {
    let opened = handshake::serve(&mut stream, &hello, &admit, &limits, || shutdown.is_cancelled()).await?;
    let running = callers.running(&opened.other.service);
    Serving::new(stream, opened, limits, handler, running).run(shutdown).await
}

/// What [`serve`] does with a connection that speaks HTTP: the future that serves it.
pub type HttpTask = Arc<dyn Fn(Stream) -> BoxFuture<'static, ()> + Send + Sync>;

/// Accepts connections and serves each on a task of its own, until `shutdown` fires; then stops listening and returns
/// when the last of them has ended.
///
/// A calling service has at most [`Limits::in_flight_max`] calls running over all its connections.
/// At most [`Limits::connections_max`] are open, of both protocols together. Without `http`, a connection that does not
/// speak frames is closed. Before either protocol comes what the listener asks for: TLS, or the right user at a Unix
/// socket; each step has [`Limits::handshake_max`]. Dropping this future leaves the connections' tasks running.
pub async fn serve(
    listener: Listener,
    hello: Hello,
    admit: Admit,
    limits: Limits,
    handler: Arc<dyn Handler>,
    http: Option<HttpTask>,
    shutdown: CancellationToken,
) {
    let callers = Callers::default();
    let places = Arc::new(Semaphore::new(limits.connections_max));
    let accept_all = async {
        // The semaphore is never closed, so the loop ends only by the shutdown around it.
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => {
                    // Most often too many open files: accepting again at once would spin until one is closed.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (hello, admit, limits) = (hello.clone(), Arc::clone(&admit), limits.clone());
            let (handler, http, shutdown) = (Arc::clone(&handler), http.clone(), shutdown.clone());
            let (guard, callers) = (listener.guard.clone(), callers.clone());
            tokio::spawn(async move {
                let _place = place;
                let (stream, protocol) = match guard.enter(stream, limits.handshake_max).await {
                    Ok(entered) => entered,
                    Err(error) if error.is_refusal() => {
                        tracing::warn!(%error, "connection refused");
                        return;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "closed a connection that says nothing");
                        return;
                    }
                };
                match (protocol, http) {
                    (Protocol::Frames, _) => {
                        let served =
                            serve_one(stream, hello, admit, limits, handler, shutdown, &callers).await;
                        if let Err(error) = served {
                            tracing::warn!(%error, "connection ended");
                        }
                    }
                    (Protocol::Http, Some(http)) => http(stream).await,
                    (Protocol::Http, None) => tracing::debug!("closed a connection that speaks HTTP"),
                    (Protocol::Tls, _) => tracing::warn!("closed a connection with TLS inside of TLS"),
                }
            });
        }
    };
    shutdown.run_until_cancelled(accept_all).await;
    drop(listener);
    let all = u32::try_from(limits.connections_max).unwrap_or(u32::MAX);
    // Every place is back when every connection's task has ended.
    let _ = places.acquire_many(all).await;
}
