//! A disk that is slow, full or broken, or whose power is cut, below an application's own databases.
//!
//! [`Disk::install`] puts a layer between SQLite and the platform's files, for the whole process and without a hook
//! in the code under test: it becomes SQLite's default VFS. [`Disk::folder`] then names a folder, and the
//! [`Faults`] it returns say what happens to the databases that are opened below it afterwards. Files elsewhere
//! are not touched.
//!
//! ```
//! # fn main() -> rusqlite::Result<()> {
//! use modulith_test::disk::{Disk, Event, Kept, Nth};
//!
//! let folder = tempfile::tempdir().expect("a folder");
//! let faults = Disk::install().folder(folder.path());
//! let open = || rusqlite::Connection::open(folder.path().join("shop.db"));
//!
//! open()?.execute_batch("CREATE TABLE item (id INTEGER PRIMARY KEY)")?;
//! // The power is cut while the next commit is synced.
//! faults.plan(Nth::Sync(1), Event::PowerCut);
//! assert!(open()?.execute_batch("INSERT INTO item VALUES (1)").is_err());
//! faults.restart(Kept::Nothing);
//!
//! let count: i64 = open()?.query_row("SELECT count(*) FROM item", [], |row| row.get(0))?;
//! assert_eq!(count, 0);
//! # Ok(())
//! # }
//! ```

mod folder;
mod platter;
mod vfs;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use folder::Folder;
pub use folder::{Counts, Event, Failure, Nth};
pub use platter::{Kept, SECTOR_BYTES};

/// The process's disk, as SQLite sees it.
#[derive(Debug, Clone, Copy)]
pub struct Disk(());

/// What happens to the databases below one folder. Clones speak of the same folder.
#[derive(Debug, Clone)]
pub struct Faults(Arc<Folder>);

/// The folders with faults, as long as somebody holds their [`Faults`] or a file below them is open.
static FOLDERS: Mutex<Vec<Weak<Folder>>> = Mutex::new(Vec::new());

impl Disk {
    /// Makes this layer SQLite's default VFS. A repeat does nothing. Databases that are open already keep the
    /// platform's.
    ///
    /// # Panics
    ///
    /// SQLite has no default VFS or refuses another one, which no supported platform does.
    pub fn install() -> Self {
        vfs::install();
        Self(())
    }

    /// Takes a folder into hand. Files that are opened below it from now on count their writes and syncs, and
    /// a sync does not reach the real disk: it succeeds at once, unless the faults say otherwise. A repeat
    /// returns the same faults.
    ///
    /// # Panics
    ///
    /// The folder does not exist.
    pub fn folder(self, path: &Path) -> Faults {
        let path = path
            .canonicalize()
            .unwrap_or_else(|error| panic!("{} is no folder for faults: {error}", path.display()));
        let mut folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
        folders.retain(|folder| folder.strong_count() > 0);
        if let Some(known) = folders.iter().filter_map(Weak::upgrade).find(|folder| folder.path == path) {
            return Faults(known);
        }
        let folder = Arc::new(Folder::new(path));
        folders.push(Arc::downgrade(&folder));
        Faults(folder)
    }
}

/// The innermost folder with faults above a file.
fn folder_of(file: &Path) -> Option<Arc<Folder>> {
    let folders = FOLDERS.lock().unwrap_or_else(PoisonError::into_inner);
    folders
        .iter()
        .filter_map(Weak::upgrade)
        .filter(|folder| file.starts_with(&folder.path))
        .max_by_key(|folder| folder.path.as_os_str().len())
}

impl Faults {
    /// How long each sync takes from now on. Default zero.
    pub fn sync_takes(&self, time: Duration) {
        self.0.state().sync_takes = time;
    }

    /// Writes and syncs since the folder was taken into hand, or since the last [`Faults::plan`].
    pub fn counts(&self) -> Counts {
        self.0.state().counts
    }

    /// Counts anew and lets `event` happen at the `nth` operation. It replaces an event that was planned and has
    /// not happened. A power cut or a kill calls [`Faults::remember`] first.
    pub fn plan(&self, nth: Nth, event: Event) {
        if matches!(event, Event::PowerCut | Event::Kill) {
            self.remember();
        }
        self.0.state().plan(nth, event);
    }

    /// Nothing is planned any more and nothing fails any more. It does not bring a dead process back; see
    /// [`Faults::restart`].
    pub fn heal(&self) {
        self.0.state().heal();
    }

    /// Whether what was planned last has happened.
    pub fn happened(&self) -> bool {
        self.0.state().happened
    }

    /// Keeps apart, from each file's next opening on, what is synced and what is only written. It costs a copy
    /// of each file in memory. What a file holds when it is opened first counts as synced.
    pub fn remember(&self) {
        self.0.state().remember();
    }

    /// Cuts the power now: every operation on files that are open fails from now on, and none can be opened
    /// before [`Faults::restart`].
    ///
    /// # Panics
    ///
    /// [`Faults::remember`] was not called before.
    pub fn cut_power(&self) {
        self.0.state().happen_now(Event::PowerCut);
    }

    /// The same, but the machine goes on: everything written is still there, synced or not.
    ///
    /// # Panics
    ///
    /// [`Faults::remember`] was not called before.
    pub fn kill(&self) {
        self.0.state().happen_now(Event::Kill);
    }

    /// Brings the files into a state in which the power cut or the kill may have left them, and lets them be
    /// opened again, without faults. Handles from before stay dead, so nobody has to close them. After a kill,
    /// whatever `kept` says, everything is kept, and what was not synced can still be lost in a later power cut.
    ///
    /// # Panics
    ///
    /// The power is on and nothing was killed, or the real disk fails.
    pub fn restart(&self, kept: Kept) {
        self.0.restart(kept);
    }
}
