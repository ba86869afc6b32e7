//! How many repeats one peer gets, from all requests of this process together.
//!
//! Owns the count, with an explicit clock. When a peer fails, every request that has repeats left would spend them on it, and
//! the peer would be asked several times as much as when it was well. So repeats are a share of the calls: a tenth, and ten a
//! second on top for peers that are called seldom. This is the budget of Finagle (`RetryBudget`: a share and a least
//! rate, kept for 10 s), which gRPC has as `retryThrottling` (A6), where each failure takes a token and each success gives
//! back a tenth.

use std::time::Instant;

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
    parts: u64,
    at: Instant,
}

impl RepeatBudget {
    /// A second's worth to begin with.
    pub fn new(now: Instant) -> Self {
        Self { parts: PER_SECOND * PARTS, at: now }
    }

    /// A call is made for the first time.
    pub fn earn(&mut self) {
        self.parts = (self.parts + PARTS / CALLS_A_REPEAT).min(SAVED_MAX * PARTS);
    }

    /// Whether a call may be repeated now.
    pub fn spend(&mut self, now: Instant) -> bool {
        let passed_ms = now.saturating_duration_since(self.at).as_millis().min(u128::from(u32::MAX)) as u64;
        if passed_ms > 0 {
            self.at = now;
            self.parts = (self.parts + passed_ms * (PER_SECOND * PARTS / 1000)).min(SAVED_MAX * PARTS);
        }
        match self.parts.checked_sub(PARTS) {
            Some(parts) => {
                self.parts = parts;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn spent(tokens: &mut RepeatBudget, now: Instant) -> u32 {
        (0..).take_while(|_| tokens.spend(now)).count() as u32
    }

    #[test]
    fn a_tenth_of_the_calls_and_ten_a_second() {
        let mut now = Instant::now();
        let mut tokens = RepeatBudget::new(now);
        assert_eq!(spent(&mut tokens, now), 10);
        for _ in 0..500 {
            tokens.earn();
        }
        assert_eq!(spent(&mut tokens, now), 50);
        now += Duration::from_secs(1);
        assert_eq!(spent(&mut tokens, now), 10);
        // In small steps nothing is lost and nothing gained.
        let steps = (0..1000).filter(|_| {
            now += Duration::from_millis(1);
            tokens.spend(now)
        });
        assert_eq!(steps.count(), 10);
    }

    #[test]
    fn no_more_than_a_hundred_are_saved_up() {
        let now = Instant::now();
        let mut tokens = RepeatBudget::new(now);
        for _ in 0..1_000_000 {
            tokens.earn();
        }
        assert_eq!(spent(&mut tokens, now + Duration::from_secs(1_000_000)), 100);
        assert_eq!(spent(&mut tokens, now), 0, "a clock that seems to go back earns nothing");
    }
}
