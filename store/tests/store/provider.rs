//! Money through a provider outside: an order is charged once whatever the provider, the network or a process
//! does meanwhile; and what was not charged is known not to be.
//!
//! The provider is the stand-in, in the test's own process. Its ledger says what it did, and its list of
//! attempts what it was asked to do.

use anyhow::Context as _;
use modulith_test::{Application, Http, Request, children, is_alive, terminate, until};
use serde::Deserialize;
use serde_json::json;
use store_provider::{Fault, FaultKind};
use tokio::net::TcpSocket;

use crate::crashes::dies_at;
use crate::shop::{
    CARD, Customer, DECLINED, clean_audit, monolith, products, program, settled, split, stock,
};

pub(crate) const CHARGES: &str = "/v1/payment_intents";
pub(crate) const REFUNDS: &str = "/v1/refunds";
/// Above the six tries after which a coordinator asks whether the step can still be given up.
const MORE_THAN_PATIENCE: u32 = 8;

#[tokio::test(flavor = "multi_thread")]
async fn an_order_is_charged_once_and_a_cancelled_one_refunded_once() -> anyhow::Result<()> {
    in_every_topology(charged_and_refunded).await
}

async fn charged_and_refunded(app: &Application, provider: &StandIn) -> anyhow::Result<()> {
    let shelf = products(app, 2).await?;
    let ada = Customer::sign_up(app, "ada@example.org").await?;
    let before = stock(app, &shelf[0]).await?;
    let lines = [(&*shelf[0], 2), (&*shelf[1], 1)];
    let placed = ada.order(app, "k", &lines, CARD).await?;
    assert_eq!(placed.status, 201, "{}", placed.json);
    let total = placed.json["total"]["amount"].as_i64().context("an order has a total")?;
    let again = ada.order(app, "k", &lines, CARD).await?;
    assert_eq!((again.status, &again.json), (201, &placed.json));
    settled(app).await;
    let ledger = provider.ledger().await?;
    assert_eq!((ledger.charges, ledger.charges_minor, ledger.refunds), (1, total, 0), "{ledger:?}");
    assert_eq!(ledger.attempts.len(), 1, "{ledger:?}");
    assert_eq!(clean_audit(app).await?["payments_minor"], json!(total));

    for _ in 0..2 {
        let cancelled = cancel(app, &ada, &placed.json["id"]).await?;
        assert_eq!(
            (cancelled.status, &cancelled.json["status"]),
            (200, &json!("cancelled")),
            "{}",
            cancelled.json
        );
    }
    settled(app).await;
    let ledger = provider.ledger().await?;
    assert_eq!((ledger.charges, ledger.refunds, ledger.refunds_minor), (1, 1, total), "{ledger:?}");
    assert_eq!(stock(app, &shelf[0]).await?, before);
    let again = ada.order(app, "k", &lines, CARD).await?;
    assert_eq!((again.status, &again.json), (201, &placed.json), "the key's answer outlives the order");
    let report = clean_audit(app).await?;
    assert_eq!((&report["orders"], &report["refunds_minor"]), (&json!(1), &json!(total)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_declined_card_leaves_nothing() -> anyhow::Result<()> {
    in_every_topology(declined).await
}

async fn declined(app: &Application, provider: &StandIn) -> anyhow::Result<()> {
    let shelf = products(app, 1).await?;
    let eve = Customer::sign_up(app, "eve@example.org").await?;
    let before = stock(app, &shelf[0]).await?;
    let first = eve.order(app, "k", &[(&shelf[0], 1)], DECLINED).await?;
    assert_eq!(first.status, 402, "{}", first.json);
    let again = eve.order(app, "k", &[(&shelf[0], 1)], DECLINED).await?;
    assert_eq!((again.status, again.problem()), (402, first.problem()), "a decline is the key's answer");
    // Also a decline whose reply is lost.
    provider.fault(CHARGES, FaultKind::DropReply, 1).await?;
    let lost = eve.order(app, "k-2", &[(&shelf[0], 1)], DECLINED).await?;
    assert_eq!((lost.status, lost.problem()), (402, first.problem()), "{}", lost.json);
    settled(app).await;
    let ledger = provider.ledger().await?;
    assert_eq!((ledger.charges, ledger.refunds, ledger.attempts.len()), (0, 0, 3), "{ledger:?}");
    assert_eq!(stock(app, &shelf[0]).await?, before);
    let report = clean_audit(app).await?;
    assert_eq!((&report["orders"], &report["payments"]), (&json!(0), &json!(0)));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_fault_of_the_provider_charges_twice() -> anyhow::Result<()> {
    in_every_topology(faults).await
}

async fn faults(app: &Application, provider: &StandIn) -> anyhow::Result<()> {
    let shelf = products(app, 1).await?;
    let zoe = Customer::sign_up(app, "zoe@example.org").await?;
    let lines = [(&*shelf[0], 1)];
    let cases = [
        (FaultKind::DropReply, 1),
        (FaultKind::FailBefore, 1),
        (FaultKind::FailAfter, 1),
        (FaultKind::Delay, 1),
        (FaultKind::DropReply, MORE_THAN_PATIENCE),
        (FaultKind::FailBefore, MORE_THAN_PATIENCE),
    ];
    for (number, (kind, times)) in cases.into_iter().enumerate() {
        let case = format!("{kind:?} x {times}");
        let (key, before) = (format!("k-{number}"), provider.ledger().await?);
        // A delayed request is answered; any other fault costs an attempt.
        let attempts = |times: u32| if kind == FaultKind::Delay { 1 } else { times as usize + 1 };

        provider.fault(CHARGES, kind, times).await?;
        // The second comes while the first runs, or after it.
        let (placed, meanwhile) =
            tokio::join!(zoe.order(app, &key, &lines, CARD), zoe.order(app, &key, &lines, CARD));
        let (placed, meanwhile) = (placed?, meanwhile?);
        let mut statuses = [placed.status, meanwhile.status];
        statuses.sort_unstable();
        assert!(matches!(statuses, [201, 201 | 409]), "{case}: {} {}", placed.json, meanwhile.json);
        let placed = if placed.status == 201 { placed } else { meanwhile };
        let again = zoe.order(app, &key, &lines, CARD).await?;
        assert_eq!((again.status, &again.json), (201, &placed.json), "{case}");
        settled(app).await;
        let after = provider.ledger().await?;
        let total = placed.json["total"]["amount"].as_i64().context("an order has a total")?;
        assert_eq!(after.charges - before.charges, 1, "{case}: {after:?}");
        assert_eq!(after.charges_minor - before.charges_minor, total, "{case}: {after:?}");
        assert_eq!(
            one_request(&after.attempts[before.attempts.len()..], CHARGES),
            attempts(times),
            "{case}: {after:?}"
        );

        // The way back has the same faults, fewer of them, since pauses behind the pivot are long.
        let times = times.min(2);
        provider.fault(REFUNDS, kind, times).await?;
        assert_eq!(cancel(app, &zoe, &placed.json["id"]).await?.status, 200, "{case}");
        settled(app).await;
        let last = provider.ledger().await?;
        assert_eq!(last.refunds - after.refunds, 1, "{case}: {last:?}");
        assert_eq!(last.refunds_minor - after.refunds_minor, total, "{case}: {last:?}");
        assert_eq!(
            one_request(&last.attempts[after.attempts.len()..], REFUNDS),
            attempts(times),
            "{case}: {last:?}"
        );
    }
    let report = clean_audit(app).await?;
    assert_eq!((&report["orders"], &report["attention"]), (&json!(cases.len()), &json!(0)), "{report}");
    Ok(())
}

/// As systemd and a terminal send it: to all processes, so that the supervisor's children are told twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_every_process_lets_them_finish_what_runs() -> anyhow::Result<()> {
    let (name, file) = split();
    let provider = StandIn::serve()?;
    let app = Application::start(program().path(), name, file.as_deref(), &provider.environment()).await?;
    let parent = app.process().context("started here")?;
    let family: Vec<u32> = children(parent).into_iter().map(|(child, _)| child).collect();
    assert_eq!(family.len(), 6, "five services and the gateway");
    let shelf = products(&app, 1).await?;
    let ada = Customer::sign_up(&app, "ada@example.org").await?;
    provider.fault(CHARGES, FaultKind::Delay, 1).await?;
    let signal = async {
        until("the charge to be on its way", async || {
            provider.ledger().await.ok().filter(|ledger| !ledger.attempts.is_empty())
        })
        .await;
        family.iter().copied().for_each(terminate);
        terminate(parent);
    };
    let lines = [(&*shelf[0], 1)];
    let (placed, ()) = tokio::join!(ada.order(&app, "k", &lines, CARD), signal);
    let placed = placed?;
    assert_eq!(placed.status, 201, "{}", placed.json);
    until("all processes to end", async || {
        family.iter().chain([&parent]).all(|process| !is_alive(*process)).then_some(())
    })
    .await;
    assert_eq!(provider.ledger().await?.charges, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_crash_around_a_charge_charges_twice() -> anyhow::Result<()> {
    let places = [
        "payments.charge:before",
        "payments.charge:after",
        "orders.place_charged:charge:before",
        "orders.place_charged:charge:after",
        "orders.place_charged:record:before",
    ];
    for topology in [monolith(), split()] {
        for place in places {
            let provider = StandIn::serve()?;
            dies_at(place, topology.clone(), CARD, &provider.environment(), async || {
                let ledger = provider.ledger().await?;
                assert_eq!((ledger.charges, ledger.refunds), (1, 0), "{place}: {ledger:?}");
                let tries = if place == "payments.charge:after" { 2 } else { 1 };
                assert_eq!(one_request(&ledger.attempts, CHARGES), tries, "{place}: {ledger:?}");
                Ok(())
            })
            .await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unreachable_provider_is_a_certain_no() -> anyhow::Result<()> {
    for (name, file) in [monolith(), split()] {
        let absent = Absent::new()?;
        let (program, environment) = (program(), absent.0.environment());
        let app = Application::start(program.path(), name, file.as_deref(), &environment).await?;
        unreachable(&app, absent).await.with_context(|| format!("in topology `{name}`"))?;
        app.stop().await?;
    }
    Ok(())
}

async fn unreachable(app: &Application, absent: Absent) -> anyhow::Result<()> {
    let shelf = products(app, 1).await?;
    let kim = Customer::sign_up(app, "kim@example.org").await?;
    let (before, lines) = (stock(app, &shelf[0]).await?, [(&*shelf[0], 1)]);
    let first = kim.order(app, "k", &lines, CARD).await?;
    assert_eq!((first.status, first.problem()), (503, "aborted"), "{}", first.json);
    settled(app).await;
    assert_eq!(stock(app, &shelf[0]).await?, before);
    let report = clean_audit(app).await?;
    assert_eq!(
        (&report["orders"], &report["payments"], &report["held_units"]),
        (&json!(0), &json!(0), &json!(0))
    );
    let again = kim.order(app, "k", &lines, CARD).await?;
    assert_eq!((again.status, again.problem()), (503, first.problem()), "{}", again.json);

    // What was certain stays so when the provider is back, and never reaches it.
    let provider = absent.appear()?;
    let later = kim.order(app, "k", &lines, CARD).await?;
    assert_eq!((later.status, later.problem()), (503, first.problem()), "{}", later.json);
    let placed = kim.order(app, "k-2", &lines, CARD).await?;
    assert_eq!(placed.status, 201, "{}", placed.json);
    settled(app).await;
    let ledger = provider.ledger().await?;
    assert_eq!((ledger.charges, ledger.attempts.len()), (1, 1), "{ledger:?}");
    clean_audit(app).await?;
    Ok(())
}

pub(crate) async fn cancel(
    app: &Application,
    customer: &Customer,
    order: &serde_json::Value,
) -> anyhow::Result<modulith_test::Response> {
    let order = order.as_str().context("an order has an id")?;
    customer.send(app, Request::post(format!("/orders/{order}/cancel"), &json!({}))).await
}

/// How many attempts there were, all of them at the same request: its path, its key, its bytes.
fn one_request(attempts: &[Attempt], path: &str) -> usize {
    if let Some(first) = attempts.first() {
        assert_eq!(first.path, path);
        assert!(first.idempotency_key.as_deref().is_some_and(|key| !key.is_empty()), "{first:?}");
        assert!(attempts.iter().all(|attempt| attempt.request() == first.request()), "{attempts:#?}");
    }
    attempts.len()
}

/// A new store and a new provider in each topology.
pub(crate) async fn in_every_topology(
    body: impl AsyncFn(&Application, &StandIn) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for (name, file) in [monolith(), split()] {
        let (program, provider) = (program(), StandIn::serve()?);
        let app = Application::start(program.path(), name, file.as_deref(), &provider.environment()).await?;
        body(&app, &provider).await.with_context(|| format!("in topology `{name}`"))?;
        app.stop().await?;
    }
    Ok(())
}

/// The provider, and what a store has to know of it.
pub(crate) struct StandIn {
    pub(crate) url: String,
    secret_key: tempfile::NamedTempFile,
    pub(crate) http: Http,
}

/// What the provider says of itself.
#[derive(Debug, Deserialize)]
pub(crate) struct Ledger {
    pub(crate) charges: i64,
    charges_minor: i64,
    pub(crate) refunds: i64,
    refunds_minor: i64,
    pub(crate) attempts: Vec<Attempt>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Attempt {
    path: String,
    idempotency_key: Option<String>,
    pub(crate) traceparent: Option<String>,
    pub(crate) tracestate: Option<String>,
    pub(crate) body: String,
}

impl Attempt {
    /// What the provider tells requests apart by. The span is the attempt's own.
    fn request(&self) -> (&str, Option<&str>, &str) {
        (&self.path, self.idempotency_key.as_deref(), &self.body)
    }
}

impl StandIn {
    pub(crate) fn serve() -> anyhow::Result<Self> {
        Absent::new()?.appear()
    }

    /// `[module.payments]` for a store that charges here.
    pub(crate) fn environment(&self) -> [(&str, &str); 3] {
        let file = self.secret_key.path().to_str().expect("a temporary path is text");
        [
            ("MODULITH_PAYMENTS_PROVIDER", "stripe"),
            ("MODULITH_PAYMENTS_URL", &self.url),
            ("MODULITH_PAYMENTS_SECRET_KEY_FILE", file),
        ]
    }

    pub(crate) async fn fault(&self, path: &str, kind: FaultKind, times: u32) -> anyhow::Result<()> {
        let fault = Fault { path: Some(path.to_owned()), kind, times, delay_ms: 300 };
        let response = self.http.send(Request::post("/faults", &serde_json::to_value(&fault)?)).await?;
        anyhow::ensure!(response.status == 204, "faults: {}", response.status);
        Ok(())
    }

    pub(crate) async fn mend(&self) -> anyhow::Result<()> {
        let mended = self.http.send(Request::new(http::Method::DELETE, "/faults")).await?;
        anyhow::ensure!(mended.status == 204, "faults: {}", mended.status);
        Ok(())
    }

    pub(crate) async fn ledger(&self) -> anyhow::Result<Ledger> {
        Ok(serde_json::from_value(self.http.send(Request::get("/ledger")).await?.json)?)
    }
}

/// A provider that has an address, and does not listen there yet.
struct Absent(StandIn, TcpSocket);

impl Absent {
    fn new() -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind("127.0.0.1:0".parse()?)?;
        let url = format!("http://{}", socket.local_addr()?);
        let secret_key = tempfile::NamedTempFile::new()?;
        std::fs::write(&secret_key, "sk_test_4242\n")?;
        Ok(Self(StandIn { http: Http::new(&url, ""), url, secret_key }, socket))
    }

    /// It ends with the test's runtime.
    fn appear(self) -> anyhow::Result<StandIn> {
        let listener = self.1.listen(128)?;
        tokio::spawn(async move { axum::serve(listener, store_provider::router()).await });
        Ok(self.0)
    }
}
