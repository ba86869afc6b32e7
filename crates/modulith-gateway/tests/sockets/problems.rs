//! How failed calls read to a client.

use axum::response::IntoResponse;
use http_body_util::BodyExt;
use modulith_core::{
    CallError, Never, NotRun, NotRunReason, Refusal, RefusalRecord, SagaRefused, Unknown, UnknownReason,
};
use modulith_gateway::http::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
enum HoldRefused {
    SoldOut { products: Vec<String>, status: u8 },
}

impl Refusal for HoldRefused {
    fn code(&self) -> &str {
        "sold_out"
    }
    fn text(&self) -> String {
        "nothing is left".into()
    }
    fn status(&self) -> u16 {
        410
    }
}

async fn read(problem: impl Into<Problem>) -> (u16, Option<String>, Value) {
    let response = problem.into().into_response();
    let retry = response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, retry, serde_json::from_slice(&body).unwrap())
}

#[tokio::test]
async fn a_refusal_keeps_its_status_code_text_and_fields() {
    let refused = || HoldRefused::SoldOut { products: vec!["85123A".into()], status: 1 };
    let expected = json!({
        "type": "/problems/sold-out", "title": "Sold out", "status": 410, "detail": "nothing is left",
        "products": ["85123A"], "status_": 1,
    });
    let record = RefusalRecord::of(&refused()).unwrap();
    let saga = SagaRefused { step: "hold_stock".into(), refusal: record.clone() };
    for problem in [
        Problem::from(CallError::Refused(refused())),
        Problem::from(CallError::<Never>::RefusedOther(record)),
        Problem::from(CallError::Refused(saga.clone())),
        Problem::refused(&saga),
    ] {
        assert_eq!(read(problem).await, (410, None, expected.clone()));
    }
}

#[tokio::test]
async fn not_run_and_unknown_stay_apart_and_hide_their_details() {
    use NotRunReason::*;
    for (reason, status, code, retry) in [
        (Unavailable, 503, "service-unavailable", Some("1")),
        (Stopping, 503, "service-unavailable", Some("1")),
        (Overloaded, 503, "overloaded", Some("1")),
        (Fault, 503, "unavailable", Some("1")),
        (Panicked, 503, "unavailable", Some("1")),
        (Incompatible, 503, "unavailable", Some("1")),
        (Aborted, 503, "aborted", None),
        (Deadline, 504, "deadline-exceeded", None),
        (KeyReused, 422, "idempotency-key-reused", None),
        (Running, 409, "still-running", Some("1")),
        (Expired, 409, "idempotency-key-expired", None),
    ] {
        let error = CallError::<Never>::NotRun(NotRun::new(reason, "table orders__inbox is on fire"));
        let (got, got_retry, document) = read(error).await;
        assert_eq!((got, got_retry.as_deref()), (status, retry), "{reason:?}");
        assert_eq!(document["type"], format!("/problems/{code}"));
        assert!(!document.to_string().contains("fire"), "{document}");
    }
    let error = CallError::<Never>::Unknown(Unknown::new(UnknownReason::CommitLost, "disk on fire"));
    let (status, _, document) = read(error).await;
    assert_eq!((status, &document["type"]), (504, &json!("/problems/outcome-unknown")));
    assert!(document["detail"].as_str().unwrap().contains("same Idempotency-Key"));
    assert!(!document.to_string().contains("fire"));
}
