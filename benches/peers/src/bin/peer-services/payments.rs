//! The payments service: a ledger of debits, each named by the order that it pays for.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::put;
use axum::{Json, Router};
use peers::api::Card;
use peers::database::{Database, now_ms};
use peers::problem::Problem;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS ledger (
        order_id BLOB PRIMARY KEY NOT NULL,
        user_id BLOB NOT NULL,
        amount INTEGER NOT NULL,
        booked_at_ms INTEGER NOT NULL,
        refunded_at_ms INTEGER
    ) STRICT, WITHOUT ROWID;";

/// What is to be paid, by whom and with what.
#[derive(Deserialize, Serialize)]
pub(crate) struct Debit {
    pub(crate) user: Uuid,
    pub(crate) amount: i64,
    pub(crate) card: Card,
}

pub(crate) fn router(database: Database) -> Router {
    Router::new()
        .route("/debits/{order}", put(debit).delete(refund))
        .with_state(database)
}

/// Books the debit; a repeat books nothing more.
async fn debit(
    State(database): State<Database>,
    Path(order): Path<Uuid>,
    Json(debit): Json<Debit>,
) -> Result<StatusCode, Problem> {
    debit.card.authorize()?;
    sqlx::query(
        "INSERT INTO ledger (order_id, user_id, amount, booked_at_ms) VALUES ($1, $2, $3, $4)
         ON CONFLICT (order_id) DO NOTHING",
    )
    .bind(order)
    .bind(debit.user)
    .bind(-debit.amount)
    .bind(now_ms())
    .execute(&database.write)
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn refund(State(database): State<Database>, Path(order): Path<Uuid>) -> Result<StatusCode, Problem> {
    sqlx::query("UPDATE ledger SET refunded_at_ms = $1 WHERE order_id = $2 AND refunded_at_ms IS NULL")
        .bind(now_ms())
        .bind(order)
        .execute(&database.write)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}
