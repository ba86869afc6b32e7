
#![allow(dead_code, unreachable_pub, reason = "x")]
#[path = "sockets/world.rs"]
mod world;
use world::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bench() {
    let world = World::new();
    let ada = world.session("ada");
    for (name, door) in [("whole", world.monolith().await), ("split", world.split().await), ("whole", world.monolith().await), ("split", world.split().await)] {
        let started = std::time::Instant::now();
        let n = 3000;
        let callers: Vec<_> = (0..64).map(|_| { let ada = ada.clone(); tokio::spawn(async move {
            let mut s = TcpStream::connect(door).await.unwrap();
            s.set_nodelay(true).unwrap();
            let head = format!("GET /orders/7 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {ada}\r\naccept: */*\r\nuser-agent: x\r\n\r\n");
            let mut buf = vec![0; 4096];
            for _ in 0..n {
                s.write_all(head.as_bytes()).await.unwrap();
                let mut got = 0;
                loop { let r = s.read(&mut buf[got..]).await.unwrap(); assert!(r > 0, "{:?}", String::from_utf8_lossy(&buf[..got])); got += r; if buf[..got].ends_with(b"\r\n\r\n7") { break; } }
            }
        })}).collect();
        for c in callers { c.await.unwrap(); }
        let t = started.elapsed().as_secs_f64();
        println!("{name}: {:.0}/s", 64.0 * n as f64 / t);
    }
}
