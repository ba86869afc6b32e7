//! Callers who order at once, repeat a key until its answer is certain, and remember what they were told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::future::join_all;
use modulith_test::{Application, Http, Request, Response, until};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use crate::shop::{CARD, Customer, clean_audit, order};

const GOODS: &str = "GRAVEL-01";
/// More than any test buys.
const UNITS: u32 = 1_000_000;
/// Callers at once.
const CALLERS: usize = 4;
const PAGE: usize = 100;
/// Stands where an order's key will.
const KEY: &str = "(its key)";

/// One customer, who orders from several places at once. Clones are the same customer.
#[derive(Clone)]
pub(crate) struct Buyer {
    http: Http,
    token: String,
    next: Arc<AtomicUsize>,
    acknowledged: Arc<AtomicUsize>,
    /// An order under [`KEY`], as JSON.
    written: Arc<str>,
    /// What each key was told for certain, if anything: an order, or null for none.
    told: Arc<Mutex<BTreeMap<String, Option<Value>>>>,
}

/// One answer to one attempt.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answer {
    /// 0: the connection was lost.
    pub(crate) status: u16,
    pub(crate) says_when_to_come_again: bool,
    /// An order, or word that this key never has one: its saga was given up.
    pub(crate) is_certain: bool,
    pub(crate) took: Duration,
}

fn order_under(key: &str) -> Value {
    let mut body = order(&[(GOODS, 1)], CARD);
    body["client_reference"] = json!(key);
    body
}

impl Buyer {
    pub(crate) async fn sign_up(app: &Application) -> anyhow::Result<Self> {
        let goods = json!({"id": GOODS, "name": "Gravel", "price": {"amount": 250, "currency": "GBP"}, "units": UNITS});
        let supply = json!({"source": "broken peers", "products": [goods]});
        let supplied = app.send(Request::post("/admin/products/supply", &supply).admin()).await?;
        ensure!(supplied.status == 204, "supply: {} {}", supplied.status, supplied.json);
        let Customer { token } = Customer::sign_up(app, "bea@example.org").await?;
        let (next, acknowledged, told) = Default::default();
        let written = order_under(KEY).to_string().into();
        Ok(Self { http: app.http().clone(), token, next, acknowledged, written, told })
    }

    /// Orders under a new key, once.
    pub(crate) async fn order(&self, deadline_ms: u64) -> Answer {
        let key = self.new_key().await;
        self.attempt(&key, deadline_ms).await
    }

    /// Reads as this customer.
    pub(crate) async fn get(&self, path: &str, deadline_ms: u64) -> anyhow::Result<Response> {
        let request = Request::get(path).header("request-timeout-ms", &deadline_ms.to_string());
        self.http.send(request.token(&self.token)).await
    }

    pub(crate) fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// A request that orders under a key of its own, as it goes over the wire, and the key.
    pub(crate) fn written_order(&self, deadline_ms: u64) -> (String, Vec<u8>) {
        let key = self.next_key();
        // Not made as JSON again for each, since thousands a second are asked for.
        let body = self.written.replace(KEY, &key);
        let head = format!(
            "POST /orders HTTP/1.1\r\nhost: store\r\ncontent-type: application/json\r\nidempotency-key: {key}\r\n\
             authorization: Bearer {}\r\nrequest-timeout-ms: {deadline_ms}\r\ncontent-length: {}\r\n\r\n",
            self.token,
            body.len()
        );
        (key, (head + &body).into_bytes())
    }

    /// Remembers what a key was told: an order, null for certainly none, or nothing for certain.
    pub(crate) async fn remembers(&self, key: String, told: Option<Value>) {
        if told.as_ref().is_some_and(|told| !told.is_null()) {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        self.told.lock().await.insert(key, told);
    }

    /// Waits until so many more orders are acknowledged.
    pub(crate) async fn acknowledges(&self, more: usize) {
        let enough = self.acknowledged() + more;
        until("orders to be acknowledged", async || (self.acknowledged() >= enough).then_some(())).await;
    }

    /// Orders again and again from [`CALLERS`] places while `meanwhile` goes on, and returns every answer. A key is
    /// repeated until its answer is certain, or `meanwhile` is over.
    pub(crate) async fn buys_while<T>(
        &self,
        deadline_ms: u64,
        meanwhile: impl Future<Output = anyhow::Result<T>>,
    ) -> anyhow::Result<(Vec<Answer>, T)> {
        let over = AtomicBool::new(false);
        let is_over = || over.load(Ordering::Relaxed);
        let buying = join_all((0..CALLERS).map(|_| async {
            let mut answers = Vec::new();
            while !is_over() {
                let key = self.new_key().await;
                loop {
                    let answer = self.attempt(&key, deadline_ms).await;
                    answers.push(answer);
                    if answer.is_certain || is_over() {
                        break;
                    }
                }
            }
            answers
        }));
        let meanwhile = async {
            let ended = meanwhile.await;
            over.store(true, Ordering::Relaxed);
            ended
        };
        let (answers, ended) = tokio::join!(buying, meanwhile);
        Ok((answers.concat(), ended?))
    }

    fn next_key(&self) -> String {
        format!("key-{}", self.next.fetch_add(1, Ordering::Relaxed))
    }

    async fn new_key(&self) -> String {
        let key = self.next_key();
        self.told.lock().await.insert(key.clone(), None);
        key
    }

    async fn attempt(&self, key: &str, deadline_ms: u64) -> Answer {
        let request = Request::post("/orders", &order_under(key)).key(key).token(&self.token);
        let begun = Instant::now();
        let sent = self.http.send(request.header("request-timeout-ms", &deadline_ms.to_string())).await;
        let took = begun.elapsed();
        let Ok(response) = sent else {
            return Answer { status: 0, says_when_to_come_again: false, is_certain: false, took };
        };
        let says_when_to_come_again = response.headers.contains_key("retry-after");
        let status = response.status;
        let is_certain = status == 201 || response.problem() == "aborted";
        if is_certain {
            let order = if status == 201 { response.json } else { Value::Null };
            self.told.lock().await.insert(key.to_owned(), Some(order));
        }
        if status == 201 {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
        }
        Answer { status, says_when_to_come_again, is_certain, took }
    }

    /// Repeats every key without a certain answer until it has one.
    pub(crate) async fn asks_again(&self) {
        let open: Vec<String> = {
            let told = self.told.lock().await;
            told.iter().filter(|(_, told)| told.is_none()).map(|(key, _)| key.clone()).collect()
        };
        for key in open {
            until(&format!("an order that stands under {key}"), async || {
                self.attempt(&key, 10_000).await.is_certain.then_some(())
            })
            .await;
        }
    }

    /// What was acknowledged is there as it was acknowledged, no key has two orders, no order lacks a key, and the
    /// audit is clean. Returns how many orders there are.
    pub(crate) async fn stands(&self, app: &Application) -> anyhow::Result<usize> {
        let report = clean_audit(app).await?;
        let mut found = BTreeMap::new();
        let mut path = format!("/orders?limit={PAGE}");
        loop {
            let page = self.get(&path, 10_000).await?;
            for order in page.json["items"].as_array().context("a page has items")? {
                let key = order["client_reference"].as_str().context("each has its key")?;
                let other = found.insert(key.to_owned(), order.clone());
                ensure!(other.is_none(), "{key} has two orders: {order} and {other:?}");
            }
            let Some(next) = page.json["next"].as_str() else { break };
            path = format!("/orders?limit={PAGE}&after={next}");
        }
        let told = self.told.lock().await;
        for (key, told) in told.iter() {
            let Some(told) = told else { continue };
            let there = found.get(key).unwrap_or(&Value::Null);
            ensure!(told == there, "{key} was told {told}, and there is {there}");
        }
        ensure!(found.keys().all(|key| told.contains_key(key)), "an order that nobody asked for");
        ensure!(report["orders"] == json!(found.len()), "{} orders: {report:#}", found.len());
        Ok(found.len())
    }
}
