//! Sagas in an operator's hands, by the command `sagas` of the store's own binary: one that is stuck is found, shown,
//! turned back or let go on, in one process and in five.

use std::process::{Command as Kill, Output};

use anyhow::Context as _;
use modulith_test::{Application, child_of, until};
use serde_json::{Value, json};
use store_provider::FaultKind;

use crate::provider::{CHARGES, REFUNDS, StandIn, cancel, in_every_topology};
use crate::shop::{CARD, Customer, clean_audit, products, program, settled, split, stock};

/// More than any of these tests waits for.
const FOR_LONG: u32 = 1_000;

async fn sagas(app: &Application, arguments: &[&str]) -> anyhow::Result<Output> {
    let mut command = tokio::process::Command::new(app.program());
    command.arg("sagas").args(arguments).args(["--url", app.url(), "--data"]).arg(app.data());
    let output = command.output().await?;
    for printed in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(printed);
        assert!(!text.contains(CARD), "{arguments:?} prints a card's number: {text}");
    }
    Ok(output)
}

/// What a command prints for people, when it succeeds.
async fn printed(app: &Application, arguments: &[&str]) -> anyhow::Result<String> {
    let output = sagas(app, arguments).await?;
    anyhow::ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    Ok(text)
}

async fn json_of(app: &Application, arguments: &[&str]) -> anyhow::Result<Value> {
    let arguments = [arguments, &["--json"]].concat();
    let output = sagas(app, &arguments).await?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

/// The one saga that a list names.
async fn listed(app: &Application, filter: &[&str]) -> String {
    until("a saga to be listed", async || {
        let list = json_of(app, &[&["list"], filter].concat()).await.ok()?;
        list["sagas"][0]["id"].as_str().map(str::to_owned)
    })
    .await
}

async fn becomes(app: &Application, id: &str, state: &str) -> Value {
    until("a saga to end", async || {
        json_of(app, &["show", id]).await.ok().filter(|saga| saga["state"] == state)
    })
    .await
}

/// The command is declined with this on standard error.
async fn declined(app: &Application, arguments: &[&str], reason: &str) -> anyhow::Result<()> {
    let output = sagas(app, arguments).await?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), said.contains(reason)), (Some(1), true), "{arguments:?}: {said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stuck_checkout_is_turned_back_or_goes_on() -> anyhow::Result<()> {
    in_every_topology(stuck).await
}

async fn stuck(app: &Application, provider: &StandIn) -> anyhow::Result<()> {
    let shelf = products(app, 1).await?;
    let kim = Customer::sign_up(app, "kim@example.org").await?;
    let before = stock(app, &shelf[0]).await?;
    let lines = [(&*shelf[0], 1)];
    provider.fault(CHARGES, FaultKind::FailBefore, FOR_LONG).await?;

    // The customer leaves, which changes nothing.
    let id = tokio::select! {
        id = listed(app, &["--attention"]) => id,
        placed = kim.order(app, "k-1", &lines, CARD) => anyhow::bail!("it is stuck: {:?}", placed?.json),
    };
    let list = printed(app, &["list", "--state", "running", "--plan", "orders.place_charged"]).await?;
    for part in [&*id, "orders.place_charged", "charge", "no-answer", "1 open, 1 of them need attention"] {
        assert!(list.contains(part), "{part}: {list}");
    }
    let shown = printed(app, &["show", &id]).await?;
    for part in
        ["effect payments.charge", "started", "done", "payments.refund: none", &format!("sagas abort {id}")]
    {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let saga = json_of(app, &["show", &id]).await?;
    assert_eq!(saga["steps"][0]["row"]["answer"], json!({shelf[0].clone(): 1}), "{saga}");
    let report = audit(app).await?;
    assert_eq!((&report["open_sagas"], &report["attention"]), (&json!([id]), &json!(1)), "{report}");
    assert_eq!((&report["held_units"], &report["mismatches"]), (&json!(1), &json!([])), "{report}");

    assert!(printed(app, &["abort", &id]).await?.contains("turns back"));
    printed(app, &["resume", &id]).await?;
    provider.mend().await?;
    let saga = becomes(app, &id, "aborted").await;
    assert_eq!(saga["steps"][0]["undo_row"]["state"], "done", "{saga}");
    assert_eq!(stock(app, &shelf[0]).await?, before);
    let ledger = provider.ledger().await?;
    assert_eq!(ledger.charges, ledger.refunds, "{ledger:?}");
    declined(app, &["resume", &id], "has ended").await?;
    declined(app, &["abort", &id], "has ended").await?;

    provider.fault(CHARGES, FaultKind::DropReply, FOR_LONG).await?;
    let id = tokio::select! {
        id = listed(app, &["--attention"]) => id,
        placed = kim.order(app, "k-2", &lines, CARD) => anyhow::bail!("it is stuck: {:?}", placed?.json),
    };
    assert!(printed(app, &["resume", &id]).await?.contains("tries again at once"));
    // Its pauses are short again.
    provider.mend().await?;
    becomes(app, &id, "done").await;
    let placed = kim.order(app, "k-2", &lines, CARD).await?;
    assert_eq!(placed.status, 201, "{}", placed.json);
    assert_eq!(stock(app, &shelf[0]).await?, before - 1);

    // Behind the pivot there is only forward.
    provider.fault(REFUNDS, FaultKind::FailBefore, FOR_LONG).await?;
    assert_eq!(cancel(app, &kim, &placed.json["id"]).await?.status, 200);
    let id = listed(app, &["--state", "running"]).await;
    declined(app, &["abort", &id], "only goes forward").await?;
    let report = audit(app).await?;
    assert_eq!((&report["open_sagas"], &report["mismatches"]), (&json!([id]), &json!([])), "{report}");
    printed(app, &["resume", &id]).await?;
    provider.mend().await?;
    becomes(app, &id, "done").await;
    assert_eq!(stock(app, &shelf[0]).await?, before);

    declined(app, &["show", "orders/00000000-1.1"], "Not found").await?;
    assert_eq!(sagas(app, &["show", "orders/1"]).await?.status.code(), Some(2), "no saga is called so");
    settled(app).await;
    clean_audit(app).await?;
    Ok(())
}

/// A service that hangs is not connected to and says nothing, and the rest of the saga is shown all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_hangs_is_named() -> anyhow::Result<()> {
    let (topology, file) = split();
    let program = program();
    let app = Application::start(program.path(), topology, file.as_deref(), &[]).await?;
    let shelf = products(&app, 1).await?;
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    let placed = kim.order(&app, "k", &[(&*shelf[0], 1)], CARD).await?;
    assert_eq!(placed.status, 201, "{}", placed.json);
    settled(&app).await;

    let payments = signal(&app, "payments", "-STOP")?;
    assert_eq!(cancel(&app, &kim, &placed.json["id"]).await?.status, 200);
    let id = listed(&app, &["--state", "running"]).await;
    let saga = json_of(&app, &["show", &id]).await?;
    assert_eq!(
        (&saga["step"], &saga["steps"][0]["row"]["state"]),
        (&json!("repay"), &json!("done")),
        "{saga}"
    );
    assert!(saga["steps"][1]["unreachable"].is_string(), "{saga}");
    assert!(printed(&app, &["show", &id]).await?.contains("not known"));
    declined(&app, &["abort", &id], "only goes forward").await?;
    printed(&app, &["resume", &id]).await?;
    signal(&app, "payments", "-CONT")?;
    becomes(&app, &id, "done").await;
    assert_eq!(
        child_of(app.process().context("a process")?, "payments"),
        Some(payments),
        "it was not restarted"
    );

    // The coordinator itself: the list says whose sagas are missing.
    signal(&app, "orders", "-STOP")?;
    let output = sagas(&app, &["list"]).await?;
    signal(&app, "orders", "-CONT")?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("module `orders`"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("an unknown number open"));
    clean_audit(&app).await?;
    app.stop().await
}

fn signal(app: &Application, service: &str, signal: &str) -> anyhow::Result<u32> {
    let process =
        app.process().and_then(|process| child_of(process, service)).context("a service has a process")?;
    let sent = Kill::new("kill").args([signal, &process.to_string()]).status()?;
    anyhow::ensure!(sent.success(), "kill {signal} {process}");
    Ok(process)
}

async fn audit(app: &Application) -> anyhow::Result<Value> {
    let mut command = tokio::process::Command::new(app.program());
    let output =
        command.args(["audit", "--json", "--url", app.url(), "--data"]).arg(app.data()).output().await?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())
}
