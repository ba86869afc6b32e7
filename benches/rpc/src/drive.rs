//! The callers: tasks that call, wait for the answer, and call again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use callers::{Interval, Load};
use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies are kept from a nanosecond to a minute with two digits.
const LATENCY_MAX: Duration = Duration::from_secs(60);
const DIGITS: u8 = 2;

/// One caller with whatever it calls through.
pub trait Caller: Send + 'static {
    /// Sends the message, waits, and looks at the answer.
    fn call(&mut self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// What the callers saw in the interval that counts.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Callers, each with one call in flight.
    pub callers: usize,
    /// The length of the interval.
    pub seconds: f64,
    /// Calls that were answered in it.
    pub calls: u64,
    /// The same, a second.
    pub calls_per_s: f64,
    /// The median of their latencies.
    pub p50_us: f64,
    /// What 99 of 100 stayed below.
    pub p99_us: f64,
    /// Calls that failed, by reason.
    pub errors: BTreeMap<String, u64>,
}

/// Runs the load, announces its interval on standard output, and prints the report.
///
/// # Panics
///
/// When a caller does.
pub async fn call<C: Caller>(load: Load, caller: impl Fn(usize) -> C) {
    let interval = load.interval();
    let (report, ()) = tokio::join!(drive(load, interval, caller), interval.announce());
    println!("{}", serde_json::to_string(&report).expect("a report is JSON"));
}

/// Runs the load until its interval ends. `caller` makes each of the callers, by its number.
///
/// # Panics
///
/// When a caller does.
pub async fn drive<C: Caller>(load: Load, interval: Interval, caller: impl Fn(usize) -> C) -> Report {
    let tasks: Vec<_> = (0..load.callers).map(|number| tokio::spawn(run(caller(number), interval))).collect();
    let mut all = Seen::new();
    for task in tasks {
        let seen = task.await.expect("a caller does not panic");
        all.latencies_ns.add(seen.latencies_ns).expect("histograms of one shape");
        for (reason, count) in seen.errors {
            *all.errors.entry(reason).or_default() += count;
        }
    }
    let us = |quantile| all.latencies_ns.value_at_quantile(quantile) as f64 / 1000.0;
    let calls = all.latencies_ns.len();
    Report {
        callers: load.callers,
        seconds: load.seconds,
        calls,
        calls_per_s: calls as f64 / load.seconds,
        p50_us: us(0.50),
        p99_us: us(0.99),
        errors: all.errors,
    }
}

/// Each caller counts for itself, so that counting is no lock that they meet at.
struct Seen {
    latencies_ns: Histogram<u64>,
    errors: BTreeMap<String, u64>,
}

impl Seen {
    fn new() -> Self {
        let latencies_ns = Histogram::new_with_max(LATENCY_MAX.as_nanos() as u64, DIGITS);
        Self { latencies_ns: latencies_ns.expect("the constants make a histogram"), errors: BTreeMap::new() }
    }
}

async fn run<C: Caller>(mut caller: C, interval: Interval) -> Seen {
    let (mut seen, mut sent) = (Seen::new(), Instant::now());
    while !interval.is_over(sent) {
        let ended = caller.call().await;
        let answered = Instant::now();
        match ended {
            Ok(()) if interval.counts(answered) => {
                seen.latencies_ns.saturating_record((answered - sent).as_nanos() as u64);
            }
            Ok(()) => {}
            Err(error) => *seen.errors.entry(error.to_string()).or_default() += 1,
        }
        sent = answered;
    }
    seen
}
