//! `fake-provider [ADDR]` serves the stand-in at `127.0.0.1:8090`, and prints `ready http://…`.

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8090".to_owned());
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("ready http://{}", listener.local_addr()?);
    axum::serve(listener, store_provider::router()).await
}
