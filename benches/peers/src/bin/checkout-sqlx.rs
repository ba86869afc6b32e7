//! The durable checkout of `durable/checkout` the usual way: a pool of connections, a transaction an order.
//!
//! It writes what the other sides write, but for the rows that the framework keeps for each step: nobody who
//! writes one transaction by hand would keep them.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use callers::{Load, Order, PRODUCTS, place_orders, product};
use clap::Parser;
use peers::database::{Database, PoolSizes, now_ms};
use sha2::{Digest, Sha256};
use sqlx::{Sqlite, SqlitePool, Transaction};
use uuid::Uuid;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS products (
        id TEXT PRIMARY KEY NOT NULL,
        stock INTEGER NOT NULL CHECK (stock >= 0),
        held INTEGER NOT NULL CHECK (held >= 0)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS payments (
        id BLOB PRIMARY KEY NOT NULL,
        amount_minor INTEGER NOT NULL CHECK (amount_minor > 0),
        paid_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS orders (
        id BLOB PRIMARY KEY NOT NULL,
        total_minor INTEGER NOT NULL CHECK (total_minor > 0),
        placed_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS order_lines (
        order_id BLOB NOT NULL,
        line INTEGER NOT NULL,
        product_id TEXT NOT NULL,
        name TEXT NOT NULL,
        quantity INTEGER NOT NULL CHECK (quantity > 0),
        unit_price_minor INTEGER NOT NULL CHECK (unit_price_minor > 0),
        PRIMARY KEY (order_id, line)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS outbox (
        position INTEGER PRIMARY KEY NOT NULL,
        kind TEXT NOT NULL,
        key BLOB NOT NULL,
        body BLOB NOT NULL,
        at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE IF NOT EXISTS answers (
        key BLOB PRIMARY KEY NOT NULL,
        fingerprint BLOB NOT NULL,
        order_id BLOB NOT NULL,
        placed_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;";

/// How often an order that found the database busy is tried again.
const TRIES_MAX: u32 = 10;
/// Times the number of the try, before the next one.
const PAUSE: Duration = Duration::from_millis(5);
/// How SQLite says that it is busy: SQLITE_BUSY, and SQLITE_BUSY_SNAPSHOT.
const BUSY: [&str; 2] = ["5", "517"];

/// Places orders in this process and prints how fast they were taken, as JSON.
#[derive(Parser)]
struct Options {
    /// The folder of the database.
    #[arg(long)]
    data: PathBuf,
    /// Connections of the pool, each of which may write.
    #[arg(long, default_value_t = 8)]
    connections: u32,
    #[command(flatten)]
    load: Load,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Options { data, connections, load } = Options::parse();
    let sizes = PoolSizes { readers: 1, writers: connections };
    let database = Database::open(&data.join("checkout.db"), SCHEMA, &sizes).await?;
    stock(&database.write).await?;
    let report = place_orders(load, move |order| place(database.clone(), order)).await;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

async fn stock(pool: &SqlitePool) -> anyhow::Result<()> {
    let mut tx = pool.begin().await?;
    for number in 0..PRODUCTS {
        sqlx::query("INSERT INTO products (id, stock, held) VALUES ($1, 1000000000, 0)")
            .bind(product(number))
            .execute(&mut *tx)
            .await?;
    }
    Ok(tx.commit().await?)
}

async fn place(database: Database, order: Order) -> anyhow::Result<()> {
    let fingerprint = Sha256::digest(serde_json::to_vec(&order.lines)?);
    for attempt in 1.. {
        match attempt_to_place(&database, &order, &fingerprint).await {
            Err(error) if attempt < TRIES_MAX && is_busy(&error) => tokio::time::sleep(PAUSE * attempt).await,
            placed => {
                ensure!(placed? == order.id, "a fresh key was answered with another order");
                break;
            }
        }
    }
    Ok(())
}

fn is_busy(error: &anyhow::Error) -> bool {
    let code = match error.downcast_ref() {
        Some(sqlx::Error::Database(error)) => error.code(),
        _ => None,
    };
    code.is_some_and(|code| BUSY.contains(&code.as_ref()))
}

/// One transaction; the order that stands under the key.
async fn attempt_to_place(database: &Database, order: &Order, fingerprint: &[u8]) -> anyhow::Result<Uuid> {
    let mut tx = database.begin().await?;
    let key = Sha256::digest(&order.key);
    let earlier: Option<(Vec<u8>, Uuid)> =
        sqlx::query_as("SELECT fingerprint, order_id FROM answers WHERE key = $1")
            .bind(&key[..16])
            .fetch_optional(&mut *tx)
            .await?;
    if let Some((found, order)) = earlier {
        ensure!(found == fingerprint[..16], "the key was used for another order");
        return Ok(order);
    }
    let now_ms = now_ms();
    write(&mut tx, order, now_ms).await?;
    sqlx::query("INSERT INTO answers (key, fingerprint, order_id, placed_at) VALUES ($1, $2, $3, $4)")
        .bind(&key[..16])
        .bind(&fingerprint[..16])
        .bind(order.id)
        .bind(now_ms)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(order.id)
}

/// Stock, payment, order, lines and event.
async fn write(tx: &mut Transaction<'static, Sqlite>, order: &Order, now_ms: i64) -> anyhow::Result<()> {
    for line in &order.lines {
        let held = sqlx::query(
            "UPDATE products SET stock = stock - $1, held = held + $1 WHERE id = $2 AND stock >= $1",
        )
        .bind(line.quantity)
        .bind(&line.product)
        .execute(&mut **tx)
        .await?;
        ensure!(held.rows_affected() == 1, "not enough of {}", line.product);
    }
    sqlx::query("INSERT INTO payments (id, amount_minor, paid_at) VALUES ($1, $2, $3)")
        .bind(order.id)
        .bind(order.total_minor)
        .bind(now_ms)
        .execute(&mut **tx)
        .await?;
    sqlx::query("INSERT INTO orders (id, total_minor, placed_at) VALUES ($1, $2, $3)")
        .bind(order.id)
        .bind(order.total_minor)
        .bind(now_ms)
        .execute(&mut **tx)
        .await?;
    for (number, line) in (0_i64..).zip(&order.lines) {
        sqlx::query(
            "INSERT INTO order_lines (order_id, line, product_id, name, quantity, unit_price_minor)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(order.id)
        .bind(number)
        .bind(&line.product)
        .bind(&line.name)
        .bind(line.quantity)
        .bind(line.unit_price_minor)
        .execute(&mut **tx)
        .await?;
    }
    sqlx::query("INSERT INTO outbox (kind, key, body, at) VALUES ('order_placed', $1, $2, $3)")
        .bind(order.id)
        .bind(serde_json::to_vec(order).context("an order is JSON")?)
        .bind(now_ms)
        .execute(&mut **tx)
        .await?;
    Ok(())
}
