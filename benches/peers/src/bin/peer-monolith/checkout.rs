//! The checkout: key, stock, ledger, order, cart and answer in one transaction.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRef, State};
use axum::http::HeaderMap;
use axum::routing::post;
use peers::api::{PlaceOrder, idempotency_key};
use peers::database::{Database, now_ms};
use peers::orders::{Answer, Request};
use peers::problem::Problem;
use peers::tokens::{Principal, Tokens};
use peers::{carts, catalogue, orders};
use sqlx::{Sqlite, Transaction};
use uuid::Uuid;

pub(crate) const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS ledger (
        id INTEGER PRIMARY KEY NOT NULL,
        order_id BLOB NOT NULL,
        user_id BLOB NOT NULL,
        amount INTEGER NOT NULL,
        booked_at_ms INTEGER NOT NULL
    ) STRICT;";

#[derive(Clone, FromRef)]
struct Checkout {
    database: Database,
    tokens: Tokens,
}

pub(crate) fn router(database: Database, tokens: Tokens) -> Router {
    Router::new()
        .route("/orders", post(place))
        .with_state(Checkout { database, tokens })
}

/// A repeat with the same key answers what the first one did and changes nothing.
async fn place(
    State(database): State<Database>,
    Principal(user): Principal,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Answer, Problem> {
    let request = Request::new(user, idempotency_key(&headers)?, &body);
    let mut tx = database.begin().await?;
    if let Some(answer) = request.answered(&mut *tx).await? {
        return Ok(answer);
    }
    let answer = match sell(&mut tx, user, &body).await {
        Ok(answer) => answer,
        Err(problem) if problem.status.is_server_error() => return Err(problem),
        Err(problem) => {
            // Lines that were taken before the refusal go back; only the answer is kept. Another
            // request with this key may have come in between, and then its answer stands.
            tx.rollback().await?;
            tx = database.begin().await?;
            if let Some(answer) = request.answered(&mut *tx).await? {
                return Ok(answer);
            }
            problem.into()
        }
    };
    request.keep(&mut *tx, &answer).await?;
    tx.commit().await?;
    Ok(answer)
}

async fn sell(tx: &mut Transaction<'static, Sqlite>, user: Uuid, body: &[u8]) -> Result<Answer, Problem> {
    let PlaceOrder { lines, card } = PlaceOrder::read(body)?;
    card.authorize()?;
    let id = Uuid::now_v7();
    let (lines, total) = catalogue::take(tx, &lines).await?;
    sqlx::query("INSERT INTO ledger (order_id, user_id, amount, booked_at_ms) VALUES ($1, $2, $3, $4)")
        .bind(id)
        .bind(user)
        .bind(-total)
        .bind(now_ms())
        .execute(&mut **tx)
        .await?;
    let answer = orders::record(tx, id, user, &lines, total).await?;
    carts::clear(&mut **tx, user).await?;
    Ok(answer)
}
