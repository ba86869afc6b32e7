//! Payments: the second step.

use modulith::{Answer, Module, Never, Setup, SetupError, Tx, contract, migrations};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[contract(name = "payments", version = 1)]
pub(crate) trait Payments {
    /// Takes the money of an order, and answers the payment's number.
    #[command]
    fn debit(&self, tx: &mut Tx<'_>, request: Debit) -> Answer<i64, Never>;
    /// Undoes a debit; the row stays.
    #[command]
    fn credit(&self, tx: &mut Tx<'_>, payment: i64) -> Answer<(), Never>;
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Debit {
    pub(crate) order: i64,
    pub(crate) amount_minor: i64,
}

struct PaymentsModule;

impl Payments for PaymentsModule {
    fn debit(&self, tx: &mut Tx<'_>, Debit { order, amount_minor }: Debit) -> Answer<i64, Never> {
        let sql = "INSERT INTO payments_payment (id, amount_minor, credited) VALUES ($1, $2, $3)";
        tx.execute(sql, (order, amount_minor, false))?;
        Ok(order)
    }

    fn credit(&self, tx: &mut Tx<'_>, payment: i64) -> Answer<(), Never> {
        tx.execute("UPDATE payments_payment SET credited = $2 WHERE id = $1", (payment, true))?;
        Ok(())
    }
}

pub(crate) fn module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("payments")
        .migrations(migrations!["../migrations/0001_payments.sql"])
        .serves(Payments.serve(PaymentsModule)))
}
