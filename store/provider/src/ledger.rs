//! What the provider really did.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::{Answer, error};

pub(crate) type Form = BTreeMap<String, String>;

#[derive(Default)]
pub(crate) struct Ledger {
    intents: Vec<Intent>,
}

struct Intent {
    amount: i64,
    currency: String,
    /// None: the card was charged.
    decline_code: Option<&'static str>,
    refunds: Vec<i64>,
    metadata: Form,
}

impl Ledger {
    /// Creates a PaymentIntent and confirms it. A declined one stays, without money.
    pub(crate) fn charge(&mut self, mut form: Form) -> Answer {
        let amount =
            form.get("amount").and_then(|amount| amount.parse().ok()).filter(|amount: &i64| *amount > 0);
        let (Some(amount), Some(currency)) = (amount, form.remove("currency")) else {
            return error("invalid_request_error", "parameter_missing");
        };
        let decline_code = match form.get("payment_method").map(String::as_str) {
            Some("pm_card_visa") => None,
            Some("pm_card_visa_chargeDeclined") => Some("generic_decline"),
            Some("pm_card_visa_chargeDeclinedInsufficientFunds") => Some("insufficient_funds"),
            _ => return error("invalid_request_error", "resource_missing"),
        };
        let name = |key: &str| Some(key.strip_prefix("metadata[")?.strip_suffix(']')?.to_owned());
        let metadata = form.into_iter().filter_map(|(key, value)| Some((name(&key)?, value))).collect();
        self.intents.push(Intent { amount, currency, decline_code, refunds: Vec::new(), metadata });
        match decline_code {
            None => (StatusCode::OK, self.shown(self.intents.len() - 1)),
            Some(code) => (StatusCode::PAYMENT_REQUIRED, json!({ "error": declined(code) })),
        }
    }

    /// Gives back an amount, or without one all that is left.
    pub(crate) fn refund(&mut self, form: &Form) -> Answer {
        let id = form.get("payment_intent").and_then(|id| id.strip_prefix("pi_")?.parse::<usize>().ok());
        let Some(intent) = id.and_then(|id| self.intents.get_mut(id)).filter(|intent| intent.succeeded())
        else {
            return error("invalid_request_error", "resource_missing");
        };
        let left = intent.amount - intent.refunds.iter().sum::<i64>();
        let amount = form.get("amount").map_or(Some(left), |amount| amount.parse().ok());
        match amount {
            _ if left == 0 => error("invalid_request_error", "charge_already_refunded"),
            Some(amount) if (1..=left).contains(&amount) => {
                intent.refunds.push(amount);
                (StatusCode::OK, json!({"object": "refund", "amount": amount, "status": "succeeded"}))
            }
            _ => error("invalid_request_error", "amount_too_large"),
        }
    }

    pub(crate) fn search(&self, name: &str, value: &str) -> Value {
        let found = (0..self.intents.len())
            .filter(|id| self.intents[*id].metadata.get(name).is_some_and(|found| found == value))
            .map(|id| self.shown(id))
            .collect::<Vec<_>>();
        json!({"object": "search_result", "data": found})
    }

    /// For tests.
    pub(crate) fn sums(&self) -> Value {
        let charged = || self.intents.iter().filter(|intent| intent.succeeded());
        let refunds = || charged().flat_map(|intent| &intent.refunds);
        json!({
            "charges": charged().count(),
            "charges_minor": charged().map(|intent| intent.amount).sum::<i64>(),
            "refunds": refunds().count(),
            "refunds_minor": refunds().sum::<i64>(),
            "payment_intents": (0..self.intents.len()).map(|id| self.shown(id)).collect::<Vec<_>>(),
        })
    }

    fn shown(&self, id: usize) -> Value {
        let intent = &self.intents[id];
        json!({
            "object": "payment_intent",
            "id": format!("pi_{id}"),
            "amount": intent.amount,
            "currency": intent.currency,
            "status": if intent.succeeded() { "succeeded" } else { "requires_payment_method" },
            "last_payment_error": intent.decline_code.map(declined),
            "amount_refunded": intent.refunds.iter().sum::<i64>(),
            "metadata": intent.metadata,
        })
    }
}

impl Intent {
    fn succeeded(&self) -> bool {
        self.decline_code.is_none()
    }
}

fn declined(decline_code: &str) -> Value {
    json!({"type": "card_error", "code": "card_declined", "decline_code": decline_code})
}
