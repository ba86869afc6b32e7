//! Read snapshots on the caller's own thread: one read-only connection per thread and database, no hand-over.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use modulith_core::{Columns, Fault, FaultKind, Statements, Value};
use rusqlite::{Connection, OpenFlags};

use super::error::{described, is_damage};
use super::guard::Guard;
use super::statements::{Prepared, Rights, configure};

struct Reader {
    prepared: Prepared,
    guard: Arc<Guard>,
}

thread_local! {
    /// By the database's number in this process. A thread reads few databases, so a list is enough.
    static READERS: RefCell<Vec<(u64, Rc<Reader>)>> = const { RefCell::new(Vec::new()) };
}

/// Runs a query over a snapshot, which opens at its first statement; with a module's rights, or with the
/// framework's.
pub(super) fn with_snapshot<T>(
    database: u64,
    path: &Path,
    module: Option<&Arc<str>>,
    read: impl FnOnce(&mut dyn Statements) -> T,
) -> T {
    read(&mut Lazy { database, path, module, is_transaction: true, open: None })
}

/// Runs a query of one statement with the framework's rights. Without a transaction around it a statement is its own
/// snapshot, and costs less; another one would see another state.
pub(super) fn with_statement<T>(
    database: u64,
    path: &Path,
    read: impl FnOnce(&mut dyn Statements) -> T,
) -> T {
    read(&mut Lazy { database, path, module: None, is_transaction: false, open: None })
}

/// This thread's reader of a database, which is opened when it is first asked for.
fn reader(database: u64, path: &Path) -> Result<Rc<Reader>, Fault> {
    READERS.with_borrow_mut(|readers| {
        if let Some((_, reader)) = readers.iter().find(|(number, _)| *number == database) {
            return Ok(reader.clone());
        }
        let reader = Rc::new(open(path).map_err(|error| {
            Fault::new(FaultKind::Statement, format!("cannot open {} for reading: {error}", path.display()))
        })?);
        readers.push((database, reader.clone()));
        Ok(reader)
    })
}

fn open(path: &Path) -> rusqlite::Result<Reader> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "query_only", true)?;
    configure(&connection)?;
    let guard = Arc::new(Guard::default());
    guard.install(&mut connection)?;
    Ok(Reader { prepared: Prepared::new(connection), guard })
}

/// Begins at the first statement and ends when it goes out of scope. A query that needs no statement costs nothing.
struct Lazy<'q> {
    database: u64,
    path: &'q Path,
    module: Option<&'q Arc<str>>,
    is_transaction: bool,
    open: Option<Rc<Reader>>,
}

impl Lazy<'_> {
    fn begin(&mut self) -> Result<&Reader, Fault> {
        let reader = match self.open.take() {
            Some(reader) => reader,
            None => {
                let reader = reader(self.database, self.path)?;
                if self.is_transaction {
                    control(reader.prepared.connection(), "BEGIN")?;
                }
                reader
            }
        };
        Ok(self.open.insert(reader))
    }
}

fn control(connection: &Connection, sql: &str) -> Result<(), Fault> {
    let run = || connection.prepare_cached(sql)?.execute([]);
    run().map(drop).map_err(|error| {
        let kind = if is_damage(&error) { FaultKind::Corrupt } else { FaultKind::Statement };
        Fault::new(kind, format!("{sql}: {}", described(connection, &error)))
    })
}

impl Statements for Lazy<'_> {
    fn execute(&mut self, _: &str, _: &[Value<'_>]) -> Result<u64, Fault> {
        Err(Fault::new(FaultKind::Denied, "a snapshot cannot write"))
    }

    fn query(
        &mut self,
        sql: &str,
        params: &[Value<'_>],
        each: &mut dyn FnMut(&dyn Columns) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let module = self.module;
        let reader = self.begin()?;
        let mut rights = Rights::new(&reader.prepared, &reader.guard);
        rights.act_as(module);
        rights.query(sql, params, each)
    }
}

impl Drop for Lazy<'_> {
    fn drop(&mut self) {
        if let Some(reader) = self.open.as_ref().filter(|_| self.is_transaction)
            && let Err(fault) = control(reader.prepared.connection(), "COMMIT")
        {
            tracing::error!("a read snapshot did not close: {fault}");
        }
    }
}
