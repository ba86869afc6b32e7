//! What the one connection that writes knows of its inboxes, and of who owns it, without reading.
//!
//! A saga's sequence is above every one before it. So a key above the highest that was ever seen of its coordinator has no row,
//! and neither has one that was not written since. That spares a new key its claim and the reading of the mark. It is
//! never more than a hint: what is not known for sure is claimed, and a row that is there after all makes its insert fail.

use std::sync::Arc;

use hashbrown::HashSet;
use modulith_core::{Direction, Origin, StepKey};
use uuid::Uuid;

use crate::inbox::LowWater;

/// Coordinators that are remembered, counted for each module: 64. With one more, all are forgotten.
const SOURCES_MAX: usize = 64;
/// Keys that are remembered of each: 8,192. With one more, all up to the highest of them are taken for known.
const KEYS_MAX: usize = 8_192;

/// See the module's documentation.
#[derive(Default)]
pub struct Recent {
    sources: Vec<Source>,
    /// The database's newest incarnation.
    pub(crate) incarnation: Option<i64>,
    /// What `PRAGMA data_version` said last: another value, and another connection has written.
    version: Option<i64>,
}

/// The keys of one coordinator in one module's inbox.
struct Source {
    module: Arc<str>,
    src: Uuid,
    /// A sequence up to this one may have rows that are not in `written`.
    until: i64,
    /// Sequence, step and direction of what was written, whether or not it was taken back.
    written: HashSet<(i64, u16, Direction)>,
    water: LowWater,
}

impl Recent {
    /// Forgets everything if another connection has written since the last call, or may have.
    pub(crate) fn as_of(&mut self, version: Option<i64>) {
        if self.version != version || version.is_none() {
            *self = Self { version, ..Self::default() };
        }
    }

    pub(crate) fn forget(&mut self) {
        *self = Self { version: self.version, ..Self::default() };
    }

    /// Whether the key certainly has no row, and its saga has not ended. `None`: read the highest sequence and the mark, and
    /// [learn](Self::learn).
    pub(crate) fn is_new(&self, module: &str, key: &StepKey) -> Option<bool> {
        let source = self.sources.iter().find(|source| source.is(module, key.src))?;
        let is_new =
            key.seq > source.until && !source.written.contains(&place(key)) && source.water.lets_run(key.seq);
        Some(is_new)
    }

    pub(crate) fn learn(&mut self, module: &Arc<str>, src: Uuid, until: i64, water: LowWater) {
        if self.sources.len() >= SOURCES_MAX {
            self.sources.clear();
        }
        self.sources.push(Source { module: module.clone(), src, until, written: HashSet::new(), water });
    }

    /// The key is about to have a row.
    pub(crate) fn written(&mut self, module: &str, key: &StepKey) {
        if key.origin != Origin::Saga {
            return;
        }
        let Some(source) = self.sources.iter_mut().find(|source| source.is(module, key.src)) else { return };
        if source.written.len() >= KEYS_MAX {
            let highest = source.written.drain().map(|(seq, ..)| seq).max();
            source.until = source.until.max(highest.unwrap_or(source.until));
        }
        source.written.insert(place(key));
    }

    pub(crate) fn raised(&mut self, module: &str, src: Uuid, water: &LowWater) {
        if let Some(source) = self.sources.iter_mut().find(|source| source.is(module, src)) {
            source.water.clone_from(water);
            source.written.retain(|(seq, ..)| *seq >= water.below);
            source.until = source.until.max(water.below - 1);
        }
    }
}

impl Source {
    fn is(&self, module: &str, src: Uuid) -> bool {
        self.src == src && *self.module == *module
    }
}

fn place(key: &StepKey) -> (i64, u16, Direction) {
    (key.seq, key.step, key.direction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SRC: Uuid = Uuid::from_u128(7);

    fn key(seq: i64) -> StepKey {
        StepKey { origin: Origin::Saga, src: SRC, seq, step: 0, direction: Direction::Do }
    }

    fn learned() -> Recent {
        let mut recent = Recent::default();
        recent.as_of(Some(1));
        recent.learn(&"stock".into(), SRC, 10, LowWater { below: 13, open: vec![11] });
        recent
    }

    #[test]
    fn new_is_what_nobody_can_have_written() {
        let mut recent = learned();
        assert_eq!(recent.is_new("payments", &key(20)), None, "each module has an inbox of its own");
        for (seq, is_new) in [(10, false), (11, true), (12, false), (13, true), (20, true)] {
            assert_eq!(recent.is_new("stock", &key(seq)), Some(is_new), "{seq}");
        }
        recent.written("stock", &key(20));
        assert_eq!(recent.is_new("stock", &key(20)), Some(false));
        assert_eq!(recent.is_new("stock", &key(20).undo()), Some(true));
        assert_eq!(recent.is_new("stock", &key(19)), Some(true), "sagas overtake each other");

        // What is below a raised mark has ended, or may have rows that are not remembered any more.
        recent.raised("stock", SRC, &LowWater { below: 20, open: vec![19] });
        assert_eq!(recent.is_new("stock", &key(19)), Some(false));
        assert_eq!(recent.is_new("stock", &key(20)), Some(false));
        assert_eq!(recent.is_new("stock", &key(21)), Some(true));
    }

    #[test]
    fn what_is_forgotten_is_new_no_more() {
        let mut recent = learned();
        recent.as_of(Some(1));
        assert_eq!(recent.is_new("stock", &key(20)), Some(true));
        for version in [Some(2), None, None] {
            recent.as_of(version);
            assert_eq!(recent.is_new("stock", &key(20)), None, "another connection may have written");
            recent.learn(&"stock".into(), SRC, 10, LowWater::default());
        }

        for seq in 0..=KEYS_MAX as i64 {
            recent.written("stock", &key(100 + 2 * seq));
        }
        let last = 100 + 2 * KEYS_MAX as i64;
        assert_eq!(recent.is_new("stock", &key(last - 3)), Some(false), "below one that was let go");
        assert_eq!(recent.is_new("stock", &key(last - 1)), Some(true));
        assert_eq!(recent.is_new("stock", &key(last)), Some(false));

        for other in 0..SOURCES_MAX as u128 {
            recent.learn(&"stock".into(), Uuid::from_u128(100 + other), 0, LowWater::default());
        }
        assert_eq!(recent.is_new("stock", &key(last - 1)), None);
    }
}
