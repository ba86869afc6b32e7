//! Decides which requests a process takes when it cannot keep up with them.
//!
//! A request that is ready to go on waits until the runtime, and before it the system, has come round to it. That wait
//! is the one queue that nothing else sees: it stands in front of every deadline, and a slow disk, a slow handler or a
//! slow client does not make it longer. Owned here: its measurement, and the decision, with an explicit clock. As CoDel
//! does (Nichols and Jacobson, "Controlling Queue Delay", ACM Queue 10(5), 2012), the *least* wait of an interval counts,
//! since a burst that is worked off is no overload; as DAGOR does (Zhou et al., "Overload Control for Scaling WeChat
//! Microservices", SoCC 2018), it is answered at the door, by taking a share that adapts.

use std::future::poll_fn;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The share of a request's time that one wait may take. It waits many times on its way through several services.
const TARGET_SHARE: u32 = 50;
/// The wait that is borne at least, DAGOR's number, and at most: where deadlines are long, much has piled up before they are in
/// danger.
const TARGET_MIN: Duration = Duration::from_millis(20);
const TARGET_MAX: Duration = Duration::from_millis(200);
/// How long the wait has to stay above it, and how often the share is set anew.
const INTERVAL: Duration = Duration::from_millis(25);
/// So many are always taken: with fewer at work, it is not they who make the process late, but its neighbours.
const ALWAYS: usize = 32;
/// More are never taken; it bounds the memory that requests hold.
pub(crate) const IN_PROGRESS_MAX: usize = 2_048;
/// The least share, so that there is something to measure by.
const SHARE_MIN: f64 = 1.0 / 64.0;
/// By so much the share grows in an interval without a standing wait; from the least to all in 3.5 s.
const GROWTH: f64 = 33.0 / 32.0;
/// What is older says nothing any more.
const STALE: Duration = Duration::from_secs(1);
/// While nothing is refused, the decision is looked at so often, and its lock left alone in between.
const GLANCE: Duration = Duration::from_millis(1);
/// When to come again.
pub(crate) const RETRY_AFTER_MS: u32 = 1_000;

/// The requests that a process works at, and whether it takes more. Clones are the same.
#[derive(Clone, Default)]
pub struct Pressure(Arc<Shared>);

/// What [`Pressure`] shows of itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PressureSnapshot {
    /// Requests taken whose answer has not begun.
    pub in_progress: usize,
    /// Requests refused since the start.
    pub refused: u64,
    /// The least wait for a turn within the last interval in which it was measured.
    pub wait: Duration,
    /// The share of new requests that is taken, 0 to 1.
    pub share: f64,
}

#[derive(Default)]
struct Shared {
    in_progress: AtomicUsize,
    refused: AtomicU64,
    /// Until then all are taken, in nanoseconds since [`ORIGIN`].
    open_until: AtomicU64,
    /// [`Shedding::wait`], for whoever has not the lock.
    wait_ns: AtomicU64,
    shedding: Mutex<Shedding>,
}

static ORIGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// A request's place among those in progress, given back on drop.
pub(crate) struct Place {
    pressure: Pressure,
    /// Since when it measures for all.
    measures: Option<Instant>,
}

impl Pressure {
    /// A place for a request that has just come, and has so much time; none if there are too many already.
    pub(crate) fn enter(&self, now: Instant, time: impl FnOnce() -> Duration) -> Option<Place> {
        let shared = &*self.0;
        let others = shared.in_progress.fetch_add(1, Ordering::Relaxed);
        // From here on it is given back.
        let mut place = Place { pressure: self.clone(), measures: None };
        let now_ns = now.saturating_duration_since(*ORIGIN).as_nanos() as u64;
        let is_open = now_ns < shared.open_until.load(Ordering::Relaxed);
        if others < ALWAYS || (is_open && others < IN_PROGRESS_MAX) {
            return Some(place);
        }
        if others < IN_PROGRESS_MAX {
            let mut shedding = shared.shedding.lock();
            let admitted = shedding.admit(now, time());
            if shedding.share >= 1.0 {
                shared.open_until.store(now_ns + GLANCE.as_nanos() as u64, Ordering::Relaxed);
            }
            shared.wait_ns.store(shedding.wait.as_nanos() as u64, Ordering::Relaxed);
            if let Some(Measures(measures)) = admitted {
                place.measures = measures.then_some(now);
                return Some(place);
            }
        }
        shared.refused.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// How long what comes in now has probably waited before it was seen.
    pub(crate) fn wait(&self) -> Duration {
        match self.0.in_progress.load(Ordering::Relaxed) > ALWAYS {
            true => Duration::from_nanos(self.0.wait_ns.load(Ordering::Relaxed)),
            false => Duration::ZERO,
        }
    }

    pub fn snapshot(&self) -> PressureSnapshot {
        let shedding = self.0.shedding.lock();
        let shared = &*self.0;
        PressureSnapshot {
            in_progress: shared.in_progress.load(Ordering::Relaxed),
            refused: shared.refused.load(Ordering::Relaxed),
            wait: shedding.wait,
            share: shedding.share,
        }
    }
}

impl std::fmt::Debug for Pressure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.snapshot().fmt(f)
    }
}

impl Place {
    /// Goes to the end of the queue and waits for its turn, if it is the one that measures how long that takes.
    pub(crate) async fn turn(&mut self) {
        if self.measures.is_none() {
            return;
        }
        let mut has_waited = false;
        poll_fn(|cx| {
            if std::mem::replace(&mut has_waited, true) {
                return Poll::Ready(());
            }
            // Whoever is woken while it runs goes behind all others that can run.
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
        self.measured();
    }

    fn measured(&mut self) {
        if let Some(since) = self.measures.take() {
            self.pressure.0.shedding.lock().waited(since, Instant::now());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // A request that was given up while it waited has waited, too.
        self.measured();
        self.pressure.0.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether a request that is taken is the one that measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Measures(bool);

/// The decision.
struct Shedding {
    /// The least wait of the last whole interval.
    wait: Duration,
    /// When the interval that runs began, and its least wait so far.
    since: Option<Instant>,
    least: Option<Duration>,
    /// When the one that waits at the moment began to.
    waits: Option<Instant>,
    seen: Option<Instant>,
    /// The wait that the one who measures can bear.
    target: Duration,
    share: f64,
    /// What is left of the shares of requests so far: one is taken whenever it is whole, so that those taken are spread
    /// evenly, and nothing is left to chance.
    credit: f64,
}

impl Default for Shedding {
    fn default() -> Self {
        let (wait, since, least, waits, seen) = Default::default();
        Self { wait, since, least, waits, seen, target: TARGET_MIN, share: 1.0, credit: 0.0 }
    }
}

impl Shedding {
    /// Whether one more is taken, which has so much time.
    fn admit(&mut self, now: Instant, time: Duration) -> Option<Measures> {
        self.look(now);
        self.credit = (self.credit + self.share).min(2.0);
        if self.credit < 1.0 {
            return None;
        }
        self.credit -= 1.0;
        let measures = self.waits.is_none();
        if measures {
            self.waits = Some(now);
            self.target = (time / TARGET_SHARE).clamp(TARGET_MIN, TARGET_MAX);
        }
        Some(Measures(measures))
    }

    /// The one that measures has had its turn.
    fn waited(&mut self, since: Instant, now: Instant) {
        let wait = now.saturating_duration_since(since);
        self.least = Some(self.least.map_or(wait, |least| least.min(wait)));
        self.waits = None;
        self.look(now);
    }

    /// Ends the interval if its time has come. Who still waits has waited at least so long: not to count that would mean to
    /// learn of a long wait only when it is over.
    fn look(&mut self, now: Instant) {
        let age = |since: Instant| now.saturating_duration_since(since);
        if self.waits.is_none() && self.seen.is_some_and(|seen| age(seen) > STALE) {
            *self = Self::default();
        }
        let since = *self.since.get_or_insert(now);
        if age(since) < INTERVAL {
            return;
        }
        let waits = self.waits.map(age).filter(|wait| *wait > self.target);
        let (least, known) = match (self.least, waits) {
            (Some(least), _) => (least, least),
            (None, Some(so_far)) => (so_far, so_far.max(self.wait)),
            (None, None) => return,
        };
        (self.since, self.least, self.seen) = (Some(now), None, Some(now));
        self.wait = known;
        self.share = if least > self.target {
            // What is refused now is felt only after the wait that is there: half is enough for one step.
            let step = (self.target.as_secs_f64() / least.as_secs_f64()).max(0.5);
            (self.share * step).max(SHARE_MIN)
        } else {
            (self.share * GROWTH).min(1.0)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A process in which whatever can go on waits so long, and to which a request comes every millisecond.
    struct Process {
        shedding: Shedding,
        now: Instant,
        /// When the one that measures has its turn, and since when it waits.
        turn: Option<(Instant, Instant)>,
        /// Of each request.
        time: Duration,
    }

    impl Process {
        fn new() -> Self {
            let (shedding, time) = (Shedding::default(), Duration::from_secs(1));
            Self { shedding, now: Instant::now(), turn: None, time }
        }

        /// How many of so many requests are taken.
        fn take(&mut self, requests: usize, wait: Duration) -> usize {
            let mut taken = 0;
            for _ in 0..requests {
                self.now += MS;
                if let Some((_, since)) = self.turn.take_if(|(turn, _)| *turn <= self.now) {
                    self.shedding.waited(since, self.now);
                }
                if let Some(Measures(measures)) = self.shedding.admit(self.now, self.time) {
                    taken += 1;
                    if measures {
                        self.turn = Some((self.now + wait, self.now));
                    }
                }
            }
            taken
        }
    }

    #[test]
    fn a_short_wait_is_no_reason_and_one_lucky_turn_ends_a_long_one() {
        let mut process = Process::new();
        assert_eq!(process.take(1_000, TARGET_MIN), 1_000);
        for _ in 0..20 {
            // Within every interval somebody waits for 5 ms only.
            assert_eq!(process.take(15, 15 * MS) + process.take(10, 5 * MS), 25);
        }
    }

    #[test]
    fn who_has_more_time_can_wait_longer() {
        for (seconds, borne, too_much) in [(1, 20, 21), (5, 100, 101), (10, 200, 201), (60, 200, 201)] {
            let mut process = Process::new();
            process.time = Duration::from_secs(seconds);
            assert_eq!(process.take(2_000, borne * MS), 2_000, "{seconds} s");
            assert!(process.take(2_000, too_much * MS) < 2_000, "{seconds} s");
        }
    }

    #[test]
    fn a_standing_wait_halves_the_share_again_and_again_but_never_to_nothing() {
        let mut process = Process::new();
        assert_eq!(process.take(25, 200 * MS), 25, "not before an interval is over");
        process.take(175, 200 * MS);
        assert!(process.shedding.share < 0.2, "{}", process.shedding.share);
        process.take(2_000, 200 * MS);
        assert_eq!(process.shedding.share, SHARE_MIN);
        assert_eq!(process.take(640, 200 * MS), 10);
        assert!(process.shedding.wait >= 200 * MS);
    }

    #[test]
    fn a_wait_that_has_no_end_yet_is_seen() {
        let mut process = Process::new();
        // Nobody has had a turn in all this time.
        process.take(1_000, Duration::from_secs(60));
        assert!(process.shedding.share < 0.1, "{}", process.shedding.share);
    }

    #[test]
    fn the_share_finds_what_can_be_done() {
        let mut process = Process::new();
        // A wait that grows with what is taken: a third of it is just borne.
        let mut taken = 100;
        let (mut least, mut most) = (usize::MAX, 0);
        for round in 0..100 {
            let wait = TARGET_MIN * u32::try_from(taken).unwrap() * 3 / 100;
            taken = process.take(100, wait);
            if round >= 20 {
                (least, most) = (least.min(taken), most.max(taken));
            }
        }
        assert!((5..67).contains(&least) && (5..67).contains(&most), "{least} to {most} of 100");
    }

    #[test]
    fn it_ends_by_short_waits_and_by_silence() {
        let mut process = Process::new();
        process.take(2_000, 200 * MS);
        process.take(200, MS);
        assert!(process.take(100, MS) < 20, "not at once");
        process.take(4_000, MS);
        assert_eq!(process.take(100, MS), 100);

        process.take(2_000, 200 * MS);
        // Even the one that waited is gone.
        if let Some((_, since)) = process.turn.take() {
            process.shedding.waited(since, process.now);
        }
        process.now += STALE + MS;
        assert_eq!(process.take(10, MS), 10);
    }

    #[test]
    fn places_are_given_back_and_bounded() {
        let pressure = Pressure::default();
        let now = Instant::now();
        let mut places: Vec<_> =
            (0..IN_PROGRESS_MAX).map(|_| pressure.enter(now, || 1_000 * MS).expect("a place")).collect();
        assert!(pressure.enter(now, || 1_000 * MS).is_none());
        assert_eq!((pressure.snapshot().in_progress, pressure.snapshot().refused), (IN_PROGRESS_MAX, 1));
        places.pop();
        assert!(pressure.enter(now, || 1_000 * MS).is_some());
        drop(places);
        assert_eq!(pressure.snapshot().in_progress, 0);
    }

    #[test]
    fn few_are_always_taken() {
        let pressure = Pressure::default();
        pressure.0.shedding.lock().share = SHARE_MIN;
        let now = Instant::now();
        let places: Vec<_> = (0..ALWAYS).map_while(|_| pressure.enter(now, || 1_000 * MS)).collect();
        assert_eq!(places.len(), ALWAYS);
        assert!(pressure.enter(now, || 1_000 * MS).is_none());
    }

    #[tokio::test]
    async fn one_at_a_time_measures_and_one_that_gives_up_leaves_it_to_the_next() {
        let pressure = Pressure::default();
        let now = Instant::now();
        let _others: Vec<_> =
            (0..ALWAYS).map(|_| pressure.enter(now, || 1_000 * MS).expect("a place")).collect();
        let mut first = pressure.enter(now, || 1_000 * MS).expect("a place");
        let second = pressure.enter(now, || 1_000 * MS).expect("a place");
        assert!((first.measures.is_some(), second.measures.is_some()) == (true, false));
        first.turn().await;
        assert_eq!(first.measures, None);
        assert!(
            pressure.enter(now, || 1_000 * MS).expect("a place").measures.is_none(),
            "it was measured just now"
        );
        let third = pressure.enter(now + GLANCE, || 1_000 * MS).expect("a place");
        assert!(third.measures.is_some());
        drop(third);
        assert!(pressure.enter(now + 2 * GLANCE, || 1_000 * MS).expect("a place").measures.is_some());
    }
}
