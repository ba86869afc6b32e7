//! The breaker of one peer, as its callers share it.
//!
//! Owns the lock and the leave that each call takes and gives back; `breaker.rs` decides. A call to a peer that is well
//! takes no lock: it looks at two numbers that change once a second, and counts its good end in a cell of its own thread.
//! Whoever takes the lock next adds those up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Mutex, MutexGuard};

use crate::{
    BreakerState, Limits, NotRun, Priority,
    breaker::{Barred, Breaker, Ending, Pass},
    random,
    tally::Tally,
};

/// No era: whoever finds it asks the breaker.
const ASK: u64 = u64::MAX;

/// Lets calls through as long as they end well; for whatever is called, also by other means than a [`crate::Peer`], which
/// has its own. The numbers are [`Limits::breaker_window`] and those beside it.
pub struct Circuit {
    began: Instant,
    /// The era in which every call passes, or [`ASK`].
    calm: AtomicU64,
    /// Up to when that holds: the end of the window's present bucket, in nanoseconds from `began`.
    calm_until_ns: AtomicU64,
    /// Good ends that the breaker was not told one by one.
    good: Tally,
    decides: Mutex<Decides>,
}

struct Decides {
    breaker: Breaker,
    /// Of `good`, what the breaker knows.
    known: u64,
}

/// One call's leave. What is dropped without a word was cancelled by its caller, which says nothing about the callee.
pub struct Leave<'a> {
    circuit: &'a Circuit,
    pass: Pass,
    ending: Ending,
}

impl Circuit {
    /// A closed one.
    pub fn new(limits: Arc<Limits>) -> Self {
        let began = Instant::now();
        Self {
            began,
            calm: AtomicU64::new(ASK),
            calm_until_ns: AtomicU64::new(0),
            good: Tally::default(),
            decides: Mutex::new(Decides { breaker: Breaker::new(limits, began, random::below), known: 0 }),
        }
    }

    /// The leave for a call that begins now.
    ///
    /// # Errors
    ///
    /// [`NotRun::CircuitOpen`] and [`NotRun::HeldBack`], with the time after which to ask again.
    pub fn enter(&self, now: Instant, priority: Priority) -> Result<Leave<'_>, NotRun> {
        let era = self.calm.load(Ordering::Acquire);
        let pass = if era != ASK && self.nanoseconds(now) < self.calm_until_ns.load(Ordering::Relaxed) {
            Pass::counted(era)
        } else {
            self.decide(|breaker| breaker.admit(now, priority))?
        };
        Ok(Leave { circuit: self, pass, ending: Ending::Neutral })
    }

    /// There is a new connection to the callee: the next call may ask whether it is well.
    pub(crate) fn connected(&self) {
        self.decide(Breaker::connected);
    }

    /// Its state, and how often it has opened.
    pub fn state(&self) -> (BreakerState, u64) {
        self.decide(|breaker| (breaker.state(), breaker.opened()))
    }

    fn decide<T>(&self, ask: impl FnOnce(&mut Breaker) -> T) -> T {
        let mut decides: MutexGuard<'_, Decides> = self.decides.lock();
        let Decides { breaker, known } = &mut *decides;
        let good = self.good.sum();
        // Other cells may have been added to since the last sum was made, and never less.
        breaker.add_good(good - *known);
        *known = good;
        let answer = ask(breaker);
        let (era, until) = breaker.calm().map_or((ASK, 0), |(era, until)| (era, self.nanoseconds(until)));
        self.calm_until_ns.store(until, Ordering::Relaxed);
        self.calm.store(era, Ordering::Release);
        answer
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        // Enough for 584 years.
        at.saturating_duration_since(self.began).as_nanos() as u64
    }

    fn ended(&self, pass: Pass, ending: Ending) {
        match ending {
            Ending::Neutral if pass.is_counted() => {}
            Ending::Good if pass == Pass::counted(self.calm.load(Ordering::Acquire)) => self.good.add_one(),
            _ => self.decide(|breaker| breaker.ended(Instant::now(), pass, ending)),
        }
    }
}

impl Leave<'_> {
    /// The call has ended like this.
    pub fn ended(mut self, ending: Ending) {
        self.ending = ending;
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.circuit.ended(self.pass, self.ending);
    }
}

impl From<Barred> for NotRun {
    fn from(barred: Barred) -> Self {
        let ms = |time: Duration| u32::try_from(time.as_millis()).unwrap_or(u32::MAX);
        match barred {
            Barred::Open { retry_after } => Self::CircuitOpen { retry_after_ms: ms(retry_after) },
            Barred::Throttled { retry_after } => Self::HeldBack { retry_after_ms: ms(retry_after) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn circuit() -> Circuit {
        Circuit::new(Arc::default())
    }

    fn ends(circuit: &Circuit, now: Instant, calls: u32, ending: Ending) {
        for _ in 0..calls {
            circuit.enter(now, Priority::Ordinary).expect("it passes").ended(ending);
        }
    }

    /// Good ends that took no lock weigh as much as any: half of all have to be bad.
    #[test]
    fn good_ends_without_the_lock_count() {
        let (circuit, now) = (circuit(), Instant::now());
        ends(&circuit, now, 30, Ending::Good);
        assert_ne!(circuit.calm.load(Ordering::Relaxed), ASK, "it is calm");
        ends(&circuit, now, 29, Ending::Bad);
        assert_eq!(circuit.state().0, BreakerState::Closed);
        ends(&circuit, now, 1, Ending::Bad);
        assert_eq!(circuit.state().0, BreakerState::Open);
        assert!(circuit.enter(now, Priority::Ordinary).is_err(), "nobody passes by the old numbers");
    }

    /// They leave the window like others, though nobody took the lock when their time was over.
    #[test]
    fn good_ends_of_long_ago_do_not_count() {
        let circuit = circuit();
        let now = circuit.began;
        ends(&circuit, now, 1000, Ending::Good);
        let later = now + 12 * S;
        for _ in 0..20 {
            let leave = circuit.enter(later, Priority::Ordinary).expect("it passes");
            // What it is told with the time of the test instead of the clock's.
            circuit.decide(|breaker| breaker.ended(later, leave.pass, Ending::Bad));
            std::mem::forget(leave);
        }
        assert_eq!(circuit.state().0, BreakerState::Open);
    }

    #[test]
    fn an_overloaded_peer_is_asked_about_each_call() {
        let (circuit, now) = (circuit(), Instant::now());
        ends(&circuit, now, 1, Ending::Good);
        ends(&circuit, now, 1, Ending::Overloaded);
        assert_eq!(circuit.calm.load(Ordering::Relaxed), ASK);
        ends(&circuit, now, 40, Ending::Good);
        circuit.decide(|breaker| assert_eq!(breaker.good(), 41));
    }
}
