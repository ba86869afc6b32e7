//! Orders and the answers that were given to keys. How a checkout gets there is each peer's own.

use axum::http::StatusCode;
use sha2::{Digest, Sha256};
use sqlx::{Executor, QueryBuilder, Sqlite, Transaction};
use uuid::{Builder, Uuid};

use crate::api::{Money, Order, OrderLine, fingerprint};
use crate::database::now_ms;
use crate::problem::Problem;

/// What this module stores.
pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS answers (
        user_id BLOB NOT NULL,
        key TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        status INTEGER NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (user_id, key)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS orders (
        id BLOB PRIMARY KEY NOT NULL,
        user_id BLOB NOT NULL,
        status TEXT NOT NULL,
        total INTEGER NOT NULL,
        placed_at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS order_lines (
        order_id BLOB NOT NULL REFERENCES orders (id),
        line INTEGER NOT NULL,
        product_id INTEGER NOT NULL,
        name TEXT NOT NULL,
        quantity INTEGER NOT NULL,
        unit_price INTEGER NOT NULL,
        PRIMARY KEY (order_id, line)
    ) STRICT, WITHOUT ROWID;";

/// A client's key, and a hash of what it stands for.
#[derive(Clone, Debug)]
pub struct Request {
    user: Uuid,
    key: String,
    fingerprint: [u8; 32],
}

/// A status and a body, as they were sent and as a repeat gets them.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Answer {
    pub status: StatusCode,
    pub body: String,
}

impl Request {
    /// Names the request that `user` made under `key` with `body`.
    pub fn new(user: Uuid, key: &str, body: &[u8]) -> Self {
        Self {
            user,
            key: key.to_owned(),
            fingerprint: fingerprint(body),
        }
    }

    /// An id that every repeat of this request, and no other request, arrives at.
    pub fn id(&self) -> Uuid {
        let hash = Sha256::new()
            .chain_update(self.user)
            .chain_update(&self.key)
            .chain_update(self.fingerprint);
        let hash: [u8; 32] = hash.finalize().into();
        Builder::from_custom_bytes(*hash.first_chunk().expect("32 bytes hold 16")).into_uuid()
    }

    /// What this key was answered before.
    ///
    /// # Errors
    ///
    /// 422 if the key stood for another body.
    pub async fn answered(
        &self,
        database: impl Executor<'_, Database = Sqlite>,
    ) -> Result<Option<Answer>, Problem> {
        let found: Option<(Vec<u8>, u16, String)> =
            sqlx::query_as("SELECT fingerprint, status, body FROM answers WHERE user_id = $1 AND key = $2")
                .bind(self.user)
                .bind(&self.key)
                .fetch_optional(database)
                .await?;
        let Some((fingerprint, status, body)) = found else {
            return Ok(None);
        };
        if fingerprint != self.fingerprint {
            return Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "the key was used for another order",
            ));
        }
        Ok(Some(Answer {
            status: StatusCode::from_u16(status).expect("only statuses are stored"),
            body,
        }))
    }

    /// Keeps `answer` for repeats. False if another one was kept before.
    ///
    /// # Errors
    ///
    /// When the database refuses.
    pub async fn keep(
        &self,
        database: impl Executor<'_, Database = Sqlite>,
        answer: &Answer,
    ) -> sqlx::Result<bool> {
        let kept = sqlx::query(
            "INSERT INTO answers (user_id, key, fingerprint, status, body) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (user_id, key) DO NOTHING",
        )
        .bind(self.user)
        .bind(&self.key)
        .bind(&self.fingerprint[..])
        .bind(answer.status.as_u16())
        .bind(&answer.body)
        .execute(database)
        .await?;
        Ok(kept.rows_affected() == 1)
    }
}

/// Writes the order and its lines, and returns the answer for its client.
///
/// # Errors
///
/// When the database refuses.
pub async fn record(
    tx: &mut Transaction<'static, Sqlite>,
    id: Uuid,
    user: Uuid,
    lines: &[OrderLine],
    total: i64,
) -> Result<Answer, Problem> {
    sqlx::query(
        "INSERT INTO orders (id, user_id, status, total, placed_at_ms) VALUES ($1, $2, 'paid', $3, $4)",
    )
    .bind(id)
    .bind(user)
    .bind(total)
    .bind(now_ms())
    .execute(&mut **tx)
    .await?;
    let mut insert = QueryBuilder::<Sqlite>::new(
        "INSERT INTO order_lines (order_id, line, product_id, name, quantity, unit_price) ",
    );
    insert.push_values((0_i64..).zip(lines), |mut row, (number, line)| {
        row.push_bind(id)
            .push_bind(number)
            .push_bind(line.product_id)
            .push_bind(&line.name);
        row.push_bind(line.quantity).push_bind(line.unit_price.amount);
    });
    insert.build().execute(&mut **tx).await?;
    let order = Order {
        id,
        status: "paid",
        total: Money::new(total),
        lines,
    };
    Ok(Answer {
        status: StatusCode::CREATED,
        body: serde_json::to_string(&order)?,
    })
}
