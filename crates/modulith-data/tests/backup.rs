//! One database is copied while it is written, and comes back from the copy as another one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use modulith_core::Fault;
use modulith_data::sqlite::backup::{self, BackupError, Copied, Stopped};
use modulith_data::sqlite::{Database, OpenError, WriterLimits};
use modulith_data::{Migration, ModuleCode, Session};
use rusqlite::Connection;
use uuid::Uuid;

/// Each row has a twin, written by the same command.
const PAIR: &[Migration] = &[Migration {
    name: "0001_pair",
    sql: "CREATE TABLE pair_left (id bigint PRIMARY KEY, filling text NOT NULL);
          CREATE TABLE pair_right (id bigint PRIMARY KEY);",
}];

fn open(path: &Path) -> Database {
    Database::open(path, &[("pair".into(), PAIR)], WriterLimits::default()).expect("a database opens")
}

async fn insert(database: &Database, id: i64) {
    let code = ModuleCode::new("pair", Vec::new());
    let work = move |session: &mut dyn Session| -> Result<(), Fault> {
        code.with_tx(session, |tx| {
            tx.execute("INSERT INTO pair_left (id, filling) VALUES ($1, $2)", (id, "x".repeat(500)))?;
            tx.execute("INSERT INTO pair_right (id) VALUES ($1)", (id,)).map(drop)
        })
    };
    database.write(None, work).await.expect("a pair is written");
}

/// How many rows of each, and the last one.
fn pairs(path: &Path) -> (i64, i64, i64) {
    let connection = Connection::open(path).unwrap();
    let sql = "SELECT (SELECT count(*) FROM pair_left), (SELECT count(*) FROM pair_right), \
               (SELECT coalesce(max(id), -1) FROM pair_left)";
    connection.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).unwrap()
}

/// Where the database from before is, whose copy it is, and who it is now.
type Restored = (Option<PathBuf>, Uuid, Uuid);

fn restore(path: &Path, copy: &Path, copied: &Copied) -> Result<Restored, BackupError> {
    let restored = Stopped::lock(path)?.prepare(copy, copied)?.replace()?;
    let started = Stopped::lock(path).err().map(|error| error.to_string());
    assert!(started.is_some_and(|error| error.contains("in use")), "it is kept from starting to the end");
    Ok((restored.replaced, restored.previous, restored.id))
}

/// A database of `rows` pairs, closed, and its copy.
async fn copied(folder: &Path, rows: i64) -> (PathBuf, PathBuf, Copied) {
    let (path, copy) = (folder.join("a.db"), folder.join("copy.db"));
    let database = open(&path);
    for id in 0..rows {
        insert(&database, id).await;
    }
    drop(database);
    let copied = backup::copy(&path, &copy).unwrap();
    (path, copy, copied)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_a_database_at_work_is_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db");
    let database = Arc::new(open(&path));
    let acknowledged = Arc::new(AtomicI64::new(-1));
    let writer = tokio::spawn({
        let (database, acknowledged) = (database.clone(), acknowledged.clone());
        async move {
            for id in 0.. {
                insert(&database, id).await;
                acknowledged.store(id, Ordering::SeqCst);
            }
        }
    });
    for round in 0..5 {
        while acknowledged.load(Ordering::SeqCst) < 100 * (round + 1) {
            tokio::task::yield_now().await;
        }
        let copy = folder.path().join(format!("copy-{round}.db"));
        let before = acknowledged.load(Ordering::SeqCst);
        let source = path.clone();
        let copied = tokio::task::spawn_blocking({
            let copy = copy.clone();
            move || backup::copy(&source, &copy)
        });
        let copied = copied.await.unwrap().unwrap();
        assert_eq!(
            (copied.id, copied.incarnation),
            (database.identity().id, database.identity().incarnation)
        );
        assert_eq!(copied.bytes, std::fs::metadata(&copy).unwrap().len());
        let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&copy).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        let (left, right, last) = pairs(&copy);
        assert!(
            left == right && last == left - 1,
            "half a command: {left} left, {right} right, up to {last}"
        );
        assert!(last >= before, "{before} was acknowledged before the copy began, which ends at {last}");
    }
    writer.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_database_is_another_one_with_the_same_secret() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy) = (folder.path().join("a.db"), folder.path().join("copy.db"));
    let database = open(&path);
    insert(&database, 0).await;
    let copied = backup::copy(&path, &copy).unwrap();
    let first = database.identity();
    insert(&database, 1).await;

    // While it is open it is not touched.
    let refused = restore(&path, &copy, &copied).unwrap_err();
    assert!(matches!(&refused, BackupError::Open(OpenError::InUse { .. })), "{refused}");
    assert!(refused.to_string().contains(&std::process::id().to_string()), "{refused}");
    drop(database);

    let (replaced, previous, id) = restore(&path, &copy, &copied).unwrap();
    let replaced = replaced.expect("there was a database");
    assert_eq!(pairs(&replaced), (2, 2, 1), "the one from before keeps what it had");
    let database = open(&path);
    let second = database.identity();
    assert_eq!((previous, id), (first.id, second.id));
    assert_ne!(second.id, first.id);
    assert_eq!(second.incarnation, first.incarnation + 2, "one for the restore, one for this opening");
    assert_eq!(second.secret, first.secret);
    drop(database);
    assert_eq!(pairs(&path), (1, 1, 0));

    // And again from a backup of the restored one: all who it was are remembered.
    let again = folder.path().join("again.db");
    let copied = backup::copy(&path, &again).unwrap();
    assert_eq!(copied.id, second.id);
    restore(&path, &again, &copied).unwrap();
    let connection = Connection::open(&path).unwrap();
    let mut before = connection
        .prepare("SELECT id, incarnation FROM modulith__identity_before ORDER BY incarnation")
        .unwrap();
    let before: Vec<([u8; 16], i64)> =
        before.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap().map(Result::unwrap).collect();
    assert_eq!(
        before,
        [(*first.id.as_bytes(), first.incarnation), (*second.id.as_bytes(), second.incarnation)]
    );
}

/// What a process leaves behind that was killed: transactions that are only in the log.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_of_the_database_from_before_stays_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy, copied) = copied(folder.path(), 1).await;
    let database = open(&path);
    for id in 1..40 {
        insert(&database, id).await;
    }
    let killed = folder.path().join("killed.db");
    for suffix in ["", "-wal"] {
        std::fs::copy(format!("{}{suffix}", path.display()), format!("{}{suffix}", killed.display()))
            .unwrap();
    }
    let (replaced, ..) = restore(&killed, &copy, &copied).unwrap();
    assert_eq!(pairs(&replaced.expect("there was a database")), (40, 40, 39));
    assert_eq!(pairs(&killed), (1, 1, 0), "nothing of the log got into the restored one");
}

/// What a reader still needs of the log cannot be folded into the database.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_waits_for_nobody_who_reads() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy, copied) = copied(folder.path(), 1).await;
    let database = open(&path);
    let reader = Connection::open(&path).unwrap();
    reader.execute_batch("BEGIN; SELECT count(*) FROM pair_left").unwrap();
    insert(&database, 1).await;
    drop(database);
    let refused = restore(&path, &copy, &copied).unwrap_err();
    assert!(matches!(&refused, BackupError::Read { .. }), "{refused}");
    drop(reader);
    assert_eq!(pairs(&path), (2, 2, 1), "it is as it was");
    restore(&path, &copy, &copied).unwrap();
    assert_eq!(pairs(&path), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_opened_is_set_aside_with_its_log() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy, copied) = copied(folder.path(), 3).await;
    for damaged in ["cut off", &"no database, but somebody's".repeat(1_000)] {
        std::fs::write(&path, damaged).unwrap();
        std::fs::write(folder.path().join("a.db-wal"), "its log").unwrap();
        let replaced = restore(&path, &copy, &copied).unwrap().0.expect("there was a file");
        assert_eq!(std::fs::read_to_string(&replaced).unwrap(), damaged);
        assert_eq!(std::fs::read_to_string(format!("{}-wal", replaced.display())).unwrap(), "its log");
        assert_eq!(pairs(&path), (3, 3, 2));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_database_comes_back_and_a_missing_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (path, copy, copied) = copied(folder.path(), 3).await;
    std::fs::remove_file(&path).unwrap();
    let missing = backup::copy(&path, &folder.path().join("other.db")).unwrap_err();
    assert_eq!(missing.to_string(), format!("{}: there is no such database", path.display()));
    let (replaced, ..) = restore(&path, &copy, &copied).unwrap();
    assert_eq!(replaced, None);
    assert_eq!(pairs(&path), (3, 3, 2));
    let missing = restore(&path, &folder.path().join("gone.db"), &copied).unwrap_err();
    assert!(missing.to_string().ends_with("gone.db: there is no such database"), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_not_what_was_written_is_refused() {
    type Damage = (&'static str, fn(&Path, &mut Copied), &'static str);
    let damages: [Damage; 6] = [
        ("a flipped byte", |copy, _| flip(copy), "it has"),
        (
            "a cut",
            |copy, _| {
                File::options().write(true).open(copy).unwrap().set_len(4096).unwrap();
            },
            "it has 4096 bytes",
        ),
        (
            "a row that its index does not have",
            |copy, copied| {
                let connection = Connection::open(copy).unwrap();
                connection
                    .execute_batch(
                        "CREATE TABLE t (x); CREATE INDEX i ON t (x); INSERT INTO t VALUES (1);
                         PRAGMA writable_schema = ON;
                         UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'pair_right')
                         WHERE name = 'i';",
                    )
                    .unwrap();
                drop(connection);
                note_anew(copy, copied);
            },
            "is damaged",
        ),
        (
            "another database's",
            |_, copied| copied.id = Uuid::nil(),
            "it is not of database 00000000-0000-0000-0000-000000000000",
        ),
        (
            "a newer version's",
            |copy, copied| {
                Connection::open(copy).unwrap().pragma_update(None, "user_version", 99).unwrap();
                note_anew(copy, copied);
            },
            "has format 99",
        ),
        (
            "another application's",
            |copy, copied| {
                Connection::open(copy).unwrap().pragma_update(None, "application_id", 7).unwrap();
                note_anew(copy, copied);
            },
            "is an SQLite file of another application",
        ),
    ];
    for (name, damage, said) in damages {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy, mut copied) = copied(folder.path(), 50).await;
        damage(&copy, &mut copied);
        let refused = restore(&path, &copy, &copied).expect_err(name).to_string();
        assert!(refused.contains(said) && refused.contains("copy.db"), "{name}: {refused}");
        assert_eq!(pairs(&path), (50, 50, 49), "{name}: the database is as it was");
        let left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!left.iter().any(|name| name.to_string_lossy().contains("restoring")), "{name}: {left:?}");
    }
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

fn note_anew(copy: &Path, copied: &mut Copied) {
    let bytes = std::fs::read(copy).unwrap();
    copied.bytes = bytes.len() as u64;
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    copied.sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
}
