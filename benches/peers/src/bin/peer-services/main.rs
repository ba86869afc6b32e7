//! The usual split: five axum services with a database each, JSON over HTTP between them, and a
//! reverse proxy in front.
//!
//! `--all` is the proxy; it starts the five as its children and they end with it. `--service NAME`
//! is one of the five.

mod all;
mod calls;
mod cart;
mod front;
mod orders;
mod payments;
mod products;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use peers::database::{Database, PoolSizes};
use peers::serve::{Parent, health, serve};
use peers::tokens::Tokens;
use peers::users;

/// A shop of five services.
#[derive(Parser)]
struct Options {
    /// The service to be.
    #[arg(long, required_unless_present = "all", conflicts_with = "all")]
    service: Option<Service>,
    /// Start all five services and the proxy in front of them.
    #[arg(long)]
    all: bool,
    /// Where to listen; port 0 takes a free one and prints it.
    #[arg(long)]
    listen: SocketAddr,
    /// The folder of the databases and of the token key, one for all services.
    #[arg(long)]
    data: PathBuf,
    /// How many products an empty catalogue is filled with.
    #[arg(long, default_value_t = 1_000)]
    seed_products: i64,
    /// End when standard input does.
    #[arg(long, hide = true)]
    child: bool,
    #[command(flatten)]
    pools: PoolSizes,
    #[command(flatten)]
    needs: orders::Needs,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Service {
    Users,
    Products,
    Cart,
    Payments,
    Orders,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    std::fs::create_dir_all(&options.data)?;
    let tokens = Tokens::open(&options.data.join("token.key"))?;
    let Some(service) = options.service else {
        return all::run(&options).await;
    };
    let (file, schema) = match service {
        Service::Users => ("users.db", users::SCHEMA),
        Service::Products => ("products.db", products::SCHEMA),
        Service::Cart => ("cart.db", peers::carts::SCHEMA),
        Service::Payments => ("payments.db", payments::SCHEMA),
        Service::Orders => ("orders.db", peers::orders::SCHEMA),
    };
    let database = Database::open(&options.data.join(file), schema, &options.pools).await?;
    let router = match service {
        Service::Users => users::router(database.clone(), tokens),
        Service::Products => products::router(database.clone(), options.seed_products).await?,
        Service::Cart => cart::router(database.clone(), tokens),
        Service::Payments => payments::router(database.clone()),
        Service::Orders => orders::router(database.clone(), tokens, &options.needs)?,
    };
    let parent = if options.child {
        Parent::HoldsStdin
    } else {
        Parent::Absent
    };
    serve(router.merge(health(database)), options.listen, parent).await
}
