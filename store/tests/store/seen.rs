//! What is seen of requests from outside the code: their traces in the logs of every service, and what is counted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use modulith_test::{Application, Http, Request, until};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::provider::StandIn;
use crate::shop::{CARD, Customer, DECLINED, order, products, program, settled, split_topology};

const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";

/// The split store with more in its topology, and its log lines as they come.
struct Logged {
    http: Http,
    lines: tokio::sync::mpsc::UnboundedReceiver<Value>,
    seen: Vec<Value>,
    _data: tempfile::TempDir,
    _process: Child,
}

impl Logged {
    async fn start(more: &str, level: &str, environment: &[(&str, &str)]) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let topology = topology(data.path(), more)?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_store"));
        command.args(["run", "--log", "json", "--listen", "127.0.0.1:0", "--topology"]).arg(topology);
        command.arg("--data").arg(data.path()).env("MODULITH_LOG", level).env("MODULITH_CONTROL", "1");
        command.envs(environment.iter().copied());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut process = command.spawn()?;
        let mut said = BufReader::new(process.stdout.take().expect("piped")).lines();
        let mut log = BufReader::new(process.stderr.take().expect("piped")).lines();
        let (tell, lines) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = log.next_line().await {
                let _ = serde_json::from_str(&line).map(|line| tell.send(line));
            }
        });
        let url = loop {
            let line = said.next_line().await?.expect("it goes on until it is ready");
            if let Some(url) = line.strip_prefix("ready ") {
                break url.to_owned();
            }
        };
        tokio::spawn(async move { while let Ok(Some(_)) = said.next_line().await {} });
        let admin = std::fs::read_to_string(data.path().join("keys/admin.token"))?;
        let http = Http::new(&url, admin.trim());
        Ok(Self { http, lines, seen: Vec::new(), _data: data, _process: process })
    }

    /// A user's session token.
    async fn signed_up(&self) -> anyhow::Result<String> {
        let user = json!({"email": "tess@example.org", "name": "Tess", "password": "correct horse battery"});
        let made = self.http.send(Request::post("/users", &user)).await?;
        anyhow::ensure!(made.status == 201, "{}", made.json);
        let session = self.http.send(Request::post("/sessions", &user)).await?;
        Ok(session.json["token"].as_str().expect("a session has a token").to_owned())
    }

    async fn order(&self, user: &str, key: &str, trace: &[(&str, &str)]) -> anyhow::Result<()> {
        let page = self.http.send(Request::get("/products?limit=1")).await?;
        let product = page.json["items"][0]["id"].as_str().expect("the catalogue has products");
        let mut request = Request::post("/orders", &order(&[(product, 1)], CARD)).key(key).token(user);
        for (name, value) in trace {
            request = request.header(name, value);
        }
        let ordered = self.http.send(request).await?;
        anyhow::ensure!(ordered.status == 201, "{}", ordered.json);
        Ok(())
    }

    /// The services in whose log lines the trace stands, in a span of theirs.
    fn services_of(&mut self, trace_id: &str) -> BTreeSet<String> {
        while let Ok(line) = self.lines.try_recv() {
            self.seen.push(line);
        }
        let of = |line: &&Value| line["span"]["trace_id"] == trace_id;
        let services = self.seen.iter().filter(of).filter_map(|line| line["service"].as_str());
        services.map(str::to_owned).collect()
    }
}

/// The split topology with `more` behind it, in a file of its own.
fn topology(data: &Path, more: &str) -> anyhow::Result<PathBuf> {
    let file = data.join("seen.toml");
    let split = std::fs::read_to_string(split_topology())?;
    std::fs::write(&file, format!("{split}\n{more}\n"))?;
    Ok(file)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_through_every_service_and_to_the_provider() -> anyhow::Result<()> {
    let provider = StandIn::serve()?;
    let mut app = Logged::start("[telemetry]\nsample_ratio = 1.0", "debug", &provider.environment()).await?;
    let user = app.signed_up().await?;
    app.order(&user, "traced-1", &[("traceparent", PARENT), ("tracestate", "foo=1,bar@x=2")]).await?;
    let expected = ["gateway", "orders", "payments", "products"];
    until("the trace in every log", async || {
        let services = app.services_of(TRACE_ID);
        expected.iter().all(|service| services.contains(*service)).then_some(())
    })
    .await;
    let attempts = provider.ledger().await?.attempts;
    let [charge] = &attempts[..] else { anyhow::bail!("one charge: {attempts:?}") };
    let parent = charge.traceparent.as_deref().unwrap_or_default();
    assert!(parent.starts_with(&PARENT[..36]) && parent.ends_with("-01"), "{parent}");
    assert!(!parent.contains("b7ad6b7169203331"), "the attempt asks, not the client: {parent}");
    assert_eq!(charge.tracestate.as_deref(), Some("foo=1,bar@x=2"));
    Ok(())
}

/// The same trace, which its client wants sampled: it is carried, and nothing is recorded.
#[tokio::test(flavor = "multi_thread")]
async fn a_trace_that_is_not_sampled_is_carried_and_leaves_no_span() -> anyhow::Result<()> {
    let provider = StandIn::serve()?;
    let mut app = Logged::start("[telemetry]\nsample_ratio = 0.0", "debug", &provider.environment()).await?;
    let user = app.signed_up().await?;
    let sampled = format!("{}1", &PARENT[..PARENT.len() - 1]);
    app.order(&user, "carried-1", &[("traceparent", &sampled)]).await?;
    let attempts = provider.ledger().await?.attempts;
    let parent = attempts[0].traceparent.as_deref().unwrap_or_default();
    assert!(parent.starts_with(&PARENT[..36]) && parent.ends_with("-00"), "{parent}");
    until("the requests' lines", async || {
        app.services_of("");
        let paths = app.seen.iter().filter(|line| line["path"] == "/orders");
        // The gateway's and the service's.
        (paths.count() == 2).then_some(())
    })
    .await;
    let spans: Vec<_> = app.seen.iter().filter(|line| !line["span"].is_null()).collect();
    assert!(spans.is_empty(), "{spans:?}");
    Ok(())
}

const ORDERS: u64 = 5;

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_what_was_done_and_strangers_see_none() -> anyhow::Result<()> {
    let app = Application::start(program().path(), "split", Some(&split_topology()), &[]).await?;
    let ada = Customer::sign_up(&app, "ada@example.org").await?;
    let shelf = products(&app, 1).await?;
    for at in 0..ORDERS {
        let placed = ada.order(&app, &format!("k-{at}"), &[(&shelf[0], 1)], CARD).await?;
        anyhow::ensure!(placed.status == 201, "{}", placed.json);
    }
    let declined = ada.order(&app, "k-declined", &[(&shelf[0], 1)], DECLINED).await?;
    anyhow::ensure!(declined.status == 402, "{}", declined.json);
    settled(&app).await;
    let seen = scraped(&app).await?;

    let calls = |outcome| {
        let labels =
            [("service", "orders"), ("peer", "payments"), ("contract", "payments"), ("method", "debit")];
        seen.value("modulith_calls_total", &[&labels[..], &[("outcome", outcome)]].concat())
    };
    let answers = |outcome| {
        let labels = [("service", "payments"), ("contract", "payments"), ("method", "debit")];
        seen.value("modulith_answers_total", &[&labels[..], &[("outcome", outcome)]].concat())
    };
    let orders = ORDERS as f64;
    assert_eq!((calls("done"), calls("refused"), calls("unknown")), (orders, 1.0, 0.0));
    assert_eq!((answers("done"), answers("refused"), answers("not_run")), (orders, 1.0, 0.0));
    let labels = [("service", "payments"), ("contract", "payments"), ("method", "debit")];
    assert_eq!(seen.value("modulith_answer_duration_seconds_count", &labels), orders + 1.0);
    assert!(seen.value("modulith_answer_duration_seconds_sum", &labels) > 0.0);
    let posted = [("service", "gateway"), ("route", "/orders"), ("status", "2xx")];
    assert_eq!(seen.value("modulith_http_requests_total", &posted), orders);
    let refused = [("service", "gateway"), ("route", "/orders"), ("status", "4xx")];
    assert_eq!(seen.value("modulith_http_requests_total", &refused), 1.0);
    let peer = [("service", "orders"), ("peer", "payments")];
    assert_eq!(seen.value("modulith_peer_replicas_connected", &peer), 1.0);
    assert_eq!(seen.value("modulith_calls_in_flight", &peer), 0.0);
    assert_eq!(seen.value("modulith_sagas_open", &[("service", "orders"), ("module", "orders")]), 0.0);
    for service in ["users", "products", "cart", "payments", "orders"] {
        let of = [("service", service)];
        assert_eq!(seen.value("modulith_service_up", &of), 1.0);
        assert!(seen.value("modulith_writer_work_total", &of) > 0.0, "{service}");
        assert!(seen.value("process_resident_memory_bytes", &of) > 1e6);
    }

    // A thousand names that nobody knows make no label.
    for at in 0..1_000 {
        let (method, path) = (http::Method::from_bytes(format!("M{at}").as_bytes())?, format!("/x{at}/{at}"));
        let answer = app.send(Request::new(method, path)).await?;
        anyhow::ensure!(answer.status == 404, "{}", answer.status);
    }
    let after = scraped(&app).await?;
    let other = [("service", "gateway"), ("route", "other"), ("status", "4xx")];
    assert_eq!(after.value("modulith_http_requests_total", &other), 1_000.0);
    let names = |seen: &Scraped| seen.0.keys().cloned().collect::<BTreeSet<_>>();
    assert_eq!(names(&after), names(&seen));

    for stranger in [Request::get("/admin/metrics"), Request::get("/admin/metrics").token(&ada.token)] {
        assert!(matches!(app.send(stranger).await?.status, 401 | 403));
    }
    assert_eq!(app.get("/metrics").await?.status, 404);
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_a_port_of_their_own_when_the_topology_names_one() -> anyhow::Result<()> {
    let mut app = Logged::start("[telemetry]\nlisten = \"127.0.0.1:0\"", "info", &[]).await?;
    let url = until("the address", async || {
        app.services_of("");
        let said = app.seen.iter().filter_map(|line| line["message"].as_str());
        said.filter_map(|said| said.strip_prefix("metrics are shown on ")).next().map(str::to_owned)
    })
    .await;
    let door = Http::new(url.trim_end_matches("/metrics"), "");
    let shown = door.send(Request::get("/metrics")).await?;
    assert_eq!(shown.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let seen = Scraped::parse(std::str::from_utf8(&shown.body)?)?;
    assert_eq!(seen.value("modulith_service_up", &[("service", "orders")]), 1.0);
    assert_eq!(door.send(Request::get("/admin/sagas")).await?.status, 404, "nothing else is there");
    Ok(())
}

/// Samples by name and labels, as they stand.
pub(crate) struct Scraped(BTreeMap<String, f64>);

pub(crate) async fn scraped(app: &Application) -> anyhow::Result<Scraped> {
    let response = app.send(Request::get("/admin/metrics").admin()).await?;
    anyhow::ensure!(response.status == 200, "{}", response.status);
    Scraped::parse(std::str::from_utf8(&response.body)?)
}

impl Scraped {
    /// By the grammar of the text format: each family has a HELP and a TYPE, then all its samples, and no sample twice.
    fn parse(text: &str) -> anyhow::Result<Self> {
        anyhow::ensure!(text.ends_with('\n'), "the last line ends");
        let (mut families, mut samples) = (BTreeSet::new(), BTreeMap::new());
        let (mut family, mut kind) = ("", "");
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                (family, kind) = (help.split_once(' ').context("a help has a text")?.0, "");
                anyhow::ensure!(families.insert(family) && is_name(family), "{line}");
                continue;
            }
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, declared) = declared.split_once(' ').context("a type has a name")?;
                anyhow::ensure!(name == family && kind.is_empty(), "{line}");
                anyhow::ensure!(matches!(declared, "counter" | "gauge" | "histogram"), "{line}");
                kind = declared;
                continue;
            }
            let (series, value) = line.rsplit_once(' ').context("a sample has a value")?;
            let (name, labels) = series.split_once('{').context("every sample has labels")?;
            let suffix = name.strip_prefix(family).with_context(|| format!("{line} is not of {family}"))?;
            anyhow::ensure!(
                match kind {
                    "histogram" => matches!(suffix, "_bucket" | "_sum" | "_count"),
                    "counter" => suffix.is_empty() && name.ends_with("_total"),
                    _ => suffix.is_empty() && !kind.is_empty(),
                },
                "{line}"
            );
            let mut rest = labels.strip_suffix('}').with_context(|| format!("{line} is cut"))?;
            while !rest.is_empty() {
                let (label, after) = rest.split_once("=\"").with_context(|| line.to_owned())?;
                let end = after.find('"').with_context(|| line.to_owned())?;
                anyhow::ensure!(is_name(label) && !after[..end].contains('\\'), "{line}");
                rest = after[end + 1..].trim_start_matches(',');
            }
            let value: f64 = value.parse()?;
            anyhow::ensure!(value >= 0.0 && samples.insert(series.to_owned(), value).is_none(), "{line}");
        }
        Ok(Self(samples))
    }

    /// Panics if there is no such sample.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.find(name, labels).unwrap_or_else(|| panic!("no {name} of {labels:?}"))
    }

    pub(crate) fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let labels: Vec<_> = labels.iter().map(|(label, text)| format!("{label}=\"{text}\"")).collect();
        self.0.get(&format!("{name}{{{}}}", labels.join(","))).copied()
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}
