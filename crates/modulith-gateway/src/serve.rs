//! HTTP/1.1 on a listener, or on one stream that somebody else accepted.
//!
//! It bounds what a client can hold: connections, the time for a head, the time between requests, the time in which
//! nothing of an answer is read. It knows no TLS, which ends before it.

mod pace;

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::Response;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tower::{Service, ServiceExt};

use pace::{Pace, Paced, PacedBody};

/// Connections of one listener; one more is closed as soon as it is accepted.
const CONNECTIONS_MAX: usize = 10_000;
/// After a failed accept (out of file descriptors), before the next.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What connections come from: [`TcpListener`] or [`UnixListener`].
pub trait Listener: Send {
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;
    fn accept(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Listener for TcpListener {
    type Stream = TcpStream;

    async fn accept(&mut self) -> io::Result<TcpStream> {
        let (stream, _) = TcpListener::accept(self).await?;
        // An answer is written at once; waiting for more would only delay it. It fails for a connection that is
        // gone already, which its first read will tell.
        let _ = stream.set_nodelay(true);
        Ok(stream)
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;

    async fn accept(&mut self) -> io::Result<UnixStream> {
        Ok(UnixListener::accept(self).await?.0)
    }
}

/// Serves every connection of a listener until `stop` is cancelled; then accepts no more, lets the requests at
/// work end, and returns when all connections are closed. Dropped, it cuts them off.
///
/// At most 10,000 connections, the others are refused by closing them. A head must arrive within 10 s of its
/// first byte; a connection without a request is closed after 75 s, and one whose client takes nothing of an
/// answer after 60 s. The longest request after a stop is bounded by the edge's deadline, a body that is being sent
/// is not: put a timeout around it.
pub async fn serve<L, S>(mut listener: L, service: S, stop: CancellationToken)
where
    L: Listener,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok(_refused) if connections.len() >= CONNECTIONS_MAX => {
                tracing::warn!(connections_max = CONNECTIONS_MAX, "connection refused: too many are open");
            }
            Ok(stream) => {
                connections.spawn(serve_stream(stream, service.clone(), stop.clone()));
            }
            // That connection is gone, the next may be well.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                tracing::error!(%error, "connection not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Serves one connection until it is closed, or until `stop` is cancelled and its request has ended. With the
/// limits of [`serve`].
pub async fn serve_stream<I, S>(stream: I, service: S, stop: CancellationToken)
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request, Response = Response, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let pace = Arc::new(Pace::default());
    let service = {
        let pace = pace.clone();
        service_fn(move |request: http::Request<Incoming>| {
            let busy = pace.begin();
            let answer = service.clone().oneshot(request.map(body));
            async move {
                let response = answer.await?;
                Ok::<_, Infallible>(response.map(|body| PacedBody::new(body, busy)))
            }
        })
    };
    let stream = TokioIo::new(Paced::new(stream, pace.clone()));
    // Hyper's own time for a head begins with the wait for it, and would close idle connections.
    let mut connection =
        pin!(http1::Builder::new().header_read_timeout(None).serve_connection(stream, service));
    let mut stopped = pin!(stop.cancelled());
    let mut stopping = false;
    let mut alarm = pin!(pace.alarm());
    poll_fn(|cx| {
        if !stopping && stopped.as_mut().poll(cx).is_ready() {
            stopping = true;
            connection.as_mut().graceful_shutdown();
        }
        match connection.as_mut().poll(cx) {
            Poll::Ready(ended) => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "connection ended");
                }
                Poll::Ready(())
            }
            Poll::Pending => pace.poll_overdue(alarm.as_mut(), cx),
        }
    })
    .await;
}

fn body(incoming: Incoming) -> Body {
    // An empty body needs no box.
    if incoming.is_end_stream() { Body::empty() } else { Body::new(incoming) }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::{Instant, sleep};

    use super::*;

    const ANSWER_BYTES: usize = 1 << 20;

    /// A client of a server that has one large answer, ready at once; the server's task ends with the connection.
    async fn client() -> (DuplexStream, tokio::task::JoinHandle<()>) {
        let (mut client, server) = tokio::io::duplex(16 << 10);
        let service = axum::Router::new().fallback(async || vec![7_u8; ANSWER_BYTES]);
        let served = tokio::spawn(serve_stream(server, service, CancellationToken::new()));
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
        (client, served)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_cut_off() {
        let (mut client, served) = client().await;
        client.read_exact(&mut [0; 100_000]).await.expect("the beginning of an answer");
        let begun = Instant::now();
        served.await.expect("no panic");
        let took = begun.elapsed();
        assert!((60..62).contains(&took.as_secs()), "{took:?}");
    }

    /// Minutes, of an answer that was there at once.
    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_gets_all_of_it() {
        let (mut client, served) = client().await;
        let (mut read, mut piece) = (0, vec![0; 64 << 10]);
        while read < ANSWER_BYTES {
            sleep(Duration::from_secs(50)).await;
            read += match client.read(&mut piece).await.expect("it stays open") {
                0 => panic!("cut off after {read} bytes"),
                more => more,
            };
        }
        // And then it has the time between two requests.
        let begun = Instant::now();
        served.await.expect("no panic");
        assert!((74..77).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    }
}
