//! What other modules may ask of payments: take money, give it back, and the types of both.
//!
//! Money is taken in one of two ways. `debit` is a command on the module's own ledger, so that a checkout in
//! one process is one transaction. `charge` is an effect on a provider outside; the ledger learns of it by
//! `record_charge`. Either way the payer gives the payment its number, and the ledger holds one payment per
//! number.

mod card;
mod money;

use modulith::{Answer, CallError, Column, Context, Found, Never, Refusal, Snapshot, StepKey, Tx, contract};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub use card::{Card, CardRefused, CardToken, PaidThrough, Tokenized};
pub use money::{Currency, Money};

#[contract(name = "payments", version = 1)]
pub trait Payments {
    /// Turns a card into a token, and says who will take the money. Nothing of the card is stored.
    #[query]
    fn tokenize(&self, db: &Snapshot<'_>, card: Card) -> Answer<Tokenized, CardRefused>;

    /// Takes money on the module's own ledger.
    #[command]
    fn debit(&self, tx: &mut Tx<'_>, request: ChargeRequest) -> Answer<Payment, Declined>;

    /// Takes a debit back: as if it had not been.
    #[command]
    fn credit(&self, tx: &mut Tx<'_>, payment: Payment) -> Answer<(), Never>;

    /// Takes money through the provider. The provider knows the attempt by the step's key.
    #[effect(window = "24h", look_up = find_charge)]
    async fn charge(&self, cx: &Context, request: ChargeRequest) -> Result<Payment, CallError<Declined>>;

    /// What the provider has under the key of the step that charged.
    #[effect]
    async fn find_charge(
        &self,
        cx: &Context,
        step: StepKey,
    ) -> Result<Found<Payment, Declined>, CallError<Never>>;

    /// Takes a charge back, found by the key of the step that made it. The provider recognises a repeat for as long as
    /// it keeps the charge, whatever the key: it gives all of a charge back once.
    #[effect(window = "3650d")]
    async fn refund(&self, cx: &Context, step: StepKey) -> Result<(), CallError<Never>>;

    /// Enters into the ledger what the provider charged.
    #[command]
    fn record_charge(&self, tx: &mut Tx<'_>, payment: Payment) -> Answer<(), Never>;

    /// Gives a part or all of some payments back, in the ledger. A repeat of a reference gives nothing more;
    /// more than was paid is a fault.
    #[command]
    fn repay(&self, tx: &mut Tx<'_>, repayment: Repayment) -> Answer<(), Never>;

    /// Gives a part or all of a charge back through the provider. The ledger learns of it by `repay`.
    #[effect]
    async fn repay_charge(&self, cx: &Context, request: ChargeRepayment) -> Result<(), CallError<Never>>;
}

/// The payer's own number for a payment.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema, Column,
)]
#[serde(transparent)]
pub struct PaymentId(pub Uuid);

/// The provider's number for a charge: `pi_…`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Column)]
#[serde(transparent)]
pub struct ChargeId(pub String);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChargeRequest {
    pub payment: PaymentId,
    pub amount: Money,
    pub card: CardToken,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Payment {
    pub id: PaymentId,
    pub amount: Money,
    /// None: a debit on the ledger.
    pub charge: Option<ChargeId>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Repayment {
    /// Why, in the payer's words: `cancel <order>`, `return C536379`.
    pub reference: String,
    /// Each payment at most once.
    pub parts: Vec<RepaymentPart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RepaymentPart {
    pub payment: PaymentId,
    pub amount: Money,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChargeRepayment {
    pub charge: ChargeId,
    pub amount: Money,
}

/// The card was tried, and no money was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Refusal)]
pub enum Declined {
    #[refused(402, "the card was declined")]
    CardDeclined,
    #[refused(402, "the card has insufficient funds")]
    InsufficientFunds,
}
