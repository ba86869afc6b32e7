//! The invariants that no module can check alone: money against orders, goods against orders.
//!
//! Every module is read for itself, so in a store at work two of them are of two moments. A mismatch counts when
//! three readings in a row show the very same one: what is merely on its way changes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::Target;

const READINGS: usize = 3;
const BETWEEN_READINGS: Duration = Duration::from_millis(300);

#[derive(Debug, Serialize)]
pub(crate) struct AuditReport {
    orders: i64,
    orders_minor: i64,
    payments: i64,
    payments_minor: i64,
    refunds: i64,
    refunds_minor: i64,
    units_sold: i64,
    units_returned: i64,
    held_units: i64,
    open_sagas: i64,
    attention: i64,
    pub(crate) mismatches: Vec<String>,
}

#[derive(Deserialize)]
struct Sagas {
    open: i64,
    attention: i64,
}

#[derive(Deserialize)]
struct OrderTotals {
    orders: i64,
    orders_minor: i64,
    refunded_minor: i64,
    units_sold: i64,
    units_returned: i64,
}

#[derive(Deserialize)]
struct LedgerTotals {
    payments: i64,
    payments_minor: i64,
    refunds: i64,
    refunds_minor: i64,
}

#[derive(Deserialize)]
struct StockTotals {
    held: i64,
}

#[derive(Deserialize)]
struct OrderSums {
    id: String,
    status: String,
    total_minor: i64,
    refunded_minor: i64,
}

#[derive(Deserialize)]
struct LedgerPayment {
    id: String,
    paid_minor: i64,
    repaid_minor: i64,
}

#[derive(Deserialize)]
struct ProductUnits {
    id: String,
    sold: i64,
    returned: i64,
}

#[derive(Deserialize)]
struct Stock {
    id: String,
    stock: i64,
    held: i64,
    sold: i64,
    supplied: i64,
}

/// # Errors
///
/// The store cannot be reached, or does not let us in.
pub(crate) async fn audit(store: &Target) -> anyhow::Result<AuditReport> {
    let mut report = reading(store).await?;
    for _ in 1..READINGS {
        if report.mismatches.is_empty() {
            break;
        }
        tokio::time::sleep(BETWEEN_READINGS).await;
        let before: BTreeSet<String> = report.mismatches.into_iter().collect();
        report = reading(store).await?;
        report.mismatches.retain(|mismatch| before.contains(mismatch));
    }
    Ok(report)
}

async fn reading(store: &Target) -> anyhow::Result<AuditReport> {
    let ledger: LedgerTotals = store.get("/admin/payments/audit").await?;
    let book: OrderTotals = store.get("/admin/orders/audit").await?;
    let stock: StockTotals = store.get("/admin/products/audit").await?;
    let mut mismatches = Vec::new();
    if book.orders_minor != ledger.payments_minor {
        mismatches
            .push(format!("orders come to {}, payments to {}", book.orders_minor, ledger.payments_minor));
    }
    if book.refunded_minor != ledger.refunds_minor {
        mismatches
            .push(format!("orders say {} refunded, payments {}", book.refunded_minor, ledger.refunds_minor));
    }
    money(store, &mut mismatches).await?;
    goods(store, &mut mismatches).await?;
    let sagas: Sagas = store.get("/admin/sagas").await?;
    if stock.held != 0 && sagas.open == 0 {
        mismatches.push(format!("{} units are held, and no saga is open", stock.held));
    }
    Ok(AuditReport {
        orders: book.orders,
        orders_minor: book.orders_minor,
        payments: ledger.payments,
        payments_minor: ledger.payments_minor,
        refunds: ledger.refunds,
        refunds_minor: ledger.refunds_minor,
        units_sold: book.units_sold,
        units_returned: book.units_returned,
        held_units: stock.held,
        open_sagas: sagas.open,
        attention: sagas.attention,
        mismatches,
    })
}

/// Each order has the payment of its number, and the same is given back by both.
async fn money(store: &Target, mismatches: &mut Vec<String>) -> anyhow::Result<()> {
    let payments =
        all(store, "/admin/payments/audit/payments", |payment: &LedgerPayment| &payment.id).await?;
    let mut payments: BTreeMap<String, LedgerPayment> =
        payments.into_iter().map(|payment| (payment.id.clone(), payment)).collect();
    for order in all(store, "/admin/orders/audit/orders", |order: &OrderSums| &order.id).await? {
        let OrderSums { id, status, total_minor, refunded_minor } = order;
        match payments.remove(&id) {
            None => mismatches.push(format!("order {id} is {status} without a payment")),
            Some(payment) if (payment.paid_minor, payment.repaid_minor) != (total_minor, refunded_minor) => {
                let LedgerPayment { paid_minor, repaid_minor, .. } = payment;
                mismatches.push(format!(
                    "order {id} comes to {total_minor} with {refunded_minor} refunded, \
                     its payment to {paid_minor} with {repaid_minor} repaid"
                ));
            }
            Some(_) => {}
        }
        if status == "cancelled" && refunded_minor != total_minor {
            mismatches
                .push(format!("order {id} is cancelled, and {refunded_minor} of {total_minor} refunded"));
        }
    }
    mismatches.extend(payments.into_keys().map(|id| format!("payment {id} has no order")));
    Ok(())
}

/// What is sold of each product is what its orders say, less what came back; and nothing appears or vanishes.
async fn goods(store: &Target, mismatches: &mut Vec<String>) -> anyhow::Result<()> {
    let units = all(store, "/admin/orders/audit/units", |units: &ProductUnits| &units.id).await?;
    let mut ordered: BTreeMap<String, i64> =
        units.into_iter().map(|units| (units.id, units.sold - units.returned)).collect();
    for Stock { id, stock, held, sold, supplied } in
        all(store, "/admin/products/audit/products", |stock: &Stock| &stock.id).await?
    {
        let ordered = ordered.remove(&id).unwrap_or(0);
        if ordered != sold {
            mismatches.push(format!("product {id}: {sold} sold, {ordered} in orders"));
        }
        if stock + held + sold != supplied {
            mismatches.push(format!(
                "product {id}: {stock} in stock, {held} held, {sold} sold, {supplied} supplied"
            ));
        }
    }
    mismatches
        .extend(ordered.into_keys().map(|id| format!("product {id} is in orders and not in the catalogue")));
    Ok(())
}

/// All pages of a list that is in order of id.
async fn all<T: serde::de::DeserializeOwned>(
    store: &Target,
    path: &str,
    id: impl Fn(&T) -> &String,
) -> anyhow::Result<Vec<T>> {
    let mut found: Vec<T> = store.get(path).await?;
    let mut page = found.len();
    while page > 0 {
        let Some(last) = found.last() else { break };
        let next: Vec<T> = store.get(&format!("{path}?after={}", escaped(id(last)))).await?;
        page = next.len();
        found.extend(next);
    }
    Ok(found)
}

/// A value in a query: everything but letters and digits as `%` and two hexadecimal digits (RFC 3986, 2.1).
fn escaped(value: &str) -> String {
    let byte = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    value.bytes().map(byte).collect()
}
