//! The way from the gateway to a service: what travels, and what breaks.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures_util::FutureExt;
use modulith_gateway::http::{finish, get};
use modulith_gateway::{Backend, Merged, RouteTable};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tower::Layer;

use crate::services::{acting, die, listen, routed, upstream};
use crate::world::{World, ask, get_path, orders, post_json, read_head, read_reply, tcp};

/// An answer of 200 with the body `ok`.
const OK: Bytes = Bytes::from_static(b"\x06\xc8\0\0\0ok");

fn hosted() -> RouteTable<axum::Router> {
    RouteTable::new([("/orders", orders())]).unwrap()
}

#[tokio::test]
async fn headers_of_a_connection_end_with_it() {
    let world = World::new();
    let heads = || finish(axum::Router::new().route("/orders", get(seen)));
    async fn seen(headers: http::HeaderMap) -> ([(&'static str, &'static str); 4], String) {
        let names: Vec<_> = headers.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
        let own = [("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "timeout=5"), ("x-end", "1")];
        (own, names.join(" "))
    }
    let routes = RouteTable::new([("/orders", heads())]).unwrap();
    let gateway =
        world.gateway([("/orders", world.upstream(world.backend("127.0.0.1:0", routes).await))]).await;
    let own = "te: trailers\nupgrade: x\nkeep-alive: 1\nproxy-authorization: x\nx-named: 1\nconnection: x-named\n\
        x-kept: 1\nx-empty:\ncookie: a=1\ncookie: b=2";
    let reply = get_path(gateway, "/orders", own).await;
    assert_eq!(
        String::from_utf8(reply.body.clone()).unwrap(),
        r#"x-kept="1" x-empty="" cookie="a=1" cookie="b=2" host="shop.test""#
    );
    assert_eq!(
        (reply.header("x-end"), reply.header("x-hop"), reply.header("keep-alive")),
        (Some("1"), None, None)
    );
}

/// Sends these bytes and reads what comes until the end.
async fn exchange(door: SocketAddr, request: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(door).await.unwrap();
    stream.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn every_answer_is_as_the_service_made_it() {
    let world = World::new();
    async fn odd(headers: http::HeaderMap) -> Response {
        let mut answer = Response::new(Body::empty());
        for value in headers.get_all("x-odd") {
            answer.headers_mut().append("x-odd", value.clone());
        }
        answer.headers_mut().append("set-cookie", "a=1".parse().unwrap());
        answer.headers_mut().append("set-cookie", "b=2".parse().unwrap());
        answer
    }
    async fn length(status: http::StatusCode) -> Response {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = status;
        answer.headers_mut().insert("content-length", 7.into());
        answer.headers_mut().insert("etag", "\"x\"".parse().unwrap());
        answer
    }
    let router = || {
        finish(
            axum::Router::new()
                .route("/orders/odd", get(odd))
                .route("/orders/304", get(async || length(http::StatusCode::NOT_MODIFIED).await))
                .route("/orders/204", get(async || http::StatusCode::NO_CONTENT))
                .route("/orders/205", get(async || http::StatusCode::RESET_CONTENT))
                .route("/orders/299", get(async || http::StatusCode::from_u16(299).unwrap()))
                .route("/orders/text", get(async || "some text")),
        )
    };
    let routes = || RouteTable::new([("/orders", router())]).unwrap();
    let whole = tcp(world.edge().layer(Merged::new(routes()))).await;
    let split =
        world.gateway([("/orders", world.upstream(world.backend("127.0.0.1:0", routes()).await))]).await;
    for (method, path, extra) in [
        ("GET", "/orders/odd", &b"X-Odd: caf\xe9\r\nx-odd:\r\nx-odd: \xff\xfe, \t1\r\n"[..]),
        ("GET", "/orders/304", b""),
        ("HEAD", "/orders/304", b""),
        ("GET", "/orders/204", b""),
        ("GET", "/orders/205", b""),
        ("GET", "/orders/299", b""),
        ("HEAD", "/orders/text", b""),
        ("GET", "/orders/text?a=%ff&b", b""),
    ] {
        let head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: r\r\n");
        let request = [head.as_bytes(), extra, b"\r\n"].concat();
        let undated = |answer: Vec<u8>| {
            let mut lines: Vec<Vec<u8>> = answer.split(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
            lines.retain(|line| !line.starts_with(b"date: "));
            lines
        };
        let (whole, split) = (exchange(whole, &request).await, exchange(split, &request).await);
        assert_eq!(undated(whole.clone()), undated(split), "{method} {path}");
        if path == "/orders/odd" {
            let odd = b"x-odd: caf\xe9\r\nx-odd: \r\nx-odd: \xff\xfe, \t1\r\nset-cookie: a=1\r\nset-cookie: b=2\r\n";
            assert!(whole.windows(odd.len()).any(|at| at == odd), "{}", String::from_utf8_lossy(&whole));
        }
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_is_told_to_go_on_or_is_refused() {
    let mut world = World::new();
    world.limits.body_bytes_max = 1 << 20;
    let split = world.split().await;
    for size in [5, 100_000] {
        let mut stream = TcpStream::connect(split).await.unwrap();
        let head = format!(
            "POST /orders/bytes HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {size}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        assert_eq!(read_head(&mut stream).await, (100, vec![]));
        stream.write_all(&vec![b'x'; size]).await.unwrap();
        assert_eq!(read_reply(&mut stream, false).await.json(), size);
    }
    let mut stream = TcpStream::connect(split).await.unwrap();
    let head =
        b"POST /orders/bytes HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9999999\r\n\r\n";
    stream.write_all(head).await.unwrap();
    assert_eq!(read_reply(&mut stream, false).await.status, 413);
}

#[tokio::test]
async fn a_service_that_is_down_is_503_and_one_that_breaks_off_502() {
    let world = World::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = world.upstream(closed.to_string().parse().unwrap());
    let gateway = world.gateway([("/orders", closed)]).await;
    for reply in [get_path(gateway, "/orders", "").await, post_json(gateway, "/orders", "", "{}").await] {
        assert_eq!((reply.status, &*reply.problem()), (503, "service-unavailable"));
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert!(!String::from_utf8(reply.body).unwrap().contains("127.0.0.1"));
    }

    let broken = |answer: Option<&'static [u8]>| {
        acting(move |cut| match answer {
            Some(answer) => std::future::ready(Bytes::from_static(answer).into()).boxed(),
            None => die(cut).boxed(),
        })
    };
    for answer in [None, Some(&b""[..]), Some(b"\x04what"), Some(b"\x06\xc8"), Some(b"\x06\xc8\0\x01\xff")] {
        let gateway = world.gateway([("/orders", world.upstream(broken(answer).await))]).await;
        let reply = get_path(gateway, "/orders", "").await;
        assert_eq!((reply.status, &*reply.problem()), (502, "answer-broken"), "{answer:?}");
        let gateway = world.gateway([("/orders", world.upstream(broken(answer).await))]).await;
        let reply = ask(gateway, "POST /orders HTTP/1.1\ncontent-length: 0", "").await;
        assert_eq!((reply.status, &*reply.problem()), (502, "outcome-unknown"), "{answer:?}");
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_read_is_refused_and_has_not_run() {
    let world = World::new();
    let backend = Backend::new(hosted(), world.limits);
    let hostile = |request: &'static [u8]| {
        let backend = backend.clone();
        move |_| {
            let answer =
                backend.handle(modulith_core::Context::background("r"), &Bytes::from_static(request), None);
            let why = answer.err().expect("it cannot be read");
            modulith_transport::Handled::Now(Err(modulith_transport::Rejection::new(why)))
        }
    };
    for request in [&b""[..], b"\x01", b"\x63", b"\x01\x01/\xff\xff\xff\x7f\0", b"\x01\x03a b\0\0"] {
        let upstream = world.upstream(listen("127.0.0.1:0", hostile(request)).await);
        let gateway = world.gateway([("/orders", upstream)]).await;
        let reply = get_path(gateway, "/orders", "").await;
        assert_eq!((reply.status, &*reply.problem()), (503, "overloaded"), "{request:?}");
    }
}

/// Tells when it is dropped.
struct Watched(mpsc::UnboundedSender<()>);

impl Drop for Watched {
    fn drop(&mut self) {
        let _ = self.0.send(());
    }
}

/// A service that never answers, and tells when a call begins and when it is dropped.
async fn silent() -> (modulith_transport::Address, mpsc::UnboundedReceiver<()>, mpsc::UnboundedReceiver<()>) {
    let (began, begins) = mpsc::unbounded_channel();
    let (dropped, drops) = mpsc::unbounded_channel();
    let address = acting(move |_| {
        let (began, watched) = (began.clone(), Watched(dropped.clone()));
        async move {
            let _watched = watched;
            began.send(()).unwrap();
            std::future::pending().await
        }
        .boxed()
    })
    .await;
    (address, begins, drops)
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_504() {
    let world = World::new();
    let (address, _begins, mut drops) = silent().await;
    let gateway = world.gateway([("/orders", world.upstream(address))]).await;
    let reply = get_path(gateway, "/orders", "request-timeout-ms: 20").await;
    assert_eq!((reply.status, &*reply.problem()), (504, "deadline-exceeded"));
    let reply = ask(gateway, "DELETE /orders HTTP/1.1\nrequest-timeout-ms: 20", "").await;
    assert_eq!((reply.status, &*reply.problem()), (504, "outcome-unknown"));
    // Given up, they are dropped there too.
    for _ in 0..2 {
        drops.recv().await.unwrap();
    }

    // Of a body that does not come nothing was sent.
    let slow = "POST /orders HTTP/1.1\nrequest-timeout-ms: 20\ncontent-length: 10";
    let reply = ask(gateway, slow, "1").await;
    assert_eq!((reply.status, &*reply.problem()), (504, "deadline-exceeded"));
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_its_request_at_the_service() {
    let world = World::new();
    let (address, mut begins, mut drops) = silent().await;
    let gateway = world.gateway([("/orders", world.upstream(address))]).await;
    let mut client = TcpStream::connect(gateway).await.unwrap();
    client.write_all(b"GET /orders HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    begins.recv().await.unwrap();
    drop(client);
    tokio::time::timeout(Duration::from_secs(5), drops.recv()).await.expect("long before the deadline");
}

#[tokio::test]
async fn a_connection_that_breaks_costs_a_safe_request_nothing() {
    let world = World::new();
    for (method, status) in
        [("GET", 200), ("HEAD", 200), ("OPTIONS", 200), ("PUT", 502), ("DELETE", 502), ("POST", 502)]
    {
        // Two replicas, so that there is a connection left; the first call of all is cut off.
        let calls: &'static AtomicUsize = Box::leak(Box::default());
        let cut_first = || {
            acting(|cut| match calls.fetch_add(1, Ordering::SeqCst) {
                0 => die(cut).boxed(),
                _ => std::future::ready(OK.into()).boxed(),
            })
        };
        let replicas = upstream(vec![cut_first().await, cut_first().await]);
        while replicas.peer().replicas().len() < 2 {
            let soon = std::time::Instant::now() + Duration::from_secs(5);
            replicas.peer().connected(soon).await.unwrap();
            tokio::task::yield_now().await;
        }
        let gateway = world.gateway([("/orders", replicas)]).await;
        let reply = ask(gateway, &format!("{method} /orders HTTP/1.1\ncontent-length: 0"), "").await;
        assert_eq!(reply.status, status, "{method}: {reply:?}");
        assert_eq!(calls.load(Ordering::SeqCst), if status == 200 { 2 } else { 1 }, "{method}");
    }
}

#[tokio::test]
async fn a_replica_that_is_down_is_passed_over() {
    let world = World::new();
    let service = listen("127.0.0.1:0", routed(Backend::new(hosted(), world.limits))).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = || closed.to_string().parse().unwrap();
    let gateway = world.gateway([("/orders", upstream(vec![closed(), service, closed()]))]).await;
    for _ in 0..12 {
        assert_eq!(post_json(gateway, "/orders", "", r#"{"lines":[]}"#).await.status, 200);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_at_once_get_their_own_answers() {
    let world = World::new();
    let split = world.split().await;
    let callers = (0..64).map(|caller: u32| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(split).await.unwrap();
            for n in 0..100 {
                let id = caller * 1000 + n;
                let (path, expected) = match n % 2 {
                    0 => (format!("/orders/{id}"), id.to_string()),
                    _ => (format!("/products/{id}"), format!("\"{id}\"")),
                };
                let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                let reply = read_reply(&mut stream, false).await;
                assert_eq!((reply.status, reply.body), (200, expected.into_bytes()));
            }
        })
    });
    let all = futures_util::future::try_join_all(callers.collect::<Vec<_>>());
    tokio::time::timeout(Duration::from_secs(30), all).await.unwrap().unwrap();
}
