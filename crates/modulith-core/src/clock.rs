//! Whether a time has passed, for less than a look at the clock costs.
//!
//! The kernel's coarse clock (`CLOCK_MONOTONIC_COARSE`) is the time of its last timer tick: reading it reads memory, where
//! the exact one asks the processor, which takes several times as long, and on virtual machines more. Nearly all deadlines
//! are seconds away, and for those the last tick says enough; the exact clock is asked about what is near.

use std::time::Instant;

/// Whether `at` has passed.
pub(crate) fn has_passed(at: Instant) -> bool {
    !is_far(at) && at <= Instant::now()
}

#[cfg(target_os = "linux")]
fn is_far(at: Instant) -> bool {
    use std::sync::OnceLock;
    use std::time::Duration;

    use libc::{CLOCK_MONOTONIC, CLOCK_MONOTONIC_COARSE, clock_gettime, clockid_t, timespec};

    /// No kernel ticks more seldom than this.
    const TICK_MAX: Duration = Duration::from_millis(10);
    /// Two ticks after the moment from which both clocks count, so that a tick counted from here is ahead of the exact clock.
    static AHEAD: OnceLock<Option<Instant>> = OnceLock::new();

    // Not `rustix`, whose clock ends a process under valgrind.
    let read = |clock: clockid_t| {
        let mut time = timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is the kernel's to write for the length of the call.
        let is_read = unsafe { clock_gettime(clock, &raw mut time) } == 0;
        is_read.then(|| Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    };
    let ahead = AHEAD.get_or_init(|| {
        // Before the exact clock's own: what passes between the two puts the ticks ahead, never behind.
        let counted = read(CLOCK_MONOTONIC)?;
        Instant::now().checked_sub(counted)?.checked_add(2 * TICK_MAX)
    });
    // Where one of the clocks is missing, the exact one is asked about everything.
    match (ahead, read(CLOCK_MONOTONIC_COARSE)) {
        (Some(ahead), Some(last_tick)) => at > *ahead + last_tick,
        _ => false,
    }
}

#[cfg(not(target_os = "linux"))]
fn is_far(_: Instant) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What the coarse clock decides is right, for times on both sides of now and of its tick.
    #[test]
    fn it_agrees_with_the_exact_clock() {
        for _ in 0..20_000 {
            for us in [0, 1, 500, 5_000, 19_000, 21_000, 60_000, 10_000_000] {
                let before = Instant::now();
                let (past, future) =
                    (before.checked_sub(Duration::from_micros(us)), before + Duration::from_micros(us));
                assert!(past.is_none_or(has_passed));
                let has_passed = has_passed(future);
                let after = Instant::now();
                assert!(!has_passed || future <= after, "{us} us ahead had not passed");
                assert!(has_passed || future > before, "{us} us ahead had passed");
            }
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_exact_clock_is_asked_about_what_is_near_only() {
        let now = Instant::now();
        assert!(is_far(now + Duration::from_millis(100)));
        assert!(!is_far(now + Duration::from_millis(1)));
    }
}
