//! What the tests do in the shop: sign up, order, audit.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use modulith_test::{Application, Program, Request, Response, until};
use serde_json::{Value, json};

pub(crate) const CARD: &str = "4242424242424242";
pub(crate) const DECLINED: &str = "4000000000000002";
pub(crate) const INSUFFICIENT: &str = "4000000000009995";

pub(crate) fn split_topology() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("topology/split.toml")
}

/// A topology's name and its file.
pub(crate) type Topology = (&'static str, Option<PathBuf>);

/// The built-in one.
pub(crate) fn monolith() -> Topology {
    ("monolith", None)
}

/// Five services.
pub(crate) fn split() -> Topology {
    ("split", Some(split_topology()))
}

/// The store in the built-in topology and as five services.
pub(crate) fn program() -> Program {
    let split = split_topology();
    Program::new(env!("CARGO_BIN_EXE_store"))
        .topology("monolith", None)
        .topology("split", Some(split.to_str().expect("a path of this repository is text")))
}

/// A user of the shop.
pub(crate) struct Customer {
    pub(crate) token: String,
}

impl Customer {
    pub(crate) async fn sign_up(app: &Application, email: &str) -> anyhow::Result<Self> {
        let user = json!({"email": email, "name": "A Customer", "password": "correct horse battery"});
        let response = app.send(Request::post("/users", &user)).await?;
        anyhow::ensure!(response.status == 201, "sign-up: {} {}", response.status, response.json);
        Self::sign_in(app, email).await
    }

    pub(crate) async fn sign_in(app: &Application, email: &str) -> anyhow::Result<Self> {
        let session = json!({"email": email, "password": "correct horse battery"});
        let response = app.send(Request::post("/sessions", &session)).await?;
        anyhow::ensure!(response.status == 200, "sign-in: {} {}", response.status, response.json);
        let token = response.json["token"].as_str().context("a session has a token")?.to_owned();
        Ok(Self { token })
    }

    pub(crate) async fn send(&self, app: &Application, request: Request) -> anyhow::Result<Response> {
        app.send(request.token(&self.token)).await
    }

    pub(crate) async fn get(&self, app: &Application, path: &str) -> anyhow::Result<Response> {
        self.send(app, Request::get(path)).await
    }

    pub(crate) async fn order(
        &self,
        app: &Application,
        key: &str,
        lines: &[(&str, i64)],
        card: &str,
    ) -> anyhow::Result<Response> {
        self.send(app, Request::post("/orders", &order(lines, card)).key(key)).await
    }
}

pub(crate) fn card(number: &str) -> Value {
    json!({"number": number, "exp_month": 12, "exp_year": 2040, "cvc": "123"})
}

pub(crate) fn order(lines: &[(&str, i64)], number: &str) -> Value {
    let lines: Vec<Value> = lines
        .iter()
        .map(|(product, quantity)| json!({"product_id": product, "quantity": quantity}))
        .collect();
    json!({"lines": lines, "card": card(number), "client_reference": "a test"})
}

/// The first products of the catalogue, by id.
pub(crate) async fn products(app: &Application, count: usize) -> anyhow::Result<Vec<String>> {
    let page = app.get(&format!("/products?limit={count}")).await?;
    anyhow::ensure!(page.status == 200, "products: {} {}", page.status, page.json);
    let items = page.json["items"].as_array().context("a page has items")?;
    anyhow::ensure!(items.len() == count, "the catalogue has {count} products");
    Ok(items.iter().filter_map(|item| item["id"].as_str().map(str::to_owned)).collect())
}

pub(crate) async fn stock(app: &Application, product: &str) -> anyhow::Result<i64> {
    app.get(&format!("/products/{product}")).await?.json["stock"].as_i64().context("a product has a stock")
}

/// Waits until no saga is open: after a pivot, steps go on behind the answer.
pub(crate) async fn settled(app: &Application) {
    until("sagas to end", async || {
        let counts = app.send(Request::get("/admin/sagas").admin()).await.ok()?;
        (counts.json["open"] == json!(0)).then_some(())
    })
    .await;
}

/// `store audit --url … --json`, which must find nothing.
pub(crate) async fn clean_audit(app: &Application) -> anyhow::Result<Value> {
    settled(app).await;
    let report = audit(app).await?;
    anyhow::ensure!(report["mismatches"] == json!([]), "audit: {report:#}");
    Ok(report)
}

/// The same, whatever it finds.
pub(crate) async fn audit(app: &Application) -> anyhow::Result<Value> {
    let output = tokio::process::Command::new(app.program())
        .args(["audit", "--json", "--url", app.url(), "--data"])
        .arg(app.data())
        .output()
        .await?;
    let report: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("audit printed {}", String::from_utf8_lossy(&output.stderr)))?;
    let is_clean = report["mismatches"] == json!([]);
    anyhow::ensure!(output.status.success() == is_clean, "the exit code belongs to the report: {report:#}");
    Ok(report)
}
