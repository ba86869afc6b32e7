//! The numbers of one module's sagas: which come next, which are open, and the low-water mark over them.

use std::collections::BTreeSet;

use modulith_core::Protection;
use parking_lot::Mutex;
use uuid::Uuid;

use super::run::SagaId;
use crate::inbox::{LowWater, OPEN_BELOW_MAX};
use crate::sqlite::Identity;

/// See the module's documentation.
pub(super) struct Numbers {
    pub(super) src: Uuid,
    /// The first number of this incarnation.
    first: i64,
    state: Mutex<State>,
}

struct State {
    next: i64,
    /// Begun, or about to be, and not known to have ended on disk.
    open: BTreeSet<i64>,
    /// Of these, the ones the mark does not wait for any more. Once passed over, a saga stays so until it ends: a
    /// mark never falls.
    passed: BTreeSet<i64>,
    /// Unfinished sagas of earlier incarnations are known.
    swept: bool,
}

impl Numbers {
    /// Each module numbers its own sagas, so that its tables can move to another database: there they go on under
    /// the numbers they have, and the mark of the one place says nothing about the other.
    pub(super) fn new(module: &str, identity: &Identity) -> Self {
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        context.update(identity.id.as_bytes());
        context.update(module.as_bytes());
        let digest = context.finish();
        let mut src = [0; 16];
        src.copy_from_slice(&digest.as_ref()[..16]);
        // Every incarnation numbers above all before it, with no row to update for each saga.
        let first = identity.incarnation << 32;
        let state = State { next: first, open: BTreeSet::new(), passed: BTreeSet::new(), swept: false };
        Self { src: Uuid::from_bytes(src), first, state: Mutex::new(state) }
    }

    pub(super) fn begin(&self) -> i64 {
        let mut state = self.state.lock();
        let seq = state.next;
        state.next += 1;
        state.open.insert(seq);
        seq
    }

    /// Whether a saga was begun by an earlier incarnation, or by another source.
    pub(super) fn is_earlier(&self, id: SagaId) -> bool {
        id.src != self.src || id.seq < self.first
    }

    /// These were found unfinished, and no others of earlier incarnations are.
    pub(super) fn swept(&self, unfinished: impl Iterator<Item = i64>) {
        let mut state = self.state.lock();
        state.open.extend(unfinished);
        state.swept = true;
    }

    /// The saga's end is on disk, or it was never begun.
    pub(super) fn end(&self, seq: i64) {
        let mut state = self.state.lock();
        state.open.remove(&seq);
        state.passed.remove(&seq);
    }

    /// This one may stay open for long: the mark passes it, if there is room in the list of such.
    pub(super) fn pass(&self, seq: i64) {
        let mut state = self.state.lock();
        if state.passed.len() < OPEN_BELOW_MAX && state.open.contains(&seq) {
            state.passed.insert(seq);
        }
    }

    pub(super) fn water(&self) -> LowWater {
        let state = self.state.lock();
        if !state.swept {
            return LowWater::default();
        }
        if !Protection::LowWaterWaits.is_on() {
            return LowWater { below: state.next, open: Vec::new() };
        }
        let first = state.open.iter().find(|seq| !state.passed.contains(seq));
        let below = first.copied().unwrap_or(state.next);
        LowWater { below, open: state.passed.range(..below).copied().collect() }
    }
}
