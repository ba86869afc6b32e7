//! `backup` and `restore`: what was acknowledged before comes back, whatever happens to the data folder.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use modulith_test::{Application, children, is_alive, kill, until};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::shop::{
    CARD, Customer, Topology, audit, clean_audit, monolith, products, program, settled, split,
    split_topology, stock,
};

/// What a command of the store said, on both of its outputs.
struct Said {
    ok: bool,
    text: String,
}

async fn store(
    arguments: &[&str],
    folder: &Path,
    data: &Path,
    topology: Option<&Path>,
    environment: &[(&str, &str)],
) -> anyhow::Result<Said> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_store"));
    command.args(arguments).arg(folder).arg("--data").arg(data).envs(environment.iter().copied());
    if let Some(topology) = topology {
        command.arg("--topology").arg(topology);
    }
    let output = command.output().await?;
    let text = [output.stdout, output.stderr].concat();
    Ok(Said { ok: output.status.success(), text: String::from_utf8_lossy(&text).into_owned() })
}

async fn on(app: &Application, arguments: &[&str], folder: &Path) -> anyhow::Result<Said> {
    store(arguments, folder, app.data(), app.topology_file(), &[]).await
}

/// The same, which must work.
async fn must(app: &Application, arguments: &[&str], folder: &Path) -> anyhow::Result<String> {
    let said = on(app, arguments, folder).await?;
    anyhow::ensure!(said.ok, "{arguments:?}: {}", said.text);
    Ok(said.text)
}

/// `kill -9` of every process of the application; returns when they have ended.
async fn kill_all(app: &Application) {
    let process = app.process().expect("started here");
    let family: Vec<u32> = children(process).into_iter().map(|(child, _)| child).chain([process]).collect();
    family.iter().rev().for_each(|process| kill(*process));
    until("all processes to end", async || family.iter().all(|process| !is_alive(*process)).then_some(()))
        .await;
}

/// The databases' ids as the backup in `folder` has them.
fn ids(folder: &Path) -> BTreeSet<String> {
    let manifest = std::fs::read_to_string(folder.join("backup.toml")).expect("a backup has a manifest");
    manifest.lines().filter_map(|line| line.strip_prefix("id = ")).map(str::to_owned).collect()
}

async fn start((topology, file): Topology) -> anyhow::Result<Application> {
    Application::start(program().path(), topology, file.as_deref(), &[]).await
}

async fn order_id(
    customer: &Customer,
    app: &Application,
    key: &str,
    product: &str,
) -> anyhow::Result<String> {
    let placed = customer.order(app, key, &[(product, 1)], CARD).await?;
    anyhow::ensure!(placed.status == 201, "{key}: {} {}", placed.status, placed.json);
    Ok(placed.json["id"].as_str().context("an order has an id")?.to_owned())
}

async fn status_of(customer: &Customer, app: &Application, id: &str) -> anyhow::Result<u16> {
    Ok(customer.get(app, &format!("/orders/{id}")).await?.status)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_before_a_backup_survives_the_loss_of_the_data() -> anyhow::Result<()> {
    for topology in [monolith(), split()] {
        eprintln!("--- {}", topology.0);
        survives(topology).await?;
    }
    Ok(())
}

async fn survives(topology: Topology) -> anyhow::Result<()> {
    let folders = tempfile::tempdir()?;
    let (first, second) = (folders.path().join("first"), folders.path().join("second"));
    let mut app = start(topology).await?;
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    // There are hundreds of each.
    let shelf = ["CARD-01", "CARD-02", "RIBBON-01"];

    // Several customers order, before the backup and while it runs.
    let is_over = AtomicBool::new(false);
    let acknowledged = std::sync::Mutex::new(Vec::<(&'static str, String, Value)>::new());
    let order_on = async |product: &'static str| {
        for number in 0.. {
            let key = format!("{product}-{number}");
            let placed = kim.order(&app, &key, &[(product, 1)], CARD).await?;
            if is_over.load(Ordering::SeqCst) || placed.problem() == "sold-out" {
                break;
            }
            anyhow::ensure!(placed.status == 201, "{key}: {} {}", placed.status, placed.json);
            acknowledged.lock().expect("nobody panicked").push((product, key, placed.json));
        }
        anyhow::Ok(())
    };
    let back_up = async {
        let before = until("some orders", async || {
            let acknowledged = acknowledged.lock().expect("nobody panicked");
            (acknowledged.len() >= 20).then(|| acknowledged.clone())
        });
        let before = before.await;
        let said = must(&app, &["backup"], &first).await;
        is_over.store(true, Ordering::SeqCst);
        said.map(|said| (before, said))
    };
    let (one, two, three, backed_up) =
        tokio::join!(order_on(shelf[0]), order_on(shelf[1]), order_on(shelf[2]), back_up);
    let (before, said) = backed_up?;
    one.and(two).and(three)?;
    assert!(said.contains("keys is not"), "{said}");
    let names: BTreeSet<_> = std::fs::read_dir(&first)?.map(|entry| entry.unwrap().file_name()).collect();
    assert!(!names.contains(std::ffi::OsStr::new("keys")), "{names:?}");
    for name in &names {
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(first.join(name))?.permissions());
        assert_eq!(mode & 0o777, 0o600, "{name:?}");
    }

    let after = order_id(&kim, &app, "after", shelf[0]).await?;
    kill_all(&app).await;
    std::fs::remove_dir_all(app.data())?;
    let said = must(&app, &["restore"], &first).await?;
    assert!(said.contains("keys is missing"), "{said}");
    app.start_again(&[]).await?;

    // The session keys went with the folder, the user did not.
    assert_eq!(kim.get(&app, "/users/me").await?.status, 401);
    let kim = Customer::sign_in(&app, "kim@example.org").await?;
    for (product, key, json) in &before {
        let again = kim.order(&app, key, &[(product, 1)], CARD).await?;
        assert_eq!((again.status, &again.json), (201, json), "{key}: the first answer");
        assert_eq!(status_of(&kim, &app, json["id"].as_str().context("an id")?).await?, 200, "{key}");
    }
    assert_eq!(status_of(&kim, &app, &after).await?, 404, "it came after the backup");

    // Sagas that were open in the backup end. What does not fit then is about orders that came while it was made.
    settled(&app).await;
    let known: Vec<&str> = before.iter().filter_map(|(.., json)| json["id"].as_str()).collect();
    let report = audit(&app).await?;
    for mismatch in report["mismatches"].as_array().context("a list")? {
        let mismatch = mismatch.as_str().context("a text")?;
        assert!(!app.is_monolith(), "one database is one moment: {mismatch}");
        assert!(!known.iter().any(|id| mismatch.contains(id)), "{mismatch}");
        assert!(!mismatch.contains("supplied"), "goods appear or vanish: {mismatch}");
    }

    let left = stock(&app, shelf[0]).await?;
    order_id(&kim, &app, "new", shelf[0]).await?;
    settled(&app).await;
    assert_eq!(stock(&app, shelf[0]).await?, left - 1);
    must(&app, &["backup"], &second).await?;
    assert!(ids(&first).is_disjoint(&ids(&second)), "every restored database has an id of its own");
    app.stop().await
}

/// Sagas of a restored coordinator count through the numbers of those that it forgot. Participants still know these.
#[tokio::test(flavor = "multi_thread")]
async fn a_restored_coordinator_is_not_taken_for_the_one_from_before() -> anyhow::Result<()> {
    let folders = tempfile::tempdir()?;
    let folder = folders.path().join("backup");
    let mut app = start(split()).await?;
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    let shelf = products(&app, 2).await?;
    order_id(&kim, &app, "before", &shelf[0]).await?;
    clean_audit(&app).await?;
    must(&app, &["backup"], &folder).await?;

    // As often as the restored one will have been opened when it places its first order.
    for _ in 0..2 {
        kill_all(&app).await;
        app.start_again(&[]).await?;
    }
    let forgotten = order_id(&kim, &app, "forgotten", &shelf[0]).await?;
    settled(&app).await;
    kill_all(&app).await;
    let said = must(&app, &["restore", "--service", "orders"], &folder).await?;
    assert!(said.contains("orders.db.replaced-") && !said.contains("products"), "{said}");
    app.start_again(&[]).await?;

    assert_eq!(status_of(&kim, &app, &forgotten).await?, 404);
    let mismatches = audit(&app).await?["mismatches"].to_string();
    assert!(mismatches.contains(&format!("payment {forgotten} has no order")), "{mismatches}");
    assert!(mismatches.contains(&format!("product {}: 2 sold, 1 in orders", shelf[0])), "{mismatches}");

    let left = stock(&app, &shelf[1]).await?;
    let new = order_id(&kim, &app, "new", &shelf[1]).await?;
    settled(&app).await;
    assert_eq!(stock(&app, &shelf[1]).await?, left - 1, "its own hold, not the answer of another saga");
    let mismatches = audit(&app).await?["mismatches"].to_string();
    assert!(!mismatches.contains(&new) && !mismatches.contains(&*shelf[1]), "{mismatches}");
    app.stop().await
}

/// A killed restore leaves the database from before or the restored one, and is done again.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_restore_is_done_again() -> anyhow::Result<()> {
    let folders = tempfile::tempdir()?;
    let folder = folders.path().join("backup");
    let mut app = start(monolith()).await?;
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    let shelf = products(&app, 1).await?;
    order_id(&kim, &app, "before", &shelf[0]).await?;
    must(&app, &["backup"], &folder).await?;
    for (place, is_restored) in [("prepared", false), ("aside", false), ("replaced", true)] {
        let after = order_id(&kim, &app, place, &shelf[0]).await?;
        kill_all(&app).await;
        let mark = folders.path().join(place);
        let crash = format!("restore:store.db:{place}@{}", mark.display());
        let environment = [("MODULITH_CRASH_AT", &*crash)];
        let said = store(&["restore"], &folder, app.data(), None, &environment).await?;
        assert!(!said.ok && mark.exists(), "{place}: {}", said.text);
        app.start_again(&[]).await?;
        let found = status_of(&kim, &app, &after).await?;
        assert_eq!(found, if is_restored { 404 } else { 200 }, "{place}");
        clean_audit(&app).await.context(place)?;
        kill_all(&app).await;
        must(&app, &["restore"], &folder).await?;
        let names =
            std::fs::read_dir(app.data())?.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let leftovers: Vec<String> = names.filter(|name| name.contains("restoring")).collect();
        assert_eq!(leftovers, Vec::<String>::new(), "{place}");
        app.start_again(&[]).await?;
        assert_eq!(status_of(&kim, &app, &after).await?, 404, "{place}");
        assert_eq!(clean_audit(&app).await.context(place)?["orders"], 1, "{place}");
    }
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_that_was_killed_between_two_databases_is_done_again() -> anyhow::Result<()> {
    let folders = tempfile::tempdir()?;
    let folder = folders.path().join("backup");
    let mut app = start(split()).await?;
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    let shelf = products(&app, 1).await?;
    order_id(&kim, &app, "before", &shelf[0]).await?;
    clean_audit(&app).await?;
    must(&app, &["backup"], &folder).await?;
    let after = order_id(&kim, &app, "after", &shelf[0]).await?;
    kill_all(&app).await;
    let mark = folders.path().join("died");
    let crash = format!("restore:payments.db:aside@{}", mark.display());
    let environment = [("MODULITH_CRASH_AT", &*crash)];
    let said = store(&["restore"], &folder, app.data(), app.topology_file(), &environment).await?;
    assert!(!said.ok && mark.exists(), "{}", said.text);
    must(&app, &["restore"], &folder).await?;
    app.start_again(&[]).await?;
    assert_eq!(status_of(&kim, &app, &after).await?, 404);
    assert_eq!(clean_audit(&app).await?["orders"], 1, "backed up at rest, the databases fit");
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_restored_is_refused_and_changes_nothing() -> anyhow::Result<()> {
    let folders = tempfile::tempdir()?;
    let folder = folders.path().join("backup");
    let mut app = start(split()).await?;
    let kim = Customer::sign_up(&app, "kim@example.org").await?;
    let shelf = products(&app, 1).await?;
    must(&app, &["backup"], &folder).await?;
    let after = order_id(&kim, &app, "after", &shelf[0]).await?;

    let refused = async |arguments: &[&str], folder: &Path, topology: Option<&Path>, expected: &[&str]| {
        let said = store(arguments, folder, app.data(), topology, &[]).await?;
        anyhow::ensure!(!said.ok, "{arguments:?} was not refused: {}", said.text);
        for expected in expected {
            anyhow::ensure!(said.text.contains(expected), "{arguments:?}: no `{expected}` in {}", said.text);
        }
        anyhow::Ok(())
    };
    let split = split_topology();
    let split = Some(&*split);
    let users =
        modulith_test::child_of(app.process().context("started here")?, "users").context("a child")?;
    let process = format!("(process {users})");
    refused(&["backup"], &folder, split, &["holds files already"]).await?;
    refused(&["backup"], &folders.path().join("x"), None, &["`users` is in users.db"]).await?;
    refused(&["restore"], &folder, split, &["service `users` runs; stop the application first", &process])
        .await?;

    kill_all(&app).await;
    refused(&["restore"], &folder, None, &["another topology", "`users` is in users.db"]).await?;
    refused(&["restore", "--service", "carts"], &folder, split, &["no service `carts`", "users"]).await?;

    // One service alone needs all of them stopped too: a saga at work knows answers that would be gone.
    let mut alone = tokio::process::Command::new(env!("CARGO_BIN_EXE_store"))
        .args(["run", "--service", "users", "--data"])
        .arg(app.data())
        .arg("--topology")
        .arg(split_topology())
        .env("MODULITH_CONTROL", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(alone.stdout.take().context("piped")?).lines();
    while lines.next_line().await?.context("the service goes on")? != "ready" {}
    refused(&["restore", "--service", "cart"], &folder, split, &["service `users` runs"]).await?;
    alone.kill().await?;

    // Another distribution over the same files.
    let merged = folders.path().join("merged.toml");
    let text = std::fs::read_to_string(split_topology())?;
    std::fs::write(&merged, text.replace("[service.users]", "[service.users]\ndatabase = \"people.db\""))?;
    refused(&["restore"], &folder, Some(&merged), &["`users` is in users.db", "people.db"]).await?;

    // Damaged: each file of it, by one bit.
    let damaged = folders.path().join("damaged");
    for file in ["orders.db", "placement.toml"] {
        copy_folder(&folder, &damaged)?;
        let mut bytes = std::fs::read(damaged.join(file))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(damaged.join(file), bytes)?;
        refused(&["restore"], &damaged, split, &[file, "is damaged"]).await?;
    }
    // Of another application, of a newer version.
    let manifest = std::fs::read_to_string(folder.join("backup.toml"))?;
    for (from, to, expected) in [
        (
            "application = \"store\"",
            "application = \"bank\"",
            "a backup of application `bank`, this is `store`",
        ),
        ("format = 1", "format = 2", "`format` is 2, this version knows 1"),
        ("modules = [\"cart\"]", "modules = [\"cart\", \"carts\"]", "has the modules cart, carts"),
    ] {
        copy_folder(&folder, &damaged)?;
        std::fs::write(damaged.join("backup.toml"), manifest.replace(from, to))?;
        refused(&["restore"], &damaged, split, &[expected]).await?;
    }

    // Incomplete: killed before its end, or one that has lost a file.
    let half = folders.path().join("half");
    let crash = format!("backup:copied@{}", folders.path().join("died").display());
    let died = store(&["backup"], &half, app.data(), split, &[("MODULITH_CRASH_AT", &crash)]).await?;
    assert!(!died.ok && half.join("orders.db").exists(), "{}", died.text);
    refused(&["restore"], &half, split, &["has no backup.toml"]).await?;
    copy_folder(&folder, &damaged)?;
    std::fs::remove_file(damaged.join("cart.db"))?;
    refused(&["restore"], &damaged, split, &["cart.db: there is no such database"]).await?;

    // None of this has changed anything, and a backup without a running store works.
    must(&app, &["backup"], &folders.path().join("at rest")).await?;
    app.start_again(&[]).await?;
    assert_eq!(status_of(&kim, &app, &after).await?, 200);
    clean_audit(&app).await?;
    kill_all(&app).await;
    std::fs::remove_file(app.data().join("cart.db"))?;
    let missing = ["the database of service `cart` is missing", "cart.db"];
    let said = on(&app, &["backup"], &folders.path().join("y")).await?;
    assert!(!said.ok && missing.iter().all(|missing| said.text.contains(missing)), "{}", said.text);
    assert!(!folders.path().join("y").exists(), "nothing was begun");
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    if to.exists() {
        std::fs::remove_dir_all(to)?;
    }
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}
