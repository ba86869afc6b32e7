//! axum and reqwest: JSON over HTTP/1.1, a kept-alive connection a caller, a timeout a request.

use std::io;

use axum::routing::post;
use axum::serve::Listener;
use axum::{Json, Router};
use clap::Parser;
use modulith_transport::Address;
use reqwest::Client;
use rpc::{Caller, Message, PATIENCE, Role, Sockets};
use tokio::net::TcpStream;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match Role::parse() {
        Role::Serve { address } => {
            let echo = async |Json(message): Json<Message>| Json(message);
            let router = Router::new().route("/echo", post(echo));
            axum::serve(Accepting(Sockets::listen(&address).await?), router).await?;
        }
        Role::Call { address, load } => {
            let builder = Client::builder().no_proxy();
            let (client, host) = match address {
                Address::Tcp(host) => (builder.build()?, host),
                Address::Unix(path) => (builder.unix_socket(path).build()?, "localhost".to_owned()),
            };
            let url = format!("http://{host}/echo");
            rpc::call(load, |_| Calling { client: client.clone(), url: url.clone() }).await;
        }
    }
    Ok(())
}

struct Accepting(Sockets);

impl Listener for Accepting {
    type Io = TcpStream;
    type Addr = ();

    async fn accept(&mut self) -> (TcpStream, ()) {
        loop {
            if let Ok(stream) = self.0.next().await {
                return (stream, ());
            }
        }
    }

    fn local_addr(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Calling {
    client: Client,
    url: String,
}

impl Caller for Calling {
    async fn call(&mut self) -> anyhow::Result<()> {
        let request = self.client.post(&self.url).timeout(PATIENCE).json(&Message::filled());
        request.send().await?.error_for_status()?.json::<Message>().await?.check()
    }
}
