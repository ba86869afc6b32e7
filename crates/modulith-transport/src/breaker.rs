//! Stops calling a peer that does not answer, and calls less of one that is overloaded.
//!
//! Owns the decision only: it opens no socket, reads no clock and draws no number of its own. Two things are told
//! apart. A peer whose calls end *badly* (connection lost, deadline passed, no answer) costs its callers time and gets a
//! circuit breaker (Nygard, "Release It!", 2007): closed, open, half-open with one probe. A peer that *says* that it
//! is overloaded costs them nothing and still works at its full speed, which a breaker would take away; its callers
//! hold back in proportion (Beyer et al., "Site Reliability Engineering", 2016, chapter 21, client-side throttling).
//! Refusals, a missing connection and what a caller cancels count for nothing.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{Limits, Priority};

/// The window slides in steps of a tenth.
const BUCKETS: usize = 10;
/// While the circuit is open, one reserved call passes at most this often: undo must not starve.
const RESERVED_EVERY: Duration = Duration::from_millis(100);
/// When to ask again while the outcome of a probe, or the next second of the window, is awaited.
const SOON: Duration = Duration::from_millis(100);

/// How a call ended, as far as its peer's health is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Good,
    /// The connection was lost, the deadline passed, or the callee had no answer to give.
    Bad,
    /// The callee, or the buffer in front of it, said that it takes no more.
    Overloaded,
    /// It says nothing about the peer: not connected, refused by name, cancelled by its caller.
    Neutral,
}

/// Whether calls pass to a peer at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    /// Calls are refused until the time is over.
    Open,
    /// One probe is let through; how it ends decides.
    HalfOpen,
}

/// The leave to make one call; [`Breaker::ended`] takes it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass {
    kind: PassKind,
    /// A call that began under an earlier state says nothing about this one.
    era: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PassKind {
    Counted,
    Probe,
    /// A reserved call through an open circuit.
    Urgent,
}

impl Pass {
    /// Of a call through a closed circuit.
    pub(crate) fn counted(era: u64) -> Self {
        Self { kind: PassKind::Counted, era }
    }

    pub(crate) fn is_counted(self) -> bool {
        self.kind == PassKind::Counted
    }
}

/// Why a call may not be made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Barred {
    Open { retry_after: Duration },
    Throttled { retry_after: Duration },
}

pub(crate) struct Breaker {
    limits: Arc<Limits>,
    /// A number below the one given: for jitter and for holding back a share.
    below: fn(usize) -> usize,
    window: Window,
    gate: Gate,
    era: u64,
    /// Times in a row that it opened without closing in between.
    openings: u32,
    /// Times that it opened since the start, for telemetry.
    opened: u64,
    reserved_from: Option<Instant>,
}

enum Gate {
    Closed,
    Open { until: Instant },
    HalfOpen { probing: bool },
}

impl Breaker {
    pub(crate) fn new(limits: Arc<Limits>, now: Instant, below: fn(usize) -> usize) -> Self {
        Self {
            window: Window::new(limits.breaker_window, now),
            limits,
            below,
            gate: Gate::Closed,
            era: 0,
            openings: 0,
            opened: 0,
            reserved_from: None,
        }
    }

    /// The era in which every call passes, and the time up to which nothing has to be asked or told about one that ends
    /// well but that it did.
    pub(crate) fn calm(&self) -> Option<(u64, Instant)> {
        let is_calm = matches!(self.gate, Gate::Closed) && self.window.sum.overloaded == 0;
        is_calm.then_some((self.era, self.window.bucket_ends))
    }

    /// So many calls have ended well since it was last told, at the latest when the present bucket was over.
    pub(crate) fn add_good(&mut self, calls: u64) {
        self.window.now().good += calls;
        self.window.sum.good += calls;
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.gate {
            Gate::Closed => BreakerState::Closed,
            Gate::Open { .. } => BreakerState::Open,
            Gate::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Times that it has opened.
    pub(crate) fn opened(&self) -> u64 {
        self.opened
    }

    /// Whether a call may be made now.
    pub(crate) fn admit(&mut self, now: Instant, priority: Priority) -> Result<Pass, Barred> {
        if let Gate::Open { until } = self.gate
            && now >= until
        {
            self.gate = Gate::HalfOpen { probing: false };
        }
        let retry_after = match &mut self.gate {
            Gate::Closed => {
                self.window.turn(now);
                return match priority {
                    Priority::Ordinary if self.holds_back() => Err(Barred::Throttled { retry_after: SOON }),
                    _ => Ok(self.pass(PassKind::Counted)),
                };
            }
            Gate::HalfOpen { probing: probing @ false } => {
                *probing = true;
                return Ok(self.pass(PassKind::Probe));
            }
            Gate::HalfOpen { probing: true } => SOON,
            Gate::Open { until } => until.saturating_duration_since(now),
        };
        if priority == Priority::Reserved && self.reserved_from.is_none_or(|from| now >= from) {
            self.reserved_from = Some(now + RESERVED_EVERY);
            return Ok(self.pass(PassKind::Urgent));
        }
        Err(Barred::Open { retry_after })
    }

    /// There is a new connection. Behind it may be a process that has just started and knows nothing of what was
    /// held against its predecessor, so the next call is a probe, whatever time is left.
    pub(crate) fn connected(&mut self) {
        if let Gate::Open { .. } = self.gate {
            self.gate = Gate::HalfOpen { probing: false };
        }
    }

    /// Takes note of how a call ended.
    pub(crate) fn ended(&mut self, now: Instant, pass: Pass, ending: Ending) {
        if pass.era != self.era {
            return;
        }
        match (pass.kind, ending) {
            (PassKind::Counted, Ending::Neutral) => {}
            (PassKind::Counted, ending) => {
                self.window.add(now, ending);
                if ending == Ending::Bad && self.is_ill() {
                    self.open(now);
                }
            }
            // An overloaded peer is there and answers.
            (PassKind::Probe | PassKind::Urgent, Ending::Good | Ending::Overloaded) => self.close(now),
            (PassKind::Probe, Ending::Bad) => self.open(now),
            (PassKind::Probe, Ending::Neutral) => self.gate = Gate::HalfOpen { probing: false },
            (PassKind::Urgent, Ending::Bad | Ending::Neutral) => {}
        }
    }

    fn pass(&self, kind: PassKind) -> Pass {
        Pass { kind, era: self.era }
    }

    #[cfg(test)]
    pub(crate) fn good(&self) -> u64 {
        self.window.sum.good
    }

    fn is_ill(&self) -> bool {
        let Counts { good, bad, overloaded, .. } = self.window.sum;
        let ended = good + bad + overloaded;
        ended >= self.limits.breaker_calls_min && bad * 100 >= ended * self.limits.breaker_bad_percent
    }

    fn open(&mut self, now: Instant) {
        let doubled = self.limits.breaker_open_min.saturating_mul(1 << self.openings.min(16));
        let time = doubled.min(self.limits.breaker_open_max);
        // Half of it is random, so that callers who failed together do not probe together.
        let half = (time / 2).as_millis() as usize;
        let time = time / 2 + Duration::from_millis((self.below)(half + 1) as u64);
        self.gate = Gate::Open { until: now + time };
        self.openings += 1;
        self.opened += 1;
        self.era += 1;
    }

    fn close(&mut self, now: Instant) {
        self.gate = Gate::Closed;
        self.openings = 0;
        self.era += 1;
        self.window = Window::new(self.limits.breaker_window, now);
    }

    /// Refuses so many that about half of what is sent is accepted: with the probability
    /// `(requests - 2 * accepted) / (requests + 1)` of the book, over the window.
    fn holds_back(&mut self) -> bool {
        if self.window.sum.overloaded == 0 {
            return false;
        }
        let Counts { good, bad, overloaded, held_back } = self.window.sum;
        let accepted = good + bad;
        let requests = accepted + overloaded + held_back;
        if overloaded == 0 || requests < self.limits.breaker_calls_min || requests <= 2 * accepted {
            return false;
        }
        let holds_back = (self.below)(requests as usize + 1) < (requests - 2 * accepted) as usize;
        if holds_back {
            self.window.now().held_back += 1;
            self.window.sum.held_back += 1;
        }
        holds_back
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    good: u64,
    bad: u64,
    overloaded: u64,
    held_back: u64,
}

/// What ended within the last so many seconds, in buckets.
struct Window {
    began: Instant,
    bucket: Duration,
    buckets: [Counts; BUCKETS],
    sum: Counts,
    /// The number of the bucket that is filled, since the beginning.
    at: u128,
    bucket_ends: Instant,
}

impl Window {
    fn new(window: Duration, now: Instant) -> Self {
        let bucket = (window / BUCKETS as u32).max(Duration::from_millis(1));
        let empty = Counts::default();
        Self { began: now, bucket, buckets: [empty; BUCKETS], sum: empty, at: 0, bucket_ends: now + bucket }
    }

    /// Forgets what has left the window.
    fn turn(&mut self, now: Instant) {
        // Nearly every call finds the bucket of the one before it.
        if now < self.bucket_ends {
            return;
        }
        let at = now.saturating_duration_since(self.began).as_nanos() / self.bucket.as_nanos();
        let passed = at.saturating_sub(self.at).min(BUCKETS as u128);
        for step in 1..=passed {
            let old = std::mem::take(&mut self.buckets[((self.at + step) % BUCKETS as u128) as usize]);
            self.sum.good -= old.good;
            self.sum.bad -= old.bad;
            self.sum.overloaded -= old.overloaded;
            self.sum.held_back -= old.held_back;
        }
        if passed == BUCKETS as u128 {
            self.buckets = [Counts::default(); BUCKETS];
        }
        self.at = self.at.max(at);
        let next = u32::try_from(self.at + 1).unwrap_or(u32::MAX);
        self.bucket_ends = self.began + self.bucket.saturating_mul(next);
    }

    fn now(&mut self) -> &mut Counts {
        &mut self.buckets[(self.at % BUCKETS as u128) as usize]
    }

    fn add(&mut self, now: Instant, ending: Ending) {
        self.turn(now);
        fn count(counts: &mut Counts, ending: Ending) -> &mut u64 {
            match ending {
                Ending::Good | Ending::Neutral => &mut counts.good,
                Ending::Bad => &mut counts.bad,
                Ending::Overloaded => &mut counts.overloaded,
            }
        }
        *count(self.now(), ending) += 1;
        *count(&mut self.sum, ending) += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    /// No jitter: the largest number there is, so that an opening lasts its whole time and nothing is held back
    /// unless it must be.
    fn largest(bound: usize) -> usize {
        bound - 1
    }

    fn breaker(now: Instant) -> Breaker {
        Breaker::new(Arc::new(Limits::default()), now, largest)
    }

    fn ends(breaker: &mut Breaker, now: Instant, calls: u32, ending: Ending) {
        for _ in 0..calls {
            let pass = breaker.admit(now, Priority::Ordinary).expect("admitted");
            breaker.ended(now, pass, ending);
        }
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = breaker(now);
        ends(&mut breaker, now, 20, Ending::Bad);
        assert_eq!(breaker.state(), BreakerState::Open);
        breaker
    }

    fn bars(breaker: &mut Breaker, now: Instant) -> Option<Barred> {
        breaker.admit(now, Priority::Ordinary).err()
    }

    #[test]
    fn it_opens_at_half_of_twenty() {
        let now = Instant::now();
        let mut breaker = breaker(now);
        ends(&mut breaker, now, 19, Ending::Bad);
        assert_eq!(breaker.state(), BreakerState::Closed, "too few calls to judge");
        ends(&mut breaker, now, 1, Ending::Bad);
        assert_eq!(bars(&mut breaker, now), Some(Barred::Open { retry_after: S }));

        let mut breaker = self::breaker(now);
        ends(&mut breaker, now, 51, Ending::Good);
        ends(&mut breaker, now, 50, Ending::Bad);
        assert_eq!(breaker.state(), BreakerState::Closed, "50 of 101 are less than half");
        ends(&mut breaker, now, 1, Ending::Bad);
        assert_eq!(breaker.state(), BreakerState::Open);
    }

    #[test]
    fn what_left_the_window_counts_no_more() {
        let now = Instant::now();
        let mut breaker = breaker(now);
        ends(&mut breaker, now, 19, Ending::Bad);
        ends(&mut breaker, now + 10 * S, 19, Ending::Bad);
        assert_eq!(breaker.state(), BreakerState::Closed, "the first 19 are ten seconds old");
        ends(&mut breaker, now + 19 * S, 1, Ending::Bad);
        assert_eq!(breaker.state(), BreakerState::Open, "these were within the window");
        // A pause of any length, and a clock that seems to go back, leave the sums right.
        let mut breaker = self::breaker(now);
        ends(&mut breaker, now + 5 * S, 5, Ending::Bad);
        ends(&mut breaker, now, 5, Ending::Good);
        ends(&mut breaker, now + 100_000 * S, 3, Ending::Bad);
        assert_eq!((breaker.window.sum.good, breaker.window.sum.bad), (0, 3));
    }

    #[test]
    fn refusals_and_cancelled_calls_never_open_it() {
        let now = Instant::now();
        let mut breaker = breaker(now);
        ends(&mut breaker, now, 1000, Ending::Neutral);
        assert_eq!((breaker.state(), breaker.window.sum.bad), (BreakerState::Closed, 0));
    }

    #[test]
    fn one_probe_decides() {
        let now = Instant::now();
        let mut breaker = opened(now);
        assert_eq!(bars(&mut breaker, now + S - MS), Some(Barred::Open { retry_after: MS }));
        let later = now + S;
        let probe = breaker.admit(later, Priority::Ordinary).expect("a probe");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        for _ in 0..10 {
            assert_eq!(bars(&mut breaker, later), Some(Barred::Open { retry_after: SOON }), "a second probe");
        }
        breaker.ended(later, probe, Ending::Good);
        assert_eq!(breaker.state(), BreakerState::Closed);
        ends(&mut breaker, later, 19, Ending::Bad);
        assert_eq!(breaker.state(), BreakerState::Closed, "the window began anew");
    }

    #[test]
    fn each_probe_that_fails_doubles_the_time_up_to_thirty_seconds() {
        let mut now = Instant::now();
        let mut breaker = opened(now);
        for seconds in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(bars(&mut breaker, now), Some(Barred::Open { retry_after: seconds * S }));
            now += seconds * S;
            let probe = breaker.admit(now, Priority::Ordinary).expect("a probe");
            breaker.ended(now, probe, Ending::Bad);
        }
        now += 30 * S;
        let probe = breaker.admit(now, Priority::Ordinary).expect("a probe");
        breaker.ended(now, probe, Ending::Good);
        ends(&mut breaker, now, 20, Ending::Bad);
        assert_eq!(bars(&mut breaker, now), Some(Barred::Open { retry_after: S }), "back to the first time");
    }

    #[test]
    fn a_new_connection_is_probed_at_once_and_by_one_call() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.connected();
        let probe = breaker.admit(now, Priority::Ordinary).expect("a probe");
        breaker.connected();
        assert_eq!(bars(&mut breaker, now), Some(Barred::Open { retry_after: SOON }), "a second probe");
        breaker.ended(now, probe, Ending::Bad);
        let longer = Barred::Open { retry_after: 2 * S };
        assert_eq!(
            bars(&mut breaker, now),
            Some(longer),
            "a process that fails again is left alone for longer"
        );
        breaker.connected();
        let probe = breaker.admit(now, Priority::Ordinary).expect("a probe");
        breaker.ended(now, probe, Ending::Good);
        assert_eq!(breaker.state(), BreakerState::Closed);
        breaker.connected();
        assert_eq!(breaker.state(), BreakerState::Closed, "a connection more is nothing to a closed one");
    }

    #[test]
    fn half_of_the_time_is_random() {
        let now = Instant::now();
        let mut breaker = Breaker::new(Arc::new(Limits::default()), now, |_| 0);
        ends(&mut breaker, now, 20, Ending::Bad);
        assert_eq!(bars(&mut breaker, now), Some(Barred::Open { retry_after: S / 2 }));
    }

    #[test]
    fn a_probe_that_is_cancelled_makes_room_for_the_next() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let probe = breaker.admit(now + S, Priority::Ordinary).expect("a probe");
        breaker.ended(now + S, probe, Ending::Neutral);
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        breaker.admit(now + S, Priority::Ordinary).expect("another probe");
    }

    #[test]
    fn a_call_from_before_says_nothing_now() {
        let now = Instant::now();
        let mut breaker = breaker(now);
        let early = breaker.admit(now, Priority::Ordinary).expect("admitted");
        ends(&mut breaker, now, 20, Ending::Bad);
        breaker.ended(now, early, Ending::Good);
        assert_eq!(breaker.state(), BreakerState::Open, "an answer to a call from before the opening");
        let probe = breaker.admit(now + S, Priority::Ordinary).expect("a probe");
        breaker.ended(now + S, early, Ending::Bad);
        breaker.ended(now + S, probe, Ending::Good);
        assert_eq!(breaker.state(), BreakerState::Closed);
        assert_eq!(breaker.window.sum.bad, 0);
    }

    #[test]
    fn reserved_calls_pass_an_open_circuit_at_a_limited_rate() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let undo = breaker.admit(now, Priority::Reserved).expect("the first");
        assert!(breaker.admit(now + RESERVED_EVERY - MS, Priority::Reserved).is_err());
        breaker.ended(now, undo, Ending::Bad);
        assert_eq!(breaker.state(), BreakerState::Open);
        assert_eq!(bars(&mut breaker, now), Some(Barred::Open { retry_after: S }), "no longer than before");
        let undo = breaker.admit(now + RESERVED_EVERY, Priority::Reserved).expect("the second");
        breaker.ended(now, undo, Ending::Good);
        assert_eq!(breaker.state(), BreakerState::Closed, "it has answered");
    }

    #[test]
    fn overload_holds_back_in_proportion_and_never_opens() {
        let now = Instant::now();
        let mut breaker = Breaker::new(Arc::new(Limits::default()), now, crate::random::below);
        let (mut sent, mut accepted) = (0, 0);
        // A peer that takes one call in ten of those that its callers want to make.
        for call in 0..10_000 {
            if let Ok(pass) = breaker.admit(now, Priority::Ordinary) {
                sent += 1;
                let takes = accepted * 10 <= call;
                accepted += u32::from(takes);
                breaker.ended(now, pass, if takes { Ending::Good } else { Ending::Overloaded });
            }
        }
        assert_eq!(breaker.state(), BreakerState::Closed);
        // It gets twice what it takes, within the noise of ten thousand draws, and loses nothing of that.
        assert!((900..=1001).contains(&accepted), "{accepted} accepted");
        assert!((1600..=2600).contains(&sent), "{sent} sent");
        assert!(breaker.admit(now, Priority::Reserved).is_ok(), "undo is never held back");
        assert!(breaker.admit(now + 20 * S, Priority::Ordinary).is_ok(), "forgotten with the window");
    }
}
