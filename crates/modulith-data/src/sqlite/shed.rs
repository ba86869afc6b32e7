//! Decides which work the writer's queue takes when there is more than the writer can do.
//!
//! Owns the decision, with an explicit clock. A queue that fills in a burst and empties again does its job; one that stays
//! long only makes everybody late. The difference is seen in the time that even the luckiest work waits, as CoDel does for
//! packets (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012): a *standing* queue is one in which the
//! work that came last before its batch still waited longer than the target, in every batch of a whole interval. Then, and
//! only then, new work is refused at once, as far as what waits already takes longer than the target: so the
//! writer stays busy, and what it accepts is answered soon.

use std::time::{Duration, Instant};

/// A measured time moves by an eighth towards each new value, as round-trip times do in RFC 6298.
const WEIGHT: u32 = 8;

/// Why new work is refused at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shed {
    /// There is a standing queue in front of it.
    Standing { retry_after: Duration },
    /// What waits in front of it takes longer than its deadline allows.
    TooLate { retry_after: Duration },
}

pub(super) struct Shedding {
    target: Duration,
    interval: Duration,
    /// From the beginning of a batch to its sync.
    batch: Duration,
    /// The share of one piece of work in a full batch; zero until there was one. A batch that is not full says
    /// nothing: its sync would have carried more for the same time.
    piece: Duration,
    above_since: Option<Instant>,
    /// When it was last seen that there is too much, while the queue is a standing one.
    standing: Option<Instant>,
}

impl Shedding {
    pub(super) fn new(target: Duration, interval: Duration) -> Self {
        Self {
            target,
            interval,
            batch: Duration::ZERO,
            piece: Duration::ZERO,
            above_since: None,
            standing: None,
        }
    }

    pub(super) fn is_standing(&self) -> bool {
        self.standing.is_some()
    }

    /// Whether work may join so many others in the queue.
    pub(super) fn admit(
        &mut self,
        now: Instant,
        waiting: usize,
        deadline: Option<Instant>,
    ) -> Result<(), Shed> {
        let retry_after = self.piece.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX));
        if retry_after > Duration::ZERO && deadline.is_some_and(|deadline| deadline < now + retry_after) {
            return Err(Shed::TooLate { retry_after });
        }
        match &mut self.standing {
            Some(pressed) if retry_after > self.target => {
                *pressed = now;
                Err(Shed::Standing { retry_after })
            }
            _ => Ok(()),
        }
    }

    /// What has its deadline before this will not be answered in time and need not be begun.
    pub(super) fn useful_from(&self, now: Instant) -> Instant {
        if self.is_standing() { now + self.batch } else { now }
    }

    /// A batch has been committed. `youngest_wait` is how long the last of its work had waited when it began.
    pub(super) fn committed(
        &mut self,
        began: Instant,
        now: Instant,
        pieces: usize,
        is_full: bool,
        youngest_wait: Duration,
    ) {
        let time = now.saturating_duration_since(began);
        self.batch = towards(self.batch, time);
        if let Ok(pieces @ 1..) = u32::try_from(pieces) {
            let share = time / pieces;
            // Of a batch that is not full it is more than the true share, which is worth knowing where it is less than what
            // was thought: while new work is refused batches stay small, and what a slow moment taught would stay too.
            if is_full || share < self.piece {
                self.piece = towards(self.piece, share);
            }
        }
        // On a slow disk work waits for the batch before its own, without any queue.
        let target = self.target.max(self.batch * 2);
        if youngest_wait > target {
            let since = *self.above_since.get_or_insert(now);
            if self.is_standing() || now.saturating_duration_since(since) >= self.interval {
                self.standing = Some(now);
            }
        } else {
            self.above_since = None;
            // It stays through a whole interval in which nothing had to be refused.
            self.standing =
                self.standing.filter(|pressed| now.saturating_duration_since(*pressed) < self.interval);
        }
    }
}

fn towards(before: Duration, measured: Duration) -> Duration {
    match before {
        Duration::ZERO => measured,
        before => (before * (WEIGHT - 1) + measured) / WEIGHT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn shedding() -> Shedding {
        Shedding::new(50 * MS, 500 * MS)
    }

    /// Full batches of 100 pieces in 10 ms, in each of which even the last had waited so long.
    fn batches(shedding: &mut Shedding, now: &mut Instant, batches: u32, wait: Duration) {
        for _ in 0..batches {
            shedding.committed(*now, *now + 10 * MS, 100, true, wait);
            *now += 10 * MS;
        }
    }

    #[test]
    fn a_burst_is_taken_and_a_standing_queue_is_not() {
        let mut now = Instant::now();
        let mut shedding = shedding();
        batches(&mut shedding, &mut now, 50, 80 * MS);
        assert_eq!(shedding.admit(now, 8000, None), Ok(()), "not for a whole interval yet");
        batches(&mut shedding, &mut now, 1, 10 * MS);
        batches(&mut shedding, &mut now, 50, 80 * MS);
        assert_eq!(shedding.admit(now, 8000, None), Ok(()), "the queue was short in between");
        batches(&mut shedding, &mut now, 1, 80 * MS);
        assert!(shedding.is_standing());
        // A piece takes 0.1 ms, so 500 of them are as long as the target.
        assert_eq!(shedding.admit(now, 500, None), Ok(()));
        assert_eq!(shedding.admit(now, 501, None), Err(Shed::Standing { retry_after: 50 * MS + MS / 10 }));
    }

    #[test]
    fn it_ends_when_nothing_had_to_be_refused_for_an_interval() {
        let mut now = Instant::now();
        let mut shedding = shedding();
        batches(&mut shedding, &mut now, 51, 80 * MS);
        assert!(shedding.is_standing());
        for _ in 0..10 {
            batches(&mut shedding, &mut now, 40, 10 * MS);
            assert!(shedding.admit(now, 600, None).is_err(), "short because of what is refused");
        }
        batches(&mut shedding, &mut now, 49, 10 * MS);
        assert!(shedding.is_standing());
        batches(&mut shedding, &mut now, 1, 10 * MS);
        assert_eq!((shedding.is_standing(), shedding.admit(now, 8000, None)), (false, Ok(())));
    }

    #[test]
    fn what_a_slow_moment_taught_is_forgotten_by_small_batches() {
        let mut now = Instant::now();
        let mut shedding = shedding();
        for _ in 0..50 {
            shedding.committed(now, now + 1000 * MS, 500, true, 5000 * MS);
            now += 1000 * MS;
        }
        assert!(shedding.admit(now, 1200, None).is_err(), "a piece takes 2 ms");
        // Well again, and small since so much is refused; something always is, so that it does not end by itself.
        for _ in 0..200 {
            shedding.committed(now, now + 5 * MS, 25, false, 4 * MS);
            now += 5 * MS;
            let _ = shedding.admit(now, 100_000, None);
        }
        assert!(shedding.is_standing());
        assert_eq!(shedding.admit(now, 200, None), Ok(()), "a piece takes a fifth of a millisecond");
    }

    #[test]
    fn waiting_for_one_slow_sync_is_no_queue() {
        let mut now = Instant::now();
        let mut shedding = shedding();
        for _ in 0..100 {
            shedding.committed(now, now + 300 * MS, 64, false, 290 * MS);
            now += 300 * MS;
        }
        assert!(!shedding.is_standing());
        // Batches with room say nothing about the time of a piece.
        assert_eq!(shedding.admit(now, 8000, Some(now)), Ok(()));
    }

    #[test]
    fn what_cannot_begin_in_time_is_refused_in_any_queue() {
        let mut now = Instant::now();
        let mut shedding = shedding();
        batches(&mut shedding, &mut now, 1, Duration::ZERO);
        assert_eq!(shedding.admit(now, 1000, Some(now + 100 * MS)), Ok(()));
        let late = shedding.admit(now, 1001, Some(now + 100 * MS));
        assert_eq!(late, Err(Shed::TooLate { retry_after: 100 * MS + MS / 10 }));
        assert_eq!(shedding.useful_from(now), now);
        batches(&mut shedding, &mut now, 52, 80 * MS);
        assert_eq!(shedding.useful_from(now), now + 10 * MS, "it also has to be committed in time");
    }
}
