//! A call that stays in the process: through the typed client, within a request's context, to a query that touches
//! no statement; and beside it what people write to call through a trait with a deadline. Prints the median of its rounds,
//! in nanoseconds a call, as JSON.

use std::hint::black_box;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use clap::Parser;
use modulith::App;
use rpc::echo::{self, EchoClient, Trace, context};
use rpc::{Message, PATIENCE};

#[derive(Parser)]
struct Options {
    /// Calls of a round.
    #[arg(long, default_value_t = 1_000_000)]
    calls: u64,
    /// Rounds.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// What the calls say about a trace.
    #[arg(long, default_value = "absent")]
    trace: Trace,
    /// Calls a boxed future under tokio's timeout instead.
    #[arg(long)]
    by_hand: bool,
}

/// A module as one would write it by hand.
trait ByHand: Send + Sync {
    fn echo(&self, message: Message) -> Pin<Box<dyn Future<Output = Message> + Send + '_>>;
}

struct EchoByHand;

impl ByHand for EchoByHand {
    fn echo(&self, message: Message) -> Pin<Box<dyn Future<Output = Message> + Send + '_>> {
        Box::pin(async move { message })
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let Options { calls, rounds, trace, by_hand } = Options::parse();
    let data = tempfile::tempdir()?;
    let mounted = App::new("local").module(echo::module).mount(data.path()).await?;
    let client: EchoClient = mounted.client().context("the module is mounted")?;
    let user = Arc::from("somebody");
    let mut ns = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let context = context(&user, "00000000-0000-7000-8000-000000000000", trace);
        ns.push(match by_hand {
            true => round_by_hand(black_box(&EchoByHand), calls).await?,
            false => context.scope(round(&client, calls)).await?,
        });
    }
    ns.sort_by(f64::total_cmp);
    println!(r#"{{"ns":{}}}"#, ns[rounds / 2]);
    mounted.stop().await;
    Ok(())
}

async fn round_by_hand(module: &dyn ByHand, calls: u64) -> anyhow::Result<f64> {
    let mut message = Message::filled();
    let began = Instant::now();
    for _ in 0..calls {
        message = tokio::time::timeout(PATIENCE, module.echo(black_box(message))).await?;
    }
    let ns = began.elapsed().as_nanos() as f64 / calls as f64;
    message.check()?;
    Ok(ns)
}

async fn round(client: &EchoClient, calls: u64) -> anyhow::Result<f64> {
    // The answer is the next request: neither is made anew, so that nothing but the call is measured.
    let mut message = Message::filled();
    let began = Instant::now();
    for _ in 0..calls {
        message = client.echo(black_box(message)).await?;
    }
    let ns = began.elapsed().as_nanos() as f64 / calls as f64;
    message.check()?;
    Ok(ns)
}
