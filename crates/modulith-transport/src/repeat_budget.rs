//! How many repeats one peer gets, from all requests of this process together.
//!
//! Owns the count, with an explicit clock. When a peer fails, every request that has repeats left would spend them on it, and
//! the peer would be asked several times as much as when it was well. So repeats are a share of the calls: a tenth, and ten a
//! second on top for peers that are called seldom. This is the budget of Finagle (`RetryBudget`: a share and a least
//! rate, kept for 10 s), which gRPC has as `retryThrottling` (A6), where each failure takes a token and each success gives
//! back a tenth.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::tally::Tally;

/// Calls that earn one repeat: 10, so a tenth of the calls may be repeated.
const CALLS_A_REPEAT: u64 = 10;
/// Repeats a second that need not be earned.
const PER_SECOND: u64 = 10;
/// Repeats that can be saved up: 10 s of those that need not be earned.
const SAVED_MAX: u64 = 10 * PER_SECOND;
/// Parts of a repeat, so that both rates are whole numbers: a millisecond earns 10 and a call 100.
const PARTS: u64 = 1000;

/// See the module's documentation.
pub struct RepeatBudget {
    /// Every call adds to it, so it is apart from what only repeats look at.
    calls: Tally,
    saved: Mutex<Saved>,
}

struct Saved {
    parts: u64,
    /// Up to when, and up to which call, they are added up.
    at: Instant,
    calls: u64,
}

impl RepeatBudget {
    /// A second's worth to begin with.
    pub fn new(now: Instant) -> Self {
        let saved = Saved { parts: PER_SECOND * PARTS, at: now, calls: 0 };
        Self { calls: Tally::default(), saved: Mutex::new(saved) }
    }

    /// A call is made for the first time.
    pub fn earn(&self) {
        self.calls.add_one();
    }

    /// Whether a call may be repeated now.
    pub fn spend(&self, now: Instant) -> bool {
        let calls = self.calls.sum();
        let mut saved = self.saved.lock();
        // Another thread may have counted further before it came here.
        let earned = calls.saturating_sub(saved.calls).saturating_mul(PARTS / CALLS_A_REPEAT);
        saved.calls = saved.calls.max(calls);
        let passed_ms = now.saturating_duration_since(saved.at).as_millis().min(u128::from(u32::MAX)) as u64;
        // What is less than a millisecond counts the next time.
        saved.at += Duration::from_millis(passed_ms);
        let parts = saved.parts.saturating_add(earned) + passed_ms * (PER_SECOND * PARTS / 1000);
        saved.parts = parts.min(SAVED_MAX * PARTS);
        match saved.parts.checked_sub(PARTS) {
            Some(parts) => {
                saved.parts = parts;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spent(tokens: &RepeatBudget, now: Instant) -> u32 {
        (0..).take_while(|_| tokens.spend(now)).count() as u32
    }

    #[test]
    fn a_tenth_of_the_calls_and_ten_a_second() {
        let mut now = Instant::now();
        let tokens = RepeatBudget::new(now);
        assert_eq!(spent(&tokens, now), 10);
        for _ in 0..500 {
            tokens.earn();
        }
        assert_eq!(spent(&tokens, now), 50);
        now += Duration::from_secs(1);
        assert_eq!(spent(&tokens, now), 10);
        // In small steps nothing is lost and nothing gained, whatever they are.
        for step_us in [1_000, 1_990, 700] {
            let steps = (0..3_980_000 / step_us).filter(|_| {
                now += Duration::from_micros(step_us);
                tokens.spend(now)
            });
            assert_eq!(steps.count(), 39, "in steps of {step_us} us");
            now += Duration::from_millis(21);
            assert_eq!(spent(&tokens, now), 1);
        }
    }

    #[test]
    fn no_more_than_a_hundred_are_saved_up() {
        let now = Instant::now();
        let tokens = RepeatBudget::new(now);
        for _ in 0..1_000_000 {
            tokens.earn();
        }
        assert_eq!(spent(&tokens, now + Duration::from_secs(1_000_000)), 100);
        assert_eq!(spent(&tokens, now), 0, "a clock that seems to go back earns nothing");
    }
}
