//! Many times what the store can do: it takes a part, refuses the rest, loses nothing and does not grow. It does not show
//! that what is taken is answered within its deadline: as these callers see it, it is not.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use modulith_test::{Application, children, proportional_set_size_kib};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use super::buyers::{Answer, Buyer};
use super::{AT_ONCE, count, split};

/// Orders by which the sustainable rate is found.
const WARM_UP: usize = 100;
const TIMES: f64 = 10.0;
const DEADLINE_MS: u64 = 1_000;
/// How long too much is asked for.
const LOAD: Duration = Duration::from_secs(4);
const TICK: Duration = Duration::from_millis(20);
/// Requests without an answer, above which the test offers no more: its own open files are bounded, too.
const OPEN_MAX: usize = 2_000;
/// What the processes may grow together, by buffers and by the stacks and heaps of what is in flight.
const GROWTH_KIB_MAX: u64 = 192 * 1024;

/// Of all processes of the application.
fn memory_kib(app: &Application) -> anyhow::Result<u64> {
    let family = children(app.process().context("started here")?);
    Ok(family.iter().filter_map(|(process, _)| proportional_set_size_kib(*process)).sum())
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_is_refused_and_nothing_is_lost() -> anyhow::Result<()> {
    let (app, buyer) = split().await?;
    let begun = Instant::now();
    let warm_up = async {
        buyer.acknowledges(WARM_UP).await;
        Ok(())
    };
    buyer.buys_while(60_000, warm_up).await?;
    let sustainable = buyer.acknowledged() as f64 / begun.elapsed().as_secs_f64();
    let before_kib = memory_kib(&app)?;

    let (answers, offered_for, peak_kib) = overload(&app, &buyer, sustainable * TIMES).await?;
    let mut accepted: Vec<Duration> =
        answers.iter().filter(|answer| answer.status == 201).map(|answer| answer.took).collect();
    accepted.sort();
    let p99 = accepted.get((accepted.len() * 99).div_ceil(100).saturating_sub(1)).copied();
    let p99 = p99.context("something is accepted")?;
    let (refused, late) = (count(&answers, 503), count(&answers, 504));
    eprintln!(
        "overload: {sustainable:.0} orders a second are sustainable; offered {} in {:.1} s, {:.1} times as many: \
         {} accepted (p99 {} ms of {DEADLINE_MS}), {refused} refused with 503, {late} with 504; \
         memory before {} MiB, at most {} MiB",
        answers.len(),
        offered_for.as_secs_f64(),
        answers.len() as f64 / offered_for.as_secs_f64() / sustainable,
        accepted.len(),
        p99.as_millis(),
        before_kib / 1024,
        peak_kib / 1024,
    );
    assert!(accepted.len() + refused + late == answers.len(), "{answers:?}");
    assert!(refused + late > 0, "nothing was too much");
    let refusals = answers.iter().filter(|answer| answer.status == 503 && !answer.is_certain);
    let silent = refusals.filter(|answer| !answer.says_when_to_come_again).count();
    assert!(silent == 0, "{silent} refusals do not say when to come again");
    // Not the deadline, which callers see exceeded (p99 about 3 s): how much of that is waiting for the same cores before
    // the request has arrived is not known. It bounds how long anybody waits at all.
    assert!(p99 < Duration::from_millis(DEADLINE_MS) + AT_ONCE, "{p99:?}");
    assert!(peak_kib < before_kib + GROWTH_KIB_MAX, "{before_kib} KiB before, {peak_kib} KiB at most");
    let orders = buyer.stands(&app).await?;
    ensure!(orders >= buyer.acknowledged(), "{orders} of {} acknowledged", buyer.acknowledged());
    app.stop().await
}

/// So many orders a second, whether they are answered or not. With the time that they were offered in, and the most
/// memory that was seen.
async fn overload(
    app: &Application,
    buyer: &Buyer,
    per_second: f64,
) -> anyhow::Result<(Vec<Answer>, Duration, u64)> {
    let (mut open, mut answers, mut offered) = (JoinSet::new(), Vec::new(), 0.0);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (begun, mut peak_kib) = (Instant::now(), 0);
    while begun.elapsed() < LOAD {
        ticks.tick().await;
        while offered < per_second * begun.elapsed().as_secs_f64() && open.len() < OPEN_MAX {
            let buyer = buyer.clone();
            open.spawn(async move { buyer.order(DEADLINE_MS).await });
            offered += 1.0;
        }
        while let Some(answer) = open.try_join_next() {
            answers.push(answer?);
        }
        peak_kib = peak_kib.max(memory_kib(app)?);
    }
    let offered_for = begun.elapsed();
    while let Some(answer) = open.join_next().await {
        answers.push(answer?);
    }
    Ok((answers, offered_for, peak_kib.max(memory_kib(app)?)))
}
