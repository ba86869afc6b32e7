//! The reverse proxy: knows paths and addresses, and nothing of what is in a body.
//!
//! A request's body is taken in before it is passed on and an answer's is passed on as it comes, as
//! nginx does.

use anyhow::Result;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::header::{CONNECTION, HOST, TRANSFER_ENCODING};
use axum::http::{Response, StatusCode, Uri};
use axum::response::IntoResponse;
use axum::{Router, routing::get};
use peers::problem::Problem;

use crate::calls::client;

const BODY_BYTES_MAX: usize = 1 << 20;

/// Where the services listen.
#[derive(Clone)]
pub(crate) struct Upstreams {
    pub(crate) users: String,
    pub(crate) products: String,
    pub(crate) cart: String,
    pub(crate) payments: String,
    pub(crate) orders: String,
}

#[derive(Clone)]
struct Front {
    client: reqwest::Client,
    upstreams: Upstreams,
}

pub(crate) fn router(upstreams: Upstreams) -> Result<Router> {
    let front = Front {
        client: client()?,
        upstreams,
    };
    Ok(Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .fallback(forward)
        .with_state(front))
}

async fn forward(State(front): State<Front>, request: Request) -> Result<Response<Body>, Problem> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let Some(upstream) = front.upstreams.of(path) else {
        return Ok(StatusCode::NOT_FOUND.into_response());
    };
    let uri = Uri::try_from(format!("{upstream}{path}"))
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error))?;
    let (mut parts, body) = request.into_parts();
    let body = to_bytes(body, BODY_BYTES_MAX).await;
    let body = body.map_err(|error| Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error))?;
    parts.uri = uri;
    // These three concern one connection only; the client sets its own.
    for own in [CONNECTION, HOST, TRANSFER_ENCODING] {
        parts.headers.remove(own);
    }
    let request = axum::http::Request::from_parts(parts, reqwest::Body::from(body));
    let answer = front.client.execute(request.try_into()?).await?;
    let (mut parts, body) = Response::<reqwest::Body>::from(answer).into_parts();
    parts.headers.remove(CONNECTION);
    parts.headers.remove(TRANSFER_ENCODING);
    Ok(Response::from_parts(parts, Body::new(body)))
}

/// 200 when every service is.
async fn ready(State(front): State<Front>) -> Result<&'static str, Problem> {
    let Upstreams {
        users,
        products,
        cart,
        payments,
        orders,
    } = &front.upstreams;
    for upstream in [users, products, cart, payments, orders] {
        front
            .client
            .get(format!("{upstream}/readyz"))
            .send()
            .await?
            .error_for_status()?;
    }
    Ok("ok")
}

impl Upstreams {
    /// Only public paths are named here, so the services' internal ones cannot be reached from outside.
    fn of(&self, path: &str) -> Option<&str> {
        match path.split(['/', '?']).nth(1)? {
            "users" | "sessions" => Some(&self.users),
            "products" => Some(&self.products),
            "cart" => Some(&self.cart),
            "orders" => Some(&self.orders),
            _ => None,
        }
    }
}
