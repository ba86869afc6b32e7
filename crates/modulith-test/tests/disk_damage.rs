//! Files that are damaged: said by name, and never made anew or emptied.

#[allow(dead_code, reason = "each test program uses a part of it")]
mod shelf;

use std::path::Path;

use modulith_core::{Fault, FaultKind};
use modulith_data::sqlite::{Database, OpenError};
use modulith_test::disk::Kept;
use shelf::{End, Ledger, Shelf, Start, Work, as_module, block_on, bytes, step};

/// What SQLite writes whole.
const PAGE_BYTES: usize = 4_096;
const RESTORE: &str = "restore a backup";

/// A closed database without a log, of many pages.
fn closed() -> Shelf {
    let shelf = Shelf::new(Start::Empty);
    let database = shelf.open().expect("an empty folder opens");
    let works: Vec<_> = (0..40).map(Work::Good).collect();
    block_on(step(&database, &works, &mut Ledger::default()));
    shelf.end(End::Close, Some(database));
    shelf
}

fn log(path: &Path) -> std::path::PathBuf {
    path.with_extension("db-wal")
}

/// On a thread of its own, because a thread keeps its connections.
fn read(database: &Database) -> Result<i64, Fault> {
    let count = || {
        database.read(&"shelf".into(), |db| {
            db.row::<(i64,)>("SELECT sum(length(body)) FROM shelf_part", ()).map(|row| row.expect("a sum").0)
        })
    };
    let read = std::thread::scope(|scope| scope.spawn(count).join().expect("reading does not panic"));
    read.expect("a snapshot opens")
}

fn refused(shelf: &Shelf) -> OpenError {
    shelf.open().map(drop).expect_err("a damaged file does not open")
}

#[test]
fn a_damaged_page_is_found_by_the_statement_that_meets_it() {
    let shelf = closed();
    let mut content = bytes(&shelf.path());
    // The first pages are those of the schema, the framework and module `other`; the last are all of `shelf`.
    let damaged = 30 * PAGE_BYTES..content.len();
    assert!(damaged.len() > 10 * PAGE_BYTES, "there is something to damage");
    content[damaged].fill(0xa5);
    std::fs::write(shelf.path(), &content).unwrap();

    let database = shelf.open().expect("what opening reads is whole");
    let fault = read(&database).expect_err("the query meets the damage");
    assert_eq!(fault.kind, FaultKind::Corrupt, "{fault}");
    let name = shelf.path().display().to_string();
    assert!(fault.message.contains(&name) && fault.message.contains(RESTORE), "{fault}");

    let written = block_on(database.write(None, |session| {
        as_module("shelf", session, |tx| tx.execute("UPDATE shelf_part SET body = $1", (&[1_u8][..],)))
    }));
    let fault = written.expect_err("so does the update");
    assert!(fault.to_string().contains(&name) && fault.to_string().contains(RESTORE), "{fault}");
    // Others go on, although SQLite commits no transaction that has met damage.
    block_on(database.write(None, |session| {
        as_module("other", session, |tx| tx.execute("INSERT INTO other_item (id) VALUES (1)", ()))
    }))
    .expect("what does not meet the damage is done");
    drop(database);
    let after = bytes(&shelf.path());
    assert!(after.len() >= content.len(), "nothing was cut off");
    assert_eq!(after[content.len() - PAGE_BYTES..content.len()], content[content.len() - PAGE_BYTES..]);
}

#[test]
fn a_damaged_first_page_and_a_shortened_file_do_not_open() {
    let whole = closed();
    let whole = bytes(&whole.path());
    let mut header = whole.clone();
    header[..100].fill(0xa5);
    let mut schema = whole.clone();
    schema[100..PAGE_BYTES].fill(0xa5);
    let half = whole[..whole.len() / 2 / PAGE_BYTES * PAGE_BYTES].to_vec();
    for (what, content) in [("header", header), ("schema", schema), ("half", half)] {
        let shelf = closed();
        std::fs::write(shelf.path(), &content).unwrap();
        let error = refused(&shelf);
        assert!(matches!(error, OpenError::Corrupt { .. }), "{what}: {error}");
        let text = error.to_string();
        assert!(
            text.contains(&shelf.path().display().to_string()) && text.contains(RESTORE),
            "{what}: {text}"
        );
        assert_eq!(bytes(&shelf.path()), content, "{what}: the file was changed");
    }
}

/// SQLite itself would delete the log and begin an empty database.
#[test]
fn an_empty_or_missing_file_beside_its_log_does_not_open() {
    type Accident = fn(&Path) -> std::io::Result<()>;
    let accidents: [Accident; 2] = [|path| std::fs::write(path, b""), |path| std::fs::remove_file(path)];
    for accident in accidents {
        let shelf = Shelf::new(Start::Empty);
        let database = shelf.open().unwrap();
        block_on(step(&database, &[Work::Good(1)], &mut Ledger::default()));
        shelf.end(End::Kill, Some(database));
        accident(&shelf.path()).unwrap();
        let before = bytes(&log(&shelf.path()));
        assert!(!before.is_empty(), "a killed process leaves its log");

        let error = refused(&shelf);
        assert!(matches!(error, OpenError::LogAlone { .. }), "{error}");
        assert!(error.to_string().contains(&log(&shelf.path()).display().to_string()), "{error}");
        assert_eq!(bytes(&log(&shelf.path())), before, "the log was changed");
    }
}

/// The log has the newest state of some pages, the file lost others.
#[test]
fn a_shortened_file_beside_its_log_is_not_taken_for_whole() {
    let shelf = closed();
    let database = shelf.open().unwrap();
    block_on(step(&database, &[Work::Good(100)], &mut Ledger::default()));
    shelf.end(End::Kill, Some(database));
    let content = bytes(&shelf.path());
    std::fs::write(shelf.path(), &content[..14 * PAGE_BYTES]).unwrap();
    match shelf.open() {
        Err(error) => assert!(matches!(error, OpenError::Corrupt { .. }), "{error}"),
        Ok(database) => {
            let fault = read(&database).expect_err("pages are missing");
            assert_eq!(fault.kind, FaultKind::Corrupt, "{fault}");
        }
    }
}

/// Frames behind another program's snapshot cannot be folded in, so what they hold may be on no disk.
#[test]
fn a_log_that_somebody_reads_is_not_taken_for_durable() {
    let shelf = closed();
    let other = rusqlite::Connection::open(shelf.path()).unwrap();
    other.execute_batch("BEGIN; SELECT count(*) FROM shelf_part;").unwrap();
    let error = refused(&shelf);
    assert!(matches!(error, OpenError::BeingRead { .. }), "{error}");
    assert!(error.to_string().contains(&shelf.path().display().to_string()), "{error}");
    drop(other);
    let database = shelf.open().expect("nobody reads any more");
    shelf.end(End::PowerCut(Kept::Nothing), Some(database));
}
