//! What a caller knows: every answer it got, and what it may conclude from them.

use std::collections::{BTreeMap, BTreeSet};

use modulith_core::CallFault;

use super::{Script, Work};

/// The rows that a database says it holds: piece and part.
#[derive(Debug)]
pub(crate) struct Shown(pub(crate) Vec<(i64, i64)>);

#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Must be there: acknowledged, or seen by what was acknowledged.
    there: BTreeSet<i64>,
    /// Must not be there: *not run*, or looked for without being found.
    absent: BTreeSet<i64>,
    /// May be there.
    unknown: BTreeSet<i64>,
    /// What a database did after a commit that failed, against its promise.
    after_unknown: Vec<&'static str>,
    refused_to_open: Option<String>,
}

impl Ledger {
    pub(crate) fn answered(&mut self, piece: i64, answer: Result<Vec<i64>, CallFault>) {
        match answer {
            Ok(seen) => {
                self.there.insert(piece);
                self.there.extend(seen);
            }
            Err(CallFault::NotRun(_)) => {
                self.absent.insert(piece);
            }
            Err(CallFault::Unknown(_)) => {
                self.unknown.insert(piece);
            }
        }
    }

    pub(crate) fn expect_there(&mut self, pieces: impl IntoIterator<Item = i64>) {
        self.there.extend(pieces);
    }

    pub(crate) fn refused_to_open(&mut self, error: &dyn std::fmt::Display) {
        self.refused_to_open = Some(error.to_string());
    }

    pub(crate) fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// Somebody who heard *unknown* looked, as the documentation of `CallError::Unknown` says.
    pub(crate) fn after_unknown(&mut self, broken: bool, by_write: Option<Shown>, by_read: Option<Shown>) {
        if !broken {
            self.after_unknown.push("after a failed commit it does not say that it is broken");
        }
        for (shown, what) in [
            (by_write, "after a failed commit it answers new work"),
            (by_read, "after a failed commit it answers queries"),
        ] {
            if let Some(shown) = shown {
                self.told(&shown);
                self.after_unknown.push(what);
            }
        }
    }

    /// An answer that left: what it shows is there, and what it does not show never happened.
    pub(crate) fn told(&mut self, shown: &Shown) {
        let there: BTreeSet<i64> = shown.0.iter().map(|(piece, _)| *piece).collect();
        self.absent.extend(self.unknown.difference(&there));
        self.there.extend(&there);
        self.unknown.clear();
    }

    /// A workload without faults: culprits fail alone, everything else is done.
    pub(crate) fn expect_undisturbed(&self, script: Script) -> Result<(), String> {
        if let Some(error) = &self.refused_to_open {
            return Err(format!("without a fault it does not open: {error}"));
        }
        for work in script.iter().copied().flatten() {
            let (expected, piece) = match work {
                Work::Good(piece) | Work::Large(piece) | Work::Copies(piece) => (&self.there, piece),
                Work::RollsBack(piece) | Work::LeavesKey(piece) => (&self.absent, piece),
            };
            if !expected.contains(piece) {
                return Err(format!("without a fault of the disk, {work:?} ended otherwise: {self:?}"));
            }
        }
        Ok(())
    }

    /// Compares what was answered with what is there now.
    pub(crate) fn compare(&self, shown: &Shown) -> Result<(), String> {
        let mut parts: BTreeMap<i64, usize> = BTreeMap::new();
        for (piece, _) in &shown.0 {
            *parts.entry(*piece).or_default() += 1;
        }
        for (piece, parts) in &parts {
            if *parts != 2 {
                return Err(format!("half of piece {piece} is there"));
            }
            if self.absent.contains(piece) {
                return Err(format!("piece {piece} is there, and was told not to be"));
            }
            if !self.there.contains(piece) && !self.unknown.contains(piece) {
                return Err(format!("piece {piece} is there, and nobody wrote it"));
            }
        }
        if let Some(lost) = self.there.iter().find(|piece| !parts.contains_key(piece)) {
            return Err(format!("piece {lost} was told to be there, and is gone"));
        }
        match self.after_unknown.first() {
            Some(what) => Err((*what).to_owned()),
            None => Ok(()),
        }
    }
}
