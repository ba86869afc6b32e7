//! A workload on a real database over a disk that fails, and what must hold whenever it fails.
//!
//! The checks return the first violation instead of panicking, so that the same schedules serve twice: with every
//! protection they must hold (`disk.rs`), and without one of them they must not (`disk_mutants.rs`).

mod ledger;

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use modulith_core::{CallFault, Fault, FaultKind, Tx};
use modulith_data::sqlite::{Database, OpenError, WriterLimits};
use modulith_data::{Migration, ModuleCode, Session};
use modulith_test::disk::{Disk, Event, Faults, Kept, Nth};
use tempfile::TempDir;

pub(crate) use ledger::{Ledger, Shown};

/// Every piece of work has two rows, so that half of one can be seen.
const SHELF: &[Migration] = &[Migration {
    name: "0001_shelf",
    sql: "CREATE TABLE shelf_part (piece bigint NOT NULL, part bigint NOT NULL, body bytea NOT NULL, PRIMARY KEY (piece, part));
          CREATE TABLE shelf_case (id bigint PRIMARY KEY);
          CREATE TABLE shelf_label (id bigint NOT NULL REFERENCES shelf_case (id) DEFERRABLE INITIALLY DEFERRED);",
}];
const OTHER: &[Migration] =
    &[Migration { name: "0001_other", sql: "CREATE TABLE other_item (id bigint PRIMARY KEY);" }];

/// Enough that a piece of work changes several pages.
const BODY_BYTES: usize = 3_000;
/// Four of these fill the write-ahead log to the size at which the writer folds it in by itself.
const LARGE_BODY_BYTES: usize = 2_200_000;
/// Written after every fault, to see that the database can be written again.
const LAST_PIECE: i64 = 1_000;

/// One piece of work, by the number of its rows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    Good(i64),
    Large(i64),
    /// Has the bodies of the piece before it, by one statement for both rows.
    Copies(i64),
    /// Ends the whole batch's transaction.
    RollsBack(i64),
    /// Leaves a foreign key that only the commit would look at.
    LeavesKey(i64),
}

impl Work {
    fn piece(self) -> i64 {
        match self {
            Work::Good(piece)
            | Work::Large(piece)
            | Work::Copies(piece)
            | Work::RollsBack(piece)
            | Work::LeavesKey(piece) => piece,
        }
    }

    /// Answers with the pieces it saw.
    fn run(self, tx: &mut Tx<'_>) -> Result<Vec<i64>, Fault> {
        if let Work::Copies(piece) = self {
            // Nothing is read before, so that this statement is the first that needs what its neighbour wrote.
            let copy = "INSERT INTO shelf_part (piece, part, body) SELECT $1, part, body FROM shelf_part WHERE piece = $2";
            return match tx.execute(copy, (piece, piece - 1))? {
                0 => Err(Fault::new(FaultKind::Statement, "there is nothing to copy")),
                _ => Ok(pieces(tx)?.into_iter().filter(|seen| *seen != piece).collect()),
            };
        }
        let seen = pieces(tx)?;
        let body = body(if matches!(self, Work::Large(_)) { LARGE_BODY_BYTES } else { BODY_BYTES });
        let insert = "INSERT INTO shelf_part (piece, part, body) VALUES ($1, $2, $3)";
        tx.execute(insert, (self.piece(), 0, &body[..]))?;
        match self {
            Work::RollsBack(piece) => {
                let again = "INSERT OR ROLLBACK INTO shelf_part (piece, part, body) VALUES ($1, $2, $3)";
                tx.execute(again, (piece, 0, &body[..]))?;
            }
            Work::LeavesKey(piece) => {
                tx.execute("INSERT INTO shelf_label (id) VALUES ($1)", (piece,))?;
            }
            Work::Good(_) | Work::Large(_) | Work::Copies(_) => {}
        }
        tx.execute(insert, (self.piece(), 1, &body[..]))?;
        Ok(seen)
    }
}

fn body(bytes: usize) -> Vec<u8> {
    vec![7; bytes]
}

fn pieces(tx: &mut Tx<'_>) -> Result<Vec<i64>, Fault> {
    Ok(tx
        .rows::<(i64,)>("SELECT DISTINCT piece FROM shelf_part ORDER BY piece", ())?
        .into_iter()
        .map(|row| row.0)
        .collect())
}

/// What is committed together, step by step.
pub(crate) type Script = &'static [&'static [Work]];

pub(crate) const ORDINARY: Script = &[
    &[Work::Good(1)],
    &[Work::Good(2), Work::Good(3), Work::Good(4)],
    &[Work::Good(5), Work::RollsBack(6), Work::Good(7), Work::LeavesKey(8), Work::Good(9)],
    &[Work::Good(10)],
];
/// The log is folded in during the fourth step.
pub(crate) const LARGE: Script = &[
    &[Work::Large(1), Work::Good(2)],
    &[Work::Large(3), Work::Good(4)],
    &[Work::Large(5), Work::Good(6)],
    &[Work::Large(7), Work::Good(8)],
    &[Work::Good(9)],
];

/// What is too large for the page cache goes to the log before its commit, and is read there by a neighbour that fails alone.
pub(crate) const SPILLING: Script =
    &[&[Work::LeavesKey(1), Work::Good(2)], &[Work::Large(3), Work::Copies(4)], &[Work::Good(5)]];

/// What the workload begins with.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Start {
    /// No file: it is made, and its tables.
    Empty,
    /// A database that was killed, so that opening it reads a log and folds it in.
    Used,
}

/// What comes after the workload, or ends it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Close,
    Kill,
    PowerCut(Kept),
}

/// A fault at one operation of a workload, then an end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub(crate) start: Start,
    pub(crate) script: Script,
    pub(crate) event: Event,
    pub(crate) end: End,
}

impl Schedule {
    /// Runs it for each operation that `nth` numbers, until the workload runs through. Returns how many there
    /// were.
    pub(crate) fn at_each(self, nth: fn(u64) -> Nth) -> Result<u64, String> {
        for number in 1.. {
            if !self.at(nth(number))? {
                return Ok(number - 1);
            }
        }
        unreachable!("a workload ends")
    }

    /// Runs it once. `Ok` with whether there was such an operation.
    pub(crate) fn at(self, nth: Nth) -> Result<bool, String> {
        let shelf = Shelf::new(self.start);
        shelf.faults.plan(nth, self.event);
        shelf
            .run(self)
            .map_err(|violation| format!("{nth:?}, {:?}, then {:?}: {violation}", self.event, self.end))
    }
}

/// A database in a folder of its own, on a disk that fails.
pub(crate) struct Shelf {
    folder: TempDir,
    pub(crate) faults: Faults,
}

impl Shelf {
    pub(crate) fn new(start: Start) -> Self {
        // A thousand databases are made and deleted; where Linux has a folder in memory, a busy disk holds up none.
        let memory = Path::new("/dev/shm");
        let parent = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
        let folder = tempfile::tempdir_in(parent).expect("a folder");
        if let Start::Used = start {
            for (name, content) in used() {
                std::fs::write(folder.path().join(name), content).expect("a file of the used database");
            }
        }
        let faults = Disk::install().folder(folder.path());
        faults.remember();
        Self { folder, faults }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("shelf.db")
    }

    pub(crate) fn open(&self) -> Result<Arc<Database>, OpenError> {
        let modules = [("shelf".into(), SHELF), ("other".into(), OTHER)];
        Database::open(&self.path(), &modules, WriterLimits::default()).map(Arc::new)
    }

    /// Runs the script, then the end, and looks at what is left, twice. `Ok` with whether the fault happened.
    fn run(&self, schedule: Schedule) -> Result<bool, String> {
        let mut ledger = Ledger::default();
        match self.open() {
            Ok(database) => {
                ledger.expect_there(used_pieces(schedule.start));
                block_on(work(&database, schedule.script, &mut ledger));
                self.end(schedule.end, Some(database));
            }
            Err(error) => {
                ledger.refused_to_open(&error);
                ledger.expect_there(used_pieces(schedule.start));
                self.end(schedule.end, None);
            }
        }
        let happened = self.faults.happened();
        self.faults.heal();
        if !happened {
            ledger.expect_undisturbed(schedule.script)?;
        }
        self.look_twice(ledger)?;
        Ok(happened)
    }

    /// Brings the files to where the next process finds them.
    pub(crate) fn end(&self, end: End, database: Option<Arc<Database>>) {
        match end {
            End::Close => {
                drop(database);
                return;
            }
            End::Kill => self.faults.kill(),
            End::PowerCut(_) => self.faults.cut_power(),
        }
        drop(database);
        self.faults.restart(match end {
            End::PowerCut(kept) => kept,
            End::Close | End::Kill => Kept::Everything,
        });
    }

    /// Opens, compares, writes; then cuts the power, opens and compares with what was told at the first look.
    fn look_twice(&self, mut ledger: Ledger) -> Result<(), String> {
        let open = || self.open().map_err(|error| format!("it does not open again: {error}"));
        let database = open()?;
        let shown = block_on(show(&database))?;
        ledger.compare(&shown)?;
        ledger.told(&shown);
        block_on(step(&database, &[Work::Good(LAST_PIECE)], &mut ledger));
        ledger.expect_there([LAST_PIECE]);
        self.end(End::PowerCut(Kept::Nothing), Some(database));

        let database = open()?;
        let shown = block_on(show(&database))?;
        ledger.compare(&shown).map_err(|violation| format!("after a second cut: {violation}"))?;
        drop(database);
        self.integrity()
    }

    fn integrity(&self) -> Result<(), String> {
        let check = || {
            let connection = rusqlite::Connection::open(self.path())?;
            let text: String = connection.query_row("PRAGMA integrity_check", [], |row| row.get(0))?;
            let others = "SELECT count(*) FROM shelf_part WHERE body <> $1 AND body <> $2";
            let bodies = [BODY_BYTES, LARGE_BODY_BYTES].map(body);
            let others: i64 = connection.query_row(others, bodies, |row| row.get(0))?;
            Ok::<_, rusqlite::Error>((text, others))
        };
        match check() {
            Ok((text, 0)) if text == "ok" => Ok(()),
            Ok((text, others)) => Err(format!("the file is damaged: {text}, {others} bodies are others")),
            Err(error) => Err(format!("the file cannot be checked: {error}")),
        }
    }
}

/// The pieces of [`Start::Used`].
fn used_pieces(start: Start) -> impl IntoIterator<Item = i64> {
    match start {
        Start::Empty => 0..0,
        Start::Used => 100..103,
    }
}

/// The files of a database that was killed after some work.
fn used() -> &'static [(String, Vec<u8>)] {
    static USED: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    USED.get_or_init(|| {
        let shelf = Shelf::new(Start::Empty);
        let database = shelf.open().expect("an empty folder opens");
        for piece in used_pieces(Start::Used) {
            block_on(step(&database, &[Work::Good(piece)], &mut Ledger::default()));
        }
        shelf.end(End::Kill, Some(database));
        let files = std::fs::read_dir(shelf.folder.path()).expect("the folder can be read");
        files
            .map(|file| {
                let file = file.expect("an entry");
                let name = file.file_name().into_string().expect("a name of ours");
                (name, std::fs::read(file.path()).expect("a file of ours"))
            })
            .collect()
    })
}

/// Runs the steps until one is answered *unknown*; a process ends then, but not before somebody looked.
async fn work(database: &Arc<Database>, script: Script, ledger: &mut Ledger) {
    for works in script {
        step(database, works, ledger).await;
        if ledger.has_unknown() {
            ledger.after_unknown(database.broken().is_some(), show(database).await.ok(), snapshot(database));
            return;
        }
    }
}

/// One batch: the writer is held up until all of it waits.
pub(crate) async fn step(database: &Arc<Database>, works: &[Work], ledger: &mut Ledger) {
    let (entered, has_entered) = tokio::sync::oneshot::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let mut gate = Some((entered, held));
    let gate = run(database, move |_| {
        if let Some((entered, held)) = gate.take() {
            let _ = entered.send(());
            let _ = held.recv();
        }
        Ok(())
    });
    // An error when the gate was answered without being run: then nothing has to be held up.
    let _ = has_entered.await;
    let answers: Vec<_> = works
        .iter()
        .map(|work| {
            let work = *work;
            (work, run(database, move |session| as_module("shelf", session, |tx| work.run(tx))))
        })
        .collect();
    // Each of them is in the queue once its task was polled.
    tokio::task::yield_now().await;
    drop(release);
    let _ = gate.await;
    for (work, answer) in answers {
        ledger.answered(work.piece(), answer.await.expect("a task of ours does not panic"));
    }
}

fn run<T: Send + 'static>(
    database: &Arc<Database>,
    work: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
) -> tokio::task::JoinHandle<Result<T, CallFault>> {
    let database = database.clone();
    tokio::spawn(async move { database.write(None, work).await })
}

pub(crate) fn as_module<T>(
    module: &str,
    session: &mut dyn Session,
    code: impl FnOnce(&mut Tx<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    ModuleCode::new(module, Vec::new()).with_tx(session, code)
}

const PARTS: &str = "SELECT piece, part FROM shelf_part ORDER BY piece, part";

/// What the database says it holds, as work of the writer.
async fn show(database: &Arc<Database>) -> Result<Shown, String> {
    let rows = run(database, |session| as_module("shelf", session, |tx| tx.rows::<(i64, i64)>(PARTS, ())));
    match rows.await.expect("a task of ours does not panic") {
        Ok(rows) => Ok(Shown(rows)),
        Err(fault) => Err(format!("it answers nothing: {fault}")),
    }
}

/// The same from a snapshot, on a thread of its own, because a thread keeps its connections.
fn snapshot(database: &Arc<Database>) -> Option<Shown> {
    let read = || database.read(&"shelf".into(), |db| db.rows::<(i64, i64)>(PARTS, ()));
    let rows = std::thread::scope(|scope| scope.spawn(read).join().expect("reading does not panic"));
    rows.ok()?.ok().map(Shown)
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(future)
}

/// Everything in a file, for comparing.
pub(crate) fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(path).expect("the file can be read")
}
