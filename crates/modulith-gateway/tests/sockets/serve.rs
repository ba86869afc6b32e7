//! The server loop: what a client can hold, and how it ends.

use std::time::Duration;

use axum::Router;
use modulith_gateway::http::get;
use modulith_gateway::{serve, serve_stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::world::read_reply;

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

fn router() -> Router {
    Router::new()
        .route("/", get(async || "ok"))
        .route("/slow", get(async || tokio::time::sleep(Duration::from_secs(200)).await))
}

/// In memory, because the clock is paused: it advances when nothing else can happen.
fn connected() -> DuplexStream {
    let (client, server) = tokio::io::duplex(1024);
    tokio::spawn(serve_stream(server, router(), CancellationToken::new()));
    client
}

async fn closed_after(client: &mut DuplexStream) -> u64 {
    let started = Instant::now();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    started.elapsed().as_secs()
}

#[tokio::test(start_paused = true)]
async fn a_client_keeps_a_connection_only_while_it_uses_it() {
    assert_eq!(closed_after(&mut connected()).await, 75, "nothing was sent");

    let mut client = connected();
    client.write_all(GET).await.unwrap();
    assert_eq!(read_reply(&mut client, false).await.status, 200);
    assert_eq!(closed_after(&mut client).await, 75, "idle after an answer");

    let mut client = connected();
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(70)).await;
        client.write_all(GET).await.unwrap();
        assert_eq!(read_reply(&mut client, false).await.status, 200);
    }
    client.write_all(b"GET / HT").await.unwrap();
    assert_eq!(closed_after(&mut client).await, 10, "half a head");

    let mut client = connected();
    let started = Instant::now();
    let drip = async {
        while started.elapsed().as_secs() < 60 && client.write_all(b"G").await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        started.elapsed().as_secs()
    };
    assert!((10..=11).contains(&drip.await), "a head in drops");

    let mut client = connected();
    client.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let started = Instant::now();
    assert_eq!(read_reply(&mut client, false).await.status, 200);
    assert_eq!(started.elapsed().as_secs(), 200, "work is not interrupted");
    assert_eq!(closed_after(&mut client).await, 75, "idle after long work");
}

#[tokio::test]
async fn a_stop_lets_requests_end_and_closes_the_rest() {
    let (entered, mut at_work) = mpsc::channel(1);
    let release = CancellationToken::new();
    let held = release.clone();
    let router = router().route(
        "/held",
        get(async move || {
            entered.send(()).await.unwrap();
            held.cancelled().await;
            "held"
        }),
    );
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let server = tokio::spawn(serve(listener, router, stop.clone()));

    let mut silent = TcpStream::connect(address).await.unwrap();
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(GET).await.unwrap();
    read_reply(&mut idle, false).await;
    let mut busy = TcpStream::connect(address).await.unwrap();
    busy.write_all(b"GET /held HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    at_work.recv().await.unwrap();

    stop.cancel();
    assert_eq!(silent.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(idle.read(&mut [0; 1]).await.unwrap(), 0);
    assert!(TcpStream::connect(address).await.is_err());
    assert!(!server.is_finished());
    release.cancel();
    let reply = read_reply(&mut busy, false).await;
    assert_eq!((reply.header("connection"), &*reply.body), (Some("close"), &b"held"[..]));
    server.await.unwrap();
}
