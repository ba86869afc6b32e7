//! Forwarding: streams, broken peers, connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use modulith_gateway::{Address, Internal, Upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tower::Layer;

use crate::world::{World, ask, get_path, orders, post_json, read_chunk, read_head, read_reply, tcp};

fn upstream(address: SocketAddr) -> Arc<[Upstream]> {
    [Upstream::new(Address::Tcp(address.to_string()))].into()
}

/// A peer that is not HTTP enough: reads a request's head, writes what it is told, and hangs up where the script
/// of the connection ends. Returns the heads it saw.
async fn scripted(connections: Vec<Vec<&'static str>>) -> (SocketAddr, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut heads = Vec::new();
        for answers in connections {
            let (mut stream, _) = listener.accept().await.unwrap();
            for answer in answers {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                heads.push(String::from_utf8(head).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
        heads
    });
    (address, task)
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn bodies_stream_both_ways() {
    let world = World::new();
    let mut stream = TcpStream::connect(world.split().await).await.unwrap();
    let head = "POST /orders/echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
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
async fn large_bodies_arrive_whole() {
    let mut world = World::new();
    world.limits.body_bytes_max = 64 << 20;
    let body: Vec<u8> = (0..20_000_000_u32).map(|n| (n % 251) as u8).collect();
    let head = format!("POST /orders/echo HTTP/1.1\ncontent-length: {}", body.len());
    let split = world.split().await;
    let mut stream = TcpStream::connect(split).await.unwrap();
    let head = head.replace('\n', "\r\n") + "\r\nhost: x\r\n\r\n";
    let (mut read, mut write) = stream.split();
    let send = async {
        write.write_all(head.as_bytes()).await.unwrap();
        write.write_all(&body).await.unwrap();
    };
    let (reply, ()) = tokio::join!(read_reply(&mut read, false), send);
    assert_eq!(reply.status, 200);
    assert!(reply.body == body, "{} of {} bytes, or others", reply.body.len(), body.len());
}

#[tokio::test]
async fn connections_are_kept_and_their_headers_are_not() {
    let world = World::new();
    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x-hop\r\nx-hop: 1\r\nkeep-alive: timeout=5\r\nx-end: 1\r\n\r\nok";
    let (service, script) = scripted(vec![vec![answer; 5]]).await;
    let gateway = world.gateway([("/orders", upstream(service))]).await;
    for _ in 0..5 {
        let reply = get_path(
            gateway,
            "/orders",
            "te: trailers\nupgrade: x\nkeep-alive: 1\nproxy-authorization: x\nx-named: 1\nconnection: x-named\nx-kept: 1",
        )
        .await;
        assert_eq!((reply.status, &*reply.body), (200, &b"ok"[..]));
        assert_eq!(
            (reply.header("x-end"), reply.header("x-hop"), reply.header("keep-alive")),
            (Some("1"), None, None)
        );
    }
    // All five came over the one connection that the script accepts.
    for head in script.await.unwrap() {
        let mut names: Vec<_> =
            head.lines().skip(1).filter_map(|line| Some(line.split_once(": ")?.0)).collect();
        names.sort();
        assert_eq!(
            names,
            ["host", "modulith-deadline-ms", "modulith-internal", "modulith-request-id", "x-kept"]
        );
        assert!(
            head.starts_with("GET /orders HTTP/1.1\r\n") && head.contains("host: shop.test\r\n"),
            "{head}"
        );
    }
}

#[tokio::test]
async fn a_service_that_is_down_is_503_and_one_that_breaks_off_502() {
    let world = World::new();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = world.gateway([("/orders", upstream(closed))]).await;
    for reply in [get_path(gateway, "/orders", "").await, post_json(gateway, "/orders", "", "{}").await] {
        assert_eq!((reply.status, &*reply.problem()), (503, "service-unavailable"));
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert!(!String::from_utf8(reply.body).unwrap().contains("127.0.0.1"));
    }

    for broken in ["", "HTTP/1.1 200 OK\r\ncontent-le", "what?\r\n\r\n"] {
        let (service, _script) = scripted(vec![vec![broken], vec![broken]]).await;
        let gateway = world.gateway([("/orders", upstream(service))]).await;
        let reply = get_path(gateway, "/orders", "").await;
        assert_eq!((reply.status, &*reply.problem()), (502, "answer-broken"), "{broken}");
        let reply = ask(gateway, "POST /orders HTTP/1.1\ncontent-length: 0", "").await;
        assert_eq!((reply.status, &*reply.problem()), (502, "outcome-unknown"), "{broken}");
    }

    // Behind its head an answer can only be cut off, and must not look whole.
    let (service, _script) = scripted(vec![vec!["HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf"]]).await;
    let gateway = world.gateway([("/orders", upstream(service))]).await;
    let mut stream = TcpStream::connect(gateway).await.unwrap();
    stream.write_all(b"GET /orders HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer).await;
    assert!(
        answer.is_empty() || answer.contains("content-length: 9\r\n") && answer.ends_with("\r\nhalf"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_service_that_does_not_answer_is_504() {
    let world = World::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = world.gateway([("/orders", upstream(listener.local_addr().unwrap()))]).await;
    let reply = get_path(gateway, "/orders", "request-timeout-ms: 20").await;
    assert_eq!((reply.status, &*reply.problem()), (504, "deadline-exceeded"));
    let reply = ask(gateway, "DELETE /orders HTTP/1.1\nrequest-timeout-ms: 20", "").await;
    assert_eq!((reply.status, &*reply.problem()), (504, "outcome-unknown"));
    // Given up, they are hung up: the service learns that nobody waits.
    for _ in 0..2 {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
    }
}

#[tokio::test]
async fn a_kept_connection_that_died_costs_an_idempotent_request_nothing() {
    let world = World::new();
    // The second request of the first connection is read and never answered.
    let script = || scripted(vec![vec![OK, ""], vec![OK]]);
    for (method, status) in
        [("GET", 200), ("HEAD", 200), ("PUT", 200), ("DELETE", 200), ("OPTIONS", 200), ("POST", 502)]
    {
        let (service, _script) = script().await;
        let gateway = world.gateway([("/orders", upstream(service))]).await;
        assert_eq!(get_path(gateway, "/orders", "").await.status, 200);
        let reply = ask(gateway, &format!("{method} /orders HTTP/1.1\ncontent-length: 0"), "").await;
        assert_eq!(reply.status, status, "{method}: {reply:?}");
    }

    // A connection that was closed while it was idle is not used at all, not even for a POST.
    let (service, script) = scripted(vec![vec![OK], vec![OK]]).await;
    let gateway = world.gateway([("/orders", upstream(service))]).await;
    assert_eq!(get_path(gateway, "/orders", "").await.status, 200);
    let reply = loop {
        // The peer hangs up behind its answer; when that is known here depends on the scheduler alone.
        let reply = ask(gateway, "POST /orders HTTP/1.1\ncontent-length: 0", "").await;
        if reply.status != 502 {
            break reply;
        }
    };
    assert_eq!(reply.status, 200);
    script.await.unwrap();
}

#[tokio::test]
async fn a_replica_that_is_down_is_passed_over() {
    let world = World::new();
    let service = tcp(Internal::new(world.internal.clone(), world.limits).layer(orders())).await;
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let replicas = [closed, service, closed].map(|address| Upstream::new(Address::Tcp(address.to_string())));
    let gateway = world.gateway([("/orders", replicas.into())]).await;
    for _ in 0..12 {
        assert_eq!(post_json(gateway, "/orders", "", r#"{"lines":[]}"#).await.status, 200);
    }
}

#[tokio::test]
async fn a_service_answers_nobody_without_the_internal_token() {
    let world = World::new();
    let service = tcp(Internal::new(world.internal.clone(), world.limits).layer(orders())).await;
    let context = "modulith-principal: admin\nmodulith-deadline-ms: 1000\nmodulith-request-id: r";
    let token = world.internal.expose();
    let short = &token[..63];
    for extra in [
        String::new(),
        context.into(),
        format!("{context}\nmodulith-internal: {short}"),
        format!("{context}\nauthorization: Bearer {token}"),
    ] {
        let reply = get_path(service, "/orders/who", &extra).await;
        assert_eq!((reply.status, &*reply.problem()), (401, "unauthorized"), "{extra}");
        assert_eq!(reply.json().get("detail"), None);
    }
    let trusted = format!("{context}\nmodulith-internal: {token}");
    assert_eq!(get_path(service, "/orders/who", &trusted).await.json()["principal"], "(admin)");
    for broken in ["admin", "root", "user:!"] {
        let extra = format!("modulith-internal: {token}\nmodulith-principal: {broken}");
        assert_eq!(get_path(service, "/orders/who", &extra).await.problem(), "context-unreadable");
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
