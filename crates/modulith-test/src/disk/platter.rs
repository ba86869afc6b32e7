//! What the platter has of each file, what was written since, and what of that a power cut leaves.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a disk writes whole or not at all. A longer write can be torn at its boundaries.
pub const SECTOR_BYTES: usize = 512;

/// What a power cut leaves of the changes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    Nothing,
    Everything,
    /// Each change is kept or lost by chance, and each write may be torn. The same seed after the same changes
    /// gives the same files.
    Some(u64),
}

/// The files below a folder, since they are remembered.
#[derive(Debug, Default)]
pub(super) struct Platter {
    files: BTreeMap<PathBuf, OnDisk>,
}

#[derive(Debug)]
struct OnDisk {
    /// `None` when the platter has no such name.
    platter: Option<Vec<u8>>,
    since: Vec<Change>,
}

/// A change that no sync has made durable yet.
#[derive(Debug)]
pub(super) enum Change {
    Create,
    Write { offset: usize, bytes: Vec<u8> },
    Truncate(usize),
    Delete,
}

impl Platter {
    /// A file is opened. One that is seen for the first time counts as synced as it is.
    pub(super) fn open(&mut self, path: &Path, existed: bool, content: impl FnOnce() -> Vec<u8>) {
        match self.files.get_mut(path) {
            Some(_) if existed => {}
            Some(file) => file.since.push(Change::Create),
            None if existed => {
                self.files.insert(path.to_owned(), OnDisk { platter: Some(content()), since: Vec::new() });
            }
            None => {
                self.files.insert(path.to_owned(), OnDisk { platter: None, since: vec![Change::Create] });
            }
        }
    }

    pub(super) fn change(&mut self, path: &Path, change: Change) {
        if let Some(file) = self.files.get_mut(path) {
            file.since.push(change);
        }
    }

    /// A sync of the file succeeded.
    pub(super) fn synced(&mut self, path: &Path) {
        if let Some(file) = self.files.get_mut(path) {
            file.platter = after(file.platter.take(), &file.since, &mut Choice::of(Kept::Everything));
            file.since.clear();
        }
    }

    /// A sync of the folder succeeded: names that were deleted stay away.
    pub(super) fn names_synced(&mut self) {
        for file in self.files.values_mut() {
            if let Some(last) = file.since.iter().rposition(|change| matches!(change, Change::Delete)) {
                file.platter = None;
                file.since.drain(..=last);
            }
        }
    }

    /// A sync of the file failed. Linux marks pages clean that it could not write, so that a later sync succeeds
    /// without them: what was written is read back as long as the machine runs, and is on no disk.
    pub(super) fn sync_failed(&mut self, path: &Path) {
        if let Some(file) = self.files.get_mut(path) {
            file.since.retain(|change| !matches!(change, Change::Write { .. }));
        }
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Each file as a power cut leaves it; `None` if it is not there.
    pub(super) fn after_power_cut(&self, kept: Kept) -> impl Iterator<Item = (&Path, Option<Vec<u8>>)> {
        let mut choice = Choice::of(kept);
        self.files
            .iter()
            .map(move |(path, file)| (&**path, after(file.platter.clone(), &file.since, &mut choice)))
    }
}

fn after(mut content: Option<Vec<u8>>, changes: &[Change], choice: &mut Choice) -> Option<Vec<u8>> {
    for change in changes {
        match change {
            // Names change in order: if one change is lost, so is all that happened to the name afterwards.
            Change::Create | Change::Delete if choice.portion() != Portion::Whole => break,
            Change::Create => content = Some(Vec::new()),
            Change::Delete => content = None,
            Change::Truncate(length) => {
                if let Some(content) = &mut content
                    && choice.portion() == Portion::Whole
                {
                    content.resize(*length, 0);
                }
            }
            Change::Write { offset, bytes } => {
                if let Some(content) = &mut content {
                    write(content, *offset, bytes, choice);
                }
            }
        }
    }
    content
}

fn write(content: &mut Vec<u8>, offset: usize, bytes: &[u8], choice: &mut Choice) {
    let portion = choice.portion();
    let mut at = 0;
    while at < bytes.len() {
        let sector_end = (offset + at) / SECTOR_BYTES * SECTOR_BYTES + SECTOR_BYTES;
        let end = (sector_end - offset).min(bytes.len());
        if portion == Portion::Whole || portion == Portion::Torn && choice.coin() {
            if content.len() < offset + end {
                content.resize(offset + end, 0);
            }
            content[offset + at..offset + end].copy_from_slice(&bytes[at..end]);
        }
        at = end;
    }
}

/// How much of one change a power cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Portion {
    Nothing,
    /// Each sector by a coin.
    Torn,
    Whole,
}

enum Choice {
    Always(Portion),
    Seeded {
        random: u64,
        /// Of 256 changes so many are whole; the others are torn or lost. Some seeds lose little, some much.
        whole_of_256: u64,
    },
}

impl Choice {
    fn of(kept: Kept) -> Self {
        match kept {
            Kept::Nothing => Choice::Always(Portion::Nothing),
            Kept::Everything => Choice::Always(Portion::Whole),
            Kept::Some(seed) => {
                let mut random = seed;
                let whole_of_256 = [64, 128, 240][(next(&mut random) % 3) as usize];
                Choice::Seeded { random, whole_of_256 }
            }
        }
    }

    fn portion(&mut self) -> Portion {
        match self {
            Choice::Always(portion) => *portion,
            Choice::Seeded { random, whole_of_256 } => {
                if next(random) % 256 < *whole_of_256 {
                    Portion::Whole
                } else if next(random).is_multiple_of(2) {
                    Portion::Torn
                } else {
                    Portion::Nothing
                }
            }
        }
    }

    fn coin(&mut self) -> bool {
        match self {
            Choice::Always(portion) => *portion == Portion::Whole,
            Choice::Seeded { random, .. } => next(random).is_multiple_of(2),
        }
    }
}

/// SplitMix64, by Steele, Lea and Flood, 2014.
fn next(random: &mut u64) -> u64 {
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *random;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
