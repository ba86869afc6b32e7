//! Money: an integer number of minor units and its currency. Sums are checked; there is no fraction and no
//! conversion, so two currencies never add up.

use modulith::Column;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `{"amount": 255, "currency": "GBP"}` is £2.55.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Money {
    /// Minor units: pence, cents.
    pub amount: i64,
    pub currency: Currency,
}

/// An ISO 4217 currency with two decimal places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Column)]
#[serde(rename_all = "UPPERCASE")]
pub enum Currency {
    Gbp,
    Eur,
    Usd,
}

impl Money {
    pub fn new(amount: i64, currency: Currency) -> Self {
        Self { amount, currency }
    }

    /// The price of `quantity` pieces, unless it is beyond any price.
    pub fn times(self, quantity: u32) -> Option<Self> {
        Some(Self { amount: self.amount.checked_mul(i64::from(quantity))?, ..self })
    }

    /// The sum, unless the currencies differ or it is beyond any price.
    pub fn plus(self, other: Self) -> Option<Self> {
        let amount = self.amount.checked_add(other.amount).filter(|_| self.currency == other.currency)?;
        Some(Self { amount, ..self })
    }

    /// The sum of at least one amount, as [`Money::plus`] adds.
    pub fn sum(amounts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let mut amounts = amounts.into_iter();
        let first = amounts.next()?;
        amounts.try_fold(first, Self::plus)
    }
}
