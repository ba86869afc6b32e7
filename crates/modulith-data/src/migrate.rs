//! Migrations: written once in portable types, applied per module, remembered with their checksum.

use modulith_core::{Fault, Params, Snapshot};

use crate::session::Session;

/// One step of a module's tables.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// Stored: `0001_orders`.
    pub name: &'static str,
    /// Statements separated by `;` at the end of a line, in portable types: `bigint`, `text`, `bytea`,
    /// `boolean`; times are `bigint` milliseconds.
    pub sql: &'static str,
}

/// Why a module's tables cannot be brought up to date.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error(
        "migration `{name}` of module `{module}` was changed after it was applied; write a new migration instead"
    )]
    Changed { module: String, name: String },
    #[error(
        "the database has migration `{name}` of module `{module}`, which this build does not know; \
         it was written by a newer version, so start that one"
    )]
    Newer { module: String, name: String },
    #[error("migration `{name}` of module `{module}`: {fault}")]
    Failed { module: String, name: String, fault: Fault },
    #[error("migrations of module `{module}`: {fault}")]
    Table { module: String, fault: Fault },
}

/// The framework's own tables of a module.
fn framework_tables(module: &str) -> [String; 5] {
    [
        format!(
            "CREATE TABLE IF NOT EXISTS {module}__inbox (
                src bytea NOT NULL, seq bigint NOT NULL, step bigint NOT NULL, dir bigint NOT NULL,
                origin bigint NOT NULL, method text NOT NULL, body_hash bytea NOT NULL, state bigint NOT NULL,
                request bytea, answer bytea, attempts bigint NOT NULL, first_at bigint NOT NULL, expires_at bigint,
                PRIMARY KEY (src, seq, step, dir, origin))"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {module}__saga (
                src bytea NOT NULL, seq bigint NOT NULL, client_hash bytea UNIQUE, body_hash bytea,
                plan text NOT NULL, version bigint NOT NULL, fingerprint bigint NOT NULL, input bytea NOT NULL,
                state bigint NOT NULL, frontier bigint, attention text, attempts bigint NOT NULL,
                answer bytea, begun bigint NOT NULL, ended bigint, PRIMARY KEY (src, seq))"
        ),
        format!(
            "CREATE TABLE IF NOT EXISTS {module}__low_water (
                src bytea PRIMARY KEY, below bigint NOT NULL, open bytea NOT NULL)"
        ),
        format!("CREATE INDEX IF NOT EXISTS {module}__inbox_expiry ON {module}__inbox (expires_at) WHERE expires_at IS NOT NULL"),
        format!("CREATE INDEX IF NOT EXISTS {module}__saga_open ON {module}__saga (state) WHERE state < 2"),
    ]
}

/// Maps portable DDL to SQLite's: its integer affinity; STRICT, without which text goes into an integer column;
/// and WITHOUT ROWID where the primary key is not a single integer, which makes the key the table's one tree
/// instead of an index beside it.
pub(crate) fn sqlite_dialect(statement: &str) -> String {
    let mut mapped = String::with_capacity(statement.len() + 8);
    let mut quoted = false;
    let mut word = String::new();
    let flush = |word: &mut String, mapped: &mut String| {
        match word.to_ascii_lowercase().as_str() {
            "bigint" | "boolean" => mapped.push_str("INTEGER"),
            "bytea" => mapped.push_str("BLOB"),
            _ => mapped.push_str(word),
        }
        word.clear();
    };
    for character in statement.chars() {
        if character == '\'' {
            quoted = !quoted;
        }
        if !quoted && (character.is_ascii_alphanumeric() || character == '_') {
            word.push(character);
        } else {
            flush(&mut word, &mut mapped);
            mapped.push(character);
        }
    }
    flush(&mut word, &mut mapped);
    let head = mapped.trim_start().to_ascii_lowercase();
    if head.starts_with("create table") && !head.trim_end().ends_with("strict") {
        mapped.push_str(" STRICT");
        if head.contains("primary key") && !head.contains("integer primary key") {
            mapped.push_str(", WITHOUT ROWID");
        }
    }
    mapped
}

/// The statements of a migration: separated by `;` at the end of a line, comments left out.
fn statements(sql: &str) -> impl Iterator<Item = String> {
    let without_comments: String = sql
        .lines()
        .filter(|line| !line.trim_start().starts_with("--"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let parts: Vec<String> = without_comments
        .split(";\n")
        .map(|part| part.trim().trim_end_matches(';').trim().to_owned())
        .collect();
    parts.into_iter().filter(|part| !part.is_empty())
}

/// Brings one module's tables up to date, inside one transaction. `as_module` switches the session's rights.
pub(crate) fn apply(
    session: &mut dyn Session,
    module: &std::sync::Arc<str>,
    migrations: &[Migration],
    checksum: impl Fn(&str) -> Vec<u8>,
) -> Result<(), MigrationError> {
    let table = |fault| MigrationError::Table { module: module.to_string(), fault };
    for statement in framework_tables(module) {
        session.execute(&sqlite_dialect(&statement), &[]).map_err(table)?;
    }
    let now_ms = session.now_ms();
    let applied: Vec<(String, Vec<u8>)> = Snapshot::new(session.statements(), now_ms)
        .rows(
            "SELECT name, checksum FROM modulith__migration WHERE module = $1 ORDER BY position",
            (&**module,),
        )
        .map_err(table)?;
    if let Some((name, _)) = applied.get(migrations.len()) {
        return Err(MigrationError::Newer { module: module.to_string(), name: name.clone() });
    }
    for (position, migration) in migrations.iter().enumerate() {
        let sum = checksum(migration.sql);
        if let Some((name, found)) = applied.get(position) {
            if *found != sum || name != migration.name {
                return Err(MigrationError::Changed { module: module.to_string(), name: name.clone() });
            }
            continue;
        }
        session.act_as(Some(module));
        for statement in statements(migration.sql) {
            session.execute(&sqlite_dialect(&statement), &[]).map_err(|fault| MigrationError::Failed {
                module: module.to_string(),
                name: migration.name.to_owned(),
                fault,
            })?;
        }
        session.act_as(None);
        let row = (&**module, position as i64, migration.name, &sum[..], now_ms);
        row_insert(session, row).map_err(table)?;
    }
    Ok(())
}

fn row_insert(session: &mut dyn Session, row: (&str, i64, &str, &[u8], i64)) -> Result<u64, Fault> {
    row.with(|values| {
        session.execute(
            "INSERT INTO modulith__migration (module, position, name, checksum, applied_at) VALUES ($1, $2, $3, $4, $5)",
            values,
        )
    })
}

/// Lists migrations by file, oldest first: `migrations!["../migrations/0001_orders.sql"]`. Paths are relative
/// to the source file; a migration's stored name is its file's name without `.sql`.
#[macro_export]
macro_rules! migrations {
    ($($path:literal),+ $(,)?) => {{
        const MIGRATIONS: &[$crate::Migration] =
            &[$($crate::Migration { name: $crate::file_stem($path), sql: include_str!($path) }),+];
        MIGRATIONS
    }};
}

/// `../migrations/0001_orders.sql` → `0001_orders`. For [`migrations!`](crate::migrations).
#[doc(hidden)]
pub const fn file_stem(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let (mut start, mut end, mut at) = (0, bytes.len(), 0);
    while at < bytes.len() {
        if bytes[at] == b'/' {
            start = at + 1;
        }
        at += 1;
    }
    at = start;
    while at < bytes.len() {
        if bytes[at] == b'.' {
            end = at;
        }
        at += 1;
    }
    path.split_at(end).0.split_at(start).1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn portable_types_become_sqlites_and_quoted_text_stays() {
        let sql = "CREATE TABLE a_b (n bigint, f boolean DEFAULT 0, t text DEFAULT 'a bigint; x', b bytea)";
        assert_eq!(
            sqlite_dialect(sql),
            "CREATE TABLE a_b (n INTEGER, f INTEGER DEFAULT 0, t text DEFAULT 'a bigint; x', b BLOB) STRICT"
        );
    }

    #[test]
    fn a_key_of_other_types_is_the_table() {
        assert!(sqlite_dialect("CREATE TABLE a_b (t text PRIMARY KEY)").ends_with("STRICT, WITHOUT ROWID"));
        assert!(sqlite_dialect("CREATE TABLE a_b (n bigint PRIMARY KEY)").ends_with("STRICT"));
    }

    #[test]
    fn statements_end_at_line_ends() {
        let parts: Vec<_> =
            statements("-- a comment;\nCREATE TABLE a (x text);\nINSERT INTO a VALUES ('p; q');\n").collect();
        assert_eq!(parts, ["CREATE TABLE a (x text)", "INSERT INTO a VALUES ('p; q')"]);
    }
}
