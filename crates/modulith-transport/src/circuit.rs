//! The breaker of one peer, as its callers share it.
//!
//! Owns the lock and the leave that each call takes and gives back; `breaker.rs` decides.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    BreakerState, Limits, NotRun, Priority,
    breaker::{Barred, Breaker, Ending, Pass},
    random,
};

/// Lets calls through as long as they end well; for whatever is called, also by other means than a [`crate::Peer`], which
/// has its own. The numbers are [`Limits::breaker_window`] and those beside it.
pub struct Circuit(Mutex<Breaker>);

/// One call's leave. What is dropped without a word was cancelled by its caller, which says nothing about the callee.
pub struct Leave<'a> {
    circuit: &'a Circuit,
    pass: Pass,
    ending: Ending,
}

impl Circuit {
    /// A closed one.
    pub fn new(limits: Arc<Limits>) -> Self {
        Self(Mutex::new(Breaker::new(limits, Instant::now(), random::below)))
    }

    /// The leave for a call that begins now.
    ///
    /// # Errors
    ///
    /// [`NotRun::CircuitOpen`] and [`NotRun::HeldBack`], with the time after which to ask again.
    pub fn enter(&self, now: Instant, priority: Priority) -> Result<Leave<'_>, NotRun> {
        let pass = self.0.lock().admit(now, priority)?;
        Ok(Leave { circuit: self, pass, ending: Ending::Neutral })
    }

    /// There is a new connection to the callee: the next call may ask whether it is well.
    pub(crate) fn connected(&self) {
        self.0.lock().connected();
    }

    /// Its state, and how often it has opened.
    pub fn state(&self) -> (BreakerState, u64) {
        let breaker = self.0.lock();
        (breaker.state(), breaker.opened())
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
        self.circuit.0.lock().ended(Instant::now(), self.pass, self.ending);
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
