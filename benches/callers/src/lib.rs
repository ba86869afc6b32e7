//! What every load here has in common: the orders that are placed, the interval that counts, what the callers saw,
//! and how that is told.
//!
//! A load is a closed loop: a caller places its next order when it has the answer to the last. Orders are counted
//! by when the answer came, so that the warm-up and the end cut cleanly.

mod orders;
mod random;
mod seen;

use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

pub use orders::{Line, Order, Orders, PRICE_MINOR, PRODUCTS, product};
pub use random::Random;
pub use seen::{Report, Seen};

/// From how many callers, and for how long.
#[derive(Args, Clone, Copy, Debug)]
pub struct Load {
    /// Callers, each with one order in flight.
    #[arg(long, default_value_t = 64)]
    pub callers: usize,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// Seconds of load before them.
    #[arg(long, default_value_t = 2.0)]
    pub warmup_seconds: f64,
}

/// When what is counted begins and ends.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    from: Instant,
    until: Instant,
}

impl Load {
    /// The interval of a load whose callers begin now.
    pub fn interval(&self) -> Interval {
        let from = Instant::now() + Duration::from_secs_f64(self.warmup_seconds);
        Interval { from, until: from + Duration::from_secs_f64(self.seconds) }
    }
}

impl Interval {
    /// Whether an answer that came at `at` counts.
    pub fn counts(&self, at: Instant) -> bool {
        (self.from..self.until).contains(&at)
    }

    /// Whether callers have to stop.
    pub fn is_over(&self, at: Instant) -> bool {
        at >= self.until
    }

    /// Prints a line of JSON when the interval begins and one when it ends, for whoever watches the processes.
    pub async fn announce(&self) {
        for (phase, at) in [("measuring", self.from), ("measured", self.until)] {
            tokio::time::sleep_until(at.into()).await;
            println!(r#"{{"phase":"{phase}"}}"#);
        }
    }
}

/// Places orders in this very process, each caller a task of the running runtime, and announces the interval.
///
/// `place` answers when the order is durable.
///
/// # Panics
///
/// When `place` does.
pub async fn place_orders<F, E: Display>(
    load: Load,
    place: impl Fn(Order) -> F + Send + Sync + 'static,
) -> Report
where
    F: Future<Output = Result<(), E>> + Send,
{
    let (seen, place, interval) = (Arc::new(Seen::default()), Arc::new(place), load.interval());
    let callers: Vec<_> = (0..load.callers)
        .map(|caller| {
            let (seen, place) = (seen.clone(), place.clone());
            tokio::spawn(async move {
                for order in Orders::of(caller) {
                    let sent = Instant::now();
                    if interval.is_over(sent) {
                        break;
                    }
                    let placed = place(order).await;
                    let answered = Instant::now();
                    match placed {
                        Ok(()) => seen.done(interval.counts(answered).then(|| answered - sent)),
                        Err(error) => seen.failed(&error.to_string()),
                    }
                }
            })
        })
        .collect();
    interval.announce().await;
    for caller in callers {
        caller.await.expect("a caller does not panic");
    }
    seen.report(load.callers, load.seconds)
}
