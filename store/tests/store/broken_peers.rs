//! Services that are slow, dead, flapping, silent, restarted or asked for too much: what their callers see, and that
//! the store's books are right afterwards.
//!
//! `MODULITH_FLAP_SEED` draws the same kills again.

mod buyers;
mod crowd;
mod overload;
mod silent;

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use modulith_test::{Application, Random, child_of, kill, pause, terminate, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use self::buyers::{Answer, Buyer};
use crate::seen::scraped;
use crate::shop::{self, Topology, program};

/// What is meant by "at once" on a busy machine. Deadlines that are not met here are ten times as long.
const AT_ONCE: Duration = Duration::from_secs(5);
const PATIENT_MS: u64 = 60_000;

async fn started((name, file): Topology) -> anyhow::Result<(Application, Buyer)> {
    let environment = [("MODULITH_LOG", "error")];
    let app = Application::start(program().path(), name, file.as_deref(), &environment).await?;
    let buyer = Buyer::sign_up(&app).await?;
    Ok((app, buyer))
}

async fn split() -> anyhow::Result<(Application, Buyer)> {
    started(shop::split()).await
}

fn process_of(app: &Application, service: &str) -> anyhow::Result<u32> {
    let family = app.process().context("started here")?;
    child_of(family, service).with_context(|| format!("{service} runs"))
}

/// Reads what does not need the broken service: it is answered at once.
async fn others_answer(buyer: &Buyer, paths: &[&str]) -> anyhow::Result<Duration> {
    let mut longest = Duration::ZERO;
    for path in paths.iter().cycle().take(20) {
        let asked = Instant::now();
        let response = buyer.get(path, PATIENT_MS).await?;
        ensure!(response.status == 200, "{path}: {} {}", response.status, response.json);
        longest = longest.max(asked.elapsed());
    }
    ensure!(longest < AT_ONCE, "{longest:?}");
    Ok(longest)
}

/// Whether orders says that it has lost payments. It is asked on its own socket: the gateway's word about all services
/// takes as long as that of the slowest.
async fn is_lost(app: &Application) -> bool {
    let asked = async {
        let mut socket = UnixStream::connect(app.data().join("run/orders.sock")).await?;
        socket.write_all(b"GET /readyz HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await?;
        let mut said = String::new();
        socket.read_to_string(&mut said).await?;
        std::io::Result::Ok(said)
    };
    asked.await.is_ok_and(|said| said.starts_with("HTTP/1.1 503") && said.contains("service `payments`"))
}

fn longest(answers: &[Answer]) -> Duration {
    answers.iter().map(|answer| answer.took).max().unwrap_or_default()
}

fn count(answers: &[Answer], status: u16) -> usize {
    answers.iter().filter(|answer| answer.status == status).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_service_delays_nobody_beyond_the_deadline() -> anyhow::Result<()> {
    let (app, buyer) = split().await?;
    let payments = process_of(&app, "payments")?;
    let slow = async {
        buyer.acknowledges(4).await;
        let paused = pause(payments);
        let others = others_answer(&buyer, &["/products?limit=5", "/orders"]).await?;
        // Longer than silence is borne: the connection is given up, too.
        until("the loss to be noticed", async || is_lost(&app).await.then_some(())).await;
        others_answer(&buyer, &["/products?limit=5", "/orders"]).await?;
        drop(paused);
        let mended = Instant::now();
        buyer.acknowledges(4).await;
        Ok((others, mended.elapsed()))
    };
    let (answers, (others, recovered)) = buyer.buys_while(1_000, slow).await?;
    eprintln!(
        "slow: {} orders placed, {} answers 503, {} 504, the longest after {} ms of a deadline of 1000; \
         others after at most {} ms; orders again after {} ms",
        count(&answers, 201),
        count(&answers, 503),
        count(&answers, 504),
        longest(&answers).as_millis(),
        others.as_millis(),
        recovered.as_millis(),
    );
    assert!(count(&answers, 504) > 0, "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer.status, 201 | 409 | 503 | 504)), "{answers:?}");
    assert!(longest(&answers) < Duration::from_secs(1) + AT_ONCE, "{answers:?}");
    buyer.asks_again().await;
    buyer.stands(&app).await?;
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_service_is_refused_at_once_and_its_callers_recover() -> anyhow::Result<()> {
    let (app, buyer) = split().await?;
    let dead = async {
        buyer.acknowledges(4).await;
        // Nobody starts it again while the supervisor does nothing.
        let supervisor = pause(app.process().context("started here")?);
        kill(process_of(&app, "payments")?);
        let refused = until("an order to be refused", async || {
            Some(buyer.order(PATIENT_MS).await).filter(|answer| answer.status == 503)
        })
        .await;
        for _ in 0..20 {
            let answer = buyer.order(PATIENT_MS).await;
            ensure!(answer.status == 503 && answer.took < AT_ONCE, "{answer:?}");
        }
        others_answer(&buyer, &["/products?limit=5", "/orders"]).await?;
        drop(supervisor);
        let mended = Instant::now();
        buyer.acknowledges(4).await;
        Ok((refused, mended.elapsed()))
    };
    let (answers, (refused, recovered)) = buyer.buys_while(PATIENT_MS, dead).await?;
    eprintln!(
        "dead: refused after {} ms, the longest answer took {} ms; orders again {} ms after the supervisor could act",
        refused.took.as_millis(),
        longest(&answers).as_millis(),
        recovered.as_millis(),
    );
    assert!(longest(&answers) < Duration::from_secs(PATIENT_MS / 1000) / 2, "{answers:?}");
    buyer.asks_again().await;
    buyer.stands(&app).await?;
    app.stop().await
}

const KILLS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn flapping_services_lose_no_order_and_double_none() -> anyhow::Result<()> {
    let seed = std::env::var("MODULITH_FLAP_SEED").ok().map_or(Ok(Random::seed()), |seed| seed.parse())?;
    eprintln!("MODULITH_FLAP_SEED={seed}");
    let mut random = Random::new(seed);
    let (app, buyer) = split().await?;
    let family = app.process().context("started here")?;
    let flapping = async {
        for _ in 0..KILLS {
            buyer.acknowledges(random.below(3)).await;
            let service = ["payments", "products", "orders"][random.below(3)];
            let process = until("a service to kill", async || child_of(family, service)).await;
            kill(process);
        }
        let last = Instant::now();
        buyer.acknowledges(4).await;
        Ok(last.elapsed())
    };
    let (answers, recovered) = buyer.buys_while(2_000, flapping).await?;
    buyer.asks_again().await;
    let orders = buyer.stands(&app).await?;
    eprintln!(
        "flapping: {KILLS} kills, {orders} orders, {} answers that were none; orders again {} ms after the last kill",
        answers.len() - count(&answers, 201),
        recovered.as_millis(),
    );
    app.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_are_restarted_fail_no_request() -> anyhow::Result<()> {
    let (app, buyer) = split().await?;
    let family = app.process().context("started here")?;
    let restarted = async {
        for service in ["payments", "products", "orders", "users", "cart"] {
            buyer.acknowledges(2).await;
            let before = process_of(&app, service)?;
            terminate(before);
            until("a successor", async || child_of(family, service).filter(|process| *process != before))
                .await;
            others_answer(&buyer, &["/products?limit=5", "/orders"]).await?;
        }
        buyer.acknowledges(2).await;
        Ok(())
    };
    let (answers, ()) = buyer.buys_while(PATIENT_MS, restarted).await?;
    eprintln!(
        "restarted: {} orders during 5 restarts, {} failed, the longest took {} ms",
        answers.len(),
        answers.len() - count(&answers, 201),
        longest(&answers).as_millis(),
    );
    assert!(answers.iter().all(|answer| answer.status == 201), "{answers:?}");
    buyer.stands(&app).await?;
    app.stop().await
}

const CALLS: usize = 600;

#[tokio::test(flavor = "multi_thread")]
async fn repeats_do_not_multiply_the_calls_to_a_dead_service() -> anyhow::Result<()> {
    let (app, buyer) = split().await?;
    let begun = Instant::now();
    let supervisor = pause(app.process().context("started here")?);
    kill(process_of(&app, "products")?);
    let answers: Vec<Answer> = futures_util::stream::iter(0..CALLS)
        .map(|_| buyer.order(PATIENT_MS))
        .buffer_unordered(32)
        .collect()
        .await;
    let seen = scraped(&app).await?;
    let peer = [("service", "orders"), ("peer", "products")];
    let repeats = seen.value("modulith_call_retries_total", &peer);
    let method = [("contract", "products"), ("method", "products"), ("outcome", "not_run")];
    let calls = seen.value("modulith_calls_total", &[&peer[..], &method].concat());
    // A tenth of the calls, ten a second, and what ten seconds of rest have saved up.
    let budget = calls / 10.0 + 10.0 * begun.elapsed().as_secs_f64() + 100.0;
    eprintln!("repeats: {calls} calls to a dead service, {repeats} repeats; at most {budget:.0}");
    assert!(answers.iter().all(|answer| answer.status == 503), "{answers:?}");
    assert!(calls >= CALLS as f64 * 0.9, "{calls}");
    assert!(repeats <= budget, "{repeats} > {budget}");
    drop(supervisor);
    until("an order", async || (buyer.order(PATIENT_MS).await.status == 201).then_some(())).await;
    buyer.stands(&app).await?;
    app.stop().await
}
