//! What becomes of an operation on one open file: done on the real one, noted for a power cut, or failed.

use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::ffi;

use super::folder::{Failure, Folder, Operation, Verdict};
use super::platter::Change;

/// A file that was opened below a folder with faults. Results are SQLite's codes.
pub(super) struct Open {
    folder: Arc<Folder>,
    path: PathBuf,
    start: u64,
    /// The platform's VFS syncs the folder with the first sync of a new journal or write-ahead log.
    syncs_names: AtomicBool,
}

impl Open {
    /// `start` is the folder's at the opening.
    pub(super) fn new(folder: Arc<Folder>, path: &Path, start: u64, syncs_names: bool) -> Self {
        Self { folder, path: path.to_owned(), start, syncs_names: syncs_names.into() }
    }

    pub(super) fn is_dead(&self) -> bool {
        self.folder.state().is_dead(self.start)
    }

    pub(super) fn write(
        &self,
        bytes: &[u8],
        offset: ffi::sqlite3_int64,
        real: impl FnOnce(&[u8]) -> c_int,
    ) -> c_int {
        let mut state = self.folder.state();
        if state.is_dead(self.start) {
            return ffi::SQLITE_IOERR_WRITE;
        }
        let verdict = state.meet(Operation::Write);
        let bytes = match verdict {
            Verdict::Fails(_) => &bytes[..bytes.len() / 2],
            _ => bytes,
        };
        if verdict != Verdict::Dead {
            state.change(&self.path, || Change::Write { offset: offset as usize, bytes: bytes.to_vec() });
        }
        match verdict {
            Verdict::Succeeds => real(bytes),
            Verdict::Fails(failure) => match (real(bytes), failure) {
                (ffi::SQLITE_OK, Failure::Full) => ffi::SQLITE_FULL,
                (ffi::SQLITE_OK, Failure::Io) => ffi::SQLITE_IOERR_WRITE,
                (code, _) => code,
            },
            Verdict::Cut | Verdict::Dead => ffi::SQLITE_IOERR_WRITE,
        }
    }

    pub(super) fn truncate(&self, length: ffi::sqlite3_int64, real: impl FnOnce() -> c_int) -> c_int {
        let mut state = self.folder.state();
        if state.is_dead(self.start) {
            return ffi::SQLITE_IOERR_TRUNCATE;
        }
        match state.meet(Operation::Write) {
            Verdict::Succeeds | Verdict::Fails(Failure::Full) => {
                state.change(&self.path, || Change::Truncate(length as usize));
                real()
            }
            Verdict::Cut => {
                state.change(&self.path, || Change::Truncate(length as usize));
                ffi::SQLITE_IOERR_TRUNCATE
            }
            Verdict::Fails(Failure::Io) | Verdict::Dead => ffi::SQLITE_IOERR_TRUNCATE,
        }
    }

    pub(super) fn sync(&self) -> c_int {
        let mut state = self.folder.state();
        if state.is_dead(self.start) {
            return ffi::SQLITE_IOERR_FSYNC;
        }
        let verdict = state.meet(Operation::Sync);
        if let Some(platter) = &mut state.platter {
            match verdict {
                Verdict::Succeeds => {
                    platter.synced(&self.path);
                    if self.syncs_names.swap(false, Ordering::Relaxed) {
                        platter.names_synced();
                    }
                }
                Verdict::Fails(_) => platter.sync_failed(&self.path),
                Verdict::Cut | Verdict::Dead => {}
            }
        }
        let time = state.sync_takes;
        drop(state);
        std::thread::sleep(time);
        if verdict == Verdict::Succeeds { ffi::SQLITE_OK } else { ffi::SQLITE_IOERR_FSYNC }
    }
}

/// Deletes a file below a folder with faults; `syncs_folder` makes that durable.
pub(super) fn delete(
    folder: &Folder,
    path: &Path,
    syncs_folder: bool,
    real: impl FnOnce() -> c_int,
) -> c_int {
    let mut state = folder.state();
    if state.start().is_none() {
        return ffi::SQLITE_IOERR_DELETE;
    }
    match state.meet(Operation::Write) {
        Verdict::Succeeds | Verdict::Fails(Failure::Full) => {
            let code = real();
            if code == ffi::SQLITE_OK {
                state.change(path, || Change::Delete);
                if let Some(platter) = state.platter.as_mut().filter(|_| syncs_folder) {
                    platter.names_synced();
                }
            }
            code
        }
        Verdict::Cut => {
            state.change(path, || Change::Delete);
            ffi::SQLITE_IOERR_DELETE
        }
        Verdict::Fails(Failure::Io) | Verdict::Dead => ffi::SQLITE_IOERR_DELETE,
    }
}
