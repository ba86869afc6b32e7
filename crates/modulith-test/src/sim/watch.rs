//! What must hold after every commit, whoever made it.

use std::collections::HashMap;

use modulith_core::{Fault, Snapshot};
use modulith_data::sqlite::InMemory;
use uuid::Uuid;

use super::cast::{Cast, Placement};

const STARTED: i64 = 0;
const DONE: i64 = 1;
const UNDO: i64 = 1;

/// Remembers every inbox row that was ever committed.
#[derive(Default)]
pub(super) struct Watch {
    rows: HashMap<&'static str, HashMap<Key, Row>>,
    violations: Vec<String>,
}

type Key = (Uuid, i64, i64, i64);
/// A key, its state and its answer.
type Found = (Uuid, i64, i64, i64, i64, Option<Vec<u8>>);

#[derive(Clone, PartialEq)]
struct Row {
    state: i64,
    answer: Option<Vec<u8>>,
}

impl Watch {
    pub(super) fn violated(&mut self, what: String) {
        self.violations.push(what);
    }

    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }

    pub(super) fn after_commit(
        &mut self,
        cast: &Cast,
        database: &InMemory,
        placement: &Placement,
        service: usize,
        now_ms: i64,
    ) {
        for module in cast.names_at(placement, service) {
            let seen = database.read(None, now_ms, |db| self.look(module, db));
            if let Err(fault) = seen {
                self.violated(format!("the inbox of `{module}` cannot be read: {fault}"));
            }
        }
    }

    fn look(&mut self, module: &'static str, db: &Snapshot<'_>) -> Result<(), Fault> {
        let sql = format!("SELECT src, seq, step, dir, state, answer FROM {module}__inbox WHERE origin = 2");
        let found: Vec<Found> = db.rows(&sql, ())?;
        let (mut news, mut undone) = (Vec::new(), Vec::new());
        let known = self.rows.entry(module).or_default();
        let count = found.len();
        for (src, seq, step, dir, state, answer) in found {
            let (key, row) = ((src, seq, step, dir), Row { state, answer });
            match known.get(&key) {
                Some(before) if *before == row => {}
                Some(before) if before.state != STARTED => {
                    let (was, is) = (before.state, row.state);
                    news.push(format!("`{module}` step {step} dir {dir}: state {was} became {is}"));
                }
                _ => {
                    known.insert(key, row);
                    if dir == UNDO && state == DONE {
                        undone.push((src, seq));
                    }
                }
            }
        }
        news.extend(undone.into_iter().filter_map(|saga| self.undo_without_end(module, saga)));
        if count < self.rows[module].len() {
            self.vanished(module, db, &mut news)?;
        }
        self.violations.append(&mut news);
        Ok(())
    }

    /// An undo stands only where a step of its saga has refused or is sealed.
    fn undo_without_end(&self, module: &str, saga: (Uuid, i64)) -> Option<String> {
        let ended = self.rows.values().flatten().any(|((src, seq, _, dir), row)| {
            (*src, *seq) == saga && *dir != UNDO && row.state != STARTED && row.state != DONE
        });
        (!ended)
            .then(|| format!("`{module}` undid a step of saga {} and none has refused or is sealed", saga.1))
    }

    /// A row goes only below the low-water mark, or as the intent of an attempt that never left.
    fn vanished(
        &mut self,
        module: &'static str,
        db: &Snapshot<'_>,
        news: &mut Vec<String>,
    ) -> Result<(), Fault> {
        let sql = format!("SELECT src, seq, step, dir FROM {module}__inbox WHERE origin = 2");
        let left: std::collections::HashSet<Key> = db.rows::<Key>(&sql, ())?.into_iter().collect();
        let marks: HashMap<Uuid, i64> =
            db.rows(&format!("SELECT src, below FROM {module}__low_water"), ())?.into_iter().collect();
        self.rows.entry(module).or_default().retain(|key, row| {
            let (src, seq, step, _) = key;
            let gone = !left.contains(key);
            if gone && row.state != STARTED && marks.get(src).is_none_or(|below| below <= seq) {
                news.push(format!("`{module}` lost step {step} of saga {seq} above the low-water mark"));
            }
            !gone
        });
        Ok(())
    }
}
