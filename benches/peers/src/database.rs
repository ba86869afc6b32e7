//! Opens SQLite the way its users are advised to: WAL, `synchronous=FULL`, `BEGIN IMMEDIATE`, and
//! writers that queue in the pool instead of sleeping in the busy handler.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::Args;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{ConnectOptions, Sqlite, SqlitePool, Transaction};

/// Connections per database. No others that were tried were faster.
#[derive(Args, Clone, Debug)]
pub struct PoolSizes {
    /// Connections that only read.
    #[arg(long, default_value_t = 2)]
    pub readers: u32,
    /// Connections that write. SQLite has one writer at a time, so more of them only contend.
    #[arg(long, default_value_t = 1)]
    pub writers: u32,
}

/// One database file with its pools.
#[derive(Clone, Debug)]
pub struct Database {
    /// For statements that change nothing.
    pub read: SqlitePool,
    /// For single statements that write; several go through [`Database::begin`].
    pub write: SqlitePool,
}

impl Database {
    /// Opens or creates `file` and applies `schema`, which must be repeatable.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened or the schema is refused.
    pub async fn open(file: &Path, schema: &'static str, sizes: &PoolSizes) -> anyhow::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(file)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .disable_statement_logging();
        // A file does not hang up, so a ping before every use would only cost a thread hop.
        let pool = |connections: u32| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .test_before_acquire(false)
        };
        let write = pool(sizes.writers).connect_with(options.clone()).await;
        let write = write.with_context(|| format!("opening {}", file.display()))?;
        sqlx::raw_sql(schema)
            .execute(&write)
            .await
            .context("applying the schema")?;
        let read = pool(sizes.readers).connect_with(options.read_only(true)).await?;
        Ok(Self { read, write })
    }

    /// Begins a transaction that has the write lock from its first statement, so that it never has to
    /// be repeated because a read grew into a write.
    ///
    /// # Errors
    ///
    /// When the lock is not had in time.
    pub async fn begin(&self) -> sqlx::Result<Transaction<'static, Sqlite>> {
        self.write.begin_with("BEGIN IMMEDIATE").await
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970");
    i64::try_from(since.as_millis()).expect("the year is below 292,000,000")
}
