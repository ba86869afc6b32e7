//! One piece of work within a batch: its session, how it is taken back, and who waits to hear whether it stands.

use std::cell::RefMut;
use std::sync::Arc;

use modulith_core::{
    CallFault, Columns, Fault, FaultKind, NotRun, NotRunReason, Protection, Statements, Value,
};
use rusqlite::{Connection, ffi};

use super::guard::Guard;
use super::statements::{Prepared, Rights};
use crate::clock::now_ms;
use crate::panic::caught;
use crate::recent::Recent;
use crate::session::Session;

/// What became of one piece of work within its batch.
pub(super) enum Ran {
    Ok(Hooks),
    Failed(CallFault),
    /// It has to be taken back, and cannot be without its neighbours.
    Again,
}

/// What waits to hear whether a piece of work stands. Dropped, it hears that it does not.
#[derive(Default)]
pub(super) struct Hooks(Vec<Box<dyn FnOnce(bool) + Send>>);

impl Hooks {
    pub(super) fn end(&mut self, committed: bool) {
        for hook in self.0.drain(..) {
            hook(committed);
        }
    }
}

impl Hooks {
    /// Nobody knows whether the work stands, so nobody is told.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Runs one piece of work so that it stands whole or not at all, and its neighbours stay as they are.
pub(super) fn run_work(
    session: &mut WriteSession<'_>,
    run: impl FnOnce(&mut dyn Session) -> Result<(), Fault>,
) -> Ran {
    let connection = session.rights.connection();
    let alone = session.taken_back == TakenBack::Alone;
    if alone && let Err(error) = control(connection, "SAVEPOINT work") {
        return not_run(NotRun::new(NotRunReason::Fault, format!("savepoint: {error}")));
    }
    session.rights.act_as(None);
    let result = caught(|| run(session));
    session.rights.act_as(None);
    let hooks = std::mem::take(&mut session.hooks);
    if connection.is_autocommit() {
        return match result {
            // That the transaction is gone is the lesser news.
            Err(fault) if fault.kind != FaultKind::Panicked => not_run(fault.into()),
            _ => Ran::Ok(Hooks::default()),
        };
    }
    let result = match result {
        Ok(()) if Protection::DeferredKeys.is_on() && deferred_keys_pending(connection) => Err(Fault::new(
            FaultKind::Constraint,
            "a deferred foreign key is not satisfied at the end of the command",
        )),
        result => result,
    };
    if !alone {
        return result.map_or(Ran::Again, |()| Ran::Ok(hooks));
    }
    let end = match &result {
        Ok(()) => control(connection, "RELEASE work"),
        Err(_) => session.rollback_savepoint().and_then(|()| control(connection, "RELEASE work")),
    };
    session.took_back |= result.is_err();
    let met_damage = matches!(&result, Err(fault) if fault.kind == FaultKind::Corrupt);
    if end.is_err() || met_damage {
        // What it wrote may still be in the transaction, and one that met damage does not commit: the whole is
        // taken back, and the neighbours run again without it. An error here leaves it to the commit to fail.
        let _ = control(connection, "ROLLBACK");
    }
    match (result, end) {
        (Ok(()), Ok(())) => Ran::Ok(hooks),
        (Err(fault), _) => not_run(fault.into()),
        (Ok(()), Err(error)) => not_run(NotRun::new(NotRunReason::Fault, format!("savepoint: {error}"))),
    }
}

pub(super) fn not_run(not_run: NotRun) -> Ran {
    Ran::Failed(CallFault::NotRun(not_run))
}

/// A deferred foreign key would fail the COMMIT, and with it every neighbour in the batch.
fn deferred_keys_pending(connection: &Connection) -> bool {
    let (mut current, mut highest) = (0, 0);
    // SAFETY: the handle is that of a live connection, used on its own thread, and both pointers are valid.
    let code = unsafe {
        ffi::sqlite3_db_status(
            connection.handle(),
            ffi::SQLITE_DBSTATUS_DEFERRED_FKS,
            &mut current,
            &mut highest,
            0,
        )
    };
    code == ffi::SQLITE_OK && current != 0
}

pub(super) fn control(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute([]).map(drop)
}

pub(super) struct WriteSession<'c> {
    rights: Rights<'c>,
    pub(super) now_ms: i64,
    /// Of the piece of work that runs.
    hooks: Hooks,
    taken_back: TakenBack,
    took_back: bool,
}

/// How a piece of work can be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TakenBack {
    /// By a savepoint of its own.
    Alone,
    /// Not without its neighbours: it is then run again, with a savepoint.
    WithBatch,
}

impl<'c> WriteSession<'c> {
    pub(super) fn new(rights: Rights<'c>, taken_back: TakenBack) -> Self {
        Self { rights, now_ms: now_ms(), hooks: Hooks::default(), taken_back, took_back: false }
    }

    /// Whether a piece of work, or a part of one, was taken back by its savepoint.
    pub(super) fn took_back(&self) -> bool {
        self.took_back
    }

    fn rollback_savepoint(&mut self) -> rusqlite::Result<()> {
        control(self.rights.connection(), "ROLLBACK TO work")
    }
}

impl Statements for WriteSession<'_> {
    fn execute(&mut self, sql: &str, params: &[Value<'_>]) -> Result<u64, Fault> {
        self.rights.execute(sql, params)
    }
    fn query(
        &mut self,
        sql: &str,
        params: &[Value<'_>],
        each: &mut dyn FnMut(&dyn Columns) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        self.rights.query(sql, params, each)
    }
}

impl Session for WriteSession<'_> {
    fn act_as(&mut self, module: Option<&Arc<str>>) {
        self.rights.act_as(module);
    }
    fn rollback(&mut self) -> Result<(), Fault> {
        self.hooks.end(false);
        if self.taken_back == TakenBack::WithBatch {
            return Err(Fault::new(FaultKind::Lost, "it is run again with a savepoint"));
        }
        self.took_back = true;
        self.rollback_savepoint().map_err(|error| Fault::new(FaultKind::Lost, format!("rollback: {error}")))
    }
    fn now_ms(&self) -> i64 {
        self.now_ms
    }
    fn statements(&mut self) -> &mut dyn Statements {
        self
    }
    fn recent(&mut self) -> RefMut<'_, Recent> {
        self.rights.prepared.recent.borrow_mut()
    }
    fn on_end(&mut self, hook: Box<dyn FnOnce(bool) + Send>) {
        self.hooks.0.push(hook);
    }
}

/// A session outside of the queue, for opening a database: migrations run in it.
pub(super) fn with_setup_session<T, E>(
    prepared: &Prepared,
    guard: &Guard,
    setup: impl FnOnce(&mut dyn Session) -> Result<T, E>,
    failed: impl Fn(rusqlite::Error) -> E,
) -> Result<T, E> {
    let connection = prepared.connection();
    control(connection, "BEGIN IMMEDIATE").map_err(&failed)?;
    control(connection, "SAVEPOINT work").map_err(&failed)?;
    let mut session = WriteSession::new(Rights::new(prepared, guard).migrating(), TakenBack::Alone);
    match setup(&mut session) {
        Ok(done) => {
            control(connection, "RELEASE work").map_err(&failed)?;
            control(connection, "COMMIT").map_err(&failed)?;
            Ok(done)
        }
        Err(error) => {
            // Closing the connection would roll back as well; this one's error is the lesser news.
            let _ = control(connection, "ROLLBACK");
            Err(error)
        }
    }
}
