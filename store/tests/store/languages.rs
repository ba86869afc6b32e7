//! Programs in other languages, which call the store and are called by it: a service in Python, one in this test that
//! answers rubbish, and a caller that knows HTTP and JSON only.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::IntoResponse;
use modulith_test::{Application, Program, Request, Response, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::provider::{CHARGES, StandIn};
use crate::seen::scraped;
use crate::shop::{CARD, Customer, clean_audit, stock};

const ROBIN: &str = "MUG-01";
const WREN: &str = "MUG-02";
/// What the store shows to recommendations.
const SHOWN: &str = "shown-to-recommendations";
/// What a caller of the test shows to the store.
const TILL: &str = "the-token-of-the-till";

/// A folder with topologies whose recommendations are at a port of this host.
struct Outside {
    folder: tempfile::TempDir,
    port: u16,
}

impl Outside {
    fn new(port: u16) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        for (name, token) in [("shown", SHOWN), ("till", TILL)] {
            use std::os::unix::fs::PermissionsExt;
            let file = folder.path().join(name);
            std::fs::write(&file, format!("{token}\n"))?;
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
        }
        Ok(Self { folder, port })
    }

    /// The same outside around one process or five.
    fn topologies(&self) -> anyhow::Result<Vec<(&'static str, PathBuf)>> {
        let modules = ["users", "products", "cart", "payments", "orders"];
        let split: String =
            modules.iter().map(|name| format!("[service.{name}]\nmodules = [\"{name}\"]\n")).collect();
        let monolith = format!("[service.store]\nmodules = {modules:?}\n");
        let file = |name| self.folder.path().join(name).display().to_string();
        let outside = format!(
            r#"
[external.recommendations]
url = "http://127.0.0.1:{}"
contracts = ["recommendations"]
token_file = "{}"
[expose]
contracts = ["products", "payments"]
[caller.recommendations]
contracts = ["products.catalogue"]
[caller.till]
contracts = ["products"]
token_file = "{}"
"#,
            self.port,
            file("shown"),
            file("till"),
        );
        let mut written = Vec::new();
        for (name, services) in [("monolith", monolith), ("split", split)] {
            let file = self.folder.path().join(format!("{name}.toml"));
            std::fs::write(&file, services + &outside)?;
            written.push((name, file));
        }
        Ok(written)
    }
}

fn store() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_store"))
}

/// A port that was free a moment ago, for a program that has to be told one.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// `store/recommendations/service.py`, which ends with this.
struct Python(Child);

impl Python {
    fn is_there() -> bool {
        let answered = Command::new("python3").arg("--version").stdout(Stdio::null()).status();
        let is_there = answered.is_ok_and(|status| status.success());
        assert!(is_there || std::env::var_os("CI").is_none(), "python3 is missing");
        is_there
    }

    fn start(app: &Application, outside: &Outside) -> anyhow::Result<Self> {
        let service = Path::new(env!("CARGO_MANIFEST_DIR")).join("recommendations/service.py");
        let child = Command::new("python3")
            .arg(service)
            .args(["--listen", &format!("127.0.0.1:{}", outside.port), "--store", app.url()])
            .arg("--store-token")
            .arg(app.data().join("keys/caller-recommendations.token"))
            .arg("--token")
            .arg(outside.folder.path().join("shown"))
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Self(child))
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(Pid::from_child(&self.0), signal)?)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn related(app: &Application, product: &str) -> anyhow::Result<Response> {
    // The longest deadline there is: what is slow must not be waited for until then.
    let path = format!("/products/{product}/related?limit=3");
    app.send(Request::get(path).header("request-timeout-ms", "60000")).await
}

fn ids(response: &Response) -> Vec<&str> {
    let products = response.json["products"].as_array().map(Vec::as_slice).unwrap_or_default();
    products.iter().filter_map(|product| product["id"].as_str()).collect()
}

async fn from_recommendations(app: &Application) -> Response {
    until("related products from recommendations", async || {
        let response = related(app, ROBIN).await.ok()?;
        (response.json["source"] == json!("recommendations")).then_some(response)
    })
    .await
}

/// The catalogue's own answer: what stands beside the product.
async fn from_catalogue(app: &Application, why: &str) -> anyhow::Result<()> {
    let response = related(app, ROBIN).await?;
    anyhow::ensure!(response.status == 200, "{why}: {} {}", response.status, response.json);
    assert_eq!(response.json["source"], json!("catalogue"), "{why}");
    assert_eq!(ids(&response), [WREN, "MAGNET-01", "PENCIL-01"], "{why}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn related_products_come_from_python_and_without_it_from_the_catalogue() -> anyhow::Result<()> {
    if !Python::is_there() {
        eprintln!("skipped: python3 is missing");
        return Ok(());
    }
    let outside = Outside::new(free_port()?)?;
    for (name, file) in outside.topologies()? {
        let app = Application::start(store(), name, Some(&file), &[]).await?;
        with_python(&app, &outside).await.with_context(|| format!("in topology `{name}`"))?;
        app.stop().await?;
    }
    Ok(())
}

async fn with_python(app: &Application, outside: &Outside) -> anyhow::Result<()> {
    let ada = Customer::sign_up(app, "ada@example.org").await?;
    let order = async |key| -> anyhow::Result<()> {
        let placed = ada.order(app, key, &[(ROBIN, 1)], CARD).await?;
        anyhow::ensure!(placed.status == 201, "{key}: {} {}", placed.status, placed.json);
        Ok(())
    };
    from_catalogue(app, "nobody listens there yet").await?;
    order("before").await?;

    let python = Python::start(app, outside)?;
    let answered = from_recommendations(app).await;
    assert_eq!(ids(&answered)[0], WREN, "{}", answered.json);
    assert!(!ids(&answered).contains(&"MAGNET-01"), "a neighbour is not related: {}", answered.json);
    assert_eq!(answered.json["products"][0]["price"], json!({"amount": 1150, "currency": "GBP"}));
    let unknown = related(app, "NO-SUCH-THING").await?;
    assert_eq!((unknown.status, unknown.problem()), (404, "no-such-product"));

    python.signal(Signal::STOP)?;
    let asked = Instant::now();
    from_catalogue(app, "it does not answer").await?;
    // 200 ms, and room for a busy machine; the request itself would wait for a minute.
    assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
    order("while-it-is-slow").await?;
    python.signal(Signal::CONT)?;
    from_recommendations(app).await;

    drop(python);
    from_catalogue(app, "it is dead").await?;
    order("while-it-is-dead").await?;
    assert_eq!(app.get("/readyz").await?.status, 200, "the store does without it");
    let _again = Python::start(app, outside)?;
    from_recommendations(app).await;
    clean_audit(app).await?;
    Ok(())
}

/// What the test's own recommendations answer, and what they were asked last.
#[derive(Default)]
struct Rubbish {
    status: u16,
    content_type: &'static str,
    body: Vec<u8>,
    asked: Option<(String, HeaderMap, Value)>,
}

async fn answer_rubbish(
    State(rubbish): State<Arc<Mutex<Rubbish>>>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> impl IntoResponse {
    let mut rubbish = rubbish.lock().await;
    let asked = serde_json::from_slice(&body).unwrap_or(Value::Null);
    rubbish.asked = Some((uri.path().to_owned(), headers, asked));
    let status = StatusCode::from_u16(rubbish.status).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, rubbish.content_type)], rubbish.body.clone())
}

/// Recommendations in this process, which answer what the test says.
async fn serve_rubbish() -> anyhow::Result<(Outside, Arc<Mutex<Rubbish>>)> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let outside = Outside::new(listener.local_addr()?.port())?;
    let rubbish = Arc::new(Mutex::new(Rubbish::default()));
    let router = Router::new().fallback(answer_rubbish).with_state(rubbish.clone());
    // It ends with the test's runtime.
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok((outside, rubbish))
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_from_outside_is_not_passed_on() -> anyhow::Result<()> {
    let (outside, rubbish) = serve_rubbish().await?;
    for (name, file) in outside.topologies()? {
        let app = Application::start(store(), name, Some(&file), &[]).await?;
        with_rubbish(&app, &rubbish).await.with_context(|| format!("in topology `{name}`"))?;
        app.stop().await?;
    }
    Ok(())
}

async fn with_rubbish(app: &Application, rubbish: &Mutex<Rubbish>) -> anyhow::Result<()> {
    let answer = async |status, content_type, body: &[u8]| {
        *rubbish.lock().await = Rubbish { status, content_type, body: body.to_owned(), asked: None };
    };
    let json_type = "application/json";
    let useful = json!(["NOPE", WREN, ROBIN, WREN, "TEA-01"]).to_string();
    answer(200, json_type, useful.as_bytes()).await;
    let answered = until("a first answer in time", async || {
        let response = related(app, ROBIN).await.ok()?;
        (response.json["source"] == json!("recommendations")).then_some(response)
    })
    .await;
    assert_eq!(ids(&answered), [WREN, "TEA-01"], "neither what does not exist, nor itself, nor twice");
    let (path, headers, asked) = rubbish.lock().await.asked.take().context("it was asked")?;
    assert_eq!(path, "/call/recommendations/related");
    assert_eq!(asked, json!({"product": ROBIN, "limit": 3}));
    assert_eq!(headers["authorization"], format!("Bearer {SHOWN}").as_str());
    let left_ms: u64 = headers["request-timeout-ms"].to_str()?.parse()?;
    assert!((1..=200).contains(&left_ms), "{left_ms} ms");
    assert!(!headers.contains_key("idempotency-key"), "a query has none");
    assert!(headers.contains_key("traceparent"), "it belongs to the request's trace");

    let large = format!("[{}\"x\"]", "\"NOPE\",".repeat(300_000));
    let refusal =
        br#"{"type":"/problems/unknown-product","title":"?","status":404,"code":"unknown_product"}"#;
    let newer = br#"{"type":"/problems/x","title":"?","status":409,"code":"not_heard_of_yet","lines":[1]}"#;
    let problem_type = "application/problem+json";
    let kinds: [(&str, u16, &'static str, &[u8]); 10] = [
        ("nothing that exists", 200, json_type, br#"["NOPE", "MUG-01"]"#),
        ("no JSON", 200, "text/html", b"<html>It works!</html>"),
        ("another shape", 200, json_type, br#"{"related": ["TEA-01"]}"#),
        ("cut short", 200, json_type, br#"["TEA-01""#),
        ("too much", 200, json_type, large.as_bytes()),
        ("a failure", 500, "text/plain", b"Traceback (most recent call last)"),
        ("a refusal", 404, problem_type, refusal),
        ("a refusal of later times", 409, problem_type, newer),
        ("not now", 503, problem_type, b"{}"),
        ("a redirection", 307, "text/plain", b""),
    ];
    for (why, status, content_type, body) in kinds {
        answer(status, content_type, body).await;
        from_catalogue(app, why).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_to_a_program_outside_are_counted() -> anyhow::Result<()> {
    let (outside, rubbish) = serve_rubbish().await?;
    for (name, file) in outside.topologies()? {
        // Nothing is late, so each call has the end that its answer gives it.
        let patient = [("MODULITH_PRODUCTS_RELATED_WAIT_MS", "20000")];
        let app = Application::start(store(), name, Some(&file), &patient).await?;
        counted(&app, &rubbish).await.with_context(|| format!("in topology `{name}`"))?;
        app.stop().await?;
    }
    Ok(())
}

/// Enough that what goes wrong later is no reason to hold calls back before the breaker opens.
const GOOD_CALLS: usize = 12;

async fn counted(app: &Application, rubbish: &Mutex<Rubbish>) -> anyhow::Result<()> {
    let answer = async |status, body: &[u8]| {
        let content_type = "application/problem+json";
        *rubbish.lock().await = Rubbish { status, content_type, body: body.to_owned(), asked: None };
    };
    let service = if app.topology == "monolith" { "store" } else { "products" };
    let peer = [("service", service), ("peer", "recommendations")];
    let method = [&peer[..], &[("contract", "recommendations"), ("method", "related")]].concat();

    answer(200, b"[]").await;
    for _ in 0..GOOD_CALLS {
        from_catalogue(app, "there is none").await?;
    }
    // It cannot answer while this is held.
    let held = rubbish.lock().await;
    let let_go = async {
        until("a call in flight", async || {
            let seen = scraped(app).await.ok()?;
            (seen.value("modulith_calls_in_flight", &peer) == 1.0).then_some(())
        })
        .await;
        drop(held);
    };
    let (slow, ()) = tokio::join!(from_catalogue(app, "it takes its time"), let_go);
    slow?;
    answer(409, br#"{"title":"?","code":"not_heard_of_yet"}"#).await;
    from_catalogue(app, "it refuses").await?;
    answer(503, b"{}").await;
    from_catalogue(app, "it declines, and is asked again").await?;
    answer(500, b"{}").await;
    let mut failed = 0;
    let seen = loop {
        from_catalogue(app, "it fails").await?;
        failed += 1;
        let seen = scraped(app).await?;
        // Open: this was the last of them that it was asked.
        if seen.value("modulith_breaker_state", &peer) == 2.0 {
            break seen;
        }
        anyhow::ensure!(failed < 100, "the breaker stays closed");
    };
    let ended =
        |outcome| seen.value("modulith_calls_total", &[&method[..], &[("outcome", outcome)]].concat());
    let ends = ["done", "refused", "not_run", "unknown"].map(ended);
    assert_eq!(ends, [GOOD_CALLS as f64 + 1.0, 1.0, 1.0, f64::from(failed)]);
    assert_eq!(seen.value("modulith_call_duration_seconds_count", &method), ends.iter().sum::<f64>());
    assert!(seen.value("modulith_call_duration_seconds_sum", &method) > 0.0);
    assert_eq!(seen.value("modulith_call_retries_total", &peer), 3.0);
    assert_eq!(seen.value("modulith_breaker_opened_total", &peer), 1.0);
    assert_eq!(seen.value("modulith_calls_in_flight", &peer), 0.0);
    assert_eq!(seen.find("modulith_peer_replicas_connected", &peer), None, "nobody knows its replicas");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_knows_only_http_calls_contracts() -> anyhow::Result<()> {
    let outside = Outside::new(free_port()?)?;
    for (name, file) in outside.topologies()? {
        let provider = StandIn::serve()?;
        let app = Application::start(store(), name, Some(&file), &provider.environment()).await?;
        let body = async {
            only_who_may(&app).await?;
            queries_and_commands(&app).await?;
            effects(&app, &provider).await?;
            document(&app).await
        };
        body.await.with_context(|| format!("in topology `{name}`"))?;
        app.stop().await?;
    }
    Ok(())
}

fn ask(method: &str, request: &Value) -> Request {
    Request::post(format!("/call/{method}"), request)
}

async fn only_who_may(app: &Application) -> anyhow::Result<()> {
    let product = || ask("products/product", &json!(ROBIN));
    let told = |response: Response| (response.status, response.problem().to_owned());
    let expect = |status, problem: &str| (status, problem.to_owned());
    assert_eq!(told(app.send(product()).await?), expect(401, "sign-in-required"));
    assert_eq!(told(app.send(product().token("guessed")).await?), expect(401, "token-invalid"));
    let ada = Customer::sign_up(app, "ada@example.org").await?;
    assert_eq!(told(ada.send(app, product()).await?), expect(403, "forbidden"));
    assert_eq!(app.send(product().token(TILL)).await?.status, 200);
    assert_eq!(app.send(product().admin()).await?.status, 200, "an operator may call all that is exposed");

    let debit = || ask("payments/debit", &json!({})).key("k");
    assert_eq!(told(app.send(debit().token(TILL)).await?), expect(403, "contract-not-declared"));
    assert_eq!(told(app.send(debit().admin()).await?), expect(422, "invalid"));
    let file = app.data().join("keys/caller-recommendations.token");
    let of_one_method = std::fs::read_to_string(file)?.trim().to_owned();
    let catalogue = ask("products/catalogue", &json!({"after": null})).token(&of_one_method);
    assert_eq!(app.send(catalogue).await?.json[0]["id"], json!("APRON-01"));
    let refused = app.send(product().token(&of_one_method)).await?;
    assert_eq!(told(refused), expect(403, "contract-not-declared"));

    let hidden = ask("users/user", &json!("x")).admin();
    assert_eq!(told(app.send(hidden).await?), expect(404, "not-found"), "it is not exposed");
    let missing = ask("products/nothing", &json!("x")).token(TILL);
    assert_eq!(told(app.send(missing).await?), expect(404, "not-found"));
    let get = Request::get("/call/products/product").token(TILL);
    assert_eq!(told(app.send(get).await?), expect(405, "method-not-allowed"));
    // A caller's token opens nothing else.
    for path in ["/products", "/admin/sagas"] {
        assert_eq!(told(app.send(Request::get(path).token(TILL)).await?), expect(401, "token-invalid"));
    }
    Ok(())
}

async fn queries_and_commands(app: &Application) -> anyhow::Result<()> {
    let found = app.send(ask("products/product", &json!(ROBIN)).token(TILL)).await?;
    assert_eq!(found.json["price"], json!({"amount": 1150, "currency": "GBP"}));
    let none = app.send(ask("products/product", &json!("NOPE")).token(TILL)).await?;
    assert_eq!((none.status, none.problem()), (404, "no-such-product"));
    assert_eq!(none.json["code"], json!("no_such_product"));
    assert_eq!(none.headers["content-type"], "application/problem+json");

    let hold = |quantity: i64| ask("products/hold", &json!({ROBIN: quantity})).token(TILL);
    assert_eq!(app.send(hold(2)).await?.problem(), "idempotency-key-missing");
    let before = stock(app, ROBIN).await?;
    for _ in 0..3 {
        let held = app.send(hold(2).key("hold-1")).await?;
        assert_eq!((held.status, &held.json), (200, &json!({ROBIN: 2})));
    }
    assert_eq!(stock(app, ROBIN).await?, before - 2, "one key, one hold");
    let other = app.send(hold(3).key("hold-1")).await?;
    assert_eq!((other.status, other.problem()), (422, "idempotency-key-reused"));
    let release = ask("products/release", &json!({ROBIN: 2})).token(TILL).key("hold-1");
    assert_eq!(app.send(release).await?.json, Value::Null, "another method, another key");
    assert_eq!(stock(app, ROBIN).await?, before);
    for _ in 0..2 {
        let refused = app.send(hold(1_000_000).key("too-many")).await?;
        assert_eq!((refused.status, &refused.json["code"]), (409, &json!("sold_out")));
        assert_eq!(refused.json["products"], json!([ROBIN]));
    }

    let raw = |body: Vec<u8>| {
        let request = Request::new(http::Method::POST, "/call/products/hold").token(TILL).key("raw");
        request.header("content-type", "application/json").body(body)
    };
    let malformed = app.send(raw(b"{".to_vec())).await?;
    assert_eq!((malformed.status, malformed.problem()), (400, "malformed-json"));
    let invalid = app.send(raw(br#"{"MUG-01": "two"}"#.to_vec())).await?;
    assert_eq!((invalid.status, &invalid.json["errors"][0]["field"]), (422, &json!(ROBIN)));
    let large = app.send(raw(vec![b' '; (1 << 20) + 1])).await?;
    assert_eq!((large.status, large.problem()), (413, "body-too-large"));
    let plain = Request::new(http::Method::POST, "/call/products/product").token(TILL).body("\"x\"");
    assert_eq!(app.send(plain).await?.status, 415);
    Ok(())
}

async fn effects(app: &Application, provider: &StandIn) -> anyhow::Result<()> {
    let charge = |payment: u128| {
        let request = json!({
            "payment": format!("00000000-0000-0000-0000-{payment:012}"),
            "amount": {"amount": 100, "currency": "GBP"},
            "card": "pm_card_visa",
        });
        ask("payments/charge", &request).admin()
    };
    assert_eq!(app.send(charge(1)).await?.problem(), "idempotency-key-missing");
    let first = app.send(charge(1).key("charge-1")).await?;
    assert_eq!((first.status, &first.json["amount"]["amount"]), (200, &json!(100)), "{}", first.json);
    let again = app.send(charge(1).key("charge-1")).await?;
    assert_eq!((again.status, &again.json), (200, &first.json));
    let ledger = provider.ledger().await?;
    assert_eq!((ledger.charges, ledger.attempts.len()), (1, 2), "the provider was shown one key twice");

    // Slower than the caller's patience, which is shorter than the provider's.
    let slow = json!({"path": CHARGES, "kind": "delay", "times": 1, "delay_ms": 3000});
    provider.http.send(Request::post("/faults", &slow)).await?;
    let late = charge(2).key("charge-2").header("request-timeout-ms", "300");
    let late = app.send(late).await?;
    assert_eq!((late.status, late.problem()), (504, "outcome-unknown"));
    let wrong = charge(3).key("charge-3").header("request-timeout-ms", "soon");
    assert_eq!(app.send(wrong).await?.problem(), "request-timeout-invalid");
    let ended = until("the repeat of the key to tell", async || {
        let response = app.send(charge(2).key("charge-2")).await.ok()?;
        (response.status == 200).then_some(response)
    })
    .await;
    assert_eq!(ended.json["amount"]["amount"], json!(100));
    assert_eq!(provider.ledger().await?.charges, 2);
    Ok(())
}

async fn document(app: &Application) -> anyhow::Result<()> {
    assert_eq!(app.get("/openapi.json").await?.status, 401);
    let served = app.send(Request::get("/openapi.json").token(TILL)).await?;
    assert_eq!(served.json["openapi"], json!("3.1.0"));
    let file = app.topology_file().context("a topology of this test")?;
    let printed = Command::new(app.program()).args(["openapi", "--topology"]).arg(file).output()?;
    assert_eq!(serde_json::from_slice::<Value>(&printed.stdout)?, served.json, "printed as served");
    assert!(served.json["paths"]["/call/products/hold"]["post"].is_object());
    assert_eq!(served.json["paths"]["/call/users/user"], Value::Null);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_open_unless_the_topology_says_so() -> anyhow::Result<()> {
    let program = Program::new(store()).topology("monolith", None);
    let program = program.topology("split", crate::shop::split_topology().to_str());
    program
        .in_every_topology(async |app| {
            let called = app.send(ask("products/product", &json!(ROBIN)).admin()).await?;
            assert_eq!((called.status, called.problem()), (404, "not-found"));
            assert_eq!(app.send(Request::get("/openapi.json").admin()).await?.status, 404);
            let related = related(app, ROBIN).await?;
            assert_eq!(related.json["source"], json!("catalogue"), "nobody is asked");
            Ok(())
        })
        .await
}
