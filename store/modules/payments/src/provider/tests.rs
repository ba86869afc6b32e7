//! Against the stand-in: what a look-up says is what the provider did.

use modulith_test::{Http, Request};
use serde_json::json;
use store_payments_contract::{CardToken, Money};
use store_provider::{Fault, FaultKind};
use uuid::Uuid;

use super::*;

const CHARGES: &str = "/v1/payment_intents";
const SEARCH: &str = "/v1/payment_intents/search";

async fn stand_in() -> (Provider, Http) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, store_provider::router()).await });
    (Provider::new(&url, "sk_test").unwrap(), Http::new(&url, ""))
}

async fn fault(http: &Http, path: &str, kind: FaultKind) {
    let fault = Fault { path: Some(path.to_owned()), kind, times: 1, delay_ms: 0 };
    let fault = serde_json::to_value(&fault).unwrap();
    assert_eq!(http.send(Request::post("/faults", &fault)).await.unwrap().status, 204);
}

fn request(card: &str) -> ChargeRequest {
    ChargeRequest {
        payment: PaymentId(Uuid::from_u128(7)),
        amount: Money::new(255, Currency::Eur),
        card: CardToken(card.to_owned()),
    }
}

#[tokio::test]
async fn a_look_up_finds_what_was_charged_declined_or_never_tried() {
    let (provider, http) = stand_in().await;
    assert_eq!(provider.find_charge("k-1").await.unwrap(), Found::Nothing);

    let payment = provider.charge("k-1", request("pm_card_visa")).await.unwrap();
    assert_eq!(provider.find_charge("k-1").await.unwrap(), Found::Done(payment));

    for (key, card, expected) in [
        ("k-2", "pm_card_visa_chargeDeclined", Declined::CardDeclined),
        ("k-3", "pm_card_visa_chargeDeclinedInsufficientFunds", Declined::InsufficientFunds),
    ] {
        let refused = provider.charge(key, request(card)).await.unwrap_err();
        assert!(matches!(refused, CallError::Refused(found) if found == expected));
        assert_eq!(provider.find_charge(key).await.unwrap(), Found::Refused(expected));
    }

    // The two that look alike to who asked.
    fault(&http, CHARGES, FaultKind::DropReply).await;
    let lost = provider.charge("k-4", request("pm_card_visa")).await;
    assert!(matches!(lost, Err(CallError::Unknown(_))), "{lost:?}");
    fault(&http, CHARGES, FaultKind::FailBefore).await;
    let failed = provider.charge("k-5", request("pm_card_visa")).await;
    assert!(matches!(failed, Err(CallError::Unknown(_))), "{failed:?}");
    assert!(matches!(provider.find_charge("k-4").await.unwrap(), Found::Done(_)));
    assert_eq!(provider.find_charge("k-5").await.unwrap(), Found::Nothing);
}

#[tokio::test]
async fn a_look_up_that_fails_does_not_say_nothing() {
    let (provider, http) = stand_in().await;
    provider.charge("k", request("pm_card_visa")).await.unwrap();
    fault(&http, SEARCH, FaultKind::FailBefore).await;
    let failed = provider.find_charge("k").await;
    assert!(matches!(failed, Err(CallError::Unknown(_))), "{failed:?}");
}

/// So the window of `refund` may be longer than that of a key.
#[tokio::test]
async fn a_charge_is_refunded_once_whatever_the_key() {
    let (provider, http) = stand_in().await;
    provider.charge("k", request("pm_card_visa")).await.unwrap();
    for key in ["u-1", "u-2"] {
        provider.refund_step(key, "k").await.unwrap();
    }
    let ledger = http.send(Request::get("/ledger")).await.unwrap().json;
    assert_eq!((&ledger["refunds"], &ledger["refunds_minor"]), (&json!(1), &json!(255)), "{ledger}");
}
