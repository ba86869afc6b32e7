//! The real order book goes through checkout, with the same result to the penny in every topology.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use modulith_test::until;
use serde_json::{Value, json};

use crate::shop::split_topology;

/// `MODULITH_ORDER_BOOK`, or a folder beside the repository; it is not part of the project.
fn order_book() -> Option<PathBuf> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/online-retail-2010-12.csv");
    let book = std::env::var_os("MODULITH_ORDER_BOOK").map_or(beside, PathBuf::from);
    if !book.exists() {
        eprintln!("skipped: no order book; MODULITH_ORDER_BOOK names one");
    }
    book.exists().then_some(book)
}

async fn store(arguments: &[&str], data: &Path, topology: Option<&Path>) -> anyhow::Result<(bool, Value)> {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_store"));
    command.args(arguments).arg("--json").arg("--data").arg(data);
    if let Some(topology) = topology {
        command.arg("--topology").arg(topology);
    }
    let output = command.output().await?;
    let json = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((output.status.success(), json))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_book_comes_out_to_the_penny() -> anyhow::Result<()> {
    let Some(book) = order_book() else { return Ok(()) };
    let book = book.to_str().context("the order book's path is text")?;
    let mut audits = Vec::new();
    for topology in [None, Some(split_topology())] {
        let data = tempfile::tempdir()?;
        let (ok, first) = store(&["import", book], data.path(), topology.as_deref()).await?;
        assert!(ok, "{first:#}");
        let expected = [
            ("rows", json!(49_999)),
            ("orders", json!(1_794)),
            ("lines", json!(48_779)),
            ("order_minor", json!(95_533_893)),
            ("return_invoices", json!(384)),
            ("return_lines", json!(923)),
            ("return_minor", json!(11_472_638)),
            ("refunded_minor", json!(1_114_105)),
            ("unmatched_lines", json!(508)),
            ("unmatched_minor", json!(10_352_039)),
        ];
        for (key, value) in &expected {
            assert_eq!(&first[key], value, "{key} in {first:#}");
        }
        let rejected: i64 =
            first["rejected"].as_object().context("reasons")?.values().filter_map(Value::as_i64).sum();
        assert_eq!(48_779 + 923 + rejected, 49_999, "accepted and rejected are all rows");

        let (ok, audit) = store(&["audit"], data.path(), topology.as_deref()).await?;
        assert!(ok, "{audit:#}");
        assert_eq!(audit["orders"], json!(1_794));
        assert_eq!(audit["orders_minor"], json!(95_533_893));
        assert_eq!(audit["payments_minor"], json!(95_533_893));
        assert_eq!(audit["units_sold"], json!(435_085));
        assert_eq!(
            (&audit["held_units"], &audit["open_sagas"], &audit["attention"]),
            (&json!(0), &json!([]), &json!(0))
        );
        assert_eq!(audit["refunds_minor"], first["refunded_minor"]);

        // Run again: the same keys, nothing doubles.
        let (ok, second) = store(&["import", book], data.path(), topology.as_deref()).await?;
        assert!(ok, "{second:#}");
        let (_, again) = store(&["audit"], data.path(), topology.as_deref()).await?;
        assert_eq!(again, audit);
        audits.push(audit);
    }
    assert_eq!(audits[0], audits[1], "both topologies come to the same");
    Ok(())
}

/// Killed at some point of an import, and run again: the same keys, so nothing is missing and nothing doubles.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_import_is_run_again() -> anyhow::Result<()> {
    let Some(book) = order_book() else { return Ok(()) };
    let book = book.to_str().context("the order book's path is text")?;
    let data = tempfile::tempdir()?;
    let mut import = tokio::process::Command::new(env!("CARGO_BIN_EXE_store"))
        .args(["import", book, "--json", "--data"])
        .arg(data.path())
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    // Some way into it, as the database's log tells.
    let log = data.path().join("store.db-wal");
    until("the import to write", async || {
        let length = std::fs::metadata(&log).map(|log| log.len()).ok()?;
        (length > 4 << 20).then_some(())
    })
    .await;
    import.kill().await?;
    // What it had started ends with it, and gives the database free.
    let again = until("the data folder to be free", async || {
        store(&["import", book], data.path(), None).await.ok().filter(|(ok, _)| *ok)
    })
    .await;
    assert_eq!(again.1["orders"], json!(1_794), "{:#}", again.1);
    let (ok, audit) = store(&["audit"], data.path(), None).await?;
    assert!(ok, "{audit:#}");
    assert_eq!(audit["orders_minor"], json!(95_533_893));
    assert_eq!(audit["payments_minor"], json!(95_533_893));
    assert_eq!(audit["units_sold"], json!(435_085));
    Ok(())
}
