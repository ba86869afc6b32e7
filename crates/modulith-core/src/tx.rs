//! A module's view of its database: a transaction for commands, a snapshot for queries.

use std::cell::{OnceCell, RefCell};

use crate::contract::AnyBox;
use crate::outcome::{Fault, FaultKind};
use crate::saga::Saga;
use crate::value::{FromRow, Params, Value};

/// What an engine (SQLite, PostgreSQL, a simulator) gives to [`Tx`] and [`Snapshot`]. Parameters are `$1`,
/// `$2`, …, resolved by name. A module's statement reaches its own tables only.
pub trait Statements {
    /// Runs a statement and returns the number of rows it changed.
    fn execute(&mut self, sql: &str, params: &[Value<'_>]) -> Result<u64, Fault>;
    /// Runs a statement and shows each row until `each` returns `false`.
    fn query(
        &mut self,
        sql: &str,
        params: &[Value<'_>],
        each: &mut dyn FnMut(&dyn Columns) -> Result<bool, Fault>,
    ) -> Result<(), Fault>;
}

/// One row while it is read.
pub trait Columns {
    /// The value of a column, counted from zero.
    fn value(&self, index: usize) -> Result<Value<'_>, Fault>;
}

/// A transaction on a module's own data.
///
/// It is sticky: after one statement has failed every later one fails with the same fault, and the command
/// fails even if its code swallowed the error, because PostgreSQL does the same. To handle a conflict, write
/// `ON CONFLICT DO NOTHING RETURNING …`.
///
/// A command may run more than once before its answer is stored, so it must do nothing but statements.
pub struct Tx<'a> {
    statements: &'a mut dyn Statements,
    now_ms: i64,
    fault: Option<Fault>,
    sagas: Vec<(&'static str, AnyBox)>,
}

/// Sagas that one command may begin: 16.
pub const SAGAS_PER_COMMAND_MAX: usize = 16;

impl<'a> Tx<'a> {
    /// For engines.
    pub fn new(statements: &'a mut dyn Statements, now_ms: i64) -> Self {
        Self { statements, now_ms, fault: None, sagas: Vec::new() }
    }

    /// The sagas that were begun, by the names of their plans. For engines.
    pub fn into_sagas(self) -> Vec<(&'static str, AnyBox)> {
        self.sagas
    }

    /// Begins a saga of the module in this transaction: it runs once the command has committed, and never if the
    /// command is refused or fails. Nobody waits for its answer.
    ///
    /// The module declares the saga as those that it starts through a client. A repeat of the command's key begins
    /// nothing more.
    ///
    /// # Errors
    ///
    /// More than [`SAGAS_PER_COMMAND_MAX`] in one command. A saga that the module did not declare, or for which
    /// there is no room, fails the command itself.
    pub fn start_saga<S: Saga>(&mut self, saga: S) -> Result<(), Fault> {
        if self.sagas.len() == SAGAS_PER_COMMAND_MAX {
            let message = format!("one command begins at most {SAGAS_PER_COMMAND_MAX} sagas");
            return self.stick(|_| Err(Fault::new(FaultKind::Limit, message)));
        }
        self.sagas.push((S::NAME, Box::new(saga)));
        Ok(())
    }

    /// The fault that ended this transaction, if one did. For engines.
    pub fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }

    /// Wall-clock time of the transaction in milliseconds since 1970 (UTC); the same for all of it.
    pub fn now_ms(&self) -> i64 {
        self.now_ms
    }

    /// Runs a statement and returns the number of rows it changed.
    pub fn execute(&mut self, sql: &str, params: impl Params) -> Result<u64, Fault> {
        self.stick(|statements| params.with(|values| statements.execute(sql, values)))
    }

    /// The first row, if there is one.
    pub fn row<R: FromRow>(&mut self, sql: &str, params: impl Params) -> Result<Option<R>, Fault> {
        self.stick(|statements| first_row(statements, sql, params))
    }

    /// All rows. The code bounds them (`LIMIT`): they are held in memory.
    pub fn rows<R: FromRow>(&mut self, sql: &str, params: impl Params) -> Result<Vec<R>, Fault> {
        self.stick(|statements| all_rows(statements, sql, params))
    }

    fn stick<T>(&mut self, run: impl FnOnce(&mut dyn Statements) -> Result<T, Fault>) -> Result<T, Fault> {
        if let Some(fault) = &self.fault {
            return Err(fault.clone());
        }
        run(self.statements).inspect_err(|fault| self.fault = Some(fault.clone()))
    }
}

/// A consistent view of a module's own data, opened at its first statement. It cannot write.
pub struct Snapshot<'a> {
    statements: RefCell<&'a mut dyn Statements>,
    now_ms: Time,
}

/// Most queries never ask for the time, and reading a clock costs more than the rest of a local call.
enum Time {
    Known(i64),
    Asked { clock: fn() -> i64, read: OnceCell<i64> },
}

impl<'a> Snapshot<'a> {
    /// For engines.
    pub fn new(statements: &'a mut dyn Statements, now_ms: i64) -> Self {
        Self { statements: RefCell::new(statements), now_ms: Time::Known(now_ms) }
    }

    /// The same with a clock that is read when it is asked. For engines.
    pub fn with_clock(statements: &'a mut dyn Statements, clock: fn() -> i64) -> Self {
        Self { statements: RefCell::new(statements), now_ms: Time::Asked { clock, read: OnceCell::new() } }
    }

    /// Wall-clock time in milliseconds since 1970 (UTC); the same for all of the query.
    pub fn now_ms(&self) -> i64 {
        match &self.now_ms {
            Time::Known(now_ms) => *now_ms,
            Time::Asked { clock, read } => *read.get_or_init(clock),
        }
    }

    /// The first row, if there is one.
    pub fn row<R: FromRow>(&self, sql: &str, params: impl Params) -> Result<Option<R>, Fault> {
        first_row(self.borrow()?.as_mut(), sql, params)
    }

    /// All rows. The code bounds them (`LIMIT`): they are held in memory.
    pub fn rows<R: FromRow>(&self, sql: &str, params: impl Params) -> Result<Vec<R>, Fault> {
        all_rows(self.borrow()?.as_mut(), sql, params)
    }

    fn borrow(&self) -> Result<Borrowed<'_, 'a>, Fault> {
        self.statements
            .try_borrow_mut()
            .map(Borrowed)
            .map_err(|_| Fault::new(FaultKind::Statement, "a statement runs while another one is read"))
    }
}

struct Borrowed<'b, 'a>(std::cell::RefMut<'b, &'a mut dyn Statements>);

impl<'a> Borrowed<'_, 'a> {
    fn as_mut(&mut self) -> &mut (dyn Statements + 'a) {
        &mut **self.0
    }
}

fn first_row<R: FromRow>(
    statements: &mut dyn Statements,
    sql: &str,
    params: impl Params,
) -> Result<Option<R>, Fault> {
    let mut found = None;
    params.with(|values| {
        statements.query(sql, values, &mut |row| {
            found = Some(R::from_row(row)?);
            Ok(false)
        })
    })?;
    Ok(found)
}

fn all_rows<R: FromRow>(
    statements: &mut dyn Statements,
    sql: &str,
    params: impl Params,
) -> Result<Vec<R>, Fault> {
    let mut found = Vec::new();
    params.with(|values| {
        statements.query(sql, values, &mut |row| {
            found.push(R::from_row(row)?);
            Ok(true)
        })
    })?;
    Ok(found)
}
