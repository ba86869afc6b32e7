//! The products service: the catalogue, and holds on its stock.
//!
//! A hold is named by the order that wants it. It is `held` until the order either sells or releases
//! it, and both are final.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::{post, put};
use axum::{Json, Router};
use peers::api::{Line, OrderLine};
use peers::catalogue;
use peers::database::Database;
use peers::problem::Problem;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The holds; [`router`] adds the catalogue's own table.
pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS holds (
        id BLOB PRIMARY KEY NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('held', 'sold', 'released')),
        hold TEXT NOT NULL
    ) STRICT, WITHOUT ROWID;";

/// What is asked to be held.
#[derive(Deserialize, Serialize)]
pub(crate) struct HoldLines {
    pub(crate) lines: Vec<Line>,
}

/// What is held, at the prices of now.
#[derive(Deserialize, Serialize)]
pub(crate) struct Hold {
    pub(crate) lines: Vec<OrderLine>,
    pub(crate) total: i64,
}

pub(crate) async fn router(database: Database, seed_products: i64) -> anyhow::Result<Router> {
    sqlx::raw_sql(catalogue::SCHEMA).execute(&database.write).await?;
    catalogue::seed(&database, seed_products).await?;
    let holds = Router::new()
        .route("/holds/{id}", put(hold))
        .route("/holds/{id}/sell", post(sell))
        .route("/holds/{id}/release", post(release))
        .with_state(database.clone());
    Ok(catalogue::router(database).merge(holds))
}

/// Takes every line's stock or none; a repeat gets the first hold again.
async fn hold(
    State(database): State<Database>,
    Path(id): Path<Uuid>,
    Json(wanted): Json<HoldLines>,
) -> Result<Json<Hold>, Problem> {
    let mut tx = database.begin().await?;
    let found: Option<(String, String)> = sqlx::query_as("SELECT state, hold FROM holds WHERE id = $1")
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?;
    if let Some((state, hold)) = found {
        return match state.as_str() {
            "released" => Err(Problem::new(StatusCode::CONFLICT, "the hold was released")),
            _ => Ok(Json(serde_json::from_str(&hold)?)),
        };
    }
    let (lines, total) = catalogue::take(&mut tx, &wanted.lines).await?;
    let hold = Hold { lines, total };
    sqlx::query("INSERT INTO holds (id, state, hold) VALUES ($1, 'held', $2)")
        .bind(id)
        .bind(serde_json::to_string(&hold)?)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(Json(hold))
}

async fn sell(State(database): State<Database>, Path(id): Path<Uuid>) -> Result<StatusCode, Problem> {
    sqlx::query("UPDATE holds SET state = 'sold' WHERE id = $1 AND state = 'held'")
        .bind(id)
        .execute(&database.write)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Puts the stock back. Releasing what was never held keeps a late hold from being taken.
async fn release(State(database): State<Database>, Path(id): Path<Uuid>) -> Result<StatusCode, Problem> {
    let mut tx = database.begin().await?;
    let held: Option<String> = sqlx::query_scalar(
        "UPDATE holds SET state = 'released' WHERE id = $1 AND state = 'held' RETURNING hold",
    )
    .bind(id)
    .fetch_optional(&mut *tx)
    .await?;
    let hold = held.map(|hold| serde_json::from_str::<Hold>(&hold)).transpose()?;
    for line in hold.iter().flat_map(|hold| &hold.lines) {
        sqlx::query("UPDATE products SET stock = stock + $1 WHERE id = $2")
            .bind(line.quantity)
            .bind(line.product_id)
            .execute(&mut *tx)
            .await?;
    }
    sqlx::query(
        "INSERT INTO holds (id, state, hold) VALUES ($1, 'released', '') ON CONFLICT (id) DO NOTHING",
    )
    .bind(id)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(StatusCode::NO_CONTENT)
}
