//! The layer itself: SQLite's VFS interface over the platform's own VFS.
//!
//! Ours is a copy of the platform's with three functions replaced. A file below a folder with faults gets methods
//! of ours, with the platform's file behind them in the same allocation; every other file gets the platform's
//! methods, as if this layer were not there.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rusqlite::ffi;

use super::folder::{Failure, Folder, Operation, Verdict};
use super::folder_of;
use super::platter::Change;

/// What SQLite allocates for a file of ours. The platform's file follows it directly.
#[repr(C)]
struct File {
    base: ffi::sqlite3_file,
    /// From `Box::into_raw` in `x_open`, until `x_close`.
    open: *mut Open,
}

struct Open {
    folder: Arc<Folder>,
    path: PathBuf,
    start: u64,
    /// The platform's VFS syncs the folder with the first sync of a new journal or write-ahead log.
    syncs_names: std::sync::atomic::AtomicBool,
}

/// The platform's VFS.
struct Platform(*mut ffi::sqlite3_vfs);

// SAFETY: SQLite calls a registered VFS from every thread, so the platform's is made for it; it is never freed.
unsafe impl Send for Platform {}
// SAFETY: as above.
unsafe impl Sync for Platform {}

static PLATFORM: OnceLock<Platform> = OnceLock::new();

pub(super) fn install() {
    PLATFORM.get_or_init(|| {
        // SAFETY: a null name asks for the default; SQLite initialises itself first.
        let platform = unsafe { ffi::sqlite3_vfs_find(std::ptr::null()) };
        assert!(!platform.is_null(), "SQLite has no default VFS");
        // SAFETY: it is a registered VFS, which nobody changes after its registration except for `pNext`.
        let copy = unsafe { std::ptr::read(platform) };
        let ours = Box::leak(Box::new(ffi::sqlite3_vfs {
            szOsFile: size_of::<File>() as c_int + copy.szOsFile,
            pNext: std::ptr::null_mut(),
            zName: c"modulith-disk".as_ptr(),
            xOpen: Some(x_open),
            xDelete: Some(x_delete),
            xAccess: Some(x_access),
            ..copy
        }));
        // SAFETY: `ours` lives as long as the process. The functions taken over from the platform see its own
        // `pAppData` and sizes in it.
        let code = unsafe { ffi::sqlite3_vfs_register(ours, 1) };
        assert_eq!(code, ffi::SQLITE_OK, "SQLite refuses the VFS");
        Platform(platform)
    });
}

fn platform() -> *mut ffi::sqlite3_vfs {
    PLATFORM.get().expect("the VFS is called after its registration").0
}

/// Calls a method of the platform's file.
macro_rules! real {
    ($real:expr, $method:ident ( $($argument:expr),* )) => {{
        let real: *mut ffi::sqlite3_file = $real;
        // SAFETY: `real` was opened by the platform's VFS and is not closed, so its methods are set; the arguments
        // are SQLite's own, or are shown to be valid where they are made.
        unsafe { ((*(*real).pMethods).$method.expect("every version has this method"))(real, $($argument),*) }
    }};
}

/// # Safety
///
/// `file` was opened by [`x_open`] with methods of ours and is not closed.
unsafe fn parts<'f>(file: *mut ffi::sqlite3_file) -> (&'f Open, *mut ffi::sqlite3_file) {
    // SAFETY: `File` begins with its base, `open` is set as long as the file is open, and SQLite allocated
    // `szOsFile` bytes, of which the platform's begin after ours, at a multiple of eight.
    unsafe { (&*(*file.cast::<File>()).open, file.cast::<File>().add(1).cast()) }
}

fn path_of<'n>(name: *const c_char) -> Option<&'n Path> {
    if name.is_null() {
        return None;
    }
    // SAFETY: SQLite gives names that end with a zero and live as long as the call.
    let bytes = unsafe { CStr::from_ptr(name) }.to_bytes();
    Some(Path::new(std::ffi::OsStr::from_bytes(bytes)))
}

unsafe extern "C" fn x_open(
    _: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let platform = platform();
    let open_real = |real: *mut ffi::sqlite3_file| {
        // SAFETY: the platform's VFS gets SQLite's arguments and at least as many bytes as it asks for.
        unsafe { ((*platform).xOpen.expect("a VFS opens"))(platform, name, real, flags, out_flags) }
    };
    let Some((path, folder)) = path_of(name).and_then(|path| Some((path, folder_of(path)?))) else {
        return open_real(file);
    };
    // SAFETY: `file` is memory for one file of ours, uninitialised or zeroed. Without methods SQLite does not
    // close it.
    unsafe { (*file).pMethods = std::ptr::null() };
    let mut state = folder.state();
    let Some(start) = state.start() else {
        return ffi::SQLITE_CANTOPEN;
    };
    let existed = path.exists();
    // SAFETY: the platform's file begins after ours; see `parts`.
    let real: *mut ffi::sqlite3_file = unsafe { file.cast::<File>().add(1).cast() };
    let code = open_real(real);
    if code != ffi::SQLITE_OK {
        return code;
    }
    if let Some(platter) = &mut state.platter {
        platter.open(path, existed, || content(real));
    }
    drop(state);
    let is_log = flags & (ffi::SQLITE_OPEN_WAL | ffi::SQLITE_OPEN_MAIN_JOURNAL) != 0;
    let syncs_names = (is_log && flags & ffi::SQLITE_OPEN_CREATE != 0).into();
    let open = Open { folder, path: path.to_owned(), start, syncs_names };
    // SAFETY: the platform's file is open, so its methods are set.
    let version = unsafe { (*(*real).pMethods).iVersion };
    let methods = &METHODS[version.clamp(1, 3) as usize - 1];
    // SAFETY: `file` is memory for one file of ours.
    unsafe {
        file.cast::<File>().write(File {
            base: ffi::sqlite3_file { pMethods: methods },
            open: Box::into_raw(Box::new(open)),
        })
    };
    ffi::SQLITE_OK
}

/// Reads a file through the platform's own handle: opening and closing it once more would drop the process's
/// locks on it.
fn content(real: *mut ffi::sqlite3_file) -> Vec<u8> {
    let mut length: ffi::sqlite3_int64 = 0;
    if real!(real, xFileSize(&mut length)) != ffi::SQLITE_OK {
        return Vec::new();
    }
    let mut content = vec![0; usize::try_from(length).unwrap_or(0)];
    let amount = c_int::try_from(content.len()).expect("a test's file has less than 2 GiB");
    let code = real!(real, xRead(content.as_mut_ptr().cast(), amount, 0));
    assert_eq!(code, ffi::SQLITE_OK, "the real disk cannot be read");
    content
}

unsafe extern "C" fn x_delete(_: *mut ffi::sqlite3_vfs, name: *const c_char, sync_folder: c_int) -> c_int {
    let platform = platform();
    let delete_real = || {
        // SAFETY: the platform's VFS gets SQLite's arguments.
        unsafe { ((*platform).xDelete.expect("a VFS deletes"))(platform, name, sync_folder) }
    };
    let Some((path, folder)) = path_of(name).and_then(|path| Some((path, folder_of(path)?))) else {
        return delete_real();
    };
    let mut state = folder.state();
    if state.start().is_none() {
        return ffi::SQLITE_IOERR_DELETE;
    }
    let verdict = state.meet(Operation::Write);
    match verdict {
        Verdict::Succeeds | Verdict::Fails(Failure::Full) => {
            let code = delete_real();
            if code == ffi::SQLITE_OK {
                state.change(path, || Change::Delete);
                if let Some(platter) = state.platter.as_mut().filter(|_| sync_folder != 0) {
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

unsafe extern "C" fn x_access(
    _: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    flags: c_int,
    result: *mut c_int,
) -> c_int {
    let folder = path_of(name).and_then(folder_of);
    if folder.is_some_and(|folder| folder.state().start().is_none()) {
        return ffi::SQLITE_IOERR_ACCESS;
    }
    let platform = platform();
    // SAFETY: the platform's VFS gets SQLite's arguments.
    unsafe { ((*platform).xAccess.expect("a VFS looks for files"))(platform, name, flags, result) }
}

impl Open {
    fn is_dead(&self) -> bool {
        self.folder.state().is_dead(self.start)
    }

    fn write(&self, real: *mut ffi::sqlite3_file, bytes: &[u8], offset: ffi::sqlite3_int64) -> c_int {
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
        let code = match verdict {
            Verdict::Succeeds | Verdict::Fails(_) => {
                real!(real, xWrite(bytes.as_ptr().cast(), bytes.len() as c_int, offset))
            }
            Verdict::Cut | Verdict::Dead => ffi::SQLITE_IOERR_WRITE,
        };
        match verdict {
            Verdict::Fails(Failure::Full) => ffi::SQLITE_FULL,
            Verdict::Fails(Failure::Io) => ffi::SQLITE_IOERR_WRITE,
            _ => code,
        }
    }

    fn truncate(&self, real: *mut ffi::sqlite3_file, length: ffi::sqlite3_int64) -> c_int {
        let mut state = self.folder.state();
        if state.is_dead(self.start) {
            return ffi::SQLITE_IOERR_TRUNCATE;
        }
        match state.meet(Operation::Write) {
            Verdict::Succeeds | Verdict::Fails(Failure::Full) => {
                state.change(&self.path, || Change::Truncate(length as usize));
                real!(real, xTruncate(length))
            }
            Verdict::Cut => {
                state.change(&self.path, || Change::Truncate(length as usize));
                ffi::SQLITE_IOERR_TRUNCATE
            }
            Verdict::Fails(Failure::Io) | Verdict::Dead => ffi::SQLITE_IOERR_TRUNCATE,
        }
    }

    fn sync(&self) -> c_int {
        let mut state = self.folder.state();
        if state.is_dead(self.start) {
            return ffi::SQLITE_IOERR_FSYNC;
        }
        let verdict = state.meet(Operation::Sync);
        if let Some(platter) = &mut state.platter {
            match verdict {
                Verdict::Succeeds => {
                    platter.synced(&self.path);
                    if self.syncs_names.swap(false, std::sync::atomic::Ordering::Relaxed) {
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

/// One method of a file of ours: fails with `$dead` once its handle is dead, or calls the same method of the
/// platform's file.
macro_rules! passes {
    ($name:ident, $method:ident ( $($argument:ident : $type:ty),* ), $dead:expr) => {
        unsafe extern "C" fn $name(file: *mut ffi::sqlite3_file, $($argument: $type),*) -> c_int {
            // SAFETY: SQLite calls it with a file of ours that is open.
            let (open, real) = unsafe { parts(file) };
            if open.is_dead() {
                return $dead;
            }
            real!(real, $method($($argument),*))
        }
    };
}

passes!(x_read, xRead(to: *mut c_void, amount: c_int, offset: ffi::sqlite3_int64), ffi::SQLITE_IOERR_READ);
passes!(x_file_size, xFileSize(size: *mut ffi::sqlite3_int64), ffi::SQLITE_IOERR_FSTAT);
passes!(x_lock, xLock(level: c_int), ffi::SQLITE_IOERR_LOCK);
passes!(x_check_reserved_lock, xCheckReservedLock(result: *mut c_int), ffi::SQLITE_IOERR_CHECKRESERVEDLOCK);
passes!(
    x_shm_map,
    xShmMap(page: c_int, size: c_int, extend: c_int, memory: *mut *mut c_void),
    ffi::SQLITE_IOERR_SHMMAP
);

unsafe extern "C" fn x_close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it once, with a file of ours that is open, and does not use the file afterwards.
    let (open, real) = unsafe { ((*file.cast::<File>()).open, parts(file).1) };
    let code = real!(real, xClose());
    // SAFETY: it came from `Box::into_raw` in `x_open`, and no reference to it is left.
    drop(unsafe { Box::from_raw(open) });
    code
}

unsafe extern "C" fn x_write(
    file: *mut ffi::sqlite3_file,
    from: *const c_void,
    amount: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open, and `amount` readable bytes.
    let ((open, real), bytes) =
        unsafe { (parts(file), std::slice::from_raw_parts(from.cast::<u8>(), amount as usize)) };
    open.write(real, bytes, offset)
}

unsafe extern "C" fn x_truncate(file: *mut ffi::sqlite3_file, length: ffi::sqlite3_int64) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (open, real) = unsafe { parts(file) };
    open.truncate(real, length)
}

unsafe extern "C" fn x_sync(file: *mut ffi::sqlite3_file, _: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (open, _) = unsafe { parts(file) };
    open.sync()
}

/// Also for the dead: what they hold must not stay locked.
unsafe extern "C" fn x_unlock(file: *mut ffi::sqlite3_file, level: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (_, real) = unsafe { parts(file) };
    real!(real, xUnlock(level))
}

unsafe extern "C" fn x_file_control(
    file: *mut ffi::sqlite3_file,
    operation: c_int,
    argument: *mut c_void,
) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (_, real) = unsafe { parts(file) };
    real!(real, xFileControl(operation, argument))
}

unsafe extern "C" fn x_sector_size(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (_, real) = unsafe { parts(file) };
    real!(real, xSectorSize())
}

unsafe extern "C" fn x_device_characteristics(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (_, real) = unsafe { parts(file) };
    real!(real, xDeviceCharacteristics())
}

unsafe extern "C" fn x_shm_lock(
    file: *mut ffi::sqlite3_file,
    offset: c_int,
    count: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (open, real) = unsafe { parts(file) };
    if flags & ffi::SQLITE_SHM_LOCK != 0 && open.is_dead() {
        return ffi::SQLITE_IOERR_SHMLOCK;
    }
    real!(real, xShmLock(offset, count, flags))
}

unsafe extern "C" fn x_shm_barrier(file: *mut ffi::sqlite3_file) {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (_, real) = unsafe { parts(file) };
    real!(real, xShmBarrier());
}

unsafe extern "C" fn x_shm_unmap(file: *mut ffi::sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: SQLite calls it with a file of ours that is open.
    let (open, real) = unsafe { parts(file) };
    // The dead delete nothing: by now the name may be that of a living one's memory.
    let delete = if open.is_dead() { 0 } else { delete };
    real!(real, xShmUnmap(delete))
}

/// No memory mapping: reads go through `x_read`, where the dead are found.
unsafe extern "C" fn x_fetch(
    _: *mut ffi::sqlite3_file,
    _: ffi::sqlite3_int64,
    _: c_int,
    page: *mut *mut c_void,
) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *page = std::ptr::null_mut() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn x_unfetch(_: *mut ffi::sqlite3_file, _: ffi::sqlite3_int64, _: *mut c_void) -> c_int {
    ffi::SQLITE_OK
}

/// By version, from 1: SQLite calls only the methods of the version that is told, and the platform's file has no
/// others.
static METHODS: [ffi::sqlite3_io_methods; 3] = [methods(1), methods(2), methods(3)];

const fn methods(version: c_int) -> ffi::sqlite3_io_methods {
    ffi::sqlite3_io_methods {
        iVersion: version,
        xClose: Some(x_close),
        xRead: Some(x_read),
        xWrite: Some(x_write),
        xTruncate: Some(x_truncate),
        xSync: Some(x_sync),
        xFileSize: Some(x_file_size),
        xLock: Some(x_lock),
        xUnlock: Some(x_unlock),
        xCheckReservedLock: Some(x_check_reserved_lock),
        xFileControl: Some(x_file_control),
        xSectorSize: Some(x_sector_size),
        xDeviceCharacteristics: Some(x_device_characteristics),
        xShmMap: Some(x_shm_map),
        xShmLock: Some(x_shm_lock),
        xShmBarrier: Some(x_shm_barrier),
        xShmUnmap: Some(x_shm_unmap),
        xFetch: Some(x_fetch),
        xUnfetch: Some(x_unfetch),
    }
}
