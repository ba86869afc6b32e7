//! Sagas as an audit reads them: those that are on their way, whose effects no sum can hold, and those that ended,
//! which have to agree with the orders.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;
use serde_json::Value;

use crate::client::Target;

/// Plans whose answer is an order.
const CHECKOUTS: [&str; 4] =
    ["orders.place", "orders.place_from_cart", "orders.place_charged", "orders.place_charged_from_cart"];
/// Open sagas that are looked at one by one. An audit of a store with more of them says nothing.
const OPEN_MAX: usize = 1_000;
/// Ended sagas are kept for 7 days. An hour less, so that none is deleted while it is looked for.
const SAGAS_KEPT: Duration = Duration::from_secs((7 * 24 - 1) * 60 * 60);

/// Sagas that have not ended.
pub(crate) struct Open {
    pub(crate) ids: Vec<String>,
    pub(crate) attention: i64,
    /// Everything that they name: orders, payments, products.
    named: BTreeSet<String>,
    /// What they hold of each product.
    holds: BTreeMap<String, i64>,
}

#[derive(Deserialize)]
struct Page {
    attention: Option<i64>,
    sagas: Vec<Line>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct Line {
    id: String,
    #[serde(default)]
    end: Value,
}

#[derive(Deserialize)]
struct Shown {
    ended_ms: Option<i64>,
    input: Value,
    end: Value,
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    method: String,
    row: Option<Row>,
    undo_row: Option<Row>,
}

#[derive(Deserialize)]
struct Row {
    state: String,
    answer: Value,
}

impl Open {
    /// # Errors
    ///
    /// The store does not answer; too many are open.
    pub(crate) async fn read(store: &Target) -> anyhow::Result<Self> {
        let counts: Page = store.get("/admin/sagas?limit=0").await?;
        let attention =
            counts.attention.ok_or_else(|| anyhow::anyhow!("not all services tell of their sagas"))?;
        let mut open = Self { ids: Vec::new(), attention, named: BTreeSet::new(), holds: BTreeMap::new() };
        for state in ["running", "aborting"] {
            let mut lines = Vec::new();
            pages(store, &format!("/admin/sagas?state={state}"), |line| lines.push(line.id)).await?;
            anyhow::ensure!(open.ids.len() + lines.len() <= OPEN_MAX, "more than {OPEN_MAX} sagas are open");
            for id in lines {
                let saga: Shown = store.get(&format!("/admin/sagas/{id}")).await?;
                // It may have ended since it was listed.
                if saga.ended_ms.is_none() {
                    open.add(id, &saga);
                }
            }
        }
        Ok(open)
    }

    fn add(&mut self, id: String, saga: &Shown) {
        self.ids.push(id);
        name(&saga.input, &mut self.named);
        name(&saga.end, &mut self.named);
        let is_done = |row: &Option<Row>| row.as_ref().is_some_and(|row| row.state == "done");
        let sold = saga.steps.iter().any(|step| step.method == "products.sell" && is_done(&step.row));
        for step in &saga.steps {
            let Some(Row { answer, .. }) = &step.row else { continue };
            name(answer, &mut self.named);
            if step.method == "products.hold" && is_done(&step.row) && !is_done(&step.undo_row) && !sold {
                for (product, units) in answer.as_object().into_iter().flatten() {
                    *self.holds.entry(product.clone()).or_default() += units.as_i64().unwrap_or(0);
                }
            }
        }
    }

    /// Whether one of them is about this order, payment or product.
    pub(crate) fn name(&self, id: &str) -> bool {
        self.named.contains(id)
    }

    pub(crate) fn held(&self, product: &str) -> i64 {
        self.holds.get(product).copied().unwrap_or(0)
    }
}

/// Every text in a value.
fn name(value: &Value, named: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => {
            named.insert(text.clone());
        }
        Value::Array(items) => items.iter().for_each(|item| name(item, named)),
        Value::Object(fields) => fields.iter().for_each(|(field, value)| {
            named.insert(field.clone());
            name(value, named);
        }),
        _ => {}
    }
}

/// A checkout that is done has its order, and an order has one checkout that is done; so one that turned back has
/// none. Orders that are older than sagas are kept are left out.
pub(crate) async fn checkouts(
    store: &Target,
    open: &Open,
    orders: &BTreeSet<String>,
    mismatches: &mut Vec<String>,
) -> anyhow::Result<usize> {
    let mut sagas: BTreeMap<String, String> = BTreeMap::new();
    for plan in CHECKOUTS {
        // One that runs on behind its pivot has its answer too.
        for state in ["done", "running"] {
            let path = format!("/admin/sagas/orders?plan={plan}&state={state}&end=true");
            pages(store, &path, |Line { id, end }| {
                match end.pointer("/done/order").and_then(Value::as_str) {
                    Some(order) => {
                        if !orders.contains(order) {
                            mismatches
                                .push(format!("saga {id} is done, and its order {order} is not recorded"));
                        }
                        if let Some(other) = sagas.insert(order.to_owned(), id.clone()) {
                            mismatches
                                .push(format!("order {order} is the answer of two sagas, {other} and {id}"));
                        }
                    }
                    None if state == "done" => {
                        mismatches.push(format!("saga {id} is done, and names no order"))
                    }
                    None => {}
                }
            })
            .await?;
        }
    }
    for order in orders.iter().filter(|order| is_recent(order) && !open.name(order)) {
        if !sagas.contains_key(order) {
            mismatches.push(format!("order {order} is recorded, and no saga that is done has placed it"));
        }
    }
    Ok(sagas.len())
}

/// Whether a UUIDv7 (RFC 9562, 5.7) was made since the oldest saga that is surely kept.
fn is_recent(order: &str) -> bool {
    let made_ms = order.get(..13).and_then(|time| u64::from_str_radix(&time.replace('-', ""), 16).ok());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    made_ms.is_some_and(|made_ms| now < Duration::from_millis(made_ms) + SAGAS_KEPT)
}

async fn pages(store: &Target, path: &str, mut each: impl FnMut(Line)) -> anyhow::Result<()> {
    let mut page: Page = store.get(&format!("{path}&limit=200")).await?;
    loop {
        page.sagas.into_iter().for_each(&mut each);
        let Some(next) = page.next else { return Ok(()) };
        page = store.get(&format!("{path}&limit=200&after={}", super::escaped(&next))).await?;
    }
}
