//! The words of the HTTP API that the store and both peers speak.

use axum::http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::problem::Problem;

/// The one currency that the peers trade in.
pub const CURRENCY: &str = "GBP";

/// The card number that the embedded ledger always declines.
const CARD_DECLINED: &str = "4000000000000002";
const LINES_MAX: usize = 100;
const KEY_BYTES_MAX: usize = 255;

/// An integer number of minor units and its currency.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the type says it")]
pub struct Money {
    pub amount: i64,
    pub currency: String,
}

impl Money {
    /// Minor units of [`CURRENCY`].
    pub fn new(amount: i64) -> Self {
        Self {
            amount,
            currency: CURRENCY.to_owned(),
        }
    }
}

/// The body of `POST /orders`.
#[derive(Clone, Debug, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct PlaceOrder {
    pub lines: Vec<Line>,
    pub card: Card,
}

/// A product and how many of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Line {
    pub product_id: i64,
    pub quantity: i64,
}

/// A payment card; it is checked and then forgotten, never stored.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Card {
    pub number: String,
    pub exp_month: u32,
    pub exp_year: u32,
    pub cvc: String,
}

/// A line with what the product was called and cost when it was ordered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct OrderLine {
    pub product_id: i64,
    pub name: String,
    pub quantity: i64,
    pub unit_price: Money,
    pub total: Money,
}

impl OrderLine {
    /// Prices `line` by what the catalogue says.
    pub fn new(line: &Line, name: String, price: i64) -> Self {
        Self {
            product_id: line.product_id,
            name,
            quantity: line.quantity,
            unit_price: Money::new(price),
            total: Money::new(price * line.quantity),
        }
    }
}

/// The answer to `POST /orders`.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Order<'a> {
    pub id: Uuid,
    pub status: &'a str,
    pub total: Money,
    pub lines: &'a [OrderLine],
}

impl PlaceOrder {
    /// Reads a body and refuses what no catalogue could fulfil.
    ///
    /// # Errors
    ///
    /// 422 for a body that is not an order, and for lines or quantities out of range.
    pub fn read(body: &[u8]) -> Result<Self, Problem> {
        let order: Self = serde_json::from_slice(body)
            .map_err(|error| Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error))?;
        let sane = (1..=LINES_MAX).contains(&order.lines.len())
            && order
                .lines
                .iter()
                .all(|line| (1..=1_000_000).contains(&line.quantity));
        match sane {
            true => Ok(order),
            false => Err(Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "lines or quantity out of range",
            )),
        }
    }
}

impl Card {
    /// The decision of the embedded ledger.
    ///
    /// # Errors
    ///
    /// 402 for the number that is always declined, and for what is no card number.
    pub fn authorize(&self) -> Result<(), Problem> {
        let digits = self.number.len() == 16 && self.number.bytes().all(|b| b.is_ascii_digit());
        match digits && (1..=12).contains(&self.exp_month) && self.number != CARD_DECLINED {
            true => Ok(()),
            false => Err(Problem::new(StatusCode::PAYMENT_REQUIRED, "card declined")),
        }
    }
}

/// The client's name for this request, under which its answer is kept.
///
/// # Errors
///
/// 400 without a key, or with one that is too long.
pub fn idempotency_key(headers: &HeaderMap) -> Result<&str, Problem> {
    let key = headers
        .get("idempotency-key")
        .and_then(|value| value.to_str().ok());
    key.filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len()))
        .ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "the header Idempotency-Key is missing or too long",
            )
        })
}

/// Tells a repeat of a request from another request under the same key.
pub fn fingerprint(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}
