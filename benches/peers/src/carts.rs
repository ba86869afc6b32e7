//! A user's cart, the same in both peers. A checkout empties it.

use axum::extract::{FromRef, Path, State};
use axum::http::StatusCode;
use axum::routing::{get, put};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use sqlx::{Executor, Sqlite};
use uuid::Uuid;

use crate::api::Line;
use crate::database::Database;
use crate::problem::Problem;
use crate::tokens::{Principal, Tokens};

/// What this module stores.
pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS cart_items (
        user_id BLOB NOT NULL,
        product_id INTEGER NOT NULL,
        quantity INTEGER NOT NULL CHECK (quantity > 0),
        PRIMARY KEY (user_id, product_id)
    ) STRICT, WITHOUT ROWID;";

#[derive(Clone, FromRef)]
struct Carts {
    database: Database,
    tokens: Tokens,
}

#[derive(Deserialize)]
struct Quantity {
    quantity: u32,
}

/// `GET /cart` and `PUT /cart/{product_id}`.
pub fn router(database: Database, tokens: Tokens) -> Router {
    let carts = Carts { database, tokens };
    Router::new()
        .route("/cart", get(show))
        .route("/cart/{product_id}", put(set))
        .with_state(carts)
}

/// Empties the cart of `user`; emptying an empty cart writes nothing.
///
/// # Errors
///
/// When the database refuses.
pub async fn clear<'e>(database: impl Executor<'e, Database = Sqlite>, user: Uuid) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM cart_items WHERE user_id = $1")
        .bind(user)
        .execute(database)
        .await?;
    Ok(())
}

async fn show(State(database): State<Database>, Principal(user): Principal) -> Result<Json<Value>, Problem> {
    let rows: Vec<(i64, i64)> =
        sqlx::query_as("SELECT product_id, quantity FROM cart_items WHERE user_id = $1 ORDER BY product_id")
            .bind(user)
            .fetch_all(&database.read)
            .await?;
    let items: Vec<Line> = rows
        .into_iter()
        .map(|(product_id, quantity)| Line { product_id, quantity })
        .collect();
    Ok(Json(json!({ "items": items })))
}

async fn set(
    State(database): State<Database>,
    Principal(user): Principal,
    Path(product_id): Path<i64>,
    Json(body): Json<Quantity>,
) -> Result<StatusCode, Problem> {
    let statement = match body.quantity {
        0 => sqlx::query("DELETE FROM cart_items WHERE user_id = $1 AND product_id = $2"),
        _ => sqlx::query(
            "INSERT INTO cart_items (user_id, product_id, quantity) VALUES ($1, $2, $3)
             ON CONFLICT (user_id, product_id) DO UPDATE SET quantity = excluded.quantity",
        ),
    };
    let statement = statement.bind(user).bind(product_id);
    match body.quantity {
        0 => statement.execute(&database.write).await?,
        quantity => statement.bind(quantity).execute(&database.write).await?,
    };
    Ok(StatusCode::NO_CONTENT)
}
