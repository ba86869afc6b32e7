//! A card provider in the shape of Stripe's API, for tests: PaymentIntents that are confirmed at once, refunds,
//! `Idempotency-Key`, all in memory.
//!
//! It is not kind: `POST /faults` makes it lose replies, fail before or after it did what it was asked, or wait.
//! `GET /ledger` tells what it really did and everything it was asked to do, so that a test can compare.

mod ledger;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use ledger::{Form, Ledger};

/// What goes wrong with requests to come.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// Only requests to this path; without it, any request to `/v1`.
    pub path: Option<String>,
    pub kind: FaultKind,
    /// How many requests; 1 without it.
    #[serde(default = "once")]
    pub times: u32,
    /// For [`FaultKind::Delay`].
    #[serde(default)]
    pub delay_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Answers 500 and does nothing.
    FailBefore,
    /// Does it, and answers 500.
    FailAfter,
    /// Does it, and closes the connection without a reply.
    DropReply,
    /// Waits, then does it.
    Delay,
}

fn once() -> u32 {
    1
}

/// A new, empty provider: `/v1/payment_intents`, `/v1/payment_intents/search`, `/v1/refunds`, and for tests
/// `/ledger` and `/faults`.
pub fn router() -> Router {
    Router::new()
        .route("/v1/payment_intents", post(write))
        .route("/v1/refunds", post(write))
        .route("/v1/payment_intents/search", get(search))
        .route("/ledger", get(async |State(provider): State<Provider>| Json(provider.0.lock().shown())))
        .route("/faults", post(fault).delete(no_fault))
        .with_state(Provider::default())
}

#[derive(Clone, Default)]
struct Provider(Arc<Mutex<Inside>>);

#[derive(Default)]
struct Inside {
    ledger: Ledger,
    /// By idempotency key: what was asked, and what was answered.
    answers: HashMap<String, (String, Answer)>,
    /// Every writing request that came, also those that a fault kept from doing anything.
    attempts: Vec<Attempt>,
    faults: VecDeque<Fault>,
}

#[derive(Serialize)]
struct Attempt {
    path: String,
    idempotency_key: Option<String>,
    traceparent: Option<String>,
    tracestate: Option<String>,
    body: String,
}

type Answer = (StatusCode, Value);

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name)?.to_str().ok().map(str::to_owned)
}

async fn fault(State(provider): State<Provider>, Json(fault): Json<Fault>) -> StatusCode {
    provider.0.lock().faults.push_back(fault);
    StatusCode::NO_CONTENT
}

async fn no_fault(State(provider): State<Provider>) -> StatusCode {
    provider.0.lock().faults.clear();
    StatusCode::NO_CONTENT
}

/// Both writing endpoints: the same key gets the same answer, and another request under it is an error.
async fn write(State(provider): State<Provider>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
    if !is_authorized(&headers) {
        return answer((StatusCode::UNAUTHORIZED, json!({"error": {"type": "invalid_request_error"}})));
    }
    let fault = {
        let mut inside = provider.0.lock();
        inside.attempts.push(Attempt {
            path: uri.path().to_owned(),
            idempotency_key: idempotency_key(&headers).map(str::to_owned),
            traceparent: text(&headers, "traceparent"),
            tracestate: text(&headers, "tracestate"),
            body: String::from_utf8_lossy(&body).into_owned(),
        });
        inside.next_fault(uri.path())
    };
    match &fault {
        Some(Fault { kind: FaultKind::FailBefore, .. }) => return broken(),
        Some(Fault { kind: FaultKind::Delay, delay_ms, .. }) => {
            tokio::time::sleep(Duration::from_millis(*delay_ms)).await;
        }
        _ => {}
    }
    let (status, answer) = provider.0.lock().answer(uri.path(), &headers, &body);
    match fault.map(|fault| fault.kind) {
        Some(FaultKind::FailAfter) => broken(),
        // Unwinds the task of the connection, which closes it; the panic hook is not run.
        Some(FaultKind::DropReply) => std::panic::resume_unwind(Box::new("a reply is dropped")),
        _ => (status, Json(answer)).into_response(),
    }
}

impl Inside {
    /// For tests.
    fn shown(&self) -> Value {
        let mut shown = self.ledger.sums();
        shown["attempts"] = json!(self.attempts);
        shown
    }

    fn next_fault(&mut self, path: &str) -> Option<Fault> {
        let place =
            self.faults.iter().position(|fault| fault.path.as_deref().is_none_or(|only| only == path))?;
        let fault = &mut self.faults[place];
        fault.times = fault.times.saturating_sub(1);
        let found = fault.clone();
        if found.times == 0 {
            self.faults.remove(place);
        }
        Some(found)
    }

    fn answer(&mut self, path: &str, headers: &HeaderMap, body: &[u8]) -> Answer {
        let asked = format!("{path}?{}", String::from_utf8_lossy(body));
        let key = idempotency_key(headers);
        if let Some((before, answer)) = key.and_then(|key| self.answers.get(key)) {
            return if *before == asked { answer.clone() } else { error("idempotency_error", "key_reused") };
        }
        let Ok(form) = serde_urlencoded::from_bytes::<Form>(body) else {
            return error("invalid_request_error", "form_malformed");
        };
        let answer = match path {
            "/v1/refunds" => self.ledger.refund(&form),
            _ => self.ledger.charge(form),
        };
        if let Some(key) = key {
            self.answers.insert(key.to_owned(), (asked, answer.clone()));
        }
        answer
    }
}

#[derive(Deserialize)]
struct Search {
    query: String,
}

/// Understands `metadata['NAME']:'VALUE'`.
async fn search(
    State(provider): State<Provider>,
    headers: HeaderMap,
    Query(search): Query<Search>,
) -> Response {
    if !is_authorized(&headers) {
        return answer((StatusCode::UNAUTHORIZED, json!({"error": {"type": "invalid_request_error"}})));
    }
    let fault = provider.0.lock().next_fault("/v1/payment_intents/search");
    if fault.is_some_and(|fault| fault.kind != FaultKind::Delay) {
        return broken();
    }
    let wanted = search.query.strip_prefix("metadata['").and_then(|rest| rest.strip_suffix('\''));
    match wanted.and_then(|rest| rest.split_once("']:'")) {
        Some((name, value)) => Json(provider.0.lock().ledger.search(name, value)).into_response(),
        None => answer(error("invalid_request_error", "query_unknown")),
    }
}

fn is_authorized(headers: &HeaderMap) -> bool {
    let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    token.and_then(|value| value.strip_prefix("Bearer ")).is_some_and(|token| !token.is_empty())
}

fn idempotency_key(headers: &HeaderMap) -> Option<&str> {
    headers.get("idempotency-key")?.to_str().ok()
}

fn broken() -> Response {
    answer((StatusCode::INTERNAL_SERVER_ERROR, json!({"error": {"type": "api_error"}})))
}

fn answer((status, body): Answer) -> Response {
    (status, Json(body)).into_response()
}

fn error(kind: &str, code: &str) -> Answer {
    (StatusCode::BAD_REQUEST, json!({"error": {"type": kind, "code": code}}))
}
