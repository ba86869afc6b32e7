//! The invariants that no module can check alone: money against orders, goods against orders.
//!
//! Every module is read for itself, so in a store at work two of them are of two moments. A mismatch counts when
//! three readings in a row show the very same one: what is merely on its way changes. What an open saga names may be
//! half done for long, so it is left out of the sums, and the sagas are named instead.

mod provider;
mod sagas;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::client::Target;
use sagas::Open;

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
    /// Checkouts that are done, among the sagas that are still kept.
    checkouts: usize,
    /// Their effects are in no sum.
    open_sagas: Vec<String>,
    /// How many of them need a person.
    attention: i64,
    pub(crate) mismatches: Vec<String>,
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
    /// The provider's number of it.
    charge: Option<String>,
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

/// With `provider`, the books of the provider outside are compared too.
///
/// # Errors
///
/// The store or the provider cannot be reached, or does not let us in; too many sagas are open.
pub(crate) async fn audit(store: &Target, provider: Option<&Target>) -> anyhow::Result<AuditReport> {
    let mut report = reading(store, provider).await?;
    for _ in 1..READINGS {
        if report.mismatches.is_empty() {
            break;
        }
        tokio::time::sleep(BETWEEN_READINGS).await;
        let before: BTreeSet<String> = report.mismatches.into_iter().collect();
        report = reading(store, provider).await?;
        report.mismatches.retain(|mismatch| before.contains(mismatch));
    }
    Ok(report)
}

async fn reading(store: &Target, provider: Option<&Target>) -> anyhow::Result<AuditReport> {
    let open = Open::read(store).await?;
    let ledger: LedgerTotals = store.get("/admin/payments/audit").await?;
    let book: OrderTotals = store.get("/admin/orders/audit").await?;
    let stock: StockTotals = store.get("/admin/products/audit").await?;
    let mut mismatches = Vec::new();
    // Between the steps of a saga the totals differ.
    if open.ids.is_empty() {
        totals(&book, &ledger, &mut mismatches);
    }
    let payments =
        all(store, "/admin/payments/audit/payments", |payment: &LedgerPayment| &payment.id).await?;
    let payments: BTreeMap<String, LedgerPayment> =
        payments.into_iter().map(|payment| (payment.id.clone(), payment)).collect();
    let orders = all(store, "/admin/orders/audit/orders", |order: &OrderSums| &order.id).await?;
    let orders: BTreeMap<String, OrderSums> =
        orders.into_iter().map(|order| (order.id.clone(), order)).collect();
    money(&open, &orders, &payments, &mut mismatches);
    goods(store, &open, &mut mismatches).await?;
    let recorded = orders.keys().cloned().collect();
    let checkouts = sagas::checkouts(store, &open, &recorded, &mut mismatches).await?;
    if let Some(provider) = provider {
        provider::compare(provider, &open, &orders, &payments, &mut mismatches).await?;
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
        checkouts,
        open_sagas: open.ids,
        attention: open.attention,
        mismatches,
    })
}

fn totals(book: &OrderTotals, ledger: &LedgerTotals, mismatches: &mut Vec<String>) {
    if book.orders_minor != ledger.payments_minor {
        mismatches
            .push(format!("orders come to {}, payments to {}", book.orders_minor, ledger.payments_minor));
    }
    if book.refunded_minor != ledger.refunds_minor {
        mismatches
            .push(format!("orders say {} refunded, payments {}", book.refunded_minor, ledger.refunds_minor));
    }
}

/// Each order has the payment of its number, and the same is given back by both.
fn money(
    open: &Open,
    orders: &BTreeMap<String, OrderSums>,
    payments: &BTreeMap<String, LedgerPayment>,
    mismatches: &mut Vec<String>,
) {
    for (id, OrderSums { status, total_minor, refunded_minor, .. }) in orders {
        if open.name(id) {
            continue;
        }
        match payments.get(id) {
            None => mismatches.push(format!("order {id} is {status} without a payment")),
            Some(payment)
                if (payment.paid_minor, payment.repaid_minor) != (*total_minor, *refunded_minor) =>
            {
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
    let orderless = payments.keys().filter(|id| !orders.contains_key(*id) && !open.name(id));
    mismatches.extend(orderless.map(|id| format!("payment {id} has no order")));
}

/// What is sold of each product is what its orders say, less what came back; what is held is held by sagas that are
/// open; and nothing appears or vanishes.
async fn goods(store: &Target, open: &Open, mismatches: &mut Vec<String>) -> anyhow::Result<()> {
    let units = all(store, "/admin/orders/audit/units", |units: &ProductUnits| &units.id).await?;
    let mut ordered: BTreeMap<String, i64> =
        units.into_iter().map(|units| (units.id, units.sold - units.returned)).collect();
    for Stock { id, stock, held, sold, supplied } in
        all(store, "/admin/products/audit/products", |stock: &Stock| &stock.id).await?
    {
        let ordered = ordered.remove(&id).unwrap_or(0);
        if ordered != sold && !open.name(&id) {
            mismatches.push(format!("product {id}: {sold} sold, {ordered} in orders"));
        }
        if held != open.held(&id) {
            mismatches.push(format!("product {id}: {held} held, {} by open sagas", open.held(&id)));
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
