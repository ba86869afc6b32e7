//! Statements on one connection: cached per module and text, parameters by name.

use std::sync::Arc;

use modulith_core::{Columns, Fault, FaultKind, Protection, Statements, Value};
use rusqlite::config::DbConfig;
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode, Row};

use super::error::{described, is_damage};
use super::guard::Guard;

/// What holds for every connection, of the writer and of readers.
pub(super) fn configure(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    // Without it a statement whose plan may depend on a parameter's value is prepared again at each execution.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

/// Prepared statements kept per connection.
const STATEMENTS_KEPT: usize = 256;

/// A connection with the rights of the framework or of one module.
pub(super) struct Rights<'c> {
    pub(super) connection: &'c Connection,
    pub(super) guard: &'c Guard,
    pub(super) module: Option<Arc<str>>,
    migrating: bool,
    /// Where the cache key is put together: one allocation a connection instead of one a statement.
    text: String,
}

impl<'c> Rights<'c> {
    pub(super) fn new(connection: &'c Connection, guard: &'c Guard) -> Self {
        Self { connection, guard, module: None, migrating: false, text: String::new() }
    }

    /// From now on modules act with the rights of a migration.
    pub(super) fn migrating(mut self) -> Self {
        self.migrating = true;
        self
    }

    pub(super) fn act_as(&mut self, module: Option<&Arc<str>>) {
        self.module = module.cloned();
    }

    /// The statement's text begins with the module in a comment, which makes rusqlite's cache, keyed by text,
    /// one that is keyed by module and text.
    fn prepare(&mut self, sql: &str) -> Result<CachedStatement<'c>, Fault> {
        let prepared = match &self.module {
            None => self.connection.prepare_cached(sql),
            Some(module) => {
                self.text.clear();
                if Protection::StatementsPerModule.is_on() {
                    for part in ["/*", module, "*/"] {
                        self.text.push_str(part);
                    }
                }
                self.text.push_str(sql);
                if self.migrating {
                    self.guard.migrate_as(Some(module));
                } else {
                    self.guard.act_as(Some(module));
                }
                let prepared = self.connection.prepare_cached(&self.text);
                self.guard.act_as(None);
                prepared
            }
        };
        prepared.map_err(|error| match self.guard.take_denied() {
            Some(reason) => Fault::new(FaultKind::Denied, reason),
            None => self.fault(&error, sql),
        })
    }

    fn fault(&self, error: &rusqlite::Error, sql: &str) -> Fault {
        let kind = match error.sqlite_error_code() {
            _ if is_damage(error) => FaultKind::Corrupt,
            _ if self.connection.is_autocommit() && self.module.is_some() => FaultKind::Lost,
            Some(ErrorCode::ConstraintViolation) => FaultKind::Constraint,
            Some(ErrorCode::TypeMismatch) => FaultKind::Type,
            Some(ErrorCode::TooBig | ErrorCode::OutOfMemory) => FaultKind::Limit,
            _ => FaultKind::Statement,
        };
        let owner = self.module.as_deref().unwrap_or("the framework");
        let error = described(self.connection, error);
        Fault::new(kind, format!("statement of {owner}: {error}, in: {}", sql.trim()))
    }
}

/// Binds `$n` by name: SQLite numbers `$n` by first appearance, so `$2 … $1` would swap silently.
fn bind(statement: &mut CachedStatement<'_>, params: &[Value<'_>]) -> Result<(), Fault> {
    for index in 1..=statement.parameter_count() {
        let number = statement
            .parameter_name(index)
            .and_then(|name| name.strip_prefix('$'))
            .and_then(|number| number.parse::<usize>().ok());
        let Some(value) = number.and_then(|number| params.get(number.wrapping_sub(1))) else {
            let message = match number {
                Some(number) => format!("parameter ${number} has no value; {} were given", params.len()),
                None => "parameters are written $1, $2, …".to_owned(),
            };
            return Err(Fault::new(FaultKind::Statement, message));
        };
        statement
            .raw_bind_parameter(index, Bound(value))
            .map_err(|error| Fault::new(FaultKind::Statement, format!("parameter {index}: {error}")))?;
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
        let mut statement = self.prepare(sql)?;
        bind(&mut statement, params)?;
        // Not raw_execute, which refuses a statement that returns rows: RETURNING is welcome everywhere.
        let mut rows = statement.raw_query();
        loop {
            match rows.next() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => return Err(self.fault(&error, sql)),
            }
        }
        drop(rows);
        Ok(self.connection.changes())
    }

    fn query(
        &mut self,
        sql: &str,
        params: &[Value<'_>],
        each: &mut dyn FnMut(&dyn Columns) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let mut statement = self.prepare(sql)?;
        bind(&mut statement, params)?;
        let mut rows = statement.raw_query();
        let mut wanted = true;
        loop {
            match rows.next() {
                // A row that nobody wants is still stepped over: stopping an UPDATE … RETURNING early would
                // leave the rest of its rows unchanged.
                Ok(Some(row)) => {
                    if wanted {
                        wanted = each(&Shown(row))?;
                        if !wanted && statement_is_read_only(row) {
                            return Ok(());
                        }
                    }
                }
                Ok(None) => return Ok(()),
                Err(error) => return Err(self.fault(&error, sql)),
            }
        }
    }
}

fn statement_is_read_only(row: &Row<'_>) -> bool {
    AsRef::<rusqlite::Statement<'_>>::as_ref(row).readonly()
}
