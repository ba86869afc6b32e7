//! What all callers of a load saw.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Latencies are kept to three digits, up to a minute; a longer one counts as a minute.
const LATENCY_MAX: Duration = Duration::from_secs(60);
const DIGITS: u8 = 3;

/// What the callers of one load saw, in memory that does not grow with the run.
#[derive(Debug)]
pub struct Seen(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    latencies_us: Histogram<u64>,
    done: u64,
    errors: BTreeMap<String, u64>,
}

/// How it went.
#[derive(Debug, Serialize)]
pub struct Report {
    callers: usize,
    seconds: f64,
    /// Those that count.
    orders: u64,
    /// All of them, also before and after the interval.
    done: u64,
    orders_per_s: f64,
    p50_us: u64,
    p99_us: u64,
    errors: BTreeMap<String, u64>,
}

impl Default for Seen {
    fn default() -> Self {
        let latencies_us = Histogram::new_with_max(LATENCY_MAX.as_micros() as u64, DIGITS)
            .expect("the constants make a histogram");
        Self(Mutex::new(Counts { latencies_us, done: 0, errors: BTreeMap::new() }))
    }
}

impl Seen {
    /// An order was placed, or what else was asked for is done; with how long that took, if it counts.
    pub fn done(&self, took: Option<Duration>) {
        let mut counts = self.counts();
        counts.done += 1;
        if let Some(took) = took {
            counts.latencies_us.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        }
    }

    /// It was not done, for this reason.
    pub fn failed(&self, reason: &str) {
        *self.counts().errors.entry(reason.to_owned()).or_default() += 1;
    }

    /// What was seen so far, of an interval of `seconds`.
    pub fn report(&self, callers: usize, seconds: f64) -> Report {
        let counts = self.counts();
        let orders = counts.latencies_us.len();
        Report {
            callers,
            seconds,
            orders,
            done: counts.done,
            orders_per_s: orders as f64 / seconds,
            p50_us: counts.latencies_us.value_at_quantile(0.50),
            p99_us: counts.latencies_us.value_at_quantile(0.99),
            errors: counts.errors.clone(),
        }
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().expect("counting does not panic")
    }
}
