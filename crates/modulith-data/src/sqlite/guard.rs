//! Ownership: SQLite's authorizer lets a module's statements reach the module's own tables and nothing else.
//!
//! The authorizer runs when a statement is prepared, so it is installed once and a cell tells it for whom; the
//! statement cache is keyed by module and text (see `statements`), or module B would run what was prepared for
//! module A. It answers "not authorized" without a reason, so the reason is kept here until it is asked for.

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

#[derive(Default)]
pub(super) struct Guard {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    acting: Acting,
    denied: Option<String>,
}

#[derive(Default, Clone)]
enum Acting {
    #[default]
    Framework,
    Module(Arc<str>),
    /// A module's migration may also create and change its own tables.
    Migration(Arc<str>),
}

impl Guard {
    pub(super) fn install(self: &Arc<Self>, connection: &mut rusqlite::Connection) -> rusqlite::Result<()> {
        let guard = self.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| guard.authorize(&context)))
    }

    pub(super) fn act_as(&self, module: Option<&Arc<str>>) {
        let mut state = self.state.lock();
        state.acting = match module {
            Some(module) => Acting::Module(module.clone()),
            None => Acting::Framework,
        };
    }

    pub(super) fn migrate_as(&self, module: Option<&Arc<str>>) {
        let mut state = self.state.lock();
        state.acting = match module {
            Some(module) => Acting::Migration(module.clone()),
            None => Acting::Framework,
        };
    }

    /// Why the last prepare was denied.
    pub(super) fn take_denied(&self) -> Option<String> {
        self.state.lock().denied.take()
    }

    fn authorize(&self, context: &AuthContext<'_>) -> Authorization {
        let mut state = self.state.lock();
        let (module, migrating) = match &state.acting {
            Acting::Framework => return Authorization::Allow,
            Acting::Module(module) => (module.clone(), false),
            Acting::Migration(module) => (module.clone(), true),
        };
        match verdict(&module, migrating, &context.action) {
            Ok(()) => Authorization::Allow,
            Err(reason) => {
                // SQLite may ask again while it unwinds; the first reason is the one to tell.
                state.denied.get_or_insert(reason);
                Authorization::Deny
            }
        }
    }
}

fn verdict(module: &str, migrating: bool, action: &AuthAction<'_>) -> Result<(), String> {
    use AuthAction as A;
    let own = |table: &str, verb: &str| own_table(module, table, verb);
    match action {
        A::Select | A::Recursive => Ok(()),
        A::Function { function_name } if !function_name.eq_ignore_ascii_case("load_extension") => Ok(()),
        A::Read { table_name, .. } if migrating && is_schema(table_name) => Ok(()),
        // How SQLite says CREATE, ALTER and DROP before it says which.
        A::Insert { table_name } | A::Update { table_name, .. } | A::Delete { table_name }
            if is_schema(table_name) =>
        {
            if migrating {
                Ok(())
            } else {
                Err(format!("module `{module}` may not use {DDL}"))
            }
        }
        A::Read { table_name, .. } => own(table_name, "read"),
        A::Insert { table_name } => own(table_name, "insert into"),
        A::Update { table_name, .. } => own(table_name, "update"),
        A::Delete { table_name } => own(table_name, "delete from"),
        A::CreateTable { table_name } if migrating => own(table_name, "create"),
        A::DropTable { table_name } if migrating => own(table_name, "drop"),
        A::AlterTable { table_name, .. } if migrating => own(table_name, "alter"),
        A::CreateIndex { table_name, .. } if migrating => own(table_name, "index"),
        A::DropIndex { table_name, .. } if migrating => own(table_name, "index"),
        A::Reindex { .. } if migrating => Ok(()),
        other => Err(format!("module `{module}` may not use {}", what(other))),
    }
}

fn own_table(module: &str, table: &str, verb: &str) -> Result<(), String> {
    let lower = table.to_ascii_lowercase();
    match lower.split_once('_') {
        Some((owner, rest)) if owner == module && !rest.starts_with('_') => Ok(()),
        Some((owner, rest)) if rest.starts_with('_') => Err(format!(
            "module `{module}` may not {verb} table `{table}`: it is the framework's, for `{owner}`"
        )),
        Some(("sqlite", _)) | None => Err(format!(
            "module `{module}` may not {verb} table `{table}`: a module's tables are called `{module}_…`"
        )),
        Some((owner, _)) => Err(format!(
            "module `{module}` may not {verb} table `{table}`: it belongs to module `{owner}`; call its contract"
        )),
    }
}

const DDL: &str = "CREATE, ALTER or DROP outside of a migration";

fn is_schema(table: &str) -> bool {
    table.eq_ignore_ascii_case("sqlite_master") || table.eq_ignore_ascii_case("sqlite_schema")
}

fn what(action: &AuthAction<'_>) -> &'static str {
    use AuthAction as A;
    match action {
        A::Transaction { .. } | A::Savepoint { .. } => "transaction control: a command is one transaction",
        A::Attach { .. } | A::Detach { .. } => "ATTACH",
        A::Pragma { .. } => "PRAGMA",
        A::CreateTempTable { .. }
        | A::CreateTempIndex { .. }
        | A::CreateTempView { .. }
        | A::CreateTempTrigger { .. } => "temporary tables",
        A::CreateTable { .. }
        | A::DropTable { .. }
        | A::AlterTable { .. }
        | A::CreateIndex { .. }
        | A::DropIndex { .. } => DDL,
        A::CreateTrigger { .. } | A::CreateView { .. } => "triggers and views",
        A::Function { .. } => "load_extension",
        _ => "this kind of statement",
    }
}
