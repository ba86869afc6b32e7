//! Services of two builds at once: real processes of an earlier and a later build, one of which calls the other.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use modulith_test::{Http, Request, Response, child_of, until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const OLDER: &str = env!("CARGO_BIN_EXE_older");
const NEWER: &str = env!("CARGO_BIN_EXE_newer");
const OTHER: &str = env!("CARGO_BIN_EXE_other");

/// As in the library of this crate.
const PIECES: i64 = modulith_skew::PIECES;
/// Clients of a [`Load`].
const CLIENTS: u64 = 32;
/// Answers between one replacement and the next; some of those who call then wait for a successor.
const MORE: u64 = 200;
/// The name of a process that is the supervisor of all services.
const ALL: &str = "all";

/// One process of one build, or a supervisor of all.
struct Service {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Service {
    fn start(data: &Path, build: &str, name: &'static str) -> Self {
        static STARTED: AtomicU64 = AtomicU64::new(0);
        let log = data.join(format!("{name}-{}.log", STARTED.fetch_add(1, Relaxed)));
        let topology = concat!(env!("CARGO_MANIFEST_DIR"), "/split.toml");
        let service = if name == ALL { &[][..] } else { &["--service", name] };
        let child = Command::new(build)
            .args(["run", "--topology", topology])
            .args(service)
            .args(["--listen", "127.0.0.1:0", "--data"])
            .arg(data)
            .env("MODULITH_LOG", "info")
            .env("MODULITH_CONTROL", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).expect("a log"))
            .spawn()
            .expect("starts");
        Self { name, child, log }
    }

    /// Waits until it says that it is ready, and returns what it says with it.
    fn ready(&mut self) -> String {
        let out = BufReader::new(self.child.stdout.as_mut().expect("piped"));
        let mut lines = out.lines().map_while(Result::ok);
        let said = lines.find_map(|line| line.strip_prefix("ready").map(|rest| rest.trim().to_owned()));
        said.unwrap_or_else(|| panic!("{} ended: {}", self.name, self.said()))
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Stops it as an orchestrator does, and waits for its end.
    fn stop(mut self) {
        // Waiting closes it, which tells a supervisor to stop as well: then the signal could be its second.
        let stdin = self.child.stdin.take();
        terminate(self.child.id());
        let status = self.child.wait().expect("ends");
        assert!(status.success(), "{} ended with {status}: {}", self.name, self.said());
        drop(stdin);
        let mut rest = String::new();
        let _ = self.child.stdout.as_mut().expect("piped").read_to_string(&mut rest);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn terminate(process: u32) {
    let process = i32::try_from(process).ok().and_then(Pid::from_raw).expect("a process");
    kill_process(process, Signal::TERM).expect("runs");
}

/// A gateway and two services, each of any build.
struct Shop {
    services: BTreeMap<&'static str, Service>,
    http: Http,
    data: tempfile::TempDir,
}

impl Shop {
    fn open(front: &str, stock: &str) -> Self {
        let data = tempfile::tempdir().expect("a folder");
        let mut services: BTreeMap<&'static str, Service> =
            [("stock", stock), ("front", front), ("gateway", OLDER)]
                .into_iter()
                .map(|(name, build)| {
                    let mut service = Service::start(data.path(), build, name);
                    // A service that is refused is never ready; the others find out about it themselves.
                    if name == "stock" {
                        service.ready();
                    }
                    (name, service)
                })
                .collect();
        let url = services.get_mut("gateway").expect("started").ready();
        Self { services, http: Http::new(&url, ""), data }
    }

    fn replace(&mut self, name: &'static str, build: &str) {
        if let Some(service) = self.services.remove(name) {
            service.stop();
        }
        let mut service = Service::start(self.data.path(), build, name);
        service.ready();
        self.services.insert(name, service);
    }

    async fn ready(&mut self) {
        self.services.get_mut("front").expect("started").ready();
    }

    async fn level(&self, product: &str) -> Response {
        self.http.send(Request::get(format!("/front/level/{product}"))).await.expect("an answer")
    }

    async fn take(&self, product: &str, key: &str) -> Response {
        let request = Request::post("/front/take", &json!(product)).key(key);
        self.http.send(request).await.expect("an answer")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_caller_and_a_newer_callee() {
    let mut shop = Shop::open(OLDER, NEWER);
    shop.ready().await;
    assert_eq!(shop.take("apple", "k-1").await.json, json!(PIECES - 1));
    // What the caller does not know of an answer is skipped.
    assert_eq!(shop.level("apple").await.json, json!({"pieces": PIECES - 1, "state": "Plenty"}));
    // A refusal that it does not know is a refusal.
    let refused = shop.take("withdrawn", "k-2").await;
    assert_eq!((refused.status, refused.problem()), (409, "withdrawn"), "{}", refused.json);
    let refused = shop.take("unknown", "k-3").await;
    assert_eq!((refused.status, refused.problem()), (422, "unknown"), "{}", refused.json);
    // A case that it does not know fails this one call, and its log says which it was.
    let unreadable = shop.level("withdrawn").await;
    assert!(unreadable.status >= 500, "{} {}", unreadable.status, unreadable.json);
    let said = shop.services["front"].said();
    assert!(said.contains("state: unknown variant `Withdrawn`, expected `Plenty` or `Few`"), "{said}");
    assert_eq!(shop.level("apple").await.status, 200);
    assert!(said.contains("which are compatible: "), "{said}");
    assert!(
        said.contains("stock.take.refused::Withdrawn: is a case of the callee that the caller does not know"),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_caller_and_an_older_callee() {
    let mut shop = Shop::open(NEWER, OLDER);
    shop.ready().await;
    assert_eq!(shop.take("apple", "k-1").await.json, json!(PIECES - 1));
    // What the callee does not send is filled in.
    assert_eq!(
        shop.level("apple").await.json,
        json!({"pieces": PIECES - 1, "state": "Plenty", "reserved": null})
    );
    let said = shop.services["front"].said();
    assert!(said.contains("stock.product_count: the callee does not have this method"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incompatible_callee_is_refused_by_contract_method_and_field() {
    const WHY: &str = "stock.take.request.customer: is required by the callee and not written by the caller";
    let shop = Shop::open(OLDER, OTHER);
    let readyz = until("the gateway to say why", async || {
        let answer = shop.http.send(Request::get("/readyz")).await.ok()?;
        String::from_utf8_lossy(&answer.body).contains(WHY).then_some(answer)
    })
    .await;
    assert_eq!(readyz.status, 503);
    for name in ["front", "stock"] {
        let said = shop.services[name].said();
        if name == "stock" {
            assert!(said.contains(WHY), "{name}: {said}");
        }
    }
    let refused = shop.take("apple", "k-1").await;
    assert_eq!(refused.status, 503, "{}", refused.json);
}

/// Clients that call without a pause, each request once.
struct Load {
    stop: Arc<AtomicBool>,
    taken: Arc<AtomicU64>,
    /// Each gives what failed.
    clients: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(http: &Http) -> Self {
        let (stop, taken) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let clients = (0..CLIENTS).map(|client| {
            let (http, stop, taken) = (http.clone(), stop.clone(), taken.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                for turn in 0_u64.. {
                    if stop.load(Relaxed) {
                        break;
                    }
                    let key = format!("key-{client}-{turn}");
                    let take = Request::post("/front/take", &json!("apple")).key(&key);
                    match sent(&http, take).await {
                        Ok(()) => drop(taken.fetch_add(1, Relaxed)),
                        Err(failure) => failures.push(format!("take: {failure}")),
                    }
                    let show = sent(&http, Request::get("/front/level/apple")).await;
                    failures.extend(show.err().map(|failure| format!("level: {failure}")));
                }
                failures
            })
        });
        Self { clients: clients.collect(), stop, taken }
    }

    /// Waits until as many more were answered.
    async fn answered(&self, more: u64) {
        let before = self.taken.load(Relaxed);
        until("calls", async || (self.taken.load(Relaxed) >= before + more).then_some(())).await;
    }

    /// None has failed; each was done, and none twice.
    async fn end(self, http: &Http) {
        self.stop.store(true, Relaxed);
        let mut failures = Vec::new();
        for client in self.clients {
            failures.extend(client.await.expect("does not panic"));
        }
        let taken = self.taken.load(Relaxed);
        println!("{taken} taken, {} failed", failures.len());
        assert_eq!(failures, Vec::<String>::new());
        let level = http.send(Request::get("/front/level/apple")).await.expect("an answer").json;
        assert_eq!(level["pieces"], json!(PIECES - i64::try_from(taken).expect("few")), "{level}");
    }
}

/// Sends it once; whatever is not a success is a failure.
async fn sent(http: &Http, request: Request) -> Result<(), String> {
    match http.send(request).await {
        Ok(answer) if answer.status == 200 => Ok(()),
        Ok(answer) => Err(format!("{} {}", answer.status, answer.json)),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Both services are replaced by the other build, one after the other and back, while clients call.
#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_release_under_load_fails_no_call() {
    let mut shop = Shop::open(OLDER, OLDER);
    shop.ready().await;
    let load = Load::start(&shop.http);
    for (name, build) in
        [("stock", NEWER), ("front", NEWER), ("stock", OLDER), ("front", OLDER), ("stock", NEWER)]
    {
        load.answered(MORE).await;
        shop = tokio::task::spawn_blocking(move || {
            shop.replace(name, build);
            shop
        })
        .await
        .expect("is replaced");
    }
    load.answered(MORE).await;
    load.end(&shop.http).await;
}

/// An operator stops one process after the other, and their supervisor starts them again.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_one_service_after_the_other_by_their_supervisor_fails_no_call() {
    let data = tempfile::tempdir().expect("a folder");
    let mut supervisor = Service::start(data.path(), OLDER, ALL);
    let http = Http::new(&supervisor.ready(), "");
    let load = Load::start(&http);
    for name in ["stock", "front", "stock", "front"] {
        load.answered(MORE).await;
        let before = child_of(supervisor.child.id(), name).expect("runs");
        terminate(before);
        until("the next life of a service", async || {
            child_of(supervisor.child.id(), name).filter(|now| *now != before)
        })
        .await;
    }
    load.answered(MORE).await;
    load.end(&http).await;
    tokio::task::spawn_blocking(|| supervisor.stop()).await.expect("ends");
}
