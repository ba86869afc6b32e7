//! Ten times what the store can do on one core, as one process and as five services, or as much of it as the callers get to
//! ask: it takes a part and answers it in time, refuses the rest at once, loses nothing and does not grow. In time: 99 of 100 within
//! the deadline and the grace behind it, as a caller sees it that is not itself late.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use modulith_test::{Application, children, proportional_set_size_kib};
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::time::MissedTickBehavior;

use super::buyers::{Answer, Buyer};
use super::crowd::Crowd;
use super::{count, started};
use crate::shop::{monolith, split};

const TIMES: f64 = 10.0;
/// Callers who together order as fast as they are answered find what can be done.
const SUSTAINABLE: Crowd =
    Crowd { callers: 32, per_second: None, lasts: Duration::from_secs(1), deadline_ms: 10_000 };
/// Of which the best counts: on a machine with other work there are seconds in which little is done, and ten times
/// little is not too much.
const ROUNDS: usize = 3;
const DEADLINE: Duration = Duration::from_secs(1);
/// How long after its deadline a handler may still answer: `grace` of the edge's limits.
const GRACE: Duration = Duration::from_millis(250);
/// Connections are what a client has to spare; the pool is bounded, as clients' pools are.
const CALLERS: u32 = 512;
const LOAD: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(200);
/// What the processes may grow together: 512 connections at the gateway at up to 64 KiB (two buffers, the task, and what
/// their requests hold in two processes while they are in progress) are 32 MiB, and half as much again for the pages of
/// five databases that the orders fill meanwhile. One process has less of both.
const GROWTH_KIB_MAX: u64 = 48 * 1024;

/// All that answer: the monolith, or what the supervisor of a split has started.
fn processes(app: &Application) -> anyhow::Result<Vec<u32>> {
    let process = app.process().context("started here")?;
    Ok(match app.is_monolith() {
        true => vec![process],
        false => children(process).into_iter().map(|(process, _)| process).collect(),
    })
}

fn memory_kib(app: &Application) -> anyhow::Result<u64> {
    Ok(processes(app)?.into_iter().filter_map(proportional_set_size_kib).sum())
}

/// Leaves the application one core of those that the test has, so that its callers, who have the others, can ask for more than
/// it can do.
fn on_one_core(app: &Application) -> anyhow::Result<()> {
    let all = sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|core| all.is_set(*core)).context("a core")?;
    let mut one = CpuSet::new();
    one.set(first);
    for process in processes(app)? {
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?.file_name().to_str().and_then(|number| Pid::from_raw(number.parse().ok()?));
            sched_setaffinity(thread, &one)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_and_nothing_is_lost() -> anyhow::Result<()> {
    for topology in [monolith(), split()] {
        let name = topology.0;
        let (app, buyer) = started(topology).await?;
        too_much(&app, &buyer).await.with_context(|| format!("in topology `{name}`"))?;
        app.stop().await?;
    }
    Ok(())
}

async fn too_much(app: &Application, buyer: &Buyer) -> anyhow::Result<()> {
    on_one_core(app)?;
    let mut sustainable = 0.0_f64;
    for _ in 0..ROUNDS {
        let answers = SUSTAINABLE.orders(buyer, app.url()).await?;
        sustainable = sustainable.max(count(&answers, 201) as f64 / SUSTAINABLE.lasts.as_secs_f64());
    }
    let before_kib = memory_kib(app)?;

    let too_much = Crowd {
        callers: CALLERS,
        per_second: Some(sustainable * TIMES),
        lasts: LOAD,
        deadline_ms: DEADLINE.as_millis() as u64,
    };
    let (answers, peak_kib) = watched(app, too_much.orders(buyer, app.url())).await?;
    let (accepted, accepted_p99) = times(&answers, 201);
    let (refused, refused_p99) = times(&answers, 503);
    let late = count(&answers, 504);
    let times = answers.len() as f64 / LOAD.as_secs_f64() / sustainable;
    eprintln!(
        "overload of the {}: {sustainable:.0} orders a second are sustainable; {times:.1} times as many: {accepted} accepted \
         (p99 {} ms of {}), {refused} refused with 503 (p99 {} ms), {late} with 504; memory before {} MiB, at most {} MiB",
        app.topology,
        accepted_p99.as_millis(),
        DEADLINE.as_millis(),
        refused_p99.as_millis(),
        before_kib / 1024,
        peak_kib / 1024,
    );
    assert_eq!(accepted + refused + late, answers.len(), "201, 503 and 504 only");
    assert!(accepted > 0 && refused > accepted, "{times:.1} times as many as can be done");
    let silent = (answers.iter())
        .filter(|answer| answer.status == 503 && !answer.is_certain && !answer.says_when_to_come_again)
        .count();
    assert_eq!(silent, 0, "refusals that do not say when to come again");
    assert!(accepted_p99 <= DEADLINE + GRACE, "{accepted_p99:?}");
    assert!(peak_kib < before_kib + GROWTH_KIB_MAX, "{before_kib} KiB before, {peak_kib} KiB at most");
    let orders = buyer.stands(app).await?;
    ensure!(orders >= buyer.acknowledged(), "{orders} of {} acknowledged", buyer.acknowledged());
    Ok(())
}

/// How many have this status, and how long 99 of 100 of them took at most.
fn times(answers: &[Answer], status: u16) -> (usize, Duration) {
    let mut took: Vec<_> =
        answers.iter().filter(|answer| answer.status == status).map(|answer| answer.took).collect();
    took.sort();
    let p99 = took.get((took.len() * 99).div_ceil(100).saturating_sub(1));
    (took.len(), p99.copied().unwrap_or_default())
}

/// What comes of it, and the most memory that was seen meanwhile and at its end.
async fn watched<T>(
    app: &Application,
    load: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(T, u64)> {
    let mut looks = tokio::time::interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut load, mut peak_kib) = (std::pin::pin!(load), 0);
    loop {
        tokio::select! {
            ended = &mut load => return Ok((ended?, peak_kib.max(memory_kib(app)?))),
            _ = looks.tick() => peak_kib = peak_kib.max(memory_kib(app)?),
        }
    }
}
