//! The low-water mark: which sagas of a coordinator can never ask again, so that what stands under their keys is
//! deleted exactly then.
//!
//! A coordinator says with every request below which sequence all of its sagas have ended, but for a bounded list
//! of those that have not. A participant records the mark in the transaction that deletes what is below it, and
//! refuses a key below the mark: a request that was delayed past its saga's end finds the mark instead of the row.

use std::ops::Range;

use modulith_core::{Columns, Fault, FaultKind, FromRow, Snapshot, Value};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{PRUNED_AT_ONCE, execute};
use crate::session::{ModuleCode, Session};

/// Sagas below the mark that have not ended, at most: 64. With more of them the mark stops.
pub const OPEN_BELOW_MAX: usize = 64;

/// All sagas of one coordinator below `below` have ended, but those in `open`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LowWater {
    pub below: i64,
    pub open: Vec<i64>,
}

impl LowWater {
    /// Takes over what `other` knows better. Messages overtake each other, and a mark never falls: a saga that was
    /// once known to have ended stays ended.
    pub fn raise(&mut self, other: &LowWater) {
        let ended_here = |seq: &i64| *seq < self.below && !self.open.contains(seq);
        if other.below >= self.below {
            let open = other.open.iter().copied().filter(|seq| !ended_here(seq)).collect();
            *self = LowWater { below: other.below, open };
        }
    }

    /// Whether a saga has not ended: the mark has not passed it, or lists it as open.
    pub(crate) fn lets_run(&self, seq: i64) -> bool {
        seq >= self.below || self.open.contains(&seq)
    }
}

/// The statements of one module's low-water marks, written once.
pub(crate) struct WaterSql {
    find: String,
    set: String,
    last: String,
    prune: String,
}

impl WaterSql {
    pub(super) fn new(module: &str) -> Self {
        Self {
            find: format!("SELECT below, open FROM {module}__low_water WHERE src = $1"),
            set: format!(
                "INSERT INTO {module}__low_water (src, below, open) VALUES ($1, $2, $3)
                 ON CONFLICT (src) DO UPDATE SET below = excluded.below, open = excluded.open"
            ),
            last: format!(
                "SELECT seq FROM {module}__inbox WHERE src = $1 AND seq >= $2 AND seq < $3 AND origin = 2
                 ORDER BY seq LIMIT 1 OFFSET $4"
            ),
            prune: format!(
                "DELETE FROM {module}__inbox WHERE src = $1 AND seq >= $2 AND seq <= $3 AND origin = 2"
            ),
        }
    }
}

/// The open sagas are stored as their numbers' bytes, one behind the other, big end first.
impl FromRow for LowWater {
    fn from_row(row: &dyn Columns) -> Result<Self, Fault> {
        let (below, open): (i64, Vec<u8>) = FromRow::from_row(row)?;
        let (numbers, rest) = open.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Fault::new(FaultKind::Type, "a low-water mark's open sagas are not whole numbers"));
        }
        Ok(Self { below, open: numbers.iter().map(|bytes| i64::from_be_bytes(*bytes)).collect() })
    }
}

pub(super) fn stored(session: &mut dyn Session, module: &ModuleCode, src: Uuid) -> Result<LowWater, Fault> {
    let now_ms = session.now_ms();
    let found = Snapshot::new(session.statements(), now_ms).row(&module.inbox.water.find, (src,))?;
    Ok(found.unwrap_or_default())
}

/// Records the mark of the coordinator `src`, and deletes what stands below it, saga by saga, until
/// [`PRUNED_AT_ONCE`] rows are gone; returns how many. A mark lower than the recorded one changes nothing.
pub fn raise(
    session: &mut dyn Session,
    module: &ModuleCode,
    src: Uuid,
    water: &LowWater,
) -> Result<u64, Fault> {
    let before = stored(session, module, src)?;
    let mut raised = before.clone();
    raised.raise(water);
    if raised != before {
        let open: Vec<u8> = raised.open.iter().flat_map(|seq| seq.to_be_bytes()).collect();
        let values = [Value::Bytes(src.as_bytes()), Value::Integer(raised.below), Value::Bytes(&open)];
        session.execute(&module.inbox.water.set, &values)?;
        session.recent().raised(&module.name, src, &raised);
    }
    // Between the open sagas everything goes: one range for each gap.
    let mut open = raised.open;
    open.retain(|seq| *seq < raised.below);
    open.sort_unstable();
    let mut pruned = 0;
    let mut from = i64::MIN;
    for until in open.into_iter().chain([raised.below]) {
        if pruned < PRUNED_AT_ONCE && from < until {
            pruned += prune(session, module, src, from..until, PRUNED_AT_ONCE - pruned)?;
        }
        from = until.saturating_add(1);
    }
    Ok(pruned)
}

/// Deletes the rows of these sagas, from the first on, until `at_least` are gone or none is left. A range of the key is
/// walked once; rows that are chosen by a list of their keys would be looked up one by one.
fn prune(
    session: &mut dyn Session,
    module: &ModuleCode,
    src: Uuid,
    sagas: Range<i64>,
    at_least: u64,
) -> Result<u64, Fault> {
    let now_ms = session.now_ms();
    let bound = (src, sagas.start, sagas.end, at_least as i64 - 1);
    let last = Snapshot::new(session.statements(), now_ms).row(&module.inbox.water.last, bound)?;
    let last = last.map_or(sagas.end - 1, |(seq,): (i64,)| seq);
    execute(session, &module.inbox.water.prune, (src, sagas.start, last))
}
