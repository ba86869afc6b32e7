//! tarpc with bincode; each call has tarpc's context: a deadline of ten seconds and a trace's ids.

use clap::Parser;
use futures_util::StreamExt;
use rpc::{Caller, Message, Role, Sockets, connect};
use serde::{Deserialize, Serialize};
use tarpc::serde_transport::{self, Transport};
use tarpc::server::{self, BaseChannel, Channel};
use tarpc::tokio_serde::formats::Bincode;
use tarpc::tokio_util::codec::LengthDelimitedCodec;
use tarpc::{client, context};
use tokio::net::TcpStream;

/// What fits between tasks and connection, so that 256 callers do not wait for a place.
const BUFFERED: usize = 1024;

#[tarpc::service]
trait Echo {
    /// Answers what it was asked.
    async fn echo(message: Message) -> Message;
}

#[derive(Clone)]
struct Server;

impl Echo for Server {
    async fn echo(self, _: context::Context, message: Message) -> Message {
        message
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Role::parse() {
        Role::Serve { address } => {
            let sockets = Sockets::listen(&address).await?;
            loop {
                let config = server::Config { pending_response_buffer: BUFFERED };
                let channel = BaseChannel::new(config, transport(sockets.next().await?));
                let requests = channel.execute(Server.serve());
                tokio::spawn(requests.for_each(async |request| {
                    tokio::spawn(request);
                }));
            }
        }
        Role::Call { address, load } => {
            let mut config = client::Config::default();
            config.pending_request_buffer = BUFFERED;
            let client = EchoClient::new(config, transport(connect(&address).await?)).spawn();
            rpc::call(load, |_| Calling(client.clone())).await;
            Ok(())
        }
    }
}

fn transport<Item, SinkItem>(
    stream: TcpStream,
) -> Transport<TcpStream, Item, SinkItem, Bincode<Item, SinkItem>>
where
    Item: for<'de> Deserialize<'de>,
    SinkItem: Serialize,
{
    serde_transport::new(LengthDelimitedCodec::builder().new_framed(stream), Bincode::default())
}

struct Calling(EchoClient);

impl Caller for Calling {
    async fn call(&mut self) -> anyhow::Result<()> {
        self.0.echo(context::current(), Message::filled()).await?.check()
    }
}
