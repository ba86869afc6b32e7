//! The ledger's statements. A payment is entered once, and never leaves; it can be taken back whole or paid
//! back in parts.

use modulith::{Fault, FaultKind, Tx};
use store_payments_contract::{Payment, Repayment};

pub(crate) fn enter(tx: &mut Tx<'_>, payment: &Payment) -> Result<(), Fault> {
    let now_ms = tx.now_ms();
    tx.execute(
        "INSERT INTO payments_payment (id, amount_minor, repaid_minor, currency, charge, paid_at)
         VALUES ($1, $2, 0, $3, $4, $5)",
        (payment.id, payment.amount.amount, payment.amount.currency, &payment.charge, now_ms),
    )?;
    Ok(())
}

/// The row stays, so that the books show that money was there for a moment.
pub(crate) fn take_back(tx: &mut Tx<'_>, payment: &Payment) -> Result<(), Fault> {
    let now_ms = tx.now_ms();
    tx.execute("UPDATE payments_payment SET credited_at = $2 WHERE id = $1", (payment.id, now_ms))?;
    Ok(())
}

pub(crate) fn repay(tx: &mut Tx<'_>, repayment: &Repayment) -> Result<(), Fault> {
    let now_ms = tx.now_ms();
    for part in repayment.parts.iter().filter(|part| part.amount.amount > 0) {
        let new = tx.execute(
            "INSERT INTO payments_repayment (payment, reference, amount_minor, repaid_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (payment, reference) DO NOTHING",
            (part.payment, &repayment.reference, part.amount.amount, now_ms),
        )?;
        if new == 0 {
            continue;
        }
        let entered = tx.execute(
            "UPDATE payments_payment SET repaid_minor = repaid_minor + $2 WHERE id = $1",
            (part.payment, part.amount.amount),
        )?;
        // An order can be cancelled before the books have heard of its charge; then this is tried again.
        if entered == 0 {
            let message = format!("payment {} is not in the ledger yet", part.payment.0);
            return Err(Fault::new(FaultKind::Statement, message));
        }
    }
    Ok(())
}
