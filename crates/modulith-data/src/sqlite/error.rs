//! What can be wrong with a file: why it does not open, and how damage is told.

use std::path::{Path, PathBuf};

use modulith_core::Fault;
use rusqlite::{Connection, ErrorCode};

use super::file::FORMAT;
use crate::migrate::MigrationError;

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path} is in use by another process{owner}; two processes must not write one database", path = path.display())]
    InUse { path: PathBuf, owner: String },
    #[error("{path} is on a network file system ({kind}), whose locks cannot be trusted; use a local disk", path = path.display())]
    NetworkFileSystem { path: PathBuf, kind: &'static str },
    #[error("{path} is an SQLite file of another application", path = path.display())]
    Foreign { path: PathBuf },
    #[error("{path} has format {found}; this build reads up to {FORMAT}, so a newer version wrote it: start that one", path = path.display())]
    Newer { path: PathBuf, found: i32 },
    /// The message names the file and what to do.
    #[error("{message}")]
    Corrupt { path: PathBuf, message: String },
    #[error(
        "{path} is missing or empty, but {log} beside it is there; put the database file back, or move the log away to begin anew",
        path = path.display(), log = log.display()
    )]
    LogAlone { path: PathBuf, log: PathBuf },
    #[error("another program, perhaps a backup, reads {path}, so its write-ahead log cannot be folded in; start again when that program has ended", path = path.display())]
    BeingRead { path: PathBuf },
    #[error("{path}: {error}", path = path.display())]
    Sqlite { path: PathBuf, error: rusqlite::Error },
    #[error("{path}: {fault}", path = path.display())]
    Fault { path: PathBuf, fault: Fault },
    #[error("{path}: {error}", path = path.display())]
    Migration { path: PathBuf, error: MigrationError },
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: std::io::Error },
}

/// Whether an error of the operating system may be gone at the next attempt: a full disk or too many open files, unlike a path
/// or a permission that is wrong.
pub fn may_pass(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::*;
    !matches!(
        error.kind(),
        NotFound
            | PermissionDenied
            | ReadOnlyFilesystem
            | NotADirectory
            | IsADirectory
            | InvalidInput
            | InvalidFilename
    )
}

impl OpenError {
    /// Whether the next attempt may succeed though nobody changes anything.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::InUse { .. } | Self::BeingRead { .. } => true,
            Self::Io { error, .. } => may_pass(error),
            Self::Sqlite { error, .. } => matches!(
                error.sqlite_error_code(),
                Some(
                    ErrorCode::DatabaseBusy
                        | ErrorCode::DatabaseLocked
                        | ErrorCode::DiskFull
                        | ErrorCode::OutOfMemory
                        | ErrorCode::SystemIoFailure
                )
            ),
            _ => false,
        }
    }

    pub(super) fn of(path: &Path, error: rusqlite::Error) -> Self {
        let path = path.to_owned();
        if is_damage(&error) {
            let message = damage(&path.display(), &error);
            Self::Corrupt { path, message }
        } else {
            Self::Sqlite { path, error }
        }
    }
}

/// Whether the error says that the file is damaged, or is no database at all.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

/// What to say about a damaged file.
fn damage(file: &dyn std::fmt::Display, error: &rusqlite::Error) -> String {
    format!(
        "{file} is damaged ({error}); stop the service, keep the file and those beside it, and restore a backup"
    )
}

/// The error's text; damage with the file's name.
pub(super) fn described(connection: &Connection, error: &rusqlite::Error) -> String {
    if is_damage(error) {
        damage(&connection.path().unwrap_or("the database"), error)
    } else {
        error.to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use rusqlite::ffi;

    use super::*;

    #[test]
    fn a_full_disk_may_pass_and_a_wrong_path_does_not() {
        let io = |kind: io::ErrorKind| OpenError::Io { path: "a.db".into(), error: kind.into() };
        let sqlite = |code| {
            OpenError::of(Path::new("a.db"), rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))
        };
        for passes in [
            io(io::ErrorKind::StorageFull),
            OpenError::Io { path: "a.db".into(), error: io::Error::from_raw_os_error(24) },
            sqlite(ffi::SQLITE_FULL),
            sqlite(ffi::SQLITE_BUSY),
            sqlite(ffi::SQLITE_IOERR_FSYNC),
        ] {
            assert!(passes.may_pass(), "{passes}");
        }
        for stays in [
            io(io::ErrorKind::PermissionDenied),
            io(io::ErrorKind::NotFound),
            sqlite(ffi::SQLITE_READONLY),
            sqlite(ffi::SQLITE_CANTOPEN),
            sqlite(ffi::SQLITE_CORRUPT),
        ] {
            assert!(!stays.may_pass(), "{stays}");
        }
    }
}
