//! Load over HTTP from a fixed number of callers, each with one connection and one order, or one request, in flight.

mod get;
mod http;
mod shop;

use std::fmt::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use callers::{Interval, Load, Random, Report, Seen};
use clap::Parser;
use tokio::task::LocalSet;

use crate::http::{Answer, Connection};
use crate::shop::Product;

/// Places orders and prints how fast they were taken, as JSON.
#[derive(Parser)]
struct Options {
    /// Where the shop is: http://HOST:PORT
    #[arg(long)]
    url: String,
    /// Places no orders, and gets this path instead.
    #[arg(long)]
    get: Option<String>,
    #[command(flatten)]
    load: Load,
    /// Users that the callers share.
    #[arg(long, default_value_t = 16)]
    users: usize,
    /// Products that orders are drawn from, at most.
    #[arg(long, default_value_t = 1_000)]
    products: usize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = LocalSet::new().block_on(&runtime, run(&options))?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn run(options: &Options) -> anyhow::Result<Report> {
    let Load { callers, seconds, .. } = options.load;
    let address = options.url.trim_start_matches("http://").trim_end_matches('/');
    let address = address.to_socket_addrs()?.next().context("the url names no address")?;
    if let Some(path) = &options.get {
        return get::get(address, path, options.load).await;
    }
    let run = format!("{:x}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
    let mut connection = Connection::open(address).await?;
    let tokens = shop::sessions(&mut connection, &run, options.users.clamp(1, callers.max(1))).await?;
    let products = Rc::new(shop::products(&mut connection, options.products).await?);
    shop::check_order(&mut connection, &run, &tokens[0], &products).await?;

    let (seen, interval) = (Rc::new(Seen::default()), options.load.interval());
    let tasks: Vec<_> = (0..callers)
        .map(|number| {
            let token = &tokens[number % tokens.len()];
            let headers = format!("authorization: Bearer {token}\r\nidempotency-key: {run}-{number}-");
            let random = Random::new(number as u64);
            tokio::task::spawn_local(call(address, headers, random, products.clone(), interval, seen.clone()))
        })
        .collect();
    interval.announce().await;
    for task in tasks {
        task.await?;
    }
    Ok(seen.report(callers, seconds))
}

/// One caller, until the interval ends.
async fn call(
    address: SocketAddr,
    headers: String,
    mut random: Random,
    products: Rc<Vec<Product>>,
    interval: Interval,
    seen: Rc<Seen>,
) {
    let mut line = headers.clone();
    let mut body = Vec::new();
    let mut connection = None;
    for number in 0_u64.. {
        let (first, second) = random.two_below(products.len());
        shop::order(&mut body, &products[first], &products[second]);
        line.truncate(headers.len());
        write!(line, "{number}\r\n").expect("a string takes what is written");
        let sent = Instant::now();
        if interval.is_over(sent) {
            break;
        }
        let status = order(&mut connection, address, &line, &body).await;
        let answered = Instant::now();
        if status.is_err() {
            connection = None;
        }
        match status {
            Ok(201) => seen.done(interval.counts(answered).then(|| answered - sent)),
            Ok(other) => seen.failed(&other.to_string()),
            Err(_) => seen.failed("connection"),
        }
    }
}

async fn order(
    kept: &mut Option<Connection>,
    address: SocketAddr,
    headers: &str,
    body: &[u8],
) -> anyhow::Result<u16> {
    let connection = match kept {
        Some(connection) => connection,
        None => kept.insert(Connection::open(address).await?),
    };
    Ok(connection.call("POST", "/orders", headers, body).await?.status)
}

impl Answer<'_> {
    fn text(&self) -> String {
        format!("{} {}", self.status, String::from_utf8_lossy(self.body))
    }
}
