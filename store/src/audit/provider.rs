//! The books of the provider outside: one charge a key, and the money of each order.
//!
//! In the shape of the stand-in's `/ledger`, which tells everything at once.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::sagas::Open;
use super::{LedgerPayment, OrderSums};
use crate::client::Target;

#[derive(Deserialize)]
struct Ledger {
    payment_intents: Vec<Intent>,
}

#[derive(Deserialize)]
struct Intent {
    status: String,
    amount: i64,
    amount_refunded: i64,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    payment: String,
    /// The key of the step that asked for it.
    step: String,
}

/// What the provider has is compared with the ledger and the orders; what open sagas name is left out.
pub(crate) async fn compare(
    provider: &Target,
    open: &Open,
    orders: &BTreeMap<String, OrderSums>,
    payments: &BTreeMap<String, LedgerPayment>,
    mismatches: &mut Vec<String>,
) -> anyhow::Result<()> {
    let ledger: Ledger = provider.get("/ledger").await?;
    let charges: Vec<&Intent> =
        ledger.payment_intents.iter().filter(|intent| intent.status == "succeeded").collect();
    let mut keys: BTreeMap<&str, usize> = BTreeMap::new();
    for charge in &charges {
        *keys.entry(&charge.metadata.step).or_default() += 1;
    }
    for (key, charges) in keys.into_iter().filter(|(_, charges)| *charges > 1) {
        mismatches.push(format!("the provider has {charges} charges under the key {key}"));
    }
    let mut charged: BTreeMap<&str, (i64, i64)> = BTreeMap::new();
    for charge in &charges {
        let (paid, repaid) = charged.entry(&charge.metadata.payment).or_default();
        *paid += charge.amount;
        *repaid += charge.amount_refunded;
    }
    for (id, (paid, repaid)) in &charged {
        if open.name(id) {
            continue;
        }
        match orders.get(*id) {
            Some(order) if (order.total_minor, order.refunded_minor) != (*paid, *repaid) => {
                mismatches.push(format!(
                    "order {id} comes to {} with {} refunded, the provider has charged {paid} and refunded {repaid}",
                    order.total_minor, order.refunded_minor
                ));
            }
            None if paid != repaid => {
                mismatches.push(format!(
                    "the provider keeps {} of payment {id}, which has no order",
                    paid - repaid
                ));
            }
            _ => {}
        }
    }
    for (id, payment) in payments {
        if payment.charge.is_some() && !charged.contains_key(&**id) {
            mismatches.push(format!("payment {id} is a charge that the provider does not have"));
        }
    }
    Ok(())
}
