//! Payments: the ledger.

use modulith::{Answer, Module, Never, Refusal, Setup, SetupError, Tx, contract, migrations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

pub(crate) const DEBIT: &str = "INSERT INTO payments_payment (id, amount_minor, paid_at) VALUES ($1, $2, $3)";
/// More than this is declined.
const AMOUNT_MINOR_MAX: i64 = 100_000_000;

#[contract(name = "payments", version = 1)]
pub(crate) trait Payments {
    /// Takes the money of an order.
    #[command]
    fn debit(&self, tx: &mut Tx<'_>, request: Debit) -> Answer<Payment, Declined>;
    /// Undoes a debit; the row stays.
    #[command]
    fn credit(&self, tx: &mut Tx<'_>, payment: Payment) -> Answer<(), Never>;
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Debit {
    pub(crate) payment: Uuid,
    pub(crate) amount_minor: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Payment {
    pub(crate) id: Uuid,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema, Refusal)]
pub(crate) enum Declined {
    #[refused(402, "the amount is too large")]
    AmountTooLarge,
}

struct PaymentsModule;

impl Payments for PaymentsModule {
    fn debit(&self, tx: &mut Tx<'_>, Debit { payment, amount_minor }: Debit) -> Answer<Payment, Declined> {
        if amount_minor > AMOUNT_MINOR_MAX {
            return Err(Declined::AmountTooLarge.into());
        }
        let now_ms = tx.now_ms();
        tx.execute(DEBIT, (payment, amount_minor, now_ms))?;
        Ok(Payment { id: payment })
    }

    fn credit(&self, tx: &mut Tx<'_>, payment: Payment) -> Answer<(), Never> {
        let now_ms = tx.now_ms();
        tx.execute("UPDATE payments_payment SET credited_at = $2 WHERE id = $1", (payment.id, now_ms))?;
        Ok(())
    }
}

pub(crate) fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("payments")
        .migrations(migrations!["../migrations/0001_payments.sql"])
        .serves(Payments.serve(PaymentsModule)))
}
