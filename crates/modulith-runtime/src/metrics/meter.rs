//! What is counted while calls run: a few relaxed additions on handles that were found when the process started.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use modulith_core::{CallFault, ContractModel, Outcome};
use modulith_data::saga::Ask;
use modulith_transport::{Apart, CELLS, cell};

/// A number that only grows.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The upper bounds of a histogram's buckets in microseconds; one more bucket has what took longer.
pub(super) const BOUNDS_US: [u64; 12] =
    [50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 50_000, 250_000, 1_000_000, 10_000_000];

/// How long things took: how many in each bucket, and all of it together.
#[derive(Default)]
pub(super) struct Times {
    pub(super) buckets: [u64; BOUNDS_US.len() + 1],
    pub(super) sum_ns: u64,
}

/// What is counted of one kind of work: how often it ended in which of some ways, and how long it took. One observation is
/// three additions, which each thread makes in a cell of its own.
pub(crate) struct Meter<const ENDS: usize>([Apart<Cell<ENDS>>; CELLS]);

struct Cell<const ENDS: usize> {
    ends: [Counter; ENDS],
    buckets: [Counter; BOUNDS_US.len() + 1],
    sum_ns: Counter,
}

impl<const ENDS: usize> Default for Meter<ENDS> {
    fn default() -> Self {
        let counter = |_| Counter::default();
        Self(std::array::from_fn(|_| {
            Apart(Cell {
                ends: std::array::from_fn(counter),
                buckets: std::array::from_fn(counter),
                sum_ns: Counter::default(),
            })
        }))
    }
}

impl<const ENDS: usize> Meter<ENDS> {
    pub(crate) fn observe(&self, end: usize, took: Duration) {
        let cell = &self.0[cell()].0;
        let us = took.as_micros() as u64;
        let bucket = BOUNDS_US.iter().take_while(|bound| us > **bound).count();
        cell.ends[end].add(1);
        cell.buckets[bucket].add(1);
        cell.sum_ns.add(took.as_nanos() as u64);
    }

    pub(super) fn ends(&self) -> [u64; ENDS] {
        std::array::from_fn(|end| self.0.iter().map(|cell| cell.0.ends[end].get()).sum())
    }

    pub(super) fn times(&self) -> Times {
        let sum = |of: &dyn Fn(&Cell<ENDS>) -> u64| self.0.iter().map(|cell| of(&cell.0)).sum();
        let buckets = std::array::from_fn(|at| sum(&|cell| cell.buckets[at].get()));
        Times { buckets, sum_ns: sum(&|cell| cell.sum_ns.get()) }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Done,
    Refused,
    NotRun,
    Unknown,
}

impl Ended {
    pub(super) const ALL: [Self; 4] = [Self::Done, Self::Refused, Self::NotRun, Self::Unknown];

    pub(crate) fn of(result: &Result<Outcome, CallFault>) -> Self {
        match result {
            Ok(Outcome::Done(_)) => Self::Done,
            Ok(Outcome::Refused(_)) => Self::Refused,
            Err(CallFault::NotRun(_)) => Self::NotRun,
            Err(CallFault::Unknown(_)) => Self::Unknown,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::NotRun => "not_run",
            Self::Unknown => "unknown",
        }
    }
}

/// Calls of one method.
pub(crate) type CallMeter = Meter<{ Ended::ALL.len() }>;

impl CallMeter {
    pub(crate) fn ended(&self, ended: Ended, took: Duration) {
        self.observe(ended as usize, took);
    }
}

/// Calls of one contract, by method. What is no method of it counts as [`OTHER`], so that no caller makes a label.
pub(crate) struct ContractMeters {
    pub(super) contract: &'static str,
    pub(super) methods: Vec<(&'static str, Arc<CallMeter>)>,
    pub(super) other: Arc<CallMeter>,
}

/// The method of calls that name none that is known.
pub(super) const OTHER: &str = "other";
/// The contract of what concerns no single one: no contract can be called so.
pub(super) const ANY: &str = "*";

impl ContractMeters {
    fn new(contract: &'static str, methods: impl IntoIterator<Item = &'static str>) -> Self {
        let methods = methods.into_iter().map(|method| (method, Arc::default())).collect();
        Self { contract, methods, other: Arc::default() }
    }

    /// A contract has a handful of methods: comparing them is cheaper than hashing one.
    pub(crate) fn of(&self, method: &str) -> &Arc<CallMeter> {
        self.methods.iter().find(|(name, _)| *name == method).map_or(&self.other, |(_, meter)| meter)
    }
}

/// Calls between this process and others: of the contracts it knows, and of sagas.
pub(crate) struct Meters {
    pub(super) contracts: Vec<Arc<ContractMeters>>,
    /// What sagas ask that is no call of one method, and every call of an unknown contract.
    pub(super) rest: ContractMeters,
}

impl Meters {
    pub(super) fn new<'a>(contracts: impl IntoIterator<Item = &'a ContractModel>) -> Self {
        let mut meters: Vec<Arc<ContractMeters>> = Vec::new();
        for model in contracts {
            // Two modules of a service may need the same contract.
            if meters.iter().all(|known| known.contract != model.name) {
                let methods = model.methods.iter().map(|method| method.name);
                meters.push(Arc::new(ContractMeters::new(model.name, methods)));
            }
        }
        Self { contracts: meters, rest: ContractMeters::new(ANY, ["run", "seal", "look"]) }
    }

    pub(crate) fn contract(&self, contract: &str) -> Option<&Arc<ContractMeters>> {
        self.contracts.iter().find(|known| known.contract == contract)
    }

    pub(crate) fn call(&self, contract: &str, method: &str) -> &Arc<CallMeter> {
        self.contract(contract).map_or(self.unknown(), |known| known.of(method))
    }

    /// Of calls that could not be read, or that nobody may make.
    pub(crate) fn unknown(&self) -> &Arc<CallMeter> {
        &self.rest.other
    }

    /// A step of a saga counts as a call of its method.
    pub(crate) fn ask(&self, ask: &Ask) -> &Arc<CallMeter> {
        match ask {
            Ask::Step { contract, method, .. }
            | Ask::Effect { contract, method, .. }
            | Ask::Undo { contract, method, .. } => self.call(contract, method),
            Ask::Run { .. } | Ask::Seal { .. } | Ask::Look { .. } => self.rest.of(ask.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_bucket_whose_bound_it_does_not_pass() {
        let meter = CallMeter::default();
        for (us, bucket) in [(0, 0), (50, 0), (51, 1), (100, 1), (10_000_000, 11), (10_000_001, 12)] {
            let before = meter.times().buckets[bucket];
            meter.ended(Ended::Refused, Duration::from_micros(us));
            assert_eq!(meter.times().buckets[bucket], before + 1, "{us}");
        }
        assert_eq!(meter.times().sum_ns, 1_000 * (50 + 51 + 100 + 10_000_000 + 10_000_001));
        assert_eq!(meter.ends(), [0, 6, 0, 0]);
    }
}
