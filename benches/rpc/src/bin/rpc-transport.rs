//! The framework's transport alone: bytes in its frames, with a deadline and a priority.

use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use bytes::Bytes;
use clap::Parser;
use modulith_transport::{Admit, Handled, Hello, Incoming, Limits, Listener, Peer, Priority, Token, serve};
use rpc::{Caller, PATIENCE, Role, TEXT};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let admit: Admit = Arc::new(|_| Ok(()));
    let limits = Limits::default();
    match Role::parse() {
        Role::Serve { address } => {
            let listener = Listener::bind(&address).await?;
            println!("ready");
            let handler = Arc::new(|call: Incoming| Handled::Now(Ok(call.payload.into())));
            serve(listener, hello("serves"), admit, limits, handler, None, CancellationToken::new()).await;
        }
        Role::Call { address, load } => {
            let peer = Peer::new(vec![address], hello("calls"), admit, limits);
            rpc::call(load, |_| Calling(peer.clone())).await;
        }
    }
    Ok(())
}

fn hello(service: &str) -> Hello {
    Hello {
        service: service.to_owned(),
        incarnation: [1; 16],
        token: Token::new("echo"),
        about: Bytes::new(),
    }
}

struct Calling(Peer);

impl Caller for Calling {
    async fn call(&mut self) -> anyhow::Result<()> {
        let payload = Bytes::from_static(TEXT.as_bytes());
        let answer = self.0.call(Instant::now() + PATIENCE, Priority::Ordinary, payload).await?;
        ensure!(answer.len() == TEXT.len(), "an answer of {} bytes", answer.len());
        Ok(())
    }
}
