//! A durable checkout without HTTP: two lines of stock, a payment, the order, the answer under the client's key, and
//! a row of the outbox, answered after the sync.
//!
//! `checkout modulith` does it through the framework, `checkout by-hand` by the same statements on the same tables
//! with nothing of the framework in between. `checkout-sqlx` of the peers does it the usual way.

mod by_hand;
mod modulith_shop;
mod orders;
mod payments;
mod products;

use std::path::PathBuf;

use callers::{Load, Report};
use clap::{Parser, Subcommand};

/// The store's allocator too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Places orders in this process and prints how fast they were taken, as JSON.
#[derive(Parser)]
struct Options {
    /// The folder of the database.
    #[arg(long)]
    data: PathBuf,
    #[command(flatten)]
    load: Load,
    #[command(subcommand)]
    side: Side,
}

#[derive(Subcommand)]
enum Side {
    /// Three modules and a saga of three commands, in one process.
    Modulith,
    /// One writer thread over rusqlite, many orders a transaction.
    ByHand {
        /// Inbox rows for each of the three steps: 1 as the framework writes them, or 0.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
        rows_per_step: u8,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { data, load, side } = Options::parse();
    let report: Report = match side {
        Side::Modulith => modulith_shop::run(&data, load).await?,
        Side::ByHand { rows_per_step } => by_hand::run(&data, load, rows_per_step == 1).await?,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
