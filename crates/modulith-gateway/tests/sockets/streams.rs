//! Bodies that stream through the gateway, both ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use modulith_gateway::RouteTable;
use modulith_gateway::http::{finish, get, post};
use modulith_transport::{BODY_WINDOW_BYTES, BodyError, Reply};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use crate::services::{acting, die};
use crate::world::{World, ask, read_chunk, read_head, read_reply};

const GENEROUS: Duration = Duration::from_secs(30);

/// A gateway before one service with these routes.
async fn behind(world: &World, router: Router) -> std::net::SocketAddr {
    let routes = RouteTable::new([("/orders", finish(router))]).unwrap();
    let service = world.upstream(world.backend("127.0.0.1:0", routes).await);
    world.gateway([("/orders", service)]).await
}

async fn client(gateway: std::net::SocketAddr, head: &str) -> TcpStream {
    let mut client = TcpStream::connect(gateway).await.unwrap();
    client.write_all(format!("{}\r\nhost: x\r\n\r\n", head.replace('\n', "\r\n")).as_bytes()).await.unwrap();
    client
}

#[tokio::test]
async fn bodies_stream_both_ways() {
    let world = World::new();
    let mut stream =
        client(world.split().await, "POST /orders/echo HTTP/1.1\ntransfer-encoding: chunked").await;
    for round in 0..3 {
        stream.write_all(b"5\r\nfirst\r\n").await.unwrap();
        if round == 0 {
            assert_eq!(read_head(&mut stream).await.0, 200);
        }
        // It comes back although the request has not ended.
        assert_eq!(read_chunk(&mut stream).await, b"first");
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert_eq!(read_chunk(&mut stream).await, b"");
}

#[tokio::test]
async fn events_arrive_one_by_one_and_end_with_their_reader() {
    let (events, received) = mpsc::unbounded_channel::<&'static str>();
    let received = Arc::new(Mutex::new(Some(received)));
    let router = Router::new().route(
        "/orders/events",
        get(async move || {
            let received = received.lock().take().expect("asked once");
            let events = futures_util::stream::unfold(received, async |mut received| {
                Some((Ok::<_, axum::Error>(received.recv().await?), received))
            });
            ([("content-type", "text/event-stream")], Body::from_stream(events))
        }),
    );
    let mut reader = client(behind(&World::new(), router).await, "GET /orders/events HTTP/1.1").await;
    // The head comes before the first event.
    let (status, headers) = read_head(&mut reader).await;
    assert_eq!(status, 200);
    assert!(headers.contains(&("content-type".into(), "text/event-stream".into())), "{headers:?}");
    for event in ["data: 1\n\n", "data: 2\n\n"] {
        events.send(event).unwrap();
        assert_eq!(read_chunk(&mut reader).await, event.as_bytes());
    }
    drop(reader);
    tokio::time::timeout(GENEROUS, events.closed()).await.expect("the service's stream is dropped");
}

#[tokio::test]
async fn large_bodies_arrive_whole() {
    let mut world = World::new();
    world.limits.body_bytes_max = 64 << 20;
    let body: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    let head = format!("POST /orders/echo HTTP/1.1\ncontent-length: {}", body.len());
    let mut stream = client(world.split().await, &head).await;
    let (mut read, mut write) = stream.split();
    let (reply, ()) =
        tokio::join!(read_reply(&mut read, false), async { write.write_all(&body).await.unwrap() });
    assert_eq!(reply.status, 200);
    assert!(reply.body == body, "{} of {} bytes, or others", reply.body.len(), body.len());
}

#[tokio::test]
async fn bodies_of_every_size_arrive_with_their_length() {
    let mut world = World::new();
    world.limits.body_bytes_max = 64 << 20;
    let router = Router::new().route("/orders/bytes", post(async |body: Bytes| body)).route(
        "/orders/length",
        post(async |request: Request| format!("{:?}", request.headers().get("content-length"))),
    );
    let gateway = behind(&world, router).await;
    for size in [0, 1, 65_535, 65_536, 65_537, 300_000, 10 << 20] {
        let body = vec![b'x'; size];
        let reply =
            ask(gateway, &format!("POST /orders/bytes HTTP/1.1\ncontent-length: {size}"), &body).await;
        assert_eq!((reply.status, reply.header("content-length")), (200, Some(&*size.to_string())));
        assert!(reply.body == body);
        let reply =
            ask(gateway, &format!("POST /orders/length HTTP/1.1\ncontent-length: {size}"), &body).await;
        assert_eq!(reply.body, format!("Some(\"{size}\")").into_bytes());
    }
}

#[tokio::test]
async fn a_slow_reader_holds_no_more_than_windows() {
    let made: &'static AtomicUsize = Box::leak(Box::default());
    const PIECE: usize = 64 << 10;
    let router = Router::new()
        .route(
            "/orders/endless",
            get(async move || {
                let endless = futures_util::stream::repeat_with(move || {
                    made.fetch_add(PIECE, Ordering::SeqCst);
                    Ok::<_, axum::Error>(Bytes::from_static(&[b'x'; PIECE]))
                });
                Body::from_stream(endless)
            }),
        )
        .route("/orders/other", get(async || "other"));
    let gateway = behind(&World::new(), router).await;
    let mut slow = client(gateway, "GET /orders/endless HTTP/1.1").await;
    assert_eq!(read_head(&mut slow).await.0, 200);
    // The sockets' own buffers fill, then the window; from then on nothing is made, while others are answered over
    // the same connection.
    let mut before = 0;
    let mut still = 0;
    while still < 200 {
        assert_eq!(ask(gateway, "GET /orders/other HTTP/1.1", "").await.body, b"other");
        let now = made.load(Ordering::SeqCst);
        still = if now == before { still + 1 } else { 0 };
        before = now;
        assert!(now < 16 << 20, "{now} bytes for a reader that does not read");
    }
    assert!(before >= BODY_WINDOW_BYTES, "{before}");
    // It goes on where it stopped.
    let mut left = before + BODY_WINDOW_BYTES;
    while left > 0 {
        left = left.saturating_sub(read_chunk(&mut slow).await.len());
    }
    assert!(made.load(Ordering::SeqCst) > before);
}

#[tokio::test]
async fn an_upload_waits_for_a_handler_that_does_not_read() {
    let mut world = World::new();
    world.limits.body_bytes_max = 1 << 30;
    let (give, given) = tokio::sync::oneshot::channel();
    let give = Mutex::new(Some(give));
    let give = Arc::new(give);
    let router = Router::new().route(
        "/orders/hold",
        post(async move |request: Request| {
            let _ = give.lock().take().expect("asked once").send(request.into_body());
            std::future::pending::<()>().await
        }),
    );
    let gateway = behind(&world, router).await;
    let mut upload =
        client(gateway, &format!("POST /orders/hold HTTP/1.1\ncontent-length: {}", 1 << 30)).await;
    let piece = vec![b'x'; 64 << 10];
    let sent = AtomicUsize::new(0);
    let send = async {
        loop {
            upload.write_all(&piece).await.unwrap();
            sent.fetch_add(piece.len(), Ordering::SeqCst);
        }
    };
    let watch = async {
        let mut body = given.await.unwrap().into_data_stream();
        let (mut before, mut still) = (0, 0);
        while still < 1000 {
            tokio::task::yield_now().await;
            let now = sent.load(Ordering::SeqCst);
            still = if now == before { still + 1 } else { 0 };
            before = now;
            assert!(now < 32 << 20, "{now} bytes for a handler that does not read");
        }
        let mut read = 0;
        while read < before + (1 << 20) {
            read += body.next().await.expect("there is more").expect("nothing broke").len();
        }
    };
    tokio::select! {
        () = send => unreachable!("it has no end"),
        () = watch => {}
    }
}

#[derive(Clone, Copy)]
enum End {
    Dies,
    Breaks,
    Ends,
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let world = World::new();
    // Nine bytes are promised, or none in particular; then the service dies, or its body breaks or just ends.
    let promised = &b"\x06\xc8\0\0\x02\x09\0\0\0\0\0\0\0"[..];
    let in_general = &b"\x06\xc8\0\0\x01"[..];
    for (head, end) in [
        (promised, End::Dies),
        (promised, End::Breaks),
        (promised, End::Ends),
        (in_general, End::Dies),
        (in_general, End::Breaks),
    ] {
        let service = acting(move |cut| {
            let rest = futures_util::stream::once(async move {
                match end {
                    End::Dies => die(cut).await,
                    End::Breaks => Err(BodyError::Reset("broken".to_owned())),
                    End::Ends => Ok(Bytes::new()),
                }
            });
            let body = futures_util::stream::iter([Ok(Bytes::from_static(b"half"))]).chain(rest);
            let reply = Reply { payload: head.to_vec(), body: Some(modulith_transport::Body::new(body)) };
            std::future::ready(reply).boxed()
        });
        let gateway = world.gateway([("/orders", world.upstream(service.await))]).await;
        let mut stream = client(gateway, "GET /orders HTTP/1.1").await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(GENEROUS, stream.read_to_end(&mut answer)).await.expect("it is cut");
        let answer = String::from_utf8(answer).unwrap();
        assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
