//! The rows of one order: those of the shop's tables, and those that the framework keeps beside them.

use modulith::encode;
use rusqlite::{Connection, OptionalExtension, Statement};
use uuid::Uuid;

use super::{Hash, Job, Outcome};
use crate::{orders, payments, products};

/// Who numbers, in the framework's columns: a saga, and the direction of doing.
const ORIGIN_SAGA: i64 = 2;
const DIRECTION_DO: i64 = 0;
/// What a step's row and a saga's row say when they are done.
const STEP_DONE: i64 = 1;
const SAGA_DONE: i64 = 2;
const SAGA_ABORTED: i64 = 3;

/// Every statement, prepared once.
pub(super) struct Rows<'c> {
    hold: Statement<'c>,
    release: Statement<'c>,
    debit: Statement<'c>,
    order: Statement<'c>,
    line: Statement<'c>,
    event: Statement<'c>,
    key: Statement<'c>,
    earlier: Statement<'c>,
    refuse: Statement<'c>,
    /// Of products, payments and orders; none if steps have no rows.
    steps: Vec<Step<'c>>,
    source: Uuid,
    sequence: i64,
}

struct Step<'c> {
    method: &'static str,
    insert: Statement<'c>,
}

impl<'c> Rows<'c> {
    pub(super) fn prepare(
        connection: &'c Connection,
        source: Uuid,
        row_per_step: bool,
    ) -> rusqlite::Result<Self> {
        let step = |(module, method): (&str, &'static str)| -> rusqlite::Result<_> {
            let insert = statement(
                connection,
                &format!(
                    "INSERT INTO {module}__inbox
                 (src, seq, step, dir, origin, method, body_hash, state, answer, attempts, first_at)
                 VALUES ($1, $2, $3, {DIRECTION_DO}, {ORIGIN_SAGA}, $4, $5, {STEP_DONE}, $6, 1, $7)"
                ),
            )?;
            Ok(Step { method, insert })
        };
        let steps = [("products", "hold"), ("payments", "debit"), ("orders", "record")];
        let steps =
            if row_per_step { steps.into_iter().map(step).collect::<Result<_, _>>()? } else { Vec::new() };
        Ok(Self {
            hold: statement(connection, products::HOLD)?,
            release: statement(connection, products::RELEASE)?,
            debit: statement(connection, payments::DEBIT)?,
            order: statement(connection, orders::ORDER)?,
            line: statement(connection, orders::LINE)?,
            event: statement(connection, orders::EVENT)?,
            key: statement(connection, &format!(
                "INSERT INTO orders__saga
                 (src, seq, client_hash, body_hash, plan, version, fingerprint, input, state, answer, begun, ended, attempts)
                 VALUES ($1, $2, $3, $4, 'orders.place', 1, 0, $5, {SAGA_DONE}, $6, $7, $7, 1)
                 ON CONFLICT (client_hash) DO NOTHING"
            ))?,
            earlier: statement(connection, "SELECT body_hash, state, answer FROM orders__saga WHERE client_hash = $1")?,
            refuse: statement(connection, &format!(
                "UPDATE orders__saga SET state = {SAGA_ABORTED}, answer = $2 WHERE client_hash = $1"
            ))?,
            steps,
            source,
            sequence: 0,
        })
    }

    /// Writes one order, or finds what its key was answered before.
    pub(super) fn place(&mut self, job: &Job, now_ms: i64) -> rusqlite::Result<Outcome> {
        let order = &job.order;
        let answer = encoded(&orders::Placed { order: order.id, placed_at_ms: now_ms })?;
        self.sequence += 1;
        let key = (self.source.as_bytes(), self.sequence, job.key, job.body, &job.input, &answer, now_ms);
        if self.key.execute(key)? == 0 {
            return self.earlier(job);
        }
        if let Some(outcome) = self.hold(job)? {
            return Ok(outcome);
        }
        let id = order.id.as_bytes();
        self.debit.execute((id, order.total_minor, now_ms))?;
        self.order.execute((id, order.total_minor, now_ms))?;
        for (number, line) in (0_i64..).zip(&order.lines) {
            let row = (id, number, &line.product, &line.name, line.quantity, line.unit_price_minor);
            self.line.execute(row)?;
        }
        self.event.execute((orders::PLACED, id, &job.event, now_ms))?;
        for (number, step) in (0_i64..).zip(&mut self.steps) {
            let row = (self.source.as_bytes(), self.sequence, number, step.method, job.body, &answer, now_ms);
            step.insert.execute(row)?;
        }
        Ok(Outcome::Placed(answer))
    }

    /// Holds every line or none; the outcome if that is a refusal.
    fn hold(&mut self, job: &Job) -> rusqlite::Result<Option<Outcome>> {
        let lines = &job.order.lines;
        for (position, line) in lines.iter().enumerate() {
            if self.hold.execute((&line.product, line.quantity))? == 1 {
                continue;
            }
            for held in &lines[..position] {
                self.release.execute((&held.product, held.quantity))?;
            }
            self.refuse.execute((job.key, line.product.as_bytes()))?;
            return Ok(Some(Outcome::SoldOut(line.product.clone())));
        }
        Ok(None)
    }

    fn earlier(&mut self, job: &Job) -> rusqlite::Result<Outcome> {
        let found: Option<(Hash, i64, Vec<u8>)> = self
            .earlier
            .query_row((job.key,), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        Ok(match found {
            Some((body, SAGA_DONE, answer)) if body == job.body => Outcome::Placed(answer),
            Some((body, _, product)) if body == job.body => {
                Outcome::SoldOut(String::from_utf8_lossy(&product).into_owned())
            }
            _ => Outcome::KeyReused,
        })
    }
}

/// Parameters are written `$n` as modules write them, and SQLite would number those by first appearance.
fn statement<'c>(connection: &'c Connection, sql: &str) -> rusqlite::Result<Statement<'c>> {
    connection.prepare(&sql.replace('$', "?"))
}

fn encoded(placed: &orders::Placed) -> rusqlite::Result<Vec<u8>> {
    encode(placed).map_err(|fault| rusqlite::Error::ToSqlConversionFailure(Box::new(fault)))
}
