//! `kill -9` at each step boundary of a checkout in flight: every order is whole or gone, and its key answers.

use anyhow::Context as _;
use modulith_test::{Application, Response, until};
use serde_json::json;

use crate::shop::{
    CARD, Customer, DECLINED, Topology, clean_audit, monolith, products, program, settled, split, stock,
};

/// Where the coordinator can die: before and after each of its steps, and within its own transaction.
const COORDINATOR: [&str; 11] = [
    "orders.place:hold_stock:before",
    "orders.place:hold_stock:after",
    "orders.place:debit:before",
    "orders.place:debit:after",
    "orders.place:record:before",
    "orders.place:record:in-transaction",
    "orders.place:record:after",
    "orders.place:sell_stock:before",
    "orders.place:sell_stock:after",
    "orders.place:end:before",
    "orders.place:end:after",
];
/// Where a participant can die: before, within and after its own transaction.
const PARTICIPANTS: [&str; 9] = [
    "products.hold:before",
    "products.hold:in-transaction",
    "products.hold:after",
    "payments.debit:before",
    "payments.debit:in-transaction",
    "payments.debit:after",
    "products.sell:before",
    "products.sell:in-transaction",
    "products.sell:after",
];
/// Where either can die while a saga turns back, since the card was declined.
const TURNING_BACK: [&str; 6] = [
    "orders.place:turn:before",
    "orders.place:turn:after",
    "orders.place:undo-hold_stock:before",
    "orders.place:undo-hold_stock:after",
    "products.release:in-transaction",
    "products.release:after",
];

#[tokio::test(flavor = "multi_thread")]
async fn the_monolith_dies_at_each_boundary() -> anyhow::Result<()> {
    // In one process a checkout is one run: these are the places it comes to.
    let fused = [
        "orders.place:hold_stock:before",
        "orders.place:hold_stock:in-transaction",
        "orders.place:debit:in-transaction",
        "orders.place:record:in-transaction",
        "orders.place:sell_stock:in-transaction",
        "orders.place:hold_stock:after",
    ];
    for place in fused {
        dies_at(place, monolith(), CARD, &[], nothing_else).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_dies_at_each_boundary() -> anyhow::Result<()> {
    for place in COORDINATOR.into_iter().chain(PARTICIPANTS) {
        dies_at(place, split(), CARD, &[], nothing_else).await?;
    }
    for place in TURNING_BACK {
        dies_at(place, split(), DECLINED, &[], nothing_else).await?;
    }
    Ok(())
}

async fn nothing_else() -> anyhow::Result<()> {
    Ok(())
}

/// One order, during which a process dies at `place`; in the end it is there once, or, with a declined card, not
/// at all. `check` is asked at the end, while the application still runs.
pub(crate) async fn dies_at(
    place: &str,
    (topology, file): Topology,
    card: &str,
    environment: &[(&str, &str)],
    check: impl AsyncFn() -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    eprintln!("--- {topology}: {place}");
    let marks = tempfile::tempdir()?;
    let mark = marks.path().join("died");
    let crash = format!("{place}@{}", mark.display());
    let environment = [environment, &[("MODULITH_CRASH_AT", &*crash)]].concat();
    let program = program();
    let mut app = Application::start(program.path(), topology, file.as_deref(), &environment).await?;
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    let shelf = products(&app, 1).await?;
    let before = stock(&app, &shelf[0]).await?;
    let lines = [(&*shelf[0], 2)];

    // The answer may be anything, also none; what counts is what stands afterwards.
    let first = kim.order(&app, "the-key", &lines, card).await;
    // Steps behind the answer come later.
    until("a process to die", async || mark.exists().then_some(())).await;
    if app.is_monolith() {
        app.start_again(&environment).await?;
    }
    let (status, orders, taken) = if card == CARD { (201, 1, 2) } else { (402, 0, 0) };
    let answer = final_answer(&app, &kim, &lines, card).await;
    if let Ok(first) = &first
        && first.status == status
    {
        assert_eq!(first.json, answer.json, "{place}: what was acknowledged is what stands");
    }
    assert_eq!(answer.status, status, "{place}: {}", answer.json);
    let again = kim.order(&app, "the-key", &lines, card).await?;
    assert_eq!((again.status, &again.json), (status, &answer.json), "{place}: the same key, the same answer");
    settled(&app).await;
    assert_eq!(stock(&app, &shelf[0]).await?, before - taken, "{place}");
    let report = clean_audit(&app).await?;
    assert_eq!(
        (&report["orders"], &report["payments"]),
        (&json!(orders), &json!(orders)),
        "{place}: {report}"
    );
    check().await.context(place.to_owned())?;
    app.stop().await
}

/// Repeats the key until it has an answer that stands.
async fn final_answer(app: &Application, customer: &Customer, lines: &[(&str, i64)], card: &str) -> Response {
    until("an answer that stands", async || match customer.order(app, "the-key", lines, card).await {
        Ok(response) if !matches!(response.status, 409 | 500..) => Some(response),
        _ => None,
    })
    .await
}
