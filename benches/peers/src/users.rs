//! Sign-up and log-in, the same in both peers.

use std::sync::Arc;

use argon2::Argon2;
use argon2::password_hash::{PasswordHasher, PasswordVerifier, phc::PasswordHash};
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use uuid::Uuid;

use crate::database::{Database, now_ms};
use crate::problem::Problem;
use crate::tokens::{EXPIRES_IN_S, Tokens};

/// What this module stores.
pub const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS users (
        id BLOB PRIMARY KEY NOT NULL,
        email TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        password_hash TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;";

#[derive(Clone)]
struct Users {
    database: Database,
    tokens: Tokens,
    /// A hash takes 19 MiB and tens of milliseconds of a core, so only one is made at a time.
    hashing: Arc<Semaphore>,
}

#[derive(Deserialize)]
struct SignUp {
    email: String,
    name: String,
    password: String,
}

#[derive(Deserialize)]
struct LogIn {
    email: String,
    password: String,
}

/// `POST /users` and `POST /sessions`.
pub fn router(database: Database, tokens: Tokens) -> Router {
    let users = Users {
        database,
        tokens,
        hashing: Arc::new(Semaphore::new(1)),
    };
    Router::new()
        .route("/users", post(sign_up))
        .route("/sessions", post(log_in))
        .with_state(users)
}

async fn sign_up(
    State(users): State<Users>,
    Json(body): Json<SignUp>,
) -> Result<(StatusCode, Json<Value>), Problem> {
    if body.password.len() < 8 || !body.email.contains('@') {
        return Err(Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "an address and a password of 8 bytes are needed",
        ));
    }
    let hash = users.hash(move || {
        Argon2::default()
            .hash_password(body.password.as_bytes())
            .map(|hash| hash.to_string())
            .ok()
    });
    let hash = hash
        .await
        .ok_or_else(|| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "no password hash"))?;
    let id = Uuid::now_v7();
    let added = sqlx::query(
        "INSERT INTO users (id, email, name, password_hash, created_at_ms) VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (email) DO NOTHING",
    )
    .bind(id)
    .bind(body.email.to_lowercase())
    .bind(&body.name)
    .bind(hash)
    .bind(now_ms())
    .execute(&users.database.write)
    .await?;
    match added.rows_affected() {
        0 => Err(Problem::new(StatusCode::CONFLICT, "the address is taken")),
        _ => Ok((
            StatusCode::CREATED,
            Json(json!({ "id": id, "email": body.email, "name": body.name })),
        )),
    }
}

async fn log_in(State(users): State<Users>, Json(body): Json<LogIn>) -> Result<Json<Value>, Problem> {
    let user: Option<(Uuid, String)> = sqlx::query_as("SELECT id, password_hash FROM users WHERE email = $1")
        .bind(body.email.to_lowercase())
        .fetch_optional(&users.database.read)
        .await?;
    let refused = || Problem::new(StatusCode::UNAUTHORIZED, "wrong address or password");
    let (id, hash) = user.ok_or_else(refused)?;
    let verified = users.hash(move || {
        let hash = PasswordHash::new(&hash).ok()?;
        Argon2::default()
            .verify_password(body.password.as_bytes(), &hash)
            .ok()
    });
    verified.await.ok_or_else(refused)?;
    Ok(Json(
        json!({ "token": users.tokens.issue(id)?, "expires_in_s": EXPIRES_IN_S }),
    ))
}

impl Users {
    async fn hash<T: Send + 'static>(&self, work: impl FnOnce() -> Option<T> + Send + 'static) -> Option<T> {
        let _turn = self.hashing.acquire().await.ok()?;
        spawn_blocking(work).await.ok().flatten()
    }
}
