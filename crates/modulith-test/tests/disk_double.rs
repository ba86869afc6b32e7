//! The disk itself, below plain connections: what it counts, delays and fails, and whom it leaves alone.

use std::path::Path;
use std::time::{Duration, Instant};

use modulith_test::disk::{Counts, Disk, Event, Failure, Kept, Nth};
use rusqlite::{Connection, ErrorCode};

fn open(folder: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(folder.join("a.db"))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.execute_batch("CREATE TABLE IF NOT EXISTS item (id INTEGER PRIMARY KEY)")?;
    Ok(connection)
}

fn insert(connection: &Connection) -> Result<(), Option<ErrorCode>> {
    let inserted = connection.execute("INSERT INTO item DEFAULT VALUES", []);
    inserted.map(drop).map_err(|error| error.sqlite_error_code())
}

fn count(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row("SELECT count(*) FROM item", [], |row| row.get(0))
}

#[test]
fn a_sync_takes_its_time_and_is_counted_in_its_folder_only() {
    let (slow, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let faults = Disk::install().folder(slow.path());
    let (slow, other) = (open(slow.path()).unwrap(), open(other.path()).unwrap());
    faults.plan(Nth::Sync(u64::MAX), Event::FailOnce(Failure::Io));
    insert(&other).unwrap();
    assert_eq!(faults.counts(), Counts::default());
    faults.sync_takes(Duration::from_millis(20));
    let began = Instant::now();
    insert(&slow).unwrap();
    assert!(began.elapsed() >= Duration::from_millis(20));
    // A header and a page into the log, which has its own header already.
    assert_eq!(faults.counts(), Counts { writes: 2, syncs: 1 });
}

#[test]
fn a_full_disk_stays_full_until_it_is_healed() {
    let folder = tempfile::tempdir().unwrap();
    let faults = Disk::install().folder(folder.path());
    let connection = open(folder.path()).unwrap();
    faults.plan(Nth::Write(1), Event::FailFromThenOn(Failure::Full));
    for _ in 0..2 {
        assert_eq!(insert(&connection), Err(Some(ErrorCode::DiskFull)));
    }
    assert!(faults.happened());
    assert_eq!(count(&connection).unwrap(), 0, "reading goes on");
    faults.heal();
    insert(&connection).unwrap();
}

#[test]
fn a_kill_leaves_what_a_power_cut_takes() {
    for (kept_by_kill, kept) in [(true, 1), (false, 0)] {
        let folder = tempfile::tempdir().unwrap();
        let faults = Disk::install().folder(folder.path());
        faults.remember();
        let dead = open(folder.path()).unwrap();
        // From here on SQLite leaves it to the machine when the log becomes durable.
        dead.pragma_update(None, "synchronous", "OFF").unwrap();
        insert(&dead).unwrap();
        if kept_by_kill {
            faults.kill();
        } else {
            faults.cut_power();
        }
        assert!(Connection::open(folder.path().join("a.db")).and_then(|db| count(&db)).is_err());
        faults.restart(Kept::Nothing);
        let living = open(folder.path()).unwrap();
        assert_eq!(count(&living).unwrap(), kept);
        assert!(insert(&dead).is_err(), "a handle from before stays dead");
        insert(&living).unwrap();
    }
}
