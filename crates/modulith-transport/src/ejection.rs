//! Leaves out a replica that fails while its fellows do not.
//!
//! Owns the count and the time of one replica, with an explicit clock; how many may be out at once is for the
//! [`crate::replicas`] to say. This is Envoy's outlier detection by consecutive failures, with its numbers: 5 failures, a
//! base time times the number of ejections, forgotten when the replica stayed well; only the share that may be out
//! differs (half here, a tenth there), because our sets are small.
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/outlier>

use std::time::Instant;

use crate::{Limits, breaker::Ending};

/// One replica's record.
#[derive(Debug, Default)]
pub(crate) struct Ejection {
    /// In a row.
    failures: u32,
    times: u32,
    until: Option<Instant>,
}

impl Ejection {
    pub(crate) fn is_out(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until)
    }

    /// Takes note of how a call ended; true if it should be left out now.
    pub(crate) fn ended(&mut self, now: Instant, ending: Ending, limits: &Limits) -> bool {
        match ending {
            Ending::Good => self.failures = 0,
            Ending::Bad => self.failures += 1,
            // Overload is often that of all replicas; leaving out half of them would double it for the rest.
            Ending::Overloaded | Ending::Neutral => {}
        }
        self.failures >= limits.ejection_failures && !self.is_out(now)
    }

    /// Leaves it out, each time for longer.
    pub(crate) fn eject(&mut self, now: Instant, limits: &Limits) {
        if self.until.is_some_and(|until| now >= until + limits.ejection_max) {
            self.times = 0;
        }
        self.times += 1;
        self.failures = 0;
        let time = limits.ejection_min.saturating_mul(self.times);
        self.until = Some(now + time.min(limits.ejection_max));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn fails(ejection: &mut Ejection, now: Instant, times: u32) -> bool {
        (0..times).map(|_| ejection.ended(now, Ending::Bad, &Limits::default())).last().unwrap_or_default()
    }

    #[test]
    fn five_failures_in_a_row_are_needed() {
        let (now, limits) = (Instant::now(), Limits::default());
        let mut ejection = Ejection::default();
        assert!(!fails(&mut ejection, now, 4));
        assert!(!ejection.ended(now, Ending::Good, &limits));
        assert!(!fails(&mut ejection, now, 4), "a success in between");
        for ending in [Ending::Neutral, Ending::Overloaded] {
            assert!(!ejection.ended(now, ending, &limits), "{ending:?} says nothing");
        }
        assert!(fails(&mut ejection, now, 1));
        assert!(!ejection.is_out(now), "until its set agrees");
        ejection.eject(now, &limits);
        assert!(ejection.is_out(now));
        assert!(!fails(&mut ejection, now, 9), "calls that were under way do not eject it again");
    }

    #[test]
    fn each_ejection_is_longer_until_it_stayed_well() {
        let limits = Limits::default();
        let mut now = Instant::now();
        let mut ejection = Ejection::default();
        for seconds in (1..=30).chain([30, 30]) {
            ejection.eject(now, &limits);
            assert!(ejection.is_out(now + seconds * S - Duration::from_millis(1)));
            now += seconds * S;
            assert!(!ejection.is_out(now), "{seconds}");
        }
        ejection.eject(now + 30 * S, &limits);
        assert!(!ejection.is_out(now + 31 * S), "30 s without one: from the start");
    }
}
