//! One Idempotency-Key, and what its customer was told about it.

use anyhow::{bail, ensure};
use modulith_test::{Application, Request, Response};
use serde_json::{Value, json};

use crate::shop::{CARD, Customer, card};

/// How long a request may take, which bounds a round: a service that was killed is back sooner.
const TIMEOUT_MS: &str = "1000";

pub(crate) struct Order {
    /// The order's client reference too, so that an order tells its key.
    pub(crate) key: String,
    pub(crate) lines: Vec<(&'static str, i64)>,
    pub(crate) from_cart: bool,
    pub(crate) card: &'static str,
    /// None: nothing certain yet.
    pub(crate) told: Option<Told>,
    pub(crate) cancelling: Cancelling,
}

/// What a key's answer was, for good.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
    Placed(Value),
    Refused { status: u16, problem: String },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cancelling {
    No,
    /// Without a certain answer yet.
    Asked,
    Acknowledged,
}

impl Order {
    pub(crate) fn placed(&self) -> Option<&Value> {
        match &self.told {
            Some(Told::Placed(order)) => Some(order),
            _ => None,
        }
    }

    /// Asks for the order, for the first time or again. None: the answer is not certain.
    ///
    /// # Errors
    ///
    /// An answer that no order may have, or another one than before.
    pub(crate) async fn ask(&mut self, app: &Application, customer: &Customer) -> anyhow::Result<Option<()>> {
        let lines: Vec<Value> = self
            .lines
            .iter()
            .map(|(product, quantity)| json!({"product_id": product, "quantity": quantity}))
            .collect();
        let lines = if self.from_cart { Value::Null } else { lines.into() };
        let body = json!({"lines": lines, "card": card(self.card), "client_reference": self.key});
        let request = Request::post("/orders", &body).key(&self.key).header("request-timeout-ms", TIMEOUT_MS);
        let Some(response) = answered(customer.send(app, request).await) else { return Ok(None) };
        let told = match (response.status, response.problem()) {
            (201, _) => Told::Placed(response.json),
            (409, "still-running") => return Ok(None),
            (409, "sold-out") | (402, _) | (503, "aborted") => {
                Told::Refused { status: response.status, problem: response.problem().to_owned() }
            }
            (status, _) => bail!("key {} was told {status} {}", self.key, response.json),
        };
        self.hear(told)?;
        Ok(Some(()))
    }

    /// A key has one answer: the first certain one.
    fn hear(&mut self, told: Told) -> anyhow::Result<()> {
        match &self.told {
            Some(before) => ensure!(*before == told, "key {} was told {before:?}, now {told:?}", self.key),
            None => {
                if let Told::Placed(order) = &told {
                    self.check(order)?;
                }
                self.told = Some(told);
            }
        }
        Ok(())
    }

    /// That an order is what this key asked for.
    fn check(&self, order: &Value) -> anyhow::Result<()> {
        let lines = order["lines"].as_array().map(Vec::as_slice).unwrap_or_default();
        let line = |line: &Value| (line["product_id"].clone(), line["quantity"].clone());
        let as_asked =
            lines.iter().map(line).eq(self.lines.iter().map(|line| (json!(line.0), json!(line.1))))
                && self.card == CARD
                && order["status"] == "paid"
                && order["client_reference"] == *self.key;
        ensure!(
            as_asked,
            "key {} asked for {:?} with card {} and got {order}",
            self.key,
            self.lines,
            self.card
        );
        Ok(())
    }

    /// Asks to cancel it. None: the answer is not certain.
    ///
    /// # Errors
    ///
    /// An answer that an order of this customer may not have.
    pub(crate) async fn cancel(
        &mut self,
        app: &Application,
        customer: &Customer,
    ) -> anyhow::Result<Option<()>> {
        let Some(id) = self.placed().and_then(|order| order["id"].as_str()) else {
            bail!("key {} has no order to cancel", self.key);
        };
        let request = Request::post(format!("/orders/{id}/cancel"), &json!({}))
            .header("request-timeout-ms", TIMEOUT_MS);
        self.cancelling = Cancelling::Asked;
        let Some(response) = answered(customer.send(app, request).await) else { return Ok(None) };
        let cancelled = response.status == 200 && response.json["status"] == "cancelled";
        ensure!(cancelled, "cancelling {}: {} {}", self.key, response.status, response.json);
        self.cancelling = Cancelling::Acknowledged;
        Ok(Some(()))
    }
}

/// None for what leaves open whether it was done, or says that nothing was: no whole response, or a 5xx. One 5xx
/// is an answer for good: the order was given up, and its key says so.
pub(crate) fn answered(response: anyhow::Result<Response>) -> Option<Response> {
    response.ok().filter(|response| response.status < 500 || response.problem() == "aborted")
}
