//! Measures calls per second over a Unix socket, caller and callee in two tasks of one process.
//!
//! `cargo run --release -p modulith-transport --example echo`. Each line is one second of as many callers as it says, each of
//! which sends 100 bytes, waits for them to come back, and sends again.

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use modulith_transport::{
    Address, Admit, Handled, Handler, Hello, Incoming, Limits, Listener, Peer, Priority, Token, serve,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

fn hello(service: &str) -> Hello {
    Hello {
        service: service.to_owned(),
        incarnation: [1; 16],
        token: Token::new("echo"),
        about: Bytes::new(),
    }
}

async fn measure(peer: &Peer, callers: usize, duration: Duration) -> Result<usize, Box<dyn Error>> {
    let end = Instant::now() + duration;
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let peer = peer.clone();
        tasks.spawn(async move {
            let payload = Bytes::from_static(&[7; 100]);
            let mut calls = 0;
            while Instant::now() < end {
                peer.call(Instant::now() + Duration::from_secs(5), Priority::Ordinary, payload.clone())
                    .await?;
                calls += 1;
            }
            Ok::<usize, modulith_transport::CallFault>(calls)
        });
    }
    let mut calls = 0;
    while let Some(counted) = tasks.join_next().await {
        calls += counted??;
    }
    Ok(calls)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::temp_dir().join(format!("modulith-echo-{}.sock", std::process::id()));
    let address = Address::Unix(path);
    let admit: Admit = Arc::new(|_| Ok(()));
    let listener = Listener::bind(&address).await?;
    let later = std::env::args().any(|argument| argument == "later");
    let handler: Arc<dyn Handler> = Arc::new(move |call: Incoming| {
        if later {
            Handled::Later(Box::pin(async move { Ok(call.payload.into()) }))
        } else {
            Handled::Now(Ok(call.payload.into()))
        }
    });
    let shutdown = CancellationToken::new();
    let limits = Limits::default();
    let served = tokio::spawn(serve(
        listener,
        hello("served"),
        admit.clone(),
        limits.clone(),
        handler,
        None,
        shutdown.clone(),
    ));
    let peer = Peer::new(vec![address], hello("caller"), admit, limits);
    measure(&peer, 64, Duration::from_millis(300)).await?;
    for callers in [1, 2, 4, 16, 64, 256] {
        let started = Instant::now();
        let calls = measure(&peer, callers, Duration::from_secs(1)).await?;
        println!("{callers:>4} callers {:>9.0} calls/s", calls as f64 / started.elapsed().as_secs_f64());
    }
    shutdown.cancel();
    served.await?;
    Ok(())
}
