//! Statements on one connection: cached per module and text, parameters by name.

use std::cell::RefCell;
use std::sync::Arc;

use hashbrown::HashMap;
use hashbrown::hash_map::EntryRef;
use modulith_core::{Columns, Fault, FaultKind, Protection, Statements, Value};
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, Row, Statement};

use super::error::{described, is_damage};
use super::guard::Guard;
use crate::recent::Recent;

/// What holds for every connection, of the writer and of readers.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    // Without it a statement whose plan may depend on a parameter's value is prepared again at each execution.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Prepared statements kept per connection and module: 256. One more, and all are prepared again.
const STATEMENTS_KEPT: usize = 256;

/// A connection with its prepared statements. Preparing one costs more than most of them run, so even finding it
/// again has to be cheap: one look-up by text in the module's own table, and its parameters' order is known.
pub(super) struct Prepared {
    /// Of each owner: a module, or the framework. Dropped before the connection, since it stands before it.
    kept: RefCell<Vec<(Owner, HashMap<String, Kept>)>>,
    pub(super) recent: RefCell<Recent>,
    connection: Box<Connection>,
}

type Owner = Option<Arc<str>>;

struct Kept {
    statement: Statement<'static>,
    /// For each of the statement's parameters, the place of its value: SQLite numbers `$n` by first appearance, so
    /// `$2 … $1` would swap silently.
    values: Vec<usize>,
}

impl Prepared {
    pub(super) fn new(connection: Connection) -> Self {
        Self { kept: RefCell::default(), recent: RefCell::default(), connection: Box::new(connection) }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// In a transaction that has begun: makes sure that what is known without reading still holds.
    pub(super) fn check_recent(&self) {
        let version = self.connection.prepare_cached("PRAGMA data_version");
        let version = version.and_then(|mut version| version.query_row([], |row| row.get(0)));
        self.recent.borrow_mut().as_of(version.ok());
    }

    /// Gives the connection back, without what was prepared on it.
    pub(super) fn into_connection(self) -> Connection {
        drop(self.kept);
        *self.connection
    }

    /// Prepares a statement that is not kept.
    fn prepare(&self, sql: &str) -> rusqlite::Result<Statement<'static>> {
        let statement = self.connection.prepare(sql)?;
        // SAFETY: the statement borrows the connection, which is boxed, never replaced, and dropped or given back only
        // after `kept` is dropped; no statement leaves this file.
        Ok(unsafe { std::mem::transmute::<Statement<'_>, Statement<'static>>(statement) })
    }
}

/// A connection with the rights of the framework or of one module.
pub(super) struct Rights<'c> {
    pub(super) prepared: &'c Prepared,
    pub(super) guard: &'c Guard,
    pub(super) module: Option<Arc<str>>,
    migrating: bool,
}

impl<'c> Rights<'c> {
    pub(super) fn new(prepared: &'c Prepared, guard: &'c Guard) -> Self {
        Self { prepared, guard, module: None, migrating: false }
    }

    pub(super) fn connection(&self) -> &'c Connection {
        &self.prepared.connection
    }

    /// From now on modules act with the rights of a migration.
    pub(super) fn migrating(mut self) -> Self {
        self.migrating = true;
        self
    }

    pub(super) fn act_as(&mut self, module: Option<&Arc<str>>) {
        self.module = module.cloned();
    }

    /// Runs `run` on the statement of this text with its values bound. The statement is one that was prepared with
    /// the rights of the module that runs it now: the authorizer is asked when a statement is prepared, and then no
    /// more.
    fn with_statement<T>(
        &self,
        sql: &str,
        params: &[Value<'_>],
        run: impl FnOnce(&mut Statement<'static>) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        if self.migrating {
            // Kept, it would be found by the module's commands, which have other rights.
            let mut once = self.prepare(sql)?;
            bind(&mut once, params)?;
            return run(&mut once.statement);
        }
        let mut kept = self.prepared.kept.borrow_mut();
        let owner = self.module.as_ref().filter(|_| Protection::StatementsPerModule.is_on());
        let at = kept.iter().position(|(other, _)| other.as_ref() == owner).unwrap_or_else(|| {
            kept.push((owner.cloned(), HashMap::default()));
            kept.len() - 1
        });
        let kept = &mut kept[at].1;
        if kept.len() > STATEMENTS_KEPT {
            kept.clear();
        }
        let found = match kept.entry_ref(sql) {
            EntryRef::Occupied(found) => found.into_mut(),
            EntryRef::Vacant(place) => place.insert(self.prepare(sql)?),
        };
        bind(found, params)?;
        let ran = run(&mut found.statement);
        // A large value is not held on to until the next use.
        found.statement.clear_bindings();
        ran
    }

    fn prepare(&self, sql: &str) -> Result<Kept, Fault> {
        if self.module.is_some() {
            match self.migrating {
                true => self.guard.migrate_as(self.module.as_ref()),
                false => self.guard.act_as(self.module.as_ref()),
            }
        }
        let prepared = self.prepared.prepare(sql);
        self.guard.act_as(None);
        let statement = prepared.map_err(|error| match self.guard.take_denied() {
            Some(reason) => Fault::new(FaultKind::Denied, reason),
            None => self.fault(&error, sql),
        })?;
        let numbers = (1..=statement.parameter_count()).map(|index| {
            let name = statement.parameter_name(index)?.strip_prefix('$')?;
            name.parse::<usize>().ok()?.checked_sub(1)
        });
        let values = numbers.collect::<Option<Vec<usize>>>();
        let values =
            values.ok_or_else(|| Fault::new(FaultKind::Statement, "parameters are written $1, $2, …"))?;
        Ok(Kept { statement, values })
    }

    fn fault(&self, error: &rusqlite::Error, sql: &str) -> Fault {
        let kind = match error.sqlite_error_code() {
            _ if is_damage(error) => FaultKind::Corrupt,
            _ if self.connection().is_autocommit() && self.module.is_some() => FaultKind::Lost,
            Some(ErrorCode::ConstraintViolation) => FaultKind::Constraint,
            Some(ErrorCode::TypeMismatch) => FaultKind::Type,
            Some(ErrorCode::TooBig | ErrorCode::OutOfMemory) => FaultKind::Limit,
            _ => FaultKind::Statement,
        };
        let owner = self.module.as_deref().unwrap_or("the framework");
        let error = described(self.connection(), error);
        Fault::new(kind, format!("statement of {owner}: {error}, in: {}", sql.trim()))
    }
}

fn bind(kept: &mut Kept, params: &[Value<'_>]) -> Result<(), Fault> {
    for (index, place) in kept.values.iter().enumerate() {
        let Some(value) = params.get(*place) else {
            let message = format!("parameter ${} has no value; {} were given", place + 1, params.len());
            return Err(Fault::new(FaultKind::Statement, message));
        };
        kept.statement
            .raw_bind_parameter(index + 1, Bound(value))
            .map_err(|error| Fault::new(FaultKind::Statement, format!("parameter {}: {error}", index + 1)))?;
    }
    Ok(())
}

struct Bound<'a>(&'a Value<'a>);

impl rusqlite::ToSql for Bound<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match *self.0 {
            Value::Null => ValueRef::Null,
            Value::Integer(number) => ValueRef::Integer(number),
            Value::Boolean(flag) => ValueRef::Integer(i64::from(flag)),
            Value::Text(text) => ValueRef::Text(text.as_bytes()),
            Value::Bytes(bytes) => ValueRef::Blob(bytes),
        }))
    }
}

struct Shown<'a, 'r>(&'a Row<'r>);

impl Columns for Shown<'_, '_> {
    fn value(&self, index: usize) -> Result<Value<'_>, Fault> {
        let value = self
            .0
            .get_ref(index)
            .map_err(|_| Fault::new(FaultKind::Type, format!("the row has no column {}", index + 1)))?;
        match value {
            ValueRef::Null => Ok(Value::Null),
            ValueRef::Integer(number) => Ok(Value::Integer(number)),
            ValueRef::Text(text) => std::str::from_utf8(text)
                .map(Value::Text)
                .map_err(|_| Fault::new(FaultKind::Type, format!("column {} is no UTF-8", index + 1))),
            ValueRef::Blob(bytes) => Ok(Value::Bytes(bytes)),
            ValueRef::Real(_) => {
                Err(Fault::new(FaultKind::Type, format!("column {} is a floating-point number", index + 1)))
            }
        }
    }
}

impl Statements for Rights<'_> {
    fn execute(&mut self, sql: &str, params: &[Value<'_>]) -> Result<u64, Fault> {
        self.with_statement(sql, params, |statement| {
            // Not raw_execute, which refuses a statement that returns rows: RETURNING is welcome everywhere.
            let mut rows = statement.raw_query();
            while rows.next().map_err(|error| self.fault(&error, sql))?.is_some() {}
            drop(rows);
            Ok(self.connection().changes())
        })
    }

    fn query(
        &mut self,
        sql: &str,
        params: &[Value<'_>],
        each: &mut dyn FnMut(&dyn Columns) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        self.with_statement(sql, params, |statement| {
            let mut rows = statement.raw_query();
            let mut wanted = true;
            while let Some(row) = rows.next().map_err(|error| self.fault(&error, sql))? {
                // A row that nobody wants is still stepped over: stopping an UPDATE … RETURNING early would leave
                // the rest of its rows unchanged.
                if wanted {
                    wanted = each(&Shown(row))?;
                    if !wanted && statement_is_read_only(row) {
                        break;
                    }
                }
            }
            Ok(())
        })
    }
}

fn statement_is_read_only(row: &Row<'_>) -> bool {
    AsRef::<rusqlite::Statement<'_>>::as_ref(row).readonly()
}
