//! The SQLite writer over real files: group commit, ownership, what ends a batch, what refuses to open.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use modulith_core::{CallFault, Fault, FaultKind, NotRunReason, Tx};
use modulith_data::sqlite::{Database, OpenError, WriterLimits};
use modulith_data::{Migration, ModuleCode, Session};

const SHELF: &[Migration] = &[Migration {
    name: "0001_shelf",
    sql: "CREATE TABLE shelf_item (id bigint PRIMARY KEY, name text NOT NULL);
          CREATE TABLE shelf_part (item bigint NOT NULL REFERENCES shelf_item (id) DEFERRABLE INITIALLY DEFERRED);",
}];
const OTHER: &[Migration] =
    &[Migration { name: "0001_other", sql: "CREATE TABLE other_item (id bigint PRIMARY KEY);" }];

fn open(path: &Path) -> Database {
    open_with(path, WriterLimits::default())
}

fn open_with(path: &Path, limits: WriterLimits) -> Database {
    Database::open(path, &[("shelf".into(), SHELF), ("other".into(), OTHER)], limits)
        .expect("a database opens")
}

/// A command of module `shelf`, without an inbox.
fn as_shelf<T>(
    session: &mut dyn Session,
    code: impl FnOnce(&mut Tx<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    ModuleCode::new("shelf", Vec::new()).with_tx(session, code)
}

async fn run<T: Send + 'static>(
    database: &Database,
    code: impl Fn(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
) -> Result<T, CallFault> {
    database.write(None, move |session| as_shelf(session, &code)).await
}

async fn count(database: &Database) -> i64 {
    let shelf: Arc<str> = "shelf".into();
    let row = database.read(&shelf, |db| db.row::<(i64,)>("SELECT count(*) FROM shelf_item", ()));
    row.expect("a snapshot opens").expect("the query runs").expect("a count has a row").0
}

fn not_run(result: Result<(), CallFault>) -> (NotRunReason, String) {
    match result {
        Err(CallFault::NotRun(not_run)) => (not_run.reason, not_run.detail),
        other => panic!("expected not run, got {other:?}"),
    }
}

fn insert(id: i64) -> impl Fn(&mut Tx<'_>) -> Result<(), Fault> + Send + 'static {
    move |tx| tx.execute("INSERT INTO shelf_item (id, name) VALUES ($1, $2)", (id, "a name")).map(drop)
}

type Gate = tokio::task::JoinHandle<Result<(), CallFault>>;

/// Work that keeps the writer until the sender is dropped. It is running, or the last of what waits.
fn gate(database: &Arc<Database>) -> (std::sync::mpsc::Sender<()>, tokio::sync::oneshot::Receiver<()>, Gate) {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (entered, has_entered) = tokio::sync::oneshot::channel();
    let state = parking_lot::Mutex::new((held, Some(entered)));
    let database = database.clone();
    let gate = tokio::spawn(async move {
        let hold = move |_: &mut dyn Session| {
            let mut state = state.lock();
            if let Some(entered) = state.1.take() {
                let _ = entered.send(());
            }
            let _ = state.0.recv();
            Ok(())
        };
        database.write(None, hold).await
    });
    (release, has_entered, gate)
}

async fn hold_up(database: &Arc<Database>) -> (std::sync::mpsc::Sender<()>, Gate) {
    let (release, entered, gate) = gate(database);
    entered.await.unwrap();
    (release, gate)
}

/// Waits until so much ordinary work is in the queue.
async fn queued(database: &Database, waiting: usize) {
    let seen = async {
        while database.writer().waiting != waiting {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), seen).await.expect("a queue of that length");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_acknowledged_is_read_back_after_opening_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let database = Arc::new(open(&path));
    let writes = (0..500).map(|id| {
        let database = database.clone();
        tokio::spawn(async move { run(&database, insert(id)).await })
    });
    for write in futures_join(writes).await {
        write.unwrap().unwrap();
    }
    assert_eq!(count(&database).await, 500);
    let first = database.identity();
    drop(database);
    let again = open(&path);
    assert_eq!(count(&again).await, 500);
    assert_eq!(again.identity().id, first.id);
    assert_eq!(again.identity().incarnation, first.incarnation + 1);
}

async fn futures_join<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
    let futures: Vec<F> = futures.collect();
    let mut outputs = Vec::with_capacity(futures.len());
    for future in futures {
        outputs.push(future.await);
    }
    outputs
}

/// Each of these, placed among good neighbours, fails alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_culprit_takes_nobody_with_it() {
    type Culprit = (&'static str, fn(&mut Tx<'_>) -> Result<(), Fault>, NotRunReason);
    let culprits: [Culprit; 6] = [
        ("a panic", |_| panic!("as it happens"), NotRunReason::Panicked),
        (
            "a failed statement",
            |tx| tx.execute("INSERT INTO shelf_item (id) VALUES (1000)", ()).map(drop),
            NotRunReason::Fault,
        ),
        (
            "ON CONFLICT ROLLBACK",
            |tx| {
                let sql = "INSERT OR ROLLBACK INTO shelf_item (id, name) VALUES ($1, $2)";
                tx.execute(sql, (2000, "first"))?;
                tx.execute(sql, (2000, "second")).map(drop)
            },
            NotRunReason::Fault,
        ),
        (
            "a deferred foreign key",
            |tx| tx.execute("INSERT INTO shelf_part (item) VALUES (4242)", ()).map(drop),
            NotRunReason::Fault,
        ),
        (
            "a swallowed fault",
            |tx| {
                let _ = tx.execute("INSERT INTO shelf_item (id) VALUES (3000)", ());
                Ok(())
            },
            NotRunReason::Fault,
        ),
        ("transaction control", |tx| tx.execute("COMMIT", ()).map(drop), NotRunReason::Fault),
    ];
    for (name, culprit, reason) in culprits {
        for place in [0, 1, 19] {
            let folder = tempfile::tempdir().unwrap();
            let database = Arc::new(open(&folder.path().join("a.db")));
            // The writer is held up, so that all that follows is one batch.
            let (release, held) = std::sync::mpsc::channel::<()>();
            let held = parking_lot::Mutex::new(held);
            let gate = {
                let database = database.clone();
                tokio::spawn(async move {
                    database
                        .write(None, move |_| {
                            let _ = held.lock().recv();
                            Ok(())
                        })
                        .await
                })
            };
            let work = (0..20).map(|id| {
                let database = database.clone();
                tokio::spawn(async move {
                    if id == place {
                        run(&database, culprit).await
                    } else {
                        run(&database, insert(i64::from(id))).await
                    }
                })
            });
            let work: Vec<_> = work.collect();
            tokio::task::yield_now().await;
            drop(release);
            gate.await.unwrap().unwrap();
            for (id, result) in futures_join(work.into_iter()).await.into_iter().enumerate() {
                let result = result.unwrap();
                if id == place as usize {
                    assert_eq!(not_run(result).0, reason, "{name} at {place}");
                } else {
                    result.unwrap_or_else(|fault| panic!("{name} at {place} took {id} with it: {fault}"));
                }
            }
            assert_eq!(count(&database).await, 19, "{name} at {place}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_statement_outside_of_the_modules_tables_is_denied_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder.path().join("a.db"));
    let cases: [(&str, &[&str]); 9] = [
        ("SELECT id FROM other_item", &["`shelf`", "`other_item`", "belongs to module `other`"]),
        ("INSERT INTO other_item (id) VALUES (1)", &["insert into", "`other_item`", "`other`"]),
        ("UPDATE shelf_item SET name = (SELECT max(id) FROM other_item)", &["`other_item`"]),
        ("DELETE FROM shelf__inbox", &["`shelf__inbox`", "the framework's"]),
        ("SELECT * FROM sqlite_schema", &["`shelf_…`"]),
        ("ATTACH 'x' AS y", &["ATTACH"]),
        ("PRAGMA synchronous = OFF", &["PRAGMA"]),
        ("CREATE TABLE shelf_new (id INTEGER)", &["outside of a migration"]),
        ("CREATE TEMP TABLE t (id INTEGER)", &["may not"]),
    ];
    for (sql, words) in cases {
        let fault = run(&database, move |tx| tx.execute(sql, ()).map(drop)).await;
        let (_, detail) = not_run(fault);
        for word in words {
            assert!(detail.contains(word), "{sql}: {detail} does not say {word}");
        }
    }
    // The same text, prepared for its owner first, is still denied to the other module.
    let sql = "SELECT id FROM shelf_item";
    run(&database, move |tx| tx.rows::<(i64,)>(sql, ()).map(drop)).await.unwrap();
    let other = ModuleCode::new("other", Vec::new());
    let denied = database
        .write(None, move |session| other.with_tx(session, |tx| tx.rows::<(i64,)>(sql, ()).map(drop)));
    assert!(not_run(denied.await).1.contains("belongs to module `shelf`"));
    // And so is a read from a snapshot.
    let read = database.read(&"other".into(), |db| db.rows::<(i64,)>(sql, ()));
    assert_eq!(read.unwrap().unwrap_err().kind, FaultKind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_are_found_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder.path().join("a.db"));
    let swapped = run(&database, |tx| {
        tx.execute("INSERT INTO shelf_item (name, id) VALUES ($2, $1)", (7, "seven"))?;
        tx.row::<(String,)>("SELECT name FROM shelf_item WHERE name = $2 AND id = $1", (7, "seven"))
    });
    assert_eq!(swapped.await.unwrap(), Some(("seven".to_owned(),)));
    let missing = run(&database, |tx| tx.execute("UPDATE shelf_item SET name = $2", (7,)).map(drop));
    assert!(not_run(missing.await).1.contains("$2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_and_a_passed_deadline_are_not_run() {
    let folder = tempfile::tempdir().unwrap();
    let limits = WriterLimits { queue_max: 2, ..WriterLimits::default() };
    let database = Arc::new(open_with(&folder.path().join("a.db"), limits));
    let (release, gate) = hold_up(&database).await;
    let late = database.write(Some(Instant::now()), |session| as_shelf(session, insert(1)));
    let second = run(&database, insert(2));
    let third = run(&database, insert(3));
    let (late, second, third) = tokio::join!(late, second, async {
        let third = third.await;
        drop(release);
        third
    });
    assert_eq!(not_run(late).0, NotRunReason::Deadline);
    second.unwrap();
    assert_eq!(not_run(third).0, NotRunReason::Overloaded);
    gate.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_panicked_takes_no_more_work() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("of a destructor, on the writer's thread");
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder.path().join("a.db"));
    let bomb = Bomb;
    // Nobody says that it was not done.
    let outcome = run(&database, move |tx| {
        let _here = &bomb;
        insert(1)(tx)
    });
    assert!(!matches!(outcome.await, Err(CallFault::NotRun(_))));
    let (reason, detail) = not_run(run(&database, insert(2)).await);
    assert!(reason == NotRunReason::Fault && detail.contains("panicked"), "{detail}");
    assert!(database.broken().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn work_without_a_caller_is_dropped_before_it_begins() {
    let folder = tempfile::tempdir().unwrap();
    let database = Arc::new(open(&folder.path().join("a.db")));
    // The writer is held up, so that the abandoned work is queued and has not begun.
    let (release, gate) = hold_up(&database).await;
    let abandoned = database.write(None, |session| as_shelf(session, insert(1)));
    assert!(
        tokio::time::timeout(Duration::ZERO, abandoned).await.is_err(),
        "it waits, and its caller leaves"
    );
    drop(release);
    gate.await.unwrap().unwrap();
    run(&database, insert(2)).await.unwrap();
    assert_eq!(count(&database).await, 1);
}

/// Every batch takes one piece of work, and each waits longer than the one before: a standing queue.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_stays_long_refuses_new_work_and_never_an_undo() {
    let folder = tempfile::tempdir().unwrap();
    let limits = WriterLimits {
        batch_max: 1,
        wait_target: Duration::ZERO,
        wait_interval: Duration::ZERO,
        ..WriterLimits::default()
    };
    let database = Arc::new(open_with(&folder.path().join("a.db"), limits));
    let (release, first) = hold_up(&database).await;
    let mut accepted = tokio::task::JoinSet::new();
    let accept = |accepted: &mut tokio::task::JoinSet<_>, id| {
        let database = database.clone();
        accepted.spawn(async move { run(&database, insert(id)).await });
    };
    for id in 0..40 {
        accept(&mut accepted, id);
    }
    queued(&database, 40).await;
    let (release_second, entered, second) = gate(&database);
    queued(&database, 41).await;
    for id in 40..45 {
        accept(&mut accepted, id);
    }
    queued(&database, 46).await;
    assert!(!database.writer().is_shedding);
    drop(release);
    entered.await.unwrap();

    let stats = database.writer();
    assert!(stats.is_shedding && stats.waiting == 5 && stats.last_wait > Duration::ZERO, "{stats:?}");
    let Err(CallFault::NotRun(refused)) = run(&database, insert(100)).await else { panic!("it is full") };
    assert_eq!(refused.reason, NotRunReason::Overloaded);
    assert!(refused.retry_after_ms.is_some_and(|ms| ms > 0), "{refused:?}");
    assert_eq!(database.writer().shed, 1);
    // Undo is taken, and goes before what waits.
    let undo = tokio::spawn({
        let database = database.clone();
        async move {
            database
                .write_reserved(|session| {
                    as_shelf(session, |tx| tx.row::<(i64,)>("SELECT count(*) FROM shelf_item", ()))
                })
                .await
        }
    });
    while database.writer().waiting_reserved == 0 {
        tokio::task::yield_now().await;
    }
    drop(release_second);
    assert_eq!(undo.await.unwrap().unwrap(), Some((40,)), "before the five that waited");
    while let Some(done) = accepted.join_next().await {
        done.unwrap().expect("what was accepted is done");
    }
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    // A short queue is taken again.
    let again = async { while run(&database, |_| Ok(())).await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(20), again).await.expect("it ends");
}

/// What is too late does not use up a batch.
#[tokio::test(flavor = "multi_thread")]
async fn late_work_takes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let limits = WriterLimits { batch_max: 1, ..WriterLimits::default() };
    let database = Arc::new(open_with(&folder.path().join("a.db"), limits));
    let (release, gate) = hold_up(&database).await;
    let mut late = tokio::task::JoinSet::new();
    for id in 0..20 {
        let (database, now) = (database.clone(), Instant::now());
        late.spawn(
            async move { database.write(Some(now), move |session| as_shelf(session, insert(id))).await },
        );
    }
    queued(&database, 20).await;
    drop(release);
    gate.await.unwrap().unwrap();
    while let Some(late) = late.join_next().await {
        assert_eq!(not_run(late.unwrap()).0, NotRunReason::Deadline);
    }
    let stats = database.writer();
    assert_eq!((stats.waiting, stats.late, count(&database).await), (0, 20, 0));
}

#[test]
fn a_second_owner_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let first = open(&path);
    let second =
        Database::open(&path, &[], WriterLimits::default()).err().expect("a second owner is refused");
    assert!(matches!(second, OpenError::InUse { .. }), "{second}");
    assert!(second.to_string().contains(&std::process::id().to_string()), "{second}");
    drop(first);
    open(&path);
}

#[test]
fn files_that_are_not_ours_or_newer_are_refused_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let foreign = folder.path().join("foreign.db");
    rusqlite::Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
    let error =
        Database::open(&foreign, &[], WriterLimits::default()).err().expect("a foreign file is refused");
    assert!(matches!(error, OpenError::Foreign { .. }), "{error}");

    let newer = folder.path().join("newer.db");
    drop(open(&newer));
    rusqlite::Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Database::open(&newer, &[], WriterLimits::default()).err().expect("a newer file is refused");
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");

    let garbage = folder.path().join("garbage.db");
    std::fs::write(
        &garbage,
        b"this is no database, and longer than a header would have to be to be taken for one",
    )
    .unwrap();
    assert!(Database::open(&garbage, &[], WriterLimits::default()).is_err());
    assert!(std::fs::read(&garbage).unwrap().starts_with(b"this is no database"));
}

#[test]
fn migrations_are_applied_once_and_guarded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let open_as = |migrations: &'static [Migration]| {
        Database::open(&path, &[("shelf".into(), migrations)], WriterLimits::default()).map(drop)
    };
    open_as(SHELF).unwrap();
    open_as(SHELF).unwrap();
    const CHANGED: &[Migration] =
        &[Migration { name: "0001_shelf", sql: "CREATE TABLE shelf_item (id bigint);" }];
    assert!(open_as(CHANGED).unwrap_err().to_string().contains("changed after it was applied"));
    assert!(open_as(&[]).unwrap_err().to_string().contains("a newer version"));
    const THIEF: &[Migration] =
        &[SHELF[0], Migration { name: "0002_thief", sql: "CREATE TABLE other_item (id bigint);" }];
    let error = open_as(THIEF).unwrap_err().to_string();
    assert!(error.contains("0002_thief") && error.contains("`other`"), "{error}");
    // What failed left nothing behind.
    open_as(SHELF).unwrap();
}
