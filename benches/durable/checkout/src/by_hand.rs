//! The honest ceiling: the same statements on the same tables, written down once, with group commit.
//!
//! One thread owns the connection. It takes what waits in a channel, runs it as one transaction, syncs once and
//! answers. What a caller can do is done by the caller: encoding and hashing. There is no savepoint an order: the
//! statements that can decline come first, and a line that was held before the next one is sold out is released.
//! An error of SQLite fails the whole batch.

mod rows;

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use callers::{Load, Order, Report, place_orders};
use modulith::encode;
use ring::digest::{SHA256, digest};
use rusqlite::Connection;
use tokio::sync::oneshot;
use uuid::Uuid;

use crate::modulith_shop;
use crate::orders::OrderPlaced;
use rows::Rows;

/// Orders committed with one sync, as many as the framework takes.
const BATCH_MAX: usize = 512;
const STATEMENTS_KEPT: usize = 64;

/// What came of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// In encoded form, as it is stored.
    Placed(Vec<u8>),
    SoldOut(String),
    /// The client's key stands for another order.
    KeyReused,
}

/// An order with everything that can be made ready before it is its turn.
struct Job {
    order: Order,
    input: Vec<u8>,
    event: Vec<u8>,
    key: Hash,
    body: Hash,
    reply: oneshot::Sender<Result<Outcome, String>>,
}

type Hash = [u8; 16];

pub(crate) async fn run(data: &Path, load: Load, row_per_step: bool) -> anyhow::Result<Report> {
    // The framework makes the tables, so that both sides have the very same.
    modulith_shop::mount(data).await?.stop().await;
    let connection = open(&data.join(modulith_shop::NAME).with_extension("db"))?;
    let (jobs, taken) = channel();
    let writer = std::thread::Builder::new()
        .name("by-hand-writer".to_owned())
        .spawn(move || write(&connection, &taken, row_per_step))?;
    let report = place_orders(load, move |order| place(jobs.clone(), order)).await;
    writer.join().expect("the writer does not panic")?;
    Ok(report)
}

/// With what the framework sets.
fn open(path: &Path) -> anyhow::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS_KEPT);
    connection.busy_timeout(Duration::from_secs(5))?;
    for (name, value) in [
        ("journal_mode", "WAL"),
        ("synchronous", "FULL"),
        ("foreign_keys", "ON"),
        ("temp_store", "MEMORY"),
        ("wal_autocheckpoint", "4000"),
    ] {
        connection.pragma_update(None, name, value)?;
    }
    Ok(connection)
}

async fn place(jobs: Sender<Job>, order: Order) -> anyhow::Result<()> {
    let id = order.id;
    let event = OrderPlaced { order: id, payment: id, total_minor: order.total_minor, lines: &order.lines };
    let (reply, answer) = oneshot::channel();
    let job = Job {
        input: encode(&order)?,
        event: encode(&event)?,
        key: hash(order.key.as_bytes()),
        body: hash(&serde_json::to_vec(&order.lines)?),
        order,
        reply,
    };
    jobs.send(job).ok().context("the writer has ended")?;
    match answer.await?.map_err(anyhow::Error::msg)? {
        Outcome::Placed(placed) => {
            let placed: crate::orders::Placed = modulith::decode(&placed)?;
            ensure!(placed.order == id, "a fresh key was answered with another order");
            Ok(())
        }
        declined => anyhow::bail!("{declined:?}"),
    }
}

fn hash(bytes: &[u8]) -> Hash {
    *digest(&SHA256, bytes).as_ref().first_chunk().expect("a SHA-256 has 32 bytes")
}

/// The writer's thread, until nobody can send any more.
fn write(connection: &Connection, jobs: &Receiver<Job>, row_per_step: bool) -> rusqlite::Result<()> {
    let mut rows = Rows::prepare(connection, Uuid::now_v7(), row_per_step)?;
    let mut begin = connection.prepare("BEGIN IMMEDIATE")?;
    let mut commit = connection.prepare("COMMIT")?;
    let (mut batch, mut outcomes) = (Vec::with_capacity(BATCH_MAX), Vec::with_capacity(BATCH_MAX));
    while let Ok(first) = jobs.recv() {
        batch.push(first);
        batch.extend(jobs.try_iter().take(BATCH_MAX - 1));
        begin.execute([])?;
        let now_ms = now_ms();
        let ran = batch.iter().try_for_each(|job| {
            outcomes.push(rows.place(job, now_ms)?);
            Ok(())
        });
        match ran.and_then(|()| commit.execute([])) {
            Ok(_) => {
                batch.drain(..).zip(outcomes.drain(..)).for_each(|(job, outcome)| job.answer(Ok(outcome)))
            }
            Err(error) => {
                outcomes.clear();
                if !connection.is_autocommit() {
                    connection.execute_batch("ROLLBACK")?;
                }
                batch.drain(..).for_each(|job: Job| job.answer(Err(error.to_string())));
            }
        }
    }
    Ok(())
}

impl Job {
    fn answer(self, outcome: Result<Outcome, String>) {
        // A caller that has gone does not mind.
        let _ = self.reply.send(outcome);
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use callers::Orders;
    use modulith::decode;

    use super::*;
    use crate::orders::Placed;

    fn job(order: &Order) -> Job {
        let (key, body) =
            (hash(order.key.as_bytes()), hash(&encode(&order.lines).expect("lines are encoded")));
        Job {
            order: order.clone(),
            input: Vec::new(),
            event: Vec::new(),
            key,
            body,
            reply: oneshot::channel().0,
        }
    }

    #[tokio::test]
    async fn a_key_has_one_order_and_a_refusal_takes_nothing() -> anyhow::Result<()> {
        let data = tempfile::tempdir()?;
        modulith_shop::mount(data.path()).await?.stop().await;
        let connection = open(&data.path().join(modulith_shop::NAME).with_extension("db"))?;
        let mut rows = Rows::prepare(&connection, Uuid::now_v7(), true)?;
        let mut orders = Orders::of(0);
        let (order, mut large) =
            (orders.next().expect("it is endless"), orders.next().expect("it is endless"));

        let first = rows.place(&job(&order), 1)?;
        assert!(matches!(&first, Outcome::Placed(answer) if decode::<Placed>(answer)?.order == order.id));
        let repeat = Order { id: Uuid::now_v7(), ..order.clone() };
        assert_eq!(rows.place(&job(&repeat), 2)?, first);
        let other = Order { lines: large.lines.clone(), ..order.clone() };
        assert_eq!(rows.place(&job(&other), 3)?, Outcome::KeyReused);
        // There is enough for the first line.
        large.lines[1].quantity = u32::MAX;
        let short = Outcome::SoldOut(large.lines[1].product.clone());
        assert_eq!(rows.place(&job(&large), 4)?, short);
        assert_eq!(rows.place(&job(&large), 5)?, short);

        let count = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, i64>(0));
        assert_eq!(count("SELECT count(*) FROM orders_order")?, 1);
        assert_eq!(count("SELECT count(*) FROM orders_outbox")?, 1);
        assert_eq!(count("SELECT sum(held) FROM products_product")?, 2);
        Ok(())
    }
}
