//! `kill -9` again and again: what the store has acknowledged stands, once, whatever dies whenever.
//!
//! In each round some shoppers order at once, and at a moment that the seed draws some process is killed. When the
//! store is back, on the same data, whatever has no certain answer is asked for again. What the shoppers were told is
//! held against the store's books now and then, and to the last order at the end.
//!
//! `MODULITH_KILL_ROUNDS` sets how many rounds are played in each topology, `MODULITH_KILL_SEED` draws the same
//! kills again; what the processes make of them is another matter.

mod books;
mod order;
mod shopper;
mod strike;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::Instant;

use anyhow::{Context as _, anyhow, ensure};
use futures_util::FutureExt;
use futures_util::future::{join_all, try_join_all};
use modulith_test::{Application, Random};

use self::books::{Wrong, check_orders, check_sums, supply};
use self::order::{Cancelling, Order, Told};
use self::shopper::Shopper;
use self::strike::{Strike, Victim, back, family};
use crate::shop::{Topology, monolith, program, split};

const ROUNDS_DEFAULT: usize = 50;
const SHOPPERS: usize = 4;
/// Of one shopper in one round.
const ERRANDS_MAX: usize = 4;
/// The sums are checked after so many rounds, and at the end.
const ROUNDS_BETWEEN_CHECKS: usize = 10;
const ROUNDS_BETWEEN_WORDS: usize = 50;
/// A failure tells what happened in so many rounds before it.
const ROUNDS_REMEMBERED: usize = 12;

#[tokio::test(flavor = "multi_thread")]
async fn a_monolith_that_is_killed_keeps_its_word() -> anyhow::Result<()> {
    play(monolith()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn services_that_are_killed_keep_their_word() -> anyhow::Result<()> {
    play(split()).await
}

async fn play((topology, file): Topology) -> anyhow::Result<()> {
    let rounds = number("MODULITH_KILL_ROUNDS")?.map_or(Ok(ROUNDS_DEFAULT), usize::try_from)?;
    let seed = number("MODULITH_KILL_SEED")?.unwrap_or_else(Random::seed);
    eprintln!("{topology}: {rounds} rounds, MODULITH_KILL_SEED={seed}");
    // Thousands of kills make thousands of warnings.
    let log = std::env::var("MODULITH_LOG").unwrap_or_else(|_| "error".to_owned());
    let environment = [("MODULITH_LOG", &*log)];
    let app = Application::start(program().path(), topology, file.as_deref(), &environment).await?;
    let mut random = Random::new(seed);
    supply(&app).await?;
    let shoppers = (0..SHOPPERS).map(|name| Shopper::sign_up(&app, name, random.split()));
    let shoppers = try_join_all(shoppers.collect::<Vec<_>>()).await?;
    let mut game = Game { app, shoppers, random, repeated: 0, log: Vec::new(), begun: Instant::now() };
    // A wait that was given up panics; what had happened until then is worth as much.
    let played = AssertUnwindSafe(game.play(rounds, &environment)).catch_unwind().await;
    match played.unwrap_or_else(|_| Err(anyhow!("it panicked, as said above"))) {
        Ok(()) => game.app.stop().await,
        Err(error) => {
            let log = game.log[game.log.len().saturating_sub(ROUNDS_REMEMBERED)..].join("\n");
            let data = game.app.abandon();
            Err(error.context(format!("{topology}, seed {seed}, data in {}:\n{log}", data.display())))
        }
    }
}

fn number(variable: &str) -> anyhow::Result<Option<u64>> {
    let value = std::env::var(variable).ok();
    value.map(|value| value.parse().with_context(|| format!("{variable}={value}"))).transpose()
}

struct Game {
    app: Application,
    shoppers: Vec<Shopper>,
    random: Random,
    /// Keys whose answer was not certain at first.
    repeated: usize,
    /// What each round did.
    log: Vec<String>,
    begun: Instant,
}

impl Game {
    async fn play(&mut self, rounds: usize, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        for round in 1..=rounds {
            self.round(environment).await?;
            if round % ROUNDS_BETWEEN_CHECKS == 0 {
                check_sums(&self.app, &self.shoppers).await?;
            }
            if round % ROUNDS_BETWEEN_WORDS == 0 {
                eprintln!("{self}");
            }
        }
        check_sums(&self.app, &self.shoppers).await?;
        try_join_all(self.shoppers.iter_mut().map(|shopper| shopper.repeat_all(&self.app))).await?;
        let Wrong { lost, doubled, unasked } = check_orders(&self.app, &self.shoppers).await?;
        eprintln!("{self}; {} lost, {} doubled, {} unasked", lost.len(), doubled.len(), unasked.len());
        let wrong = [lost, doubled, unasked].concat();
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        Ok(())
    }

    async fn round(&mut self, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        let begun = Instant::now();
        let (app, random) = (&self.app, &mut self.random);
        let errands: Vec<usize> = self.shoppers.iter().map(|_| 1 + random.below(ERRANDS_MAX)).collect();
        let victim = Victim::draw(random, app);
        let strike = Strike::draw(random, errands.iter().sum());
        let family = family(app);

        let shopping = async {
            let shoppers = self.shoppers.iter_mut().zip(errands);
            let ends = join_all(shoppers.map(|(shopper, errands)| shopper.shop(app, &strike, errands))).await;
            strike.at_rest();
            ends.into_iter().collect::<anyhow::Result<()>>()
        };
        let striking = async {
            strike.reached().await;
            victim.kill(app);
        };
        let (shopped, ()) = tokio::join!(shopping, striking);
        let at = begun.elapsed();
        self.log.push(format!("round {}: {victim} killed at {strike}", self.log.len() + 1));
        shopped?;
        back(&mut self.app, victim, &family, environment).await?;
        let repeats = self.shoppers.iter_mut().map(|shopper| shopper.repeat_unknown(&self.app));
        let repeated: usize = try_join_all(repeats).await?.into_iter().sum();
        self.repeated += repeated;
        let last = self.log.last_mut().expect("written above");
        *last += &format!(
            "; {repeated} keys asked for again, after {} of {} ms",
            at.as_millis(),
            begun.elapsed().as_millis()
        );
        Ok(())
    }
}

impl fmt::Display for Game {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let orders = || self.shoppers.iter().flat_map(|shopper| &shopper.orders);
        let count = |which: fn(&&Order) -> bool| orders().filter(which).count();
        write!(
            f,
            "{}: {} rounds, {} orders acknowledged, {} of them cancelled, {} refused; {} unknown at first and repeated; {} s",
            self.app.topology,
            self.log.len(),
            count(|order| order.placed().is_some()),
            count(|order| order.cancelling == Cancelling::Acknowledged),
            count(|order| matches!(order.told, Some(Told::Refused { .. }))),
            self.repeated,
            self.begun.elapsed().as_secs(),
        )
    }
}
