//! The cart service: the public cart, and the call that empties one after a checkout.

use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::routing::delete;
use peers::carts;
use peers::database::Database;
use peers::problem::Problem;
use peers::tokens::Tokens;
use uuid::Uuid;

pub(crate) fn router(database: Database, tokens: Tokens) -> Router {
    let internal = Router::new()
        .route("/carts/{user}", delete(clear))
        .with_state(database.clone());
    carts::router(database, tokens).merge(internal)
}

async fn clear(State(database): State<Database>, Path(user): Path<Uuid>) -> Result<StatusCode, Problem> {
    carts::clear(&database.write, user).await?;
    Ok(StatusCode::NO_CONTENT)
}
