//! The usual monolith: one axum process, one SQLite database behind sqlx, one transaction a checkout.

mod checkout;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use peers::database::{Database, PoolSizes};
use peers::serve::{Parent, health, serve};
use peers::tokens::Tokens;
use peers::{carts, catalogue, orders, users};

/// One process that sells products.
#[derive(Parser)]
struct Options {
    /// Where to listen; port 0 takes a free one and prints it.
    #[arg(long)]
    listen: SocketAddr,
    /// The folder of the database and of the token key.
    #[arg(long)]
    data: PathBuf,
    /// How many products an empty catalogue is filled with.
    #[arg(long, default_value_t = 1_000)]
    seed_products: i64,
    #[command(flatten)]
    pools: PoolSizes,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    std::fs::create_dir_all(&options.data)?;
    let schema = joined(&[
        users::SCHEMA,
        catalogue::SCHEMA,
        carts::SCHEMA,
        orders::SCHEMA,
        checkout::SCHEMA,
    ]);
    let database = Database::open(&options.data.join("shop.db"), schema, &options.pools).await?;
    catalogue::seed(&database, options.seed_products).await?;
    let tokens = Tokens::open(&options.data.join("token.key"))?;
    let router = users::router(database.clone(), tokens.clone())
        .merge(catalogue::router(database.clone()))
        .merge(carts::router(database.clone(), tokens.clone()))
        .merge(checkout::router(database.clone(), tokens))
        .merge(health(database));
    serve(router, options.listen, Parent::Absent).await
}

/// sqlx takes SQL that lives as long as the program; the schema is joined once, at start.
fn joined(parts: &[&str]) -> &'static str {
    parts.concat().leak()
}
