//! The methods that are served here, found by how a call to one begins.
//!
//! Owns what is known of a method before its call is read: its code, its meter, and whether it takes long. A call names its
//! contract and its method first, so a look at these bytes spares reading, checking and looking up both.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashMap;
use modulith_core::Fault;

use super::wire;
use crate::hosted::{Found, Hosted};
use crate::metrics::CallMeter;

/// A query that took longer runs on a thread of its own the next time: while one runs on its connection's task, no
/// other call of the connection moves, and no other task of its worker.
const INLINE_MAX: Duration = Duration::from_millis(10);

/// See the module's documentation.
pub(crate) struct Methods(HashMap<Vec<u8>, Arc<Method>>);

/// One of them.
pub(crate) struct Method {
    pub(crate) contract: &'static str,
    pub(crate) name: &'static str,
    pub(crate) found: Found,
    pub(crate) meter: Arc<CallMeter>,
    pub(crate) pace: Pacing,
}

impl Methods {
    /// All methods of all contracts that are served here.
    ///
    /// # Errors
    ///
    /// A name that is too long for a call.
    pub(crate) fn new(hosted: &Hosted) -> Result<Self, Fault> {
        let mut methods = HashMap::new();
        for module in hosted.modules().all() {
            for (at, served) in module.contracts.iter().enumerate() {
                let contract = served.contract.name;
                for (method, served) in served.methods.iter().enumerate() {
                    let method = Method {
                        contract,
                        name: served.name,
                        found: Found::new(&module, at, method),
                        meter: hosted.metrics.answers.call(contract, served.name).clone(),
                        pace: Pacing::default(),
                    };
                    methods.insert(wire::names_of(contract, served.name)?, Arc::new(method));
                }
            }
        }
        Ok(Self(methods))
    }

    /// By [`wire::names`].
    pub(crate) fn get(&self, names: &[u8]) -> Option<&Arc<Method>> {
        self.0.get(names)
    }

    /// By the names as such.
    pub(crate) fn find(&self, contract: &str, method: &str) -> Option<&Arc<Method>> {
        self.get(&wire::names_of(contract, method).ok()?)
    }
}

impl Method {
    /// Whether a query of it belongs on a thread of its own: it was declared so, or took long the last time.
    pub(crate) fn is_heavy(&self) -> bool {
        self.found.is_heavy() || self.pace.get() == Pace::Long
    }
}

/// Whether the queries of a method take long.
#[derive(Default)]
pub(crate) struct Pacing(AtomicU8);

impl Pacing {
    /// From when on a query that runs now is timed. `arrived` costs no look at the clock, and is as good as long as nothing
    /// takes long: calls that arrived together run one after the other.
    pub(crate) fn began(&self, arrived: Instant) -> Instant {
        if self.get() == Pace::Suspected { Instant::now() } else { arrived }
    }

    /// Takes note of for how long a query ran, timed from [`Pacing::began`] on.
    pub(crate) fn took(&self, time: Duration) {
        let (before, is_long) = (self.get(), time > INLINE_MAX);
        let now = match (before, is_long) {
            (_, false) => Pace::Quick,
            (Pace::Quick, true) => Pace::Suspected,
            (_, true) => Pace::Long,
        };
        // Nearly always it is as it was, and other threads need not hear of it.
        if now != before {
            self.0.store(now as u8, Ordering::Relaxed);
        }
    }

    fn get(&self) -> Pace {
        match self.0.load(Ordering::Relaxed) {
            0 => Pace::Quick,
            1 => Pace::Suspected,
            _ => Pace::Long,
        }
    }
}

/// How a method's queries were the last time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pace {
    Quick,
    /// One of them, or those before it in its batch, took long.
    Suspected,
    /// It takes long by itself.
    Long,
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_millis(11);
    const QUICK: Duration = Duration::from_millis(9);

    #[test]
    fn what_took_long_twice_runs_elsewhere_until_it_is_quick_again() {
        let pacing = Pacing::default();
        let arrived = Instant::now();
        pacing.took(QUICK);
        assert_eq!((pacing.get(), pacing.began(arrived)), (Pace::Quick, arrived));
        // It may have been those before it, so the next one is timed by itself.
        pacing.took(LONG);
        assert_eq!(pacing.get(), Pace::Suspected);
        assert_ne!(pacing.began(arrived), arrived);
        pacing.took(QUICK);
        assert_eq!(pacing.get(), Pace::Quick, "it was those before it");
        for paced in [Pace::Suspected, Pace::Long, Pace::Long] {
            pacing.took(LONG);
            assert_eq!(pacing.get(), paced);
        }
        pacing.took(QUICK);
        assert_eq!(pacing.get(), Pace::Quick);
    }
}
