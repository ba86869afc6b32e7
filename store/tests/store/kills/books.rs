//! The store's books against what the shoppers were told.

use std::collections::BTreeMap;

use anyhow::{Context as _, ensure};
use modulith_test::{Application, Request};
use serde_json::{Value, json};

use super::order::{Cancelling, Order};
use super::shopper::{SHELF, Shopper};
use crate::shop::clean_audit;

/// Fills the shelf: units of one source, which are added once.
pub(crate) async fn supply(app: &Application) -> anyhow::Result<()> {
    let product = |(id, units): &(&str, u32)| json!({"id": id, "name": id, "price": {"amount": 250, "currency": "GBP"}, "units": units});
    let products: Vec<Value> = SHELF.iter().map(product).collect();
    let supply = json!({"source": "kills", "products": products});
    let response = app.send(Request::post("/admin/products/supply", &supply).admin()).await?;
    ensure!(response.status == 204, "supply: {} {}", response.status, response.json);
    Ok(())
}

/// The sums: the audit is clean, no saga is open or needs attention, and orders, money and goods come to what the
/// shoppers know. Every key has to have its answer.
pub(crate) async fn check_sums(app: &Application, shoppers: &[Shopper]) -> anyhow::Result<()> {
    let report = clean_audit(app).await?;
    let orders: Vec<&Order> = shoppers.iter().flat_map(|shopper| &shopper.orders).collect();
    let placed = || orders.iter().filter_map(|order| order.placed().map(|told| (*order, told)));
    let is_cancelled = |order: &Order| order.cancelling == Cancelling::Acknowledged;
    let minor = |told: &Value| told["total"]["amount"].as_i64().unwrap_or_default();
    let (mut all_minor, mut back_minor, mut sold) = (0, 0, BTreeMap::new());
    for (order, told) in placed() {
        all_minor += minor(told);
        back_minor += if is_cancelled(order) { minor(told) } else { 0 };
        for (product, quantity) in order.lines.iter().filter(|_| !is_cancelled(order)) {
            *sold.entry(*product).or_insert(0) += quantity;
        }
    }
    let known = json!({
        "orders": placed().count(), "orders_minor": all_minor, "refunds_minor": back_minor,
        "held_units": 0, "open_sagas": [], "attention": 0,
    });
    for (name, value) in known.as_object().context("an object")? {
        ensure!(report[name] == *value, "{name} should be {value}: {report:#}");
    }

    let stocks = app.send(Request::get("/admin/products/audit/products").admin()).await?;
    for (product, units) in SHELF {
        let row = stocks.json.as_array().and_then(|rows| rows.iter().find(|row| row["id"] == product));
        let sold = sold.get(product).copied().unwrap_or(0);
        let known = json!({
            "id": product, "stock": i64::from(units) - sold, "held": 0, "sold": sold, "supplied": units,
        });
        ensure!(row == Some(&known), "{product} should be {known}: {row:?}");
    }
    for shopper in shoppers {
        shopper.check_cart(app).await?;
    }
    Ok(())
}

/// What was found wrong with single orders.
#[derive(Default)]
pub(crate) struct Wrong {
    /// Acknowledged, and not there as it was acknowledged.
    pub(crate) lost: Vec<String>,
    /// A second order of a key.
    pub(crate) doubled: Vec<String>,
    /// There, though its key was told something else, or no shopper knows it.
    pub(crate) unasked: Vec<String>,
}

/// Every single order: each that was acknowledged is there, as it was acknowledged, once, and no other is.
pub(crate) async fn check_orders(app: &Application, shoppers: &[Shopper]) -> anyhow::Result<Wrong> {
    let mut wrong = Wrong::default();
    for shopper in shoppers {
        let mut found: BTreeMap<String, Value> = BTreeMap::new();
        for order in shopper.list(app).await? {
            let key = order["client_reference"].as_str().unwrap_or_default().to_owned();
            if let Some(other) = found.insert(key.clone(), order.clone()) {
                wrong.doubled.push(format!("key {key} has {other} and {order}"));
            }
        }
        for order in &shopper.orders {
            let Some(told) = order.placed() else { continue };
            let mut known = told.clone();
            if order.cancelling == Cancelling::Acknowledged {
                known["status"] = json!("cancelled");
            }
            match found.remove(&order.key) {
                Some(there) if there == known => {}
                there => wrong.lost.push(format!("key {} should have {known}: {there:?}", order.key)),
            }
        }
        wrong.unasked.extend(found.into_iter().map(|(key, order)| format!("key {key} has {order}")));
    }
    Ok(wrong)
}
