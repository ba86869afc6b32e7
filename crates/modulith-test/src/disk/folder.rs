//! One folder: which operations there were, which of them fail, and whose handles are dead.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::platter::{Change, Kept, Platter};

/// Operations on the files below a folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Writes, changes of a file's length, and deletions.
    pub writes: u64,
    pub syncs: u64,
}

/// An operation by its number, from 1, since [`plan`](super::Faults::plan).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nth {
    /// See [`Counts::writes`].
    Write(u64),
    Sync(u64),
    /// Writes and syncs counted together.
    Any(u64),
}

/// What happens at an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// This operation fails, and later ones succeed.
    FailOnce(Failure),
    /// This operation and all later ones fail. Reading goes on.
    FailFromThenOn(Failure),
    /// The operation is under way when the power is cut: it may be done, half done, or not.
    PowerCut,
    /// The process is killed before the operation. The machine goes on.
    Kill,
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// `SQLITE_FULL`, after half of the bytes. Shortening and deleting succeed on a full disk. A sync that fails
    /// for want of space is `SQLITE_IOERR`, because SQLite tells no reason for it.
    Full,
    /// `SQLITE_IOERR`, after half of the bytes. What a failed sync should have made durable is still read back,
    /// and a later sync that succeeds does not make it durable: so does Linux.
    Io,
}

/// What becomes of one operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Succeeds,
    Fails(Failure),
    /// The power is cut while it is under way.
    Cut,
    Dead,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Write,
    Sync,
}

#[derive(Debug)]
pub(super) struct Folder {
    pub(super) path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) counts: Counts,
    pub(super) sync_takes: Duration,
    pub(super) happened: bool,
    planned: Option<(Nth, Event)>,
    failing: Option<Failure>,
    /// Why nothing works until the next start.
    ended: Option<Event>,
    /// Counts the starts; a handle of an earlier one is dead.
    start: u64,
    pub(super) platter: Option<Platter>,
}

impl Folder {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn restart(&self, kept: Kept) {
        let mut state = self.state();
        let ended = state.ended.take().expect("a restart comes after a power cut or a kill");
        state.heal();
        let files: Vec<(PathBuf, Option<Vec<u8>>)> = match (&state.platter, ended) {
            (Some(platter), Event::PowerCut) => {
                platter.after_power_cut(kept).map(|(path, content)| (path.to_owned(), content)).collect()
            }
            (Some(platter), _) => {
                platter.names().map(|path| (path.to_owned(), std::fs::read(path).ok())).collect()
            }
            (None, _) => Vec::new(),
        };
        for (path, content) in files {
            replace(&path, content.as_deref());
        }
        if ended == Event::PowerCut {
            state.platter = Some(Platter::default());
        }
    }
}

/// Gives the name to a new file. The old one lives on for the dead handles that have it open, and so do its locks
/// and its shared memory, which SQLite keeps by file and not by name.
fn replace(path: &Path, content: Option<&[u8]>) {
    let beside = |suffix: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    let gone = |path: &Path| match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            panic!("{} cannot be removed: {error}", path.display())
        }
        _ => {}
    };
    gone(&beside("-shm"));
    match content {
        None => gone(path),
        Some(content) => {
            let new = beside(".restart");
            std::fs::write(&new, content)
                .and_then(|()| std::fs::rename(&new, path))
                .unwrap_or_else(|error| panic!("{} cannot be restored: {error}", path.display()));
        }
    }
}

impl State {
    pub(super) fn remember(&mut self) {
        self.platter.get_or_insert_default();
    }

    pub(super) fn plan(&mut self, nth: Nth, event: Event) {
        self.counts = Counts::default();
        self.happened = false;
        self.planned = Some((nth, event));
    }

    pub(super) fn heal(&mut self) {
        self.planned = None;
        self.failing = None;
    }

    pub(super) fn happen_now(&mut self, event: Event) {
        assert!(self.platter.is_some(), "call remember() before the files are opened");
        self.happen(event);
    }

    /// The start that a handle of now belongs to, or `None` while nothing can be opened.
    pub(super) fn start(&self) -> Option<u64> {
        self.ended.is_none().then_some(self.start)
    }

    pub(super) fn is_dead(&self, start: u64) -> bool {
        self.ended.is_some() || self.start != start
    }

    /// Counts an operation of a living handle and says what becomes of it.
    pub(super) fn meet(&mut self, operation: Operation) -> Verdict {
        match operation {
            Operation::Write => self.counts.writes += 1,
            Operation::Sync => self.counts.syncs += 1,
        }
        let due = match self.planned {
            Some((Nth::Write(nth), _)) => operation == Operation::Write && nth == self.counts.writes,
            Some((Nth::Sync(nth), _)) => operation == Operation::Sync && nth == self.counts.syncs,
            Some((Nth::Any(nth), _)) => nth == self.counts.writes + self.counts.syncs,
            None => false,
        };
        match self.planned {
            Some((_, event)) if due => {
                self.planned = None;
                self.happen(event)
            }
            _ => self.failing.map_or(Verdict::Succeeds, Verdict::Fails),
        }
    }

    fn happen(&mut self, event: Event) -> Verdict {
        self.happened = true;
        match event {
            Event::FailOnce(failure) => Verdict::Fails(failure),
            Event::FailFromThenOn(failure) => {
                self.failing = Some(failure);
                Verdict::Fails(failure)
            }
            Event::PowerCut | Event::Kill => {
                self.ended = Some(event);
                self.start += 1;
                if event == Event::PowerCut { Verdict::Cut } else { Verdict::Dead }
            }
        }
    }

    pub(super) fn change(&mut self, path: &Path, change: impl FnOnce() -> Change) {
        if let Some(platter) = &mut self.platter {
            platter.change(path, change());
        }
    }
}
