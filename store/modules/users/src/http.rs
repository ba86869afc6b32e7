//! `/users` and `/sessions` for customers, `/admin/users` for operators.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use modulith::http::{Invalid, Json, Problem, Router, SignedIn, StatusCode, get, post};
use modulith::{Links, Secret, SessionKeys};
use serde::{Deserialize, Serialize};
use store_users_contract::{User, UserId, UsersClient};
use uuid::Uuid;

use crate::accounts::{AccountsClient, Customer, NewAccount};
use crate::email::Email;
use crate::passwords::Passwords;

const SESSION: Duration = Duration::from_secs(12 * 60 * 60);
const NAME_CHARS_MAX: usize = 200;
const PASSWORD_CHARS_MIN: usize = 8;
const PASSWORD_CHARS_MAX: usize = 200;

#[derive(Clone)]
struct Door {
    users: UsersClient,
    accounts: AccountsClient,
    passwords: Passwords,
    session_keys: Arc<SessionKeys>,
}

pub(crate) fn routes(links: &Links) -> Router {
    let door = Door {
        users: links.client(),
        accounts: links.client(),
        passwords: Passwords::new(),
        session_keys: links.session_keys(),
    };
    Router::new()
        .route("/users", post(register))
        .route("/users/me", get(me))
        .route("/sessions", post(sign_in))
        .with_state(door)
}

#[derive(Deserialize)]
struct Registration {
    email: String,
    name: String,
    password: Secret<String>,
}

async fn register(
    State(door): State<Door>,
    Json(registration): Json<Registration>,
) -> Result<(StatusCode, Json<User>), Problem> {
    let Registration { email, name, password } = registration;
    let email = Email::parse(&email);
    let name = name.trim().to_owned();
    let mut invalid = Invalid::default();
    invalid.check(email.is_some(), "email", "must be an e-mail address");
    invalid.check(
        (1..=NAME_CHARS_MAX).contains(&name.chars().count()),
        "name",
        "must have 1 to 200 characters",
    );
    let password_fits =
        (PASSWORD_CHARS_MIN..=PASSWORD_CHARS_MAX).contains(&password.expose().chars().count());
    invalid.check(password_fits, "password", "must have 8 to 200 characters");
    invalid.finish()?;
    let Some(email) = email else { unreachable!("an address that cannot be read is invalid") };
    let password_hash = door.passwords.hash(password).await?;
    let id = UserId(Uuid::now_v7());
    let account = NewAccount { id, email: email.clone(), name: name.clone(), password_hash };
    door.accounts.register(account).await?;
    Ok((StatusCode::CREATED, Json(User { id, email: Some(email.into_text()), name })))
}

#[derive(Deserialize)]
struct SignIn {
    email: String,
    password: Secret<String>,
}

#[derive(Serialize)]
struct Session {
    token: String,
    expires_in_s: u64,
}

async fn sign_in(
    State(door): State<Door>,
    Json(SignIn { email, password }): Json<SignIn>,
) -> Result<Json<Session>, Problem> {
    let refused =
        || Problem::new(StatusCode::UNAUTHORIZED, "sign-in-refused", "E-mail address or password is wrong");
    // Nobody has such a password, and hashing megabytes would be a gift to an attacker.
    if password.expose().chars().count() > PASSWORD_CHARS_MAX {
        return Err(refused());
    }
    let credentials = match Email::parse(&email) {
        Some(email) => door.accounts.credentials(email).await?,
        None => None,
    };
    let (user, hash) = credentials.map(|known| (known.user, known.password_hash)).unzip();
    let matches = door.passwords.verify(password, hash).await?;
    let user = user.filter(|_| matches).ok_or_else(refused)?;
    let token = door
        .session_keys
        .issue(&user.to_string(), SESSION)
        .expect("a UUID is a subject, 12 hours are a time");
    Ok(Json(Session { token, expires_in_s: SESSION.as_secs() }))
}

async fn me(State(door): State<Door>, user: SignedIn) -> Result<Json<User>, Problem> {
    let id = user.id().parse().map_err(|_| Problem::not_found())?;
    Ok(Json(door.users.user(id).await?))
}

/// `POST /import {"customers": ["17850", …]}` answers with their users' ids, in the same order.
pub(crate) fn admin_routes(links: &Links) -> Router {
    Router::new().route("/import", post(import)).with_state(links.client::<AccountsClient>())
}

#[derive(Deserialize)]
struct Import {
    customers: Vec<String>,
}

#[derive(Serialize)]
struct Imported {
    users: Vec<UserId>,
}

async fn import(
    State(accounts): State<AccountsClient>,
    Json(Import { customers }): Json<Import>,
) -> Result<Json<Imported>, Problem> {
    let new = |number| Customer { id: UserId(Uuid::now_v7()), number };
    let users = accounts.import(customers.into_iter().map(new).collect()).await?;
    Ok(Json(Imported { users }))
}
