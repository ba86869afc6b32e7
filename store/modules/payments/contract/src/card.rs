//! Cards. A number is turned into a token before anything is stored, so that a leaked database or log holds
//! nothing that can be charged elsewhere.

use modulith::{Refusal, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A card as its holder types it. It is an argument of a query, and queries store nothing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// Spaces and hyphens are allowed.
    pub number: Secret<String>,
    pub exp_month: u32,
    /// With the century: 2030.
    pub exp_year: u32,
    pub cvc: Secret<String>,
}

/// Stands for a card. Only the payments module makes one for a customer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct CardToken(pub String);

impl CardToken {
    /// For orders that were paid elsewhere and are booked later: it always succeeds. No card becomes this token.
    pub fn on_invoice() -> Self {
        Self("on_invoice".to_owned())
    }
}

/// A card that may be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Tokenized {
    pub token: CardToken,
    pub paid_through: PaidThrough,
}

/// Who takes the money, which decides the plan of a checkout. A matter of the payments module's configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PaidThrough {
    /// The module's own ledger: `debit`, a command.
    Ledger,
    /// A provider outside: `charge`, an effect.
    Provider,
}

/// Why a card is not even tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum CardRefused {
    #[refused(422, "card.number is not a card number")]
    CardNumberInvalid,
    #[refused(422, "card.exp_month is not between 1 and 12")]
    CardExpiryInvalid,
    #[refused(422, "card.cvc is not three or four digits")]
    CardCvcInvalid,
    #[refused(402, "the card has expired")]
    CardExpired,
    #[refused(402, "this card is not supported")]
    CardUnsupported,
}
