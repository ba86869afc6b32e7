//! Checkout load from a fixed number of callers, each with one connection and one order in flight.
//!
//! The loop is closed: a caller sends its next order when it has the answer to the last. Orders and
//! latencies are counted by when the answer came, so that the warm-up and the end cut cleanly.

mod http;
mod shop;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{SocketAddr, ToSocketAddrs};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Parser;
use serde::Serialize;
use tokio::task::LocalSet;
use tokio::time::sleep_until;

use crate::http::{Answer, Connection};
use crate::shop::Product;

/// Places orders and says how fast they were taken.
#[derive(Parser)]
struct Options {
    /// Where the shop is: http://HOST:PORT
    #[arg(long)]
    url: String,
    /// Callers, each with one connection and one order in flight.
    #[arg(long, default_value_t = 64)]
    callers: usize,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Seconds of load before them.
    #[arg(long, default_value_t = 2.0)]
    warmup_seconds: f64,
    /// Users that the callers share.
    #[arg(long, default_value_t = 16)]
    users: usize,
    /// Products that orders are drawn from, at most.
    #[arg(long, default_value_t = 1_000)]
    products: usize,
    /// Print a line of JSON when measuring begins, one when it ends, and one with the result.
    #[arg(long)]
    json: bool,
}

/// When what is counted begins and ends.
#[derive(Clone, Copy)]
struct Interval {
    from: Instant,
    until: Instant,
}

/// What the callers saw between the two.
#[derive(Default)]
struct Seen {
    latencies_us: Vec<u32>,
    /// By status; `connection` for those that got none.
    errors: BTreeMap<String, u64>,
}

#[derive(Serialize)]
struct Report {
    callers: usize,
    seconds: f64,
    orders: usize,
    orders_per_s: f64,
    p50_us: u32,
    p99_us: u32,
    errors: BTreeMap<String, u64>,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let report = LocalSet::new().block_on(&runtime, run(&options))?;
    match options.json {
        true => println!("{}", serde_json::to_string(&report)?),
        false => println!(
            "{:.0} orders/s from {} callers, p50 {} us, p99 {} us, errors {:?}",
            report.orders_per_s, report.callers, report.p50_us, report.p99_us, report.errors,
        ),
    }
    Ok(())
}

async fn run(options: &Options) -> anyhow::Result<Report> {
    let address = options.url.trim_start_matches("http://").trim_end_matches('/');
    let address = address
        .to_socket_addrs()?
        .next()
        .context("the url names no address")?;
    let run = format!("{:x}", SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos());
    let mut connection = Connection::open(address).await?;
    let tokens = shop::sessions(
        &mut connection,
        &run,
        options.users.clamp(1, options.callers.max(1)),
    )
    .await?;
    let products = Rc::new(shop::products(&mut connection, options.products).await?);
    shop::check_order(&mut connection, &run, &tokens[0], &products).await?;

    let from = Instant::now() + Duration::from_secs_f64(options.warmup_seconds);
    let interval = Interval {
        from,
        until: from + Duration::from_secs_f64(options.seconds),
    };
    let callers: Vec<_> = (0..options.callers)
        .map(|number| {
            let token = &tokens[number % tokens.len()];
            let headers = format!("authorization: Bearer {token}\r\nidempotency-key: {run}-{number}-");
            tokio::task::spawn_local(call(address, headers, number as u64, products.clone(), interval))
        })
        .collect();
    for (phase, at) in [("measuring", interval.from), ("measured", interval.until)] {
        sleep_until(at.into()).await;
        if options.json {
            println!(r#"{{"phase":"{phase}"}}"#);
        }
    }
    let mut all = Seen::default();
    for caller in callers {
        let seen = caller.await?;
        all.latencies_us.extend(seen.latencies_us);
        for (status, count) in seen.errors {
            *all.errors.entry(status).or_default() += count;
        }
    }
    Ok(all.report(options))
}

/// One caller, until the interval ends.
async fn call(
    address: SocketAddr,
    headers: String,
    seed: u64,
    products: Rc<Vec<Product>>,
    interval: Interval,
) -> Seen {
    let mut seen = Seen::default();
    let mut random = Random(seed);
    let mut line = headers.clone();
    let mut body = Vec::new();
    let mut connection = None;
    for number in 0_u64.. {
        let (first, second) = random.two_below(products.len());
        shop::order(&mut body, &products[first], &products[second]);
        line.truncate(headers.len());
        write!(line, "{number}\r\n").expect("a string takes what is written");
        let sent = Instant::now();
        if sent >= interval.until {
            break;
        }
        let status = order(&mut connection, address, &line, &body).await;
        let answered = Instant::now();
        if status.is_err() {
            connection = None;
        }
        if (interval.from..interval.until).contains(&answered) {
            match status {
                Ok(201) => seen
                    .latencies_us
                    .push((answered - sent).as_micros().try_into().unwrap_or(u32::MAX)),
                Ok(other) => *seen.errors.entry(other.to_string()).or_default() += 1,
                Err(_) => *seen.errors.entry("connection".to_owned()).or_default() += 1,
            }
        }
    }
    seen
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

impl Seen {
    fn report(mut self, options: &Options) -> Report {
        self.latencies_us.sort_unstable();
        let orders = self.latencies_us.len();
        let at = |share: f64| {
            self.latencies_us
                .get((orders as f64 * share) as usize)
                .copied()
                .unwrap_or(0)
        };
        Report {
            callers: options.callers,
            seconds: options.seconds,
            orders,
            orders_per_s: orders as f64 / options.seconds,
            p50_us: at(0.50),
            p99_us: at(0.99),
            errors: self.errors,
        }
    }
}

impl Answer<'_> {
    fn text(&self) -> String {
        format!("{} {}", self.status, String::from_utf8_lossy(self.body))
    }
}

/// SplitMix64: every caller draws the same products in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Two different numbers below `bound`, which is at least 2.
    fn two_below(&mut self, bound: usize) -> (usize, usize) {
        let first = (self.next() % bound as u64) as usize;
        let second = (first + 1 + (self.next() % (bound as u64 - 1)) as usize) % bound;
        (first, second)
    }
}
