//! tonic with prost: all callers on one channel, which is one HTTP/2 connection; each call has a `grpc-timeout`.

use clap::Parser;
use futures_util::stream;
use modulith_transport::Address;
use rpc::{Caller, Message, PATIENCE, Role, Sockets};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use generated::echo_client::EchoClient;
use generated::echo_server::{Echo, EchoServer};

#[expect(unreachable_pub, clippy::allow_attributes, reason = "as tonic generates it for a library")]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/rpc.Echo.rs"));
}

/// More than there are callers; hyper's own limit is 200.
const STREAMS_MAX: u32 = 1024;
const WINDOW_BYTES: u32 = 1 << 20;

struct Answers;

#[tonic::async_trait]
impl Echo for Answers {
    async fn echo(&self, request: Request<Message>) -> Result<Response<Message>, Status> {
        Ok(Response::new(request.into_inner()))
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Role::parse() {
        Role::Serve { address } => {
            let sockets = Sockets::listen(&address).await?;
            let incoming = stream::unfold(sockets, async |sockets| Some((sockets.next().await, sockets)));
            Server::builder()
                .max_concurrent_streams(STREAMS_MAX)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .add_service(EchoServer::new(Answers))
                .serve_with_incoming(Box::pin(incoming))
                .await?;
        }
        Role::Call { address, load } => {
            let uri = match &address {
                Address::Tcp(host) => format!("http://{host}"),
                Address::Unix(path) => format!("unix:{}", path.display()),
            };
            let channel = Endpoint::from_shared(uri)?
                .tcp_nodelay(true)
                .initial_stream_window_size(WINDOW_BYTES)
                .initial_connection_window_size(WINDOW_BYTES)
                .connect()
                .await?;
            rpc::call(load, |_| Calling(EchoClient::new(channel.clone()))).await;
        }
    }
    Ok(())
}

struct Calling(EchoClient<Channel>);

impl Caller for Calling {
    async fn call(&mut self) -> anyhow::Result<()> {
        let mut request = Request::new(Message::filled());
        request.set_timeout(PATIENCE);
        self.0.echo(request).await?.into_inner().check()
    }
}
