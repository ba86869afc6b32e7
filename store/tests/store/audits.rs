//! The audit can fail: each of its checks finds the one row that was changed by hand in a copy of a clean store.

use std::path::Path;

use anyhow::Context as _;
use modulith_test::{Application, Request};
use serde_json::Value;

use crate::provider::{CHARGES, StandIn, cancel};
use crate::shop::{CARD, Customer, clean_audit, monolith, products, program};

/// What is changed, and what the audit then says.
const CHANGES: [(&str, &str); 12] = [
    (
        "UPDATE products_product SET held = held + 1, stock = stock - 1 WHERE id = 'APRON-01'",
        "1 held, 0 by open sagas",
    ),
    ("UPDATE products_product SET stock = stock + 1 WHERE id = 'APRON-01'", "product APRON-01: "),
    ("UPDATE products_product SET sold = sold + 1, stock = stock - 1 WHERE id = 'APRON-01'", " in orders"),
    ("UPDATE payments_payment SET amount_minor = amount_minor + 1 WHERE repaid_minor = 0", "its payment to"),
    ("UPDATE payments_payment SET amount_minor = amount_minor + 1 WHERE repaid_minor = 0", "orders come to"),
    ("UPDATE payments_payment SET credited_at = 1 WHERE repaid_minor = 0", "without a payment"),
    ("DELETE FROM orders_order WHERE status = 'paid'", "has no order"),
    ("DELETE FROM orders_order WHERE status = 'paid'", "is not recorded"),
    ("DELETE FROM orders__saga WHERE plan = 'orders.place'", "no saga that is done has placed it"),
    ("UPDATE orders__saga SET state = 3 WHERE plan = 'orders.place'", "no saga that is done has placed it"),
    (
        "CREATE TEMP TABLE twin AS SELECT * FROM orders__saga WHERE plan = 'orders.place' LIMIT 1;
         UPDATE twin SET seq = seq + 100, client_hash = NULL;
         INSERT INTO orders__saga SELECT * FROM twin",
        "is the answer of two sagas",
    ),
    ("UPDATE orders_order SET refunded_minor = 0 WHERE status = 'cancelled'", "is cancelled, and 0 of"),
];

#[tokio::test(flavor = "multi_thread")]
async fn each_check_finds_what_it_is_for() -> anyhow::Result<()> {
    let (topology, _) = monolith();
    let program = program();
    let app = Application::start(program.path(), topology, None, &[]).await?;
    let shelf = products(&app, 1).await?;
    assert_eq!(shelf[0], "APRON-01");
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    for key in ["kept", "cancelled"] {
        let placed = kim.order(&app, key, &[(&shelf[0], 1)], CARD).await?;
        assert_eq!(placed.status, 201, "{}", placed.json);
        if key == "cancelled" {
            assert_eq!(cancel(&app, &kim, &placed.json["id"]).await?.status, 200);
        }
    }
    clean_audit(&app).await?;
    let original = tempfile::tempdir()?;
    backup(&app, original.path())?;
    let program = app.program().to_owned();
    app.stop().await?;

    for (change, finding) in CHANGES {
        let copy = tempfile::tempdir()?;
        std::fs::copy(original.path().join("store.db"), copy.path().join("store.db"))?;
        let connection = rusqlite::Connection::open(copy.path().join("store.db"))?;
        connection.execute_batch(&format!("PRAGMA ignore_check_constraints = ON; {change}"))?;
        drop(connection);
        let output = tokio::process::Command::new(&program)
            .args(["audit", "--json", "--data"])
            .arg(copy.path())
            .output()
            .await?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{change}: {}", String::from_utf8_lossy(&output.stderr)))?;
        let found = report["mismatches"].as_array().is_some_and(|found| {
            found.iter().any(|mismatch| mismatch.as_str().is_some_and(|text| text.contains(finding)))
        });
        assert!(found && output.status.code() == Some(1), "{change}: {report:#}");
    }
    Ok(())
}

/// A copy that no process holds, whatever is still in the write-ahead log.
fn backup(app: &Application, folder: &Path) -> anyhow::Result<()> {
    let connection = rusqlite::Connection::open(app.data().join("store.db"))?;
    let copy = folder.join("store.db");
    connection.execute("VACUUM INTO ?1", [copy.to_str().context("a temporary path is text")?])?;
    Ok(())
}

/// The books of the provider: one charge a key, and of each order as much as it came to.
#[tokio::test(flavor = "multi_thread")]
async fn the_provider_is_compared_too() -> anyhow::Result<()> {
    let (topology, _) = monolith();
    let (program, provider) = (program(), StandIn::serve()?);
    let app = Application::start(program.path(), topology, None, &provider.environment()).await?;
    let shelf = products(&app, 1).await?;
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    let placed = kim.order(&app, "k", &[(&shelf[0], 1)], CARD).await?;
    assert_eq!(placed.status, 201, "{}", placed.json);
    clean_audit(&app).await?;
    assert_eq!(mismatches(&app, &provider).await?, Vec::<String>::new());

    // The same again under another key of the provider's own, as a provider would do that forgets keys.
    let body = provider.ledger().await?.attempts.first().context("it was asked once")?.body.clone();
    let twice = Request::new(http::Method::POST, CHARGES)
        .header("authorization", "Bearer sk_test_4242")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body.clone());
    assert_eq!(provider.http.send(twice).await?.status, 200);
    // And one of an order that nobody placed.
    let id = placed.json["id"].as_str().context("an order has an id")?;
    let other = body.replace(id, "00000000-0000-7000-8000-000000000000").replace("step%5D=", "step%5D=other");
    let orderless = Request::new(http::Method::POST, CHARGES)
        .header("authorization", "Bearer sk_test_4242")
        .header("content-type", "application/x-www-form-urlencoded")
        .body(other);
    assert_eq!(provider.http.send(orderless).await?.status, 200);
    let found = mismatches(&app, &provider).await?;
    for finding in ["2 charges under the key", "the provider has charged", "which has no order"] {
        assert!(found.iter().any(|mismatch| mismatch.contains(finding)), "{finding}: {found:#?}");
    }
    assert_eq!(found.len(), 3, "{found:#?}");

    // Nothing at all.
    let empty = StandIn::serve()?;
    let found = mismatches(&app, &empty).await?;
    assert!(found.len() == 1 && found[0].contains("a charge that the provider does not have"), "{found:#?}");
    app.stop().await
}

async fn mismatches(app: &Application, provider: &StandIn) -> anyhow::Result<Vec<String>> {
    let output = tokio::process::Command::new(app.program())
        .args(["audit", "--json", "--provider", &provider.url, "--url", app.url(), "--data"])
        .arg(app.data())
        .output()
        .await?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    Ok(serde_json::from_value(report["mismatches"].clone())?)
}
