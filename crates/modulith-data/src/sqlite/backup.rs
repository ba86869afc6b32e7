//! A database's copy, made while its owner is at work, and the way back from that copy.
//!
//! Owns what happens to the files of one database. Which databases belong together, and what is written down about
//! them, is the caller's. Refuses a copy that is not byte for byte what was written down, and a database whose
//! owner runs.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use modulith_core::crash_point;
use ring::digest::{Context, SHA256};
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use uuid::Uuid;

use super::error::OpenError;
use super::file::{beside, create_private, is_ours, lock};

/// Waiting for a lock that another connection holds for a moment.
const BUSY: Duration = Duration::from_secs(5);
/// The size of a page, which is SQLite's default.
const PAGE_BYTES: u64 = 4096;
/// What a database begins with: section 1.3 of SQLite's file format.
const FIRST_BYTES: &[u8] = b"SQLite format 3\0";
/// Read at once of a file that is copied or digested.
const CHUNK_BYTES: usize = 1 << 20;

/// Why a database was not copied, or not restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{path}: there is no such database", path = path.display())]
    Missing { path: PathBuf },
    #[error("{path} is damaged: {detail}", path = path.display())]
    Damaged { path: PathBuf, detail: String },
    #[error("{path} is being read by another process, perhaps by a backup; wait for its end", path = path.display())]
    Read { path: PathBuf },
    #[error("{path}: {error}", path = path.display())]
    Sqlite { path: PathBuf, error: rusqlite::Error },
    #[error("{path}: {error}", path = path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What has to be known of a copy to trust it later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copied {
    /// The identity of the database that was copied.
    pub id: Uuid,
    pub incarnation: i64,
    pub bytes: u64,
    /// Of the whole file, in lower-case hexadecimal digits.
    pub sha256: String,
}

/// Copies a database as one snapshot: what was committed when the call began is in it, and of any later transaction
/// all or nothing. Its owner may run or not, and goes on writing; meanwhile its write-ahead log only grows.
///
/// The copy appears under its name when it is whole and on disk, with mode 0600. Costs one reading of the database.
///
/// # Errors
///
/// No such database, one of another application or of a newer version, or what the operating system says. What was
/// written so far stays under the copy's name with `.new` behind it.
pub fn copy(database: &Path, copy: &Path) -> Result<Copied, BackupError> {
    if !database.exists() {
        return Err(BackupError::Missing { path: database.to_owned() });
    }
    let unfinished = beside(copy, ".new");
    create_private(&unfinished)?;
    let name = unfinished.to_str().ok_or_else(|| {
        let error = std::io::Error::new(std::io::ErrorKind::InvalidFilename, "the path is no UTF-8");
        io(&unfinished)(error)
    })?;
    let source = connect(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    refuse_foreign(database, &source)?;
    // One statement, so one read snapshot. The backup interface begins again whenever the owner commits, and under
    // load it would never come to an end.
    source.execute("VACUUM INTO $1", [name]).map_err(sqlite(database))?;
    drop(source);
    let (id, incarnation) = identity(&unfinished, &connect(&unfinished, OpenFlags::SQLITE_OPEN_READ_ONLY)?)?;
    let (bytes, sha256) = digest(&unfinished)?;
    File::open(&unfinished).and_then(|file| file.sync_all()).map_err(io(&unfinished))?;
    std::fs::rename(&unfinished, copy).map_err(io(copy))?;
    sync_folder(copy)?;
    Ok(Copied { id, incarnation, bytes, sha256 })
}

/// The length of a file, and its SHA-256 in lower-case hexadecimal digits.
///
/// # Errors
///
/// What the operating system says.
pub fn digest(path: &Path) -> Result<(u64, String), BackupError> {
    let mut digest = Digest::default();
    let poured = File::open(path).and_then(|mut file| pour(&mut file, &mut [&mut digest]));
    poured.map_err(io(path))?;
    Ok(digest.finish())
}

/// A database whose owner does not run, and cannot start while this lives.
pub struct Stopped {
    path: PathBuf,
    lock: File,
}

impl Stopped {
    /// Takes the database's lock. The database itself need not exist.
    ///
    /// # Errors
    ///
    /// [`OpenError::InUse`] with the owner's process id while a service runs on it.
    pub fn lock(path: &Path) -> Result<Self, OpenError> {
        Ok(Self { path: path.to_owned(), lock: lock(path)? })
    }

    /// Puts a copy beside the database, checks it, and gives it an identity of its own. The database keeps its
    /// content; its write-ahead log is folded into it.
    ///
    /// The new identity is what keeps the sagas that the restored database begins apart from those which the
    /// database began after the copy was made: they count through the same numbers, and other databases still hold
    /// answers under these. Sagas that are open in the copy keep their numbers, and go on.
    ///
    /// # Errors
    ///
    /// [`BackupError::Damaged`] if the copy is not the one that is expected or SQLite finds it inconsistent;
    /// [`OpenError::Newer`] if a newer version wrote it; [`BackupError::Read`] while a backup reads the database.
    pub fn prepare(self, copy: &Path, expected: &Copied) -> Result<Restoration, BackupError> {
        let restoring = beside(&self.path, ".restoring");
        // What an earlier attempt left.
        for leftover in [&restoring, &beside(&restoring, "-journal")] {
            remove(leftover)?;
        }
        let prepared = Restoration {
            path: self.path,
            restoring,
            previous: expected.id,
            id: Uuid::now_v7(),
            lock: Arc::new(self.lock),
        };
        prepared.fill(copy, expected)?;
        if prepared.path.exists() {
            fold(&prepared.path)?;
        }
        crash_point(|| prepared.place("prepared"));
        Ok(prepared)
    }
}

/// A checked copy beside the database, which is still the one from before. Dropping it leaves it at that.
pub struct Restoration {
    path: PathBuf,
    restoring: PathBuf,
    previous: Uuid,
    id: Uuid,
    lock: Arc<File>,
}

/// What a restore has done. A service can start on the database when this is dropped.
#[derive(Debug)]
pub struct Restored {
    /// Where the database from before is now, if there was one.
    pub replaced: Option<PathBuf>,
    /// Whose copy it is.
    pub previous: Uuid,
    /// Who it is from now on.
    pub id: Uuid,
    /// Held, not read: others of the same restore may have to be replaced first.
    _lock: Arc<File>,
}

impl Restoration {
    fn fill(&self, copy: &Path, expected: &Copied) -> Result<(), BackupError> {
        let damaged = |detail: String| BackupError::Damaged { path: copy.to_owned(), detail };
        let mut from = match File::open(copy) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(BackupError::Missing { path: copy.to_owned() });
            }
            from => from.map_err(io(copy))?,
        };
        create_private(&self.restoring)?;
        let mut to = File::options().write(true).open(&self.restoring).map_err(io(&self.restoring))?;
        let mut digest = Digest::default();
        pour(&mut from, &mut [&mut to, &mut digest]).map_err(io(copy))?;
        to.sync_all().map_err(io(&self.restoring))?;
        let (bytes, sha256) = digest.finish();
        if (bytes, &sha256) != (expected.bytes, &expected.sha256) {
            return Err(damaged(format!(
                "it has {bytes} bytes with SHA-256 {sha256}; {} bytes with {} were written",
                expected.bytes, expected.sha256
            )));
        }

        let mut connection = connect(&self.restoring, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        refuse_foreign(copy, &connection)?;
        let checked: String = connection
            .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
            .map_err(|error| damaged(error.to_string()))?;
        if checked != "ok" {
            return Err(damaged(checked));
        }
        if identity(copy, &connection)? != (expected.id, expected.incarnation) {
            return Err(damaged(format!(
                "it is not of database {} in its incarnation {}",
                expected.id, expected.incarnation
            )));
        }
        self.rename_identity(&mut connection).map_err(sqlite(&self.restoring))
    }

    fn rename_identity(&self, connection: &mut Connection) -> rusqlite::Result<()> {
        let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        transaction.execute_batch(
            "CREATE TABLE IF NOT EXISTS modulith__identity_before (
                id BLOB PRIMARY KEY, incarnation INTEGER NOT NULL, until INTEGER NOT NULL
            ) STRICT",
        )?;
        transaction.execute(
            "INSERT INTO modulith__identity_before (id, incarnation, until)
             SELECT id, incarnation, CAST(unixepoch('subsec') * 1000 AS INTEGER) FROM modulith__identity",
            [],
        )?;
        transaction.execute(
            "UPDATE modulith__identity SET id = $1, incarnation = incarnation + 1",
            [self.id.as_bytes().as_slice()],
        )?;
        transaction.commit()
    }

    /// Sets the database from before aside and puts the copy into its place, in one step: a crash leaves either of
    /// them, whole, and the restore can be done again from its beginning.
    ///
    /// The database from before keeps every transaction that it had. If it is damaged, so that its write-ahead log
    /// could not be folded, that is kept beside it.
    ///
    /// # Errors
    ///
    /// What the operating system says. After an error the database is one of the two, as after a crash.
    pub fn replace(self) -> Result<Restored, BackupError> {
        let replaced = self.set_aside()?;
        crash_point(|| self.place("aside"));
        std::fs::rename(&self.restoring, &self.path).map_err(io(&self.path))?;
        sync_folder(&self.path)?;
        crash_point(|| self.place("replaced"));
        Ok(Restored { replaced, previous: self.previous, id: self.id, _lock: self.lock.clone() })
    }

    /// Gives the database a second name, so that the rename which takes its first one loses nothing. No log may be
    /// left under the first one, since SQLite would apply it to the copy.
    fn set_aside(&self) -> Result<Option<PathBuf>, BackupError> {
        let stamp = utc_now().replace(['-', ':'], "");
        let aside = beside(&self.path, &format!(".replaced-{stamp}"));
        let exists = self.path.exists();
        let log = beside(&self.path, "-wal");
        // First the database, so that it is never without its log.
        if exists {
            std::fs::hard_link(&self.path, &aside).map_err(io(&aside))?;
        }
        if std::fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            let log_aside = beside(&aside, "-wal");
            std::fs::rename(&log, &log_aside).map_err(io(&log_aside))?;
        }
        for index in [&log, &beside(&self.path, "-shm")] {
            remove(index)?;
        }
        sync_folder(&self.path)?;
        Ok(exists.then_some(aside))
    }

    fn place(&self, step: &str) -> String {
        format!("restore:{}:{step}", self.path.file_name().unwrap_or_default().display())
    }
}

impl Drop for Restoration {
    fn drop(&mut self) {
        // It is gone after a replacement; what cannot be removed now is removed by the next attempt.
        let _ = remove(&self.restoring);
    }
}

/// The time in UTC with milliseconds, as RFC 3339 writes it.
pub fn utc_now() -> String {
    let memory = Connection::open_in_memory().expect("SQLite opens a database in memory");
    memory
        .query_row("SELECT strftime('%Y-%m-%dT%H:%M:%fZ', 'now')", [], |row| row.get(0))
        .expect("SQLite tells the time")
}

/// Moves the write-ahead log into the file. A damaged database keeps its log.
fn fold(path: &Path) -> Result<(), BackupError> {
    // SQLite deletes the log beside a file that it cannot make sense of.
    if !begins_like_a_database(path).map_err(io(path))? {
        return Ok(());
    }
    let connection = connect(path, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
    // The lock is ours, so whoever reads is no service, and may read for long.
    connection.busy_timeout(Duration::ZERO).map_err(sqlite(path))?;
    match connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)) {
        Ok(0) => Ok(()),
        Ok(_) => Err(BackupError::Read { path: path.to_owned() }),
        Err(error) => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Ok(()),
            Some(ErrorCode::DatabaseBusy) => Err(BackupError::Read { path: path.to_owned() }),
            _ => Err(sqlite(path)(error)),
        },
    }
}

fn begins_like_a_database(path: &Path) -> std::io::Result<bool> {
    let file = File::open(path)?;
    let is_whole = file.metadata()?.len() >= PAGE_BYTES;
    let mut first = Vec::new();
    file.take(FIRST_BYTES.len() as u64).read_to_end(&mut first)?;
    Ok(is_whole && first == FIRST_BYTES)
}

fn connect(path: &Path, access: OpenFlags) -> Result<Connection, BackupError> {
    let connection = Connection::open_with_flags(path, access | OpenFlags::SQLITE_OPEN_NO_MUTEX);
    let connection = connection.map_err(sqlite(path))?;
    connection.busy_timeout(BUSY).map_err(sqlite(path))?;
    Ok(connection)
}

/// `path` is named in the error; the connection may be to a copy of it.
fn refuse_foreign(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    if is_ours(path, connection)? { Ok(()) } else { Err(OpenError::Foreign { path: path.to_owned() }) }
}

fn identity(path: &Path, connection: &Connection) -> Result<(Uuid, i64), BackupError> {
    let (id, incarnation) = connection
        .query_row("SELECT id, incarnation FROM modulith__identity", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .map_err(sqlite(path))?;
    Ok((Uuid::from_bytes(id), incarnation))
}

/// Writes all that is left in a file into each of `to`.
fn pour(from: &mut File, to: &mut [&mut dyn Write]) -> std::io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = from.read(&mut chunk)?;
        if read == 0 {
            return Ok(());
        }
        for to in &mut *to {
            to.write_all(&chunk[..read])?;
        }
    }
}

/// Length and SHA-256 of what is written into it.
struct Digest {
    bytes: u64,
    sha256: Context,
}

impl Default for Digest {
    fn default() -> Self {
        Self { bytes: 0, sha256: Context::new(&SHA256) }
    }
}

impl Digest {
    fn finish(self) -> (u64, String) {
        let sha256 = self.sha256.finish();
        (self.bytes, sha256.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.bytes += bytes.len() as u64;
        self.sha256.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn remove(path: &Path) -> Result<(), BackupError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io(path)(error)),
        _ => Ok(()),
    }
}

/// A new name is on disk when its folder is.
fn sync_folder(path: &Path) -> Result<(), BackupError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))
}

fn sqlite(path: &Path) -> impl Fn(rusqlite::Error) -> BackupError {
    move |error| BackupError::Sqlite { path: path.to_owned(), error }
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> BackupError {
    move |error| BackupError::Io { path: path.to_owned(), error }
}
