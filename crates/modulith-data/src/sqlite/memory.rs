//! A database in memory, driven on the caller's thread one piece of work at a time: for simulators.
//!
//! Sessions, rights, savepoints and statements are those of a file. What differs is that the caller decides when
//! work is committed, or that it never is, and what time it is.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;

use modulith_core::{CallFault, Fault, NotRun, Snapshot};
use rusqlite::Connection;

use super::error::OpenError;
use super::file::{Identity, set_up};
use super::guard::Guard;
use super::statements::{Prepared, Rights, configure};
use super::work::{Hooks, Ran, TakenBack, WriteSession, control, run_work, with_setup_session};
use crate::migrate::Migration;
use crate::session::Session;

/// See the module's documentation.
pub struct InMemory {
    prepared: Prepared,
    guard: Arc<Guard>,
    identity: Cell<Identity>,
    tables: Vec<Table>,
    has_foreign_keys: bool,
    /// Something was committed since it was made or cleared.
    is_touched: Cell<bool>,
}

/// Prepared statements of [`InMemory::clear`], at most.
const STATEMENTS_KEPT: usize = 512;

struct Table {
    name: String,
    /// Migrations left rows in it.
    is_seeded: bool,
}

/// Work that has run and is not committed. Dropped, it never was.
#[must_use = "work that is not committed is taken back"]
pub struct Pending<'d, T> {
    database: &'d InMemory,
    hooks: Hooks,
    done: Option<T>,
}

impl InMemory {
    /// An empty database with the tables of `modules`.
    ///
    /// # Errors
    ///
    /// A migration that cannot be applied.
    pub fn open(modules: &[(Arc<str>, &'static [Migration])]) -> Result<Self, OpenError> {
        let path = Path::new(":memory:");
        let sqlite = |error| OpenError::of(path, error);
        let mut connection = Connection::open_in_memory().map_err(sqlite)?;
        configure(&connection).map_err(sqlite)?;
        connection.pragma_update(None, "foreign_keys", "ON").map_err(sqlite)?;
        // Clearing runs a statement or two for each table, before every schedule.
        connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
        let guard = Arc::new(Guard::default());
        guard.install(&mut connection).map_err(sqlite)?;
        let prepared = Prepared::new(connection);
        let identity =
            with_setup_session(&prepared, &guard, |session| set_up(path, session, modules), sqlite)?;
        let mut database = Self {
            prepared,
            guard,
            identity: Cell::new(identity),
            tables: Vec::new(),
            has_foreign_keys: false,
            is_touched: Cell::new(false),
        };
        database.remember_seeds().map_err(sqlite)?;
        Ok(database)
    }

    fn remember_seeds(&mut self) -> rusqlite::Result<()> {
        let names: Vec<String> = self
            .prepared
            .connection()
            .prepare("SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'modulith\\_\\_%' ESCAPE '\\'")?
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        self.prepared.connection().execute_batch("ATTACH ':memory:' AS seed")?;
        for name in names {
            let rows: i64 = self.prepared.connection().query_row(
                &format!("SELECT count(*) FROM main.{name}"),
                [],
                |row| row.get(0),
            )?;
            if rows > 0 {
                self.prepared
                    .connection()
                    .execute_batch(&format!("CREATE TABLE seed.{name} AS SELECT * FROM main.{name}"))?;
            }
            let keys: i64 = self.prepared.connection().query_row(
                &format!("SELECT count(*) FROM pragma_foreign_key_list('{name}')"),
                [],
                |row| row.get(0),
            )?;
            self.has_foreign_keys |= keys > 0;
            self.tables.push(Table { name, is_seeded: rows > 0 });
        }
        Ok(())
    }

    /// Who it is; its incarnation counts the processes that owned it.
    pub fn identity(&self) -> Identity {
        self.identity.get()
    }

    /// What a new process would do to it first: a new incarnation. Returns who it is from now on.
    ///
    /// # Errors
    ///
    /// SQLite's.
    pub fn reopen(&self) -> rusqlite::Result<Identity> {
        self.set_incarnation("UPDATE modulith__identity SET incarnation = incarnation + 1", |last| last + 1)
    }

    fn set_incarnation(&self, sql: &str, set: impl FnOnce(i64) -> i64) -> rusqlite::Result<Identity> {
        self.is_touched.set(true);
        self.prepared.recent.borrow_mut().forget();
        control(self.prepared.connection(), sql)?;
        let identity = self.identity.get();
        let identity = Identity { incarnation: set(identity.incarnation), ..identity };
        self.identity.set(identity);
        Ok(identity)
    }

    /// Runs work up to, and without, its commit.
    ///
    /// # Errors
    ///
    /// *Not run*: a fault or a panic; everything is taken back.
    pub fn run<T>(
        &self,
        now_ms: i64,
        work: impl FnOnce(&mut dyn Session) -> Result<T, Fault>,
    ) -> Result<Pending<'_, T>, CallFault> {
        let lost = |error: rusqlite::Error| {
            CallFault::from(NotRun::new(modulith_core::NotRunReason::Fault, error.to_string()))
        };
        control(self.prepared.connection(), "BEGIN IMMEDIATE").map_err(lost)?;
        let mut session = WriteSession::new(Rights::new(&self.prepared, &self.guard), TakenBack::Alone);
        session.now_ms = now_ms;
        let mut done = None;
        let ran = run_work(&mut session, |session| {
            done = Some(work(session)?);
            Ok(())
        });
        match ran {
            Ran::Ok(hooks) => Ok(Pending { database: self, hooks, done }),
            Ran::Again => unreachable!("it can be taken back alone"),
            Ran::Failed(fault) => {
                control(self.prepared.connection(), "ROLLBACK").map_err(lost)?;
                Err(fault)
            }
        }
    }

    /// Reads with the rights of `module`, or with the framework's.
    pub fn read<T>(
        &self,
        module: Option<&Arc<str>>,
        now_ms: i64,
        query: impl FnOnce(&Snapshot<'_>) -> T,
    ) -> T {
        let mut rights = Rights::new(&self.prepared, &self.guard);
        rights.act_as(module);
        query(&Snapshot::new(&mut rights, now_ms))
    }

    /// Makes every table as it was after opening.
    ///
    /// # Errors
    ///
    /// SQLite's.
    pub fn clear(&self) -> rusqlite::Result<()> {
        if !self.is_touched.get() {
            return Ok(());
        }
        // Numbers begin anew too, so that a schedule that is played again says the same words.
        self.set_incarnation("UPDATE modulith__identity SET incarnation = 1", |_| 1)?;
        self.is_touched.set(false);
        control(self.prepared.connection(), "BEGIN IMMEDIATE")?;
        self.defer_foreign_keys()?;
        for Table { name, is_seeded } in &self.tables {
            control(self.prepared.connection(), &format!("DELETE FROM main.{name}"))?;
            if *is_seeded {
                control(
                    self.prepared.connection(),
                    &format!("INSERT INTO main.{name} SELECT * FROM seed.{name}"),
                )?;
            }
        }
        control(self.prepared.connection(), "COMMIT")
    }

    /// Tables are filled and emptied in any order. The statement expires every prepared one, so it is left out where
    /// it changes nothing.
    fn defer_foreign_keys(&self) -> rusqlite::Result<()> {
        if self.has_foreign_keys {
            control(self.prepared.connection(), "PRAGMA defer_foreign_keys = ON")?;
        }
        Ok(())
    }

    /// Takes over all rows of a module from another database, as moving the module would.
    ///
    /// # Errors
    ///
    /// SQLite's.
    pub fn take_module(&self, from: &InMemory, module: &str) -> rusqlite::Result<()> {
        self.is_touched.set(true);
        let prefix = format!("{module}_");
        control(self.prepared.connection(), "BEGIN IMMEDIATE")?;
        self.defer_foreign_keys()?;
        for Table { name, .. } in self.tables.iter().filter(|table| table.name.starts_with(&prefix)) {
            control(self.prepared.connection(), &format!("DELETE FROM main.{name}"))?;
            let mut select =
                from.prepared.connection().prepare_cached(&format!("SELECT * FROM main.{name}"))?;
            let columns = select.column_count();
            let places = (1..=columns).map(|n| format!("?{n}")).collect::<Vec<_>>().join(", ");
            let mut insert = self
                .prepared
                .connection()
                .prepare_cached(&format!("INSERT INTO main.{name} VALUES ({places})"))?;
            let mut rows = select.query([])?;
            while let Some(row) = rows.next()? {
                let values: Vec<rusqlite::types::Value> =
                    (0..columns).map(|column| row.get(column)).collect::<Result<_, _>>()?;
                insert.execute(rusqlite::params_from_iter(values))?;
            }
        }
        control(self.prepared.connection(), "COMMIT")
    }
}

impl<T> Pending<'_, T> {
    /// Makes it durable, and tells those who wait for that.
    ///
    /// # Errors
    ///
    /// *Not run*: a constraint that is checked at the commit.
    pub fn commit(mut self) -> Result<T, CallFault> {
        let done = self.done.take().expect("it is taken once, here");
        match control(self.database.prepared.connection(), "COMMIT") {
            Ok(()) => {
                self.database.is_touched.set(true);
                self.hooks.end(true);
                Ok(done)
            }
            Err(error) => {
                self.done = Some(done);
                Err(NotRun::new(modulith_core::NotRunReason::Fault, error.to_string()).into())
            }
        }
    }
}

impl<T> Drop for Pending<'_, T> {
    fn drop(&mut self) {
        if self.done.is_some() {
            self.hooks.end(false);
            control(self.database.prepared.connection(), "ROLLBACK")
                .expect("a transaction in memory rolls back");
        }
    }
}
