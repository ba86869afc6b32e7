//! A database file: opening, its identity, the lock that makes one process its owner, closing.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use modulith_core::{
    CallFault, Fault, FaultKind, NotRun, Params, Protection, Snapshot, Unknown, UnknownReason,
};
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags};
use uuid::Uuid;

use super::error::OpenError;
use super::guard::Guard;
use super::statements::{Prepared, configure};
use super::work;
use super::writer::{self, Queue, Urgency, WriterLimits, WriterSeen};
use super::{log, reader};
use crate::migrate::{self, Migration};
use crate::session::Session;

/// The format this build writes, in the file's `user_version`. A higher one is refused.
pub(super) const FORMAT: i32 = 1;
/// `MDLT`, in the file's `application_id`.
const APPLICATION_ID: i32 = 0x4d44_4c54;

/// Who a database is, as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Made with the file; it numbers this database's sagas.
    pub id: Uuid,
    /// How often it was opened. Sequences of one incarnation are above all of those before.
    pub incarnation: i64,
    /// Keys the digests of what clients sent.
    pub secret: [u8; 32],
}

/// An open database: one writer thread, and snapshots on the threads of their callers.
///
/// Cheap to share behind an `Arc`. Dropping the last one finishes what waits in the queue and closes the file.
pub struct Database {
    number: u64,
    path: PathBuf,
    identity: Identity,
    queue: Arc<Queue>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// Held, not read: dropping it releases the lock.
    _lock: File,
}

impl Database {
    /// Opens or creates the file, brings the tables of `modules` up to date and starts the writer.
    ///
    /// What is read back from a WAL that was never synced is not yet durable, so the WAL is checkpointed before
    /// the first answer.
    ///
    /// Opening reads the first page and the tables it needs, not the whole file, which would take minutes for a
    /// large one. Damage elsewhere is found by the statement that meets it: that one fails with
    /// [`FaultKind::Corrupt`], which names the file, and others go on. `PRAGMA integrity_check` in the `sqlite3`
    /// command finds all of it.
    ///
    /// # Errors
    ///
    /// See [`OpenError`]; what modules stored is not changed then.
    pub fn open(
        path: &Path,
        modules: &[(Arc<str>, &'static [Migration])],
        limits: WriterLimits,
    ) -> Result<Self, OpenError> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let lock = lock(path)?;
        create_private(path)?;
        let sqlite = |error| OpenError::of(path, error);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection = log::open(path, flags).map_err(sqlite)?;
        prepare(path, &connection)?;
        let guard = Arc::new(Guard::default());
        guard.install(&mut connection).map_err(sqlite)?;
        let prepared = Prepared::new(connection);
        let identity =
            work::with_setup_session(&prepared, &guard, |session| set_up(path, session, modules), sqlite)?;
        let connection = prepared.into_connection();
        connection.pragma_update(None, "user_version", FORMAT).map_err(sqlite)?;
        if Protection::CheckpointOnOpen.is_on() {
            checkpoint(path, &connection)?;
        }

        let queue = Arc::new(Queue::new(limits));
        let writer = std::thread::Builder::new()
            .name("modulith-writer".into())
            .spawn({
                let queue = queue.clone();
                move || writer::run(connection, &guard, &queue)
            })
            .map_err(|error| OpenError::Io { path: path.to_owned(), error })?;
        Ok(Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            path: path.to_owned(),
            identity,
            queue,
            writer: Mutex::new(Some(writer)),
            _lock: lock,
        })
    }

    pub fn identity(&self) -> Identity {
        self.identity
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Why nothing can be written or read any more, after a failed sync. The process should end and start again.
    pub fn broken(&self) -> Option<String> {
        self.queue.broken().map(str::to_owned)
    }

    /// What its writer has done and has before it.
    pub fn writer(&self) -> WriterSeen {
        self.queue.seen()
    }

    /// Runs work in a transaction of its own, committed together with its neighbours, and answers after the
    /// sync. It may run several times. Work that has not begun at `deadline` is not run.
    ///
    /// # Errors
    ///
    /// *Not run* for a fault, a full queue, a passed deadline or a panic; *unknown* when the commit itself
    /// failed.
    pub async fn write<T: Send + 'static>(
        &self,
        deadline: Option<Instant>,
        work: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, CallFault> {
        self.wait(self.queue.push(Urgency::Ordinary, deadline, work)).await
    }

    /// The same for what must not wait behind new work: undo, seal, the end of a saga. It has no deadline and
    /// no limit of its own; who sends it bounds it.
    pub async fn write_reserved<T: Send + 'static>(
        &self,
        work: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, CallFault> {
        self.wait(self.queue.push(Urgency::Reserved, None, work)).await
    }

    async fn wait<T>(
        &self,
        pushed: Result<tokio::sync::oneshot::Receiver<Result<T, CallFault>>, NotRun>,
    ) -> Result<T, CallFault> {
        match pushed?.await {
            Ok(result) => result,
            Err(_) => {
                Err(Unknown::new(UnknownReason::CommitLost, "the writer ended without an answer").into())
            }
        }
    }

    /// Runs a module's query over a snapshot on this thread.
    ///
    /// # Errors
    ///
    /// *Not run* when the database is [`broken`](Self::broken). What the query itself says is in `T`; so is a file that
    /// cannot be opened for reading, which its first statement finds.
    pub fn read<T>(&self, module: &Arc<str>, query: impl FnOnce(&Snapshot<'_>) -> T) -> Result<T, NotRun> {
        self.snapshot(Some(module), query)
    }

    /// The same with the framework's rights, for its own tables.
    pub fn read_framework<T>(&self, query: impl FnOnce(&Snapshot<'_>) -> T) -> Result<T, NotRun> {
        self.snapshot(None, query)
    }

    /// The same for a query of one statement, which needs no transaction around it.
    pub fn look_up<T>(&self, query: impl FnOnce(&Snapshot<'_>) -> T) -> Result<T, NotRun> {
        self.queue.expect_whole()?;
        Ok(reader::with_statement(self.number, &self.path, |statements| {
            query(&Snapshot::with_clock(statements, crate::clock::now_ms))
        }))
    }

    fn snapshot<T>(
        &self,
        module: Option<&Arc<str>>,
        query: impl FnOnce(&Snapshot<'_>) -> T,
    ) -> Result<T, NotRun> {
        self.queue.expect_whole()?;
        Ok(reader::with_snapshot(self.number, &self.path, module, |statements| {
            query(&Snapshot::with_clock(statements, crate::clock::now_ms))
        }))
    }

    /// Finishes what waits in the queue and closes the file. Work pushed from now on is *not run, stopping*.
    pub fn close(&self) {
        self.queue.stop();
        if let Some(writer) = self.writer.lock().take()
            && writer.join().is_err()
        {
            tracing::error!("the writer of {} panicked", self.path.display());
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        self.close();
    }
}

/// The file that is called like `path` with `suffix` behind.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A file beside the database, locked for the life of the process: SQLite's own locks come and go with its
/// transactions. It holds the owner's process id, for the message of the one that comes second.
pub(super) fn lock(path: &Path) -> Result<File, OpenError> {
    let io = |error| OpenError::Io { path: path.to_owned(), error };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(io)?;
    }
    let sidecar = beside(path, ".lock");
    let mut file =
        File::options().read(true).write(true).create(true).truncate(false).open(&sidecar).map_err(io)?;
    refuse_network(path, &file)?;
    let locked = if Protection::OneOwner.is_on() {
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
    } else {
        Ok(())
    };
    match locked {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let mut owner = String::new();
            // Without the owner's number the message is still right.
            let _ = file.read_to_string(&mut owner);
            let owner =
                if owner.trim().is_empty() { String::new() } else { format!(" (process {})", owner.trim()) };
            return Err(OpenError::InUse { path: path.to_owned(), owner });
        }
        Err(errno) => return Err(io(errno.into())),
    }
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(io)?;
    Ok(file)
}

/// Makes an empty file that its owner alone can read, before SQLite makes one that others can; the files beside it
/// take its mode.
///
/// Beside an empty database SQLite deletes a log without a word, and with it all that is left of the data. The first
/// page is on disk before there is a log, so the two never meet without an accident.
pub(super) fn create_private(path: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::OpenOptionsExt;
    let log = beside(path, "-wal");
    if log.exists() && std::fs::metadata(path).map_or(0, |file| file.len()) == 0 {
        return Err(OpenError::LogAlone { path: path.to_owned(), log });
    }
    match File::options().write(true).create_new(true).mode(0o600).open(path) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(OpenError::Io { path: path.to_owned(), error }),
    }
}

#[cfg(target_os = "linux")]
fn refuse_network(path: &Path, file: &File) -> Result<(), OpenError> {
    // The magic numbers are those of linux/magic.h and of the kernel's own file system sources.
    let kind = match rustix::fs::fstatfs(file).map(|stat| stat.f_type as u64 & 0xffff_ffff) {
        Ok(0x6969) => "NFS",
        Ok(0x517b) => "SMB",
        Ok(0xff53_4d42) => "CIFS",
        Ok(0xfe53_4d42) => "SMB2",
        Ok(0x00c3_6400) => "Ceph",
        _ => return Ok(()),
    };
    Err(OpenError::NetworkFileSystem { path: path.to_owned(), kind })
}

#[cfg(not(target_os = "linux"))]
fn refuse_network(_: &Path, _: &File) -> Result<(), OpenError> {
    Ok(())
}

/// Reads whose file it is, and sets what holds for the connection.
fn prepare(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let sqlite = |error| OpenError::of(path, error);
    connection.busy_timeout(Duration::from_secs(5)).map_err(sqlite)?;
    configure(connection).map_err(sqlite)?;
    if !is_ours(path, connection)? {
        connection.pragma_update(None, "application_id", APPLICATION_ID).map_err(sqlite)?;
    }
    for (name, value) in [
        ("journal_mode", "WAL"),
        ("synchronous", "FULL"),
        ("foreign_keys", "ON"),
        ("temp_store", "MEMORY"),
        ("trusted_schema", "OFF"),
        // 16 MiB of WAL before the writer folds it into the file: fewer, longer pauses cost less in all.
        ("wal_autocheckpoint", "4000"),
    ] {
        connection.pragma_update(None, name, value).map_err(sqlite)?;
    }
    Ok(())
}

/// Whether the file is one of ours that this build can read; a file without tables belongs to nobody yet.
pub(super) fn is_ours(path: &Path, connection: &Connection) -> Result<bool, OpenError> {
    let sqlite = |error| OpenError::of(path, error);
    let pragma =
        |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0)).map_err(sqlite);
    let (application, version) = (pragma("application_id")?, pragma("user_version")?);
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sqlite)?;
    match (application, tables) {
        (APPLICATION_ID, _) if version > FORMAT => {
            Err(OpenError::Newer { path: path.to_owned(), found: version })
        }
        (APPLICATION_ID, _) => Ok(true),
        (0, 0) => Ok(false),
        _ => Err(OpenError::Foreign { path: path.to_owned() }),
    }
}

/// Folds the whole log into the file and syncs it.
fn checkpoint(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let (frames, folded): (i64, i64) = connection
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok((row.get(1)?, row.get(2)?)))
        .map_err(|error| OpenError::of(path, error))?;
    // Frames behind another program's snapshot, a backup's say, stay in the log, and SQLite reports that in a row,
    // not as an error. To sync the log where it is would not do: what a failed sync has lost, a later one takes for
    // written.
    if folded < frames {
        return Err(OpenError::BeingRead { path: path.to_owned() });
    }
    Ok(())
}

/// The framework's tables, the modules' tables, and a new incarnation.
pub(super) fn set_up(
    path: &Path,
    session: &mut dyn Session,
    modules: &[(Arc<str>, &'static [Migration])],
) -> Result<Identity, OpenError> {
    let fault = |fault: Fault| match fault.kind {
        FaultKind::Corrupt => OpenError::Corrupt { path: path.to_owned(), message: fault.message },
        _ => OpenError::Fault { path: path.to_owned(), fault },
    };
    for statement in [
        "CREATE TABLE IF NOT EXISTS modulith__identity (
            one INTEGER PRIMARY KEY CHECK (one = 1), id BLOB NOT NULL, incarnation INTEGER NOT NULL, secret BLOB NOT NULL
        ) STRICT",
        "CREATE TABLE IF NOT EXISTS modulith__migration (
            module TEXT NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL, checksum BLOB NOT NULL,
            applied_at INTEGER NOT NULL, PRIMARY KEY (module, position)
        ) STRICT",
    ] {
        session.execute(statement, &[]).map_err(fault)?;
    }
    let (id, secret) = (
        Uuid::now_v7(),
        Uuid::new_v4().as_bytes().iter().chain(Uuid::new_v4().as_bytes()).copied().collect::<Vec<u8>>(),
    );
    (id, &secret[..])
        .with(|values| {
            session.execute(
                "INSERT INTO modulith__identity (one, id, incarnation, secret) VALUES (1, $1, 0, $2)
                 ON CONFLICT (one) DO NOTHING",
                values,
            )
        })
        .map_err(fault)?;
    session.execute("UPDATE modulith__identity SET incarnation = incarnation + 1", &[]).map_err(fault)?;
    let now_ms = session.now_ms();
    let row: Option<(Uuid, i64, Vec<u8>)> = Snapshot::new(session.statements(), now_ms)
        .row("SELECT id, incarnation, secret FROM modulith__identity", ())
        .map_err(fault)?;
    let (id, incarnation, secret) = row.expect("the identity was written above");
    for (module, migrations) in modules {
        migrate::apply(session, module, migrations, checksum)
            .map_err(|error| OpenError::Migration { path: path.to_owned(), error })?;
    }
    let secret = secret.try_into().map_err(|_| {
        fault(Fault::new(FaultKind::Type, "modulith__identity.secret has another length than 32"))
    })?;
    Ok(Identity { id, incarnation, secret })
}

/// Line ends are not part of a migration's meaning.
fn checksum(sql: &str) -> Vec<u8> {
    ring::digest::digest(&ring::digest::SHA256, sql.replace("\r\n", "\n").trim().as_bytes()).as_ref().to_vec()
}
