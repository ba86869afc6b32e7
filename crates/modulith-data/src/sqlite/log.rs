//! Gathers what SQLite writes to its write-ahead log, and gives it to the platform in one piece.
//!
//! SQLite writes every page of a commit with two system calls, 24 bytes and the page. Here both wait in memory until
//! somebody needs them in the file: a sync, a read, a look at the size. With `synchronous=FULL` a commit syncs the log
//! before the index names its pages to anybody, so other handles of the file, in this process or another, find in it
//! what they would have found.
//!
//! A transaction that is too large for the page cache writes pages before its commit, and they wait here too. So what can
//! go wrong with them goes wrong for the whole transaction, and when it is rolled back they are forgotten.
//!
//! Nor does a sync write the file's times, which a SQLite that was built without `HAVE_FDATASYNC` does, as the one that
//! comes with rusqlite: on a file system with a journal that is a commit of the journal as well.
//!
//! The rest of SQLite's VFS interface, and every other file, is the platform's.

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_void};
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, ffi};

/// What is gathered at most, 31 pages of 4 KiB: SQLite's own VFS takes less than 128 KiB at once.
const GATHERED_MAX: usize = 31 * (24 + 4096);

/// Bytes that stand one behind the other in the file and are not in it yet.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    offset: i64,
}

impl Gathered {
    /// Keeps `bytes` for later; what cannot stand beside them goes to the file first. Results are SQLite's codes.
    fn write(&mut self, bytes: &[u8], offset: i64, file: impl Fn(&[u8], i64) -> c_int) -> c_int {
        let follows = offset == self.offset + self.bytes.len() as i64;
        if !follows || self.bytes.len() + bytes.len() > GATHERED_MAX {
            let code = self.flush(&file);
            if code != ffi::SQLITE_OK {
                return code;
            }
            self.offset = offset;
        }
        if bytes.len() > GATHERED_MAX {
            self.offset += bytes.len() as i64;
            return file(bytes, offset);
        }
        self.bytes.extend_from_slice(bytes);
        ffi::SQLITE_OK
    }

    /// What the file refuses is forgotten: the transaction that wrote it fails, and the next one writes in its place.
    fn flush(&mut self, file: impl Fn(&[u8], i64) -> c_int) -> c_int {
        if self.bytes.is_empty() {
            return ffi::SQLITE_OK;
        }
        let code = file(&self.bytes, self.offset);
        self.offset += self.bytes.len() as i64;
        self.bytes.clear();
        code
    }
}

/// A log that is open: the platform's file with some of its methods replaced by ours.
#[repr(C)]
struct Log {
    /// What SQLite's pointer to the file's methods leads to. First, so that it leads to the log too.
    methods: ffi::sqlite3_io_methods,
    /// The platform's methods.
    platform: *const ffi::sqlite3_io_methods,
    gathered: Gathered,
    syncs: Syncs,
}

/// Who syncs a log.
struct Syncs {
    /// Whatever is closed takes the process's locks on its file along, but nobody locks a log.
    own: Option<File>,
    /// The platform's first sync of a new log syncs its folder too, so the first is the platform's.
    is_synced: bool,
}

impl Syncs {
    fn sync(&mut self, platform: impl FnOnce() -> c_int) -> c_int {
        match &self.own {
            Some(own) if self.is_synced => match own.sync_data() {
                Ok(()) => ffi::SQLITE_OK,
                Err(_) => ffi::SQLITE_IOERR_FSYNC,
            },
            _ => {
                let code = platform();
                self.is_synced = code == ffi::SQLITE_OK;
                code
            }
        }
    }
}

/// A VFS of ours, and the one below it.
#[repr(C)]
struct Over {
    vfs: ffi::sqlite3_vfs,
    below: *mut ffi::sqlite3_vfs,
}

/// One that is registered.
struct Registered(&'static Over);

// SAFETY: SQLite calls a registered VFS from every thread, so both are made for it; neither is changed or freed.
unsafe impl Send for Registered {}

/// Opens a connection whose log is one of ours.
pub(super) fn open(path: &Path, flags: OpenFlags) -> rusqlite::Result<Connection> {
    let connection = Connection::open_with_flags_and_vfs(path, flags, vfs())?;
    // SAFETY: the hook is given the connection that it belongs to, and is called by it alone.
    unsafe {
        let database = connection.handle();
        ffi::sqlite3_rollback_hook(database, Some(rolled_back), database.cast());
    }
    Ok(connection)
}

/// Without the lock of its transaction another process may write where what was gathered would have stood.
unsafe extern "C" fn rolled_back(database: *mut c_void) {
    let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
    // SAFETY: SQLite calls it with the connection from `open`, and puts a pointer to the log's file there, or to that of a
    // rollback journal, either of which lives as long as the connection.
    let write = unsafe {
        let asks = ffi::SQLITE_FCNTL_JOURNAL_POINTER;
        let code = ffi::sqlite3_file_control(database.cast(), c"main".as_ptr(), asks, (&raw mut file).cast());
        if code != ffi::SQLITE_OK || file.is_null() || (*file).pMethods.is_null() {
            return;
        }
        (*(*file).pMethods).xWrite
    };
    if write.is_some_and(|write| std::ptr::fn_addr_eq(write, x_write as XWrite)) {
        // SAFETY: only logs of ours have this method.
        unsafe { log_of(file) }.gathered.bytes.clear();
    }
}

type XWrite = unsafe extern "C" fn(*mut ffi::sqlite3_file, *const c_void, c_int, ffi::sqlite3_int64) -> c_int;

/// The name of a VFS that gathers, over the one that is SQLite's default at the moment: tests put one of their own there.
fn vfs() -> &'static CStr {
    static REGISTERED: Mutex<Vec<Registered>> = Mutex::new(Vec::new());
    let mut registered = REGISTERED.lock();
    // SAFETY: a null name asks for the default; SQLite initialises itself first.
    let below = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
    assert!(!below.is_null(), "SQLite has no default VFS");
    let over = match registered.iter().find(|Registered(over)| over.below == below) {
        Some(Registered(over)) => over,
        None => {
            let over = register(below, registered.len());
            registered.push(Registered(over));
            over
        }
    };
    // SAFETY: the name was made in `register`, ends with a zero and is never freed.
    unsafe { CStr::from_ptr(over.vfs.zName) }
}

fn register(below: *mut ffi::sqlite3_vfs, number: usize) -> &'static Over {
    let name = CString::new(format!("modulith-log-{number}")).expect("a number has no zero byte");
    // SAFETY: it is a registered VFS, which nobody changes after its registration except for `pNext`.
    let copy = unsafe { std::ptr::read(below) };
    let over = Box::into_raw(Box::new(Over {
        vfs: ffi::sqlite3_vfs {
            pNext: std::ptr::null_mut(),
            zName: name.into_raw(),
            xOpen: Some(x_open),
            ..copy
        },
        below,
    }));
    // SAFETY: `over` lives as long as the process. What is taken over from the VFS below looks at its own data only.
    let code = unsafe { ffi::sqlite3_vfs_register(over.cast(), 0) };
    assert_eq!(code, ffi::SQLITE_OK, "SQLite refuses the VFS");
    // SAFETY: it was made above; SQLite changes nothing of it but `pNext`, which nobody here reads.
    unsafe { &*over }
}

unsafe extern "C" fn x_open(
    vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls it with the VFS that was registered, which is the first field of an `Over`.
    let below = unsafe { (*vfs.cast::<Over>()).below };
    // SAFETY: the VFS below gets SQLite's arguments, with as many bytes for the file as it asks for.
    let code = unsafe { ((*below).xOpen.expect("a VFS opens"))(below, name, file, flags, out_flags) };
    if code != ffi::SQLITE_OK || flags & ffi::SQLITE_OPEN_WAL == 0 {
        return code;
    }
    // SAFETY: the file is open, so it has methods, which stay where they are.
    let platform = unsafe { (*file).pMethods };
    let log = Box::into_raw(Box::new(Log {
        methods: ffi::sqlite3_io_methods {
            xClose: Some(x_close),
            xRead: Some(x_read),
            xWrite: Some(x_write),
            xTruncate: Some(x_truncate),
            xSync: Some(x_sync),
            xFileSize: Some(x_file_size),
            // SAFETY: as above.
            ..unsafe { std::ptr::read(platform) }
        },
        platform,
        gathered: Gathered::default(),
        syncs: Syncs { own: if is_platform(below) { own_handle(name) } else { None }, is_synced: false },
    }));
    // SAFETY: the file is open, and SQLite finds its methods here alone.
    unsafe { (*file).pMethods = log.cast() };
    code
}

/// Whether a sync of ours is as good as that of the VFS below: it is SQLite's own, on a system whose `fdatasync` keeps
/// all that is needed to read the bytes back, as the manual of Linux says. Others, as a test's, have to see each sync.
fn is_platform(below: *mut ffi::sqlite3_vfs) -> bool {
    // SAFETY: it is a registered VFS, whose name ends with a zero.
    cfg!(target_os = "linux") && unsafe { CStr::from_ptr((*below).zName) } == c"unix"
}

/// Without one the platform syncs.
fn own_handle(name: *const c_char) -> Option<File> {
    // SAFETY: SQLite gives a log's whole path, which ends with a zero and lives as long as the call.
    File::open(OsStr::from_bytes(unsafe { CStr::from_ptr(name) }.to_bytes())).ok()
}

/// # Safety
///
/// `file` was opened by [`x_open`] as a log and is not closed, and SQLite uses it from one thread at a time.
unsafe fn log_of<'f>(file: *mut ffi::sqlite3_file) -> &'f mut Log {
    // SAFETY: the methods are the first field of a `Log` that is as long there as the file is open, and nobody else
    // refers to the rest of it.
    unsafe { &mut *(*file).pMethods.cast::<Log>().cast_mut() }
}

/// Calls the platform's method.
macro_rules! platform {
    ($methods:expr, $method:ident ( $($argument:expr),* )) => {{
        let methods: *const ffi::sqlite3_io_methods = $methods;
        // SAFETY: the first argument is a file that the VFS below opened with these methods, which is not closed; the
        // others are SQLite's own, or bytes of ours that live as long as the call.
        unsafe { ((*methods).$method.expect("every file has this method"))($($argument),*) }
    }};
}

/// Writes through to the platform's file.
fn through(log: &Log, file: *mut ffi::sqlite3_file) -> impl Fn(&[u8], i64) -> c_int + use<> {
    let methods = log.platform;
    move |bytes, offset| platform!(methods, xWrite(file, bytes.as_ptr().cast(), bytes.len() as c_int, offset))
}

unsafe extern "C" fn x_close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it once, with a log of ours that is open; `x_open` made it a box, and from here on the file's
    // methods are the platform's again.
    let log = unsafe {
        let log = Box::from_raw((*file).pMethods.cast::<Log>().cast_mut());
        (*file).pMethods = log.platform;
        log
    };
    // What is still gathered was not committed.
    platform!(log.platform, xClose(file))
}

unsafe extern "C" fn x_write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a log of ours that is open, and `amount` readable bytes.
    let (log, bytes) =
        unsafe { (log_of(file), std::slice::from_raw_parts(from.cast::<u8>(), amount as usize)) };
    let through = through(log, file);
    log.gathered.write(bytes, offset, through)
}

/// One method of a log of ours: the platform's, or something in its place, when the file has all that was gathered.
macro_rules! flushed {
    ($name:ident ( $log:ident, $file:ident $(, $argument:ident : $type:ty)* ) $then:expr) => {
        unsafe extern "C" fn $name($file: *mut ffi::sqlite3_file, $($argument: $type),*) -> c_int {
            // SAFETY: SQLite calls it with a log of ours that is open.
            let $log = unsafe { log_of($file) };
            let through = through($log, $file);
            match $log.gathered.flush(through) {
                ffi::SQLITE_OK => $then,
                code => code,
            }
        }
    };
}

/// What was gathered and cannot be written is lost to its transaction, which therefore ends here: of a full disk, which no
/// platform meets in a read, SQLite would take back the one statement alone.
unsafe extern "C" fn x_read(
    file: *mut ffi::sqlite3_file,
    to: *mut c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a log of ours that is open.
    let log = unsafe { log_of(file) };
    let through = through(log, file);
    match log.gathered.flush(through) {
        ffi::SQLITE_OK => platform!(log.platform, xRead(file, to, amount, offset)),
        _ => ffi::SQLITE_IOERR_WRITE,
    }
}

flushed!(x_truncate(log, file, length: ffi::sqlite3_int64) platform!(log.platform, xTruncate(file, length)));
flushed!(x_file_size(log, file, size: *mut ffi::sqlite3_int64) platform!(log.platform, xFileSize(file, size)));
flushed!(x_sync(log, file, flags: c_int) {
    let methods = log.platform;
    log.syncs.sync(|| platform!(methods, xSync(file, flags)))
});

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::fs::File;

    use rusqlite::{Connection, OpenFlags, ffi};

    use super::{GATHERED_MAX, Gathered, Syncs};

    /// What a log writes arrives in the same order, in fewer pieces.
    #[test]
    fn what_stands_together_is_written_together() {
        let pieces = RefCell::new(Vec::new());
        let file = |bytes: &[u8], offset: i64| {
            pieces.borrow_mut().push((offset, bytes.to_vec()));
            ffi::SQLITE_OK
        };
        let mut gathered = Gathered::default();
        for (bytes, offset) in [(&b"ab"[..], 32), (b"cd", 34), (b"e", 36), (b"X", 33), (b"Y", 34), (b"Z", 90)]
        {
            assert_eq!(gathered.write(bytes, offset, file), ffi::SQLITE_OK);
        }
        let expected = [(32, b"abcde".to_vec()), (33, b"XY".to_vec())];
        assert_eq!(*pieces.borrow(), expected, "another place writes what was gathered");
        assert_eq!(gathered.flush(file), ffi::SQLITE_OK);
        assert_eq!(gathered.flush(file), ffi::SQLITE_OK, "nothing is left");
        assert_eq!(pieces.take()[2..], [(90, b"Z".to_vec())]);

        let page = vec![7; 65_536];
        for at in 0..4 {
            assert_eq!(gathered.write(&page, at * 65_536, file), ffi::SQLITE_OK);
        }
        let large = vec![8; GATHERED_MAX + 1];
        assert_eq!(gathered.write(&large, 4 * 65_536, file), ffi::SQLITE_OK);
        assert_eq!(gathered.write(b"behind", 4 * 65_536 + large.len() as i64, file), ffi::SQLITE_OK);
        assert_eq!(gathered.flush(file), ffi::SQLITE_OK);
        let pieces = pieces.take();
        let mut end = 0;
        for (offset, bytes) in &pieces {
            assert_eq!(*offset, end, "no gap, nothing twice");
            end += bytes.len() as i64;
        }
        assert_eq!(end, 4 * 65_536 + large.len() as i64 + 6);
        let most = pieces.iter().map(|(_, bytes)| bytes.len()).filter(|length| *length != large.len()).max();
        assert!(most <= Some(GATHERED_MAX));
    }

    #[test]
    fn what_the_file_refused_is_not_written_later() {
        let refuses = Cell::new(true);
        let written = RefCell::new(Vec::new());
        let file = |bytes: &[u8], offset: i64| {
            if refuses.get() {
                return ffi::SQLITE_FULL;
            }
            written.borrow_mut().push((offset, bytes.to_vec()));
            ffi::SQLITE_OK
        };
        let mut gathered = Gathered::default();
        assert_eq!(gathered.write(b"lost", 0, file), ffi::SQLITE_OK);
        assert_eq!(gathered.flush(file), ffi::SQLITE_FULL);
        assert_eq!(gathered.write(b"lost", 0, file), ffi::SQLITE_OK);
        assert_eq!(gathered.write(b"elsewhere", 100, file), ffi::SQLITE_FULL, "told to the next who writes");
        refuses.set(false);
        assert_eq!(gathered.write(b"kept", 0, file), ffi::SQLITE_OK);
        assert_eq!(gathered.flush(file), ffi::SQLITE_OK);
        assert_eq!(*written.borrow(), [(0, b"kept".to_vec())]);
    }

    #[test]
    fn the_first_sync_is_the_platforms_and_the_others_are_told_of_when_they_fail() {
        // A device that cannot be synced.
        let own = File::open("/dev/null").expect("is there");
        let mut syncs = Syncs { own: Some(own), is_synced: false };
        assert_eq!(syncs.sync(|| ffi::SQLITE_IOERR_FSYNC), ffi::SQLITE_IOERR_FSYNC);
        assert_eq!(syncs.sync(|| ffi::SQLITE_OK), ffi::SQLITE_OK, "the folder is still to be synced");
        assert_eq!(syncs.sync(|| panic!("it has an own handle")), ffi::SQLITE_IOERR_FSYNC);
        syncs.own = None;
        assert_eq!(syncs.sync(|| ffi::SQLITE_OK), ffi::SQLITE_OK);
    }

    /// With SQLite itself: large transactions, one that is rolled back after its pages went to the log, and another
    /// connection, of the platform's VFS, that reads behind each commit.
    #[test]
    fn another_handle_finds_every_commit() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.db");
        let writer = super::open(&path, OpenFlags::default()).expect("opens");
        writer
            .execute_batch(
                "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = 10;
                 PRAGMA wal_autocheckpoint = 100; CREATE TABLE t (n INTEGER PRIMARY KEY, bytes BLOB);",
            )
            .expect("runs");
        let reader = Connection::open(&path).expect("opens");
        let count = |connection: &Connection| -> (i64, i64) {
            let sql = "SELECT count(*), coalesce(sum(length(bytes)), 0) FROM t";
            connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("reads")
        };
        let mut rows = 0;
        for round in 0..40 {
            let many = if round % 10 == 9 { 400 } else { round };
            writer.execute_batch("BEGIN IMMEDIATE").expect("begins");
            for _ in 0..many {
                writer.execute("INSERT INTO t (bytes) VALUES (randomblob(3000))", []).expect("inserts");
            }
            let ends = if round % 7 == 3 { "ROLLBACK" } else { "COMMIT" };
            writer.execute_batch(ends).expect("ends");
            rows += if ends == "COMMIT" { many } else { 0 };
            assert_eq!(count(&reader), (rows, rows * 3000), "round {round}");
            assert_eq!(count(&writer), (rows, rows * 3000), "round {round}");
        }
        drop((writer, reader));
        let again = Connection::open(&path).expect("opens");
        assert_eq!(count(&again), (rows, rows * 3000));
        let check: String = again.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("reads");
        assert_eq!(check, "ok");
    }

    /// Another process writes where a transaction of ours was rolled back, and we write behind it.
    #[test]
    fn what_was_rolled_back_is_not_written_over_another_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.db");
        let ours = super::open(&path, OpenFlags::default()).expect("opens");
        ours.execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = 10;
             CREATE TABLE t (n INTEGER PRIMARY KEY, bytes BLOB);
             WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c LIMIT 30)
             INSERT INTO t (bytes) SELECT zeroblob(3000) FROM c;",
        )
        .expect("runs");
        let theirs = Connection::open(&path).expect("opens");
        let (all, one) =
            ("UPDATE t SET bytes = randomblob(3000)", "UPDATE t SET bytes = zeroblob(2999) WHERE n = $1");
        for row in 1..=5 {
            // It reads nothing of the log, not even when it is rolled back, since it adds no page.
            theirs.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("folds the log in");
            ours.execute_batch("BEGIN IMMEDIATE").expect("begins");
            ours.execute(all, []).expect("updates");
            ours.execute_batch("ROLLBACK").expect("ends");
            theirs.execute(one, [row]).expect("updates");
            ours.execute(one, [30 - row]).expect("updates");
        }
        // A process that comes after a power cut reads the log alone.
        let copy = folder.path().join("copy.db");
        for ending in ["", "-wal"] {
            std::fs::copy(format!("{}{ending}", path.display()), format!("{}{ending}", copy.display()))
                .expect("copied");
        }
        for file in [&path, &copy] {
            let reader = Connection::open(file).expect("opens");
            let sql = "SELECT sum(bytes = zeroblob(2999)), sum(bytes = zeroblob(3000)) FROM t";
            let rows = reader.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("reads");
            assert_eq!(rows, (10_i64, 20_i64), "in {}", file.display());
            let check: String =
                reader.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("reads");
            assert_eq!(check, "ok", "in {}", file.display());
        }
    }
}
