//! Connections to one upstream: opened when needed, kept while they are good, never more than a stated number.
//!
//! A connection has no task of its own. Whoever uses it drives it (see [`Link::drive`]), so that a forwarded
//! request stays on one task and one core from the client's socket to the upstream's; and dropping the request
//! closes the connection, which cancels the work behind it. An idle one is looked at when it is taken out.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use axum::body::Body;
use futures_util::future::BoxFuture;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections of one upstream that wait for a request.
const IDLE_MAX: usize = 128;
/// Connections of one upstream in all; also the number of requests in flight.
const OPEN_MAX: usize = 1024;
/// Below the 75 s after which [`crate::serve`] closes a connection, so that we rarely meet a closing one.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(2);

/// Where a service listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`; a name is looked up at each connect.
    Tcp(String),
    Unix(PathBuf),
}

/// Printed as `host:port` or `unix:/path`.
impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Tcp(host) => f.write_str(host),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// What HTTP is spoken over.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Makes a connection; for addresses that a socket alone does not reach.
pub type Connect = Arc<dyn Fn() -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> + Send + Sync>;

/// A connection and both of its ends: the requests' and the socket's.
pub(super) struct Link {
    pub(super) requests: SendRequest<Body>,
    /// Gone when the connection is over: only then does hyper hand back a request that it did not write.
    socket: Option<Connection<TokioIo<Box<dyn ByteStream>>, Body>>,
    idle_since: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Link {
    /// Moves bytes in both directions as far as the socket lets. Ready when the connection is over; its error, if
    /// any, has then been handed to the answer or to the answer's body.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(socket) = &mut self.socket {
            if Pin::new(socket).poll(cx).is_pending() {
                return Poll::Pending;
            }
            self.socket = None;
        }
        Poll::Ready(())
    }

    /// Whether it can take a request. Reads what the peer has sent since, which is the news that it hung up.
    fn is_good(&mut self) -> bool {
        // Nobody waits for an idle connection, and a finished task should not be kept by its waker.
        self.drive(&mut Context::from_waker(Waker::noop())).is_pending() && self.requests.is_ready()
    }
}

pub(super) struct Pool {
    pub(super) address: Address,
    connect: Option<Connect>,
    /// Last in, first out: under little load few connections are used, and the others grow old.
    idle: Mutex<Vec<Link>>,
    open: Arc<Semaphore>,
}

/// Why there is no connection. Nothing was sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoLink {
    #[error("{OPEN_MAX} connections are open")]
    Full,
    #[error("not connected: {0}")]
    Refused(#[from] io::Error),
    #[error("not connected: {0}")]
    Handshake(#[from] hyper::Error),
}

impl Pool {
    pub(super) fn new(address: Address, connect: Option<Connect>) -> Self {
        Self { address, connect, idle: Mutex::default(), open: Arc::new(Semaphore::new(OPEN_MAX)) }
    }

    pub(super) fn in_flight(&self) -> usize {
        let idle = self.idle.lock().len();
        (OPEN_MAX - self.open.available_permits()).saturating_sub(idle)
    }

    /// A connection that was used before and is still good.
    pub(super) fn idle(&self) -> Option<Link> {
        loop {
            // Not in the condition, where the lock would be held while the socket is read.
            let mut link = self.idle.lock().pop()?;
            let fresh = link.idle_since.elapsed() < IDLE_TIME_MAX;
            if fresh && link.is_good() {
                return Some(link);
            }
        }
    }

    /// A new connection.
    pub(super) async fn connect(&self) -> Result<Link, NoLink> {
        let permit = match self.open.clone().try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => return Err(NoLink::Full),
        };
        let connected = tokio::time::timeout(CONNECT_TIME_MAX, self.stream()).await;
        let stream = connected.unwrap_or_else(|late| Err(late.into()))?;
        let (requests, socket) = handshake(TokioIo::new(stream)).await?;
        Ok(Link { requests, socket: Some(socket), idle_since: Instant::now(), _permit: permit })
    }

    async fn stream(&self) -> io::Result<Box<dyn ByteStream>> {
        if let Some(connect) = &self.connect {
            return connect().await;
        }
        Ok(match &self.address {
            Address::Tcp(host) => {
                let stream = TcpStream::connect(host).await?;
                // A request's head and body are written at once; waiting for more would only delay them.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }

    /// Keeps a connection whose answer has been read to its end, if it can take another request.
    pub(super) fn keep(&self, mut link: Link) {
        if !link.is_good() {
            return;
        }
        link.idle_since = Instant::now();
        let mut idle = self.idle.lock();
        let stale = idle.first().is_some_and(|oldest| oldest.idle_since.elapsed() >= IDLE_TIME_MAX);
        let excess = (stale || idle.len() >= IDLE_MAX).then(|| idle.remove(0));
        idle.push(link);
        // Closing a socket is a system call; not under the lock.
        drop(idle);
        drop(excess);
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;
    use modulith_core::Context;

    use super::*;
    use crate::{AccessToken, Upstream};

    #[tokio::test]
    async fn at_its_bound_an_upstream_is_overloaded_and_recovers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("service.sock");
        let _listener = tokio::net::UnixListener::bind(&path).unwrap();
        let pool = Arc::new(Pool::new(Address::Unix(path), None));
        let all = pool.open.clone().try_acquire_many_owned(OPEN_MAX as u32).unwrap();
        let forward = async || {
            let token = AccessToken::generate().unwrap();
            let mut context = Context::background("r");
            context.deadline = Some(Instant::now());
            Upstream::of(pool.clone()).forward(Request::default(), &token, &context).await
        };
        let response = forward().await;
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["retry-after"], "1");
        drop(all);
        assert_eq!(forward().await.status(), 504, "connected, and nobody answers");
        assert_eq!(pool.in_flight(), 0);
    }
}
