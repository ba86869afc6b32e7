//! The promises of sagas under every fault, by simulation. See `docs/guide/10-promises.md`.
//!
//! `MODULITH_SIM_SECONDS=600 cargo test --release -p modulith-test --test simulator seeds -- --nocapture` plays seeds
//! for as long; `MODULITH_SIM_SEED` sets the first one, and with it alone replays that one.

mod chain;

use std::time::{Duration, Instant};

use chain::{Refusals, Shape, StepOf, simulation};
use modulith_test::sim::{Report, Simulation, Violation};

fn played(report: Result<Report, Box<Violation>>, shape: &Shape) -> usize {
    report.unwrap_or_else(|violation| panic!("{shape:?}\n{violation}")).schedules
}

fn print(what: &str, schedules: usize, began: Instant) {
    println!("{what}: {schedules} schedules in {:.1} s", began.elapsed().as_secs_f64());
}

/// Plays every one of these plans.
fn every_plan(
    what: &str,
    shapes: Vec<Shape>,
    refusals: Refusals,
    play: impl Fn(&Simulation) -> Result<Report, Box<Violation>>,
) {
    let began = Instant::now();
    let schedules = shapes.iter().map(|shape| played(play(&simulation(shape, refusals)), shape)).sum();
    print(what, schedules, began);
}

/// A refusal counts as a fault: with one refusal and one fault more these are pairs.
#[test]
fn every_single_fault_of_every_plan_of_up_to_three_steps_refused_or_not() {
    let shapes = (1..=3).flat_map(Shape::of_length).collect();
    every_plan(
        "single faults, refused or not, 1 to 3 steps",
        shapes,
        Refusals::Each,
        Simulation::single_faults,
    );
}

#[test]
fn every_single_fault_of_every_plan_of_four_steps() {
    let shapes = Shape::of_length(4);
    every_plan("refusals, 4 steps", shapes.clone(), Refusals::Each, Simulation::without_faults);
    every_plan("single faults, 4 steps", shapes, Refusals::None, Simulation::single_faults);
}

#[test]
fn every_pair_of_faults_of_every_plan_of_up_to_two_steps_that_begins_with_a_command() {
    every_pair(StepOf::Command);
}

#[test]
fn every_pair_of_faults_of_every_plan_of_up_to_two_steps_that_begins_with_an_effect() {
    every_pair(StepOf::Effect);
}

/// Two tests, since a test has one thread.
fn every_pair(first: StepOf) {
    let shapes = (1..=2).flat_map(Shape::of_length).filter(|shape| shape.steps[0] == first);
    every_plan(
        "pairs of faults, 1 and 2 steps",
        shapes.collect(),
        Refusals::None,
        Simulation::pairs_of_faults,
    );
}

/// The seeds that are always played.
const SEEDS: u64 = 1_000;

/// Several faults in one schedule, and events in any order.
#[test]
fn seeds() {
    let setting = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (seconds, first) = (setting("MODULITH_SIM_SECONDS"), setting("MODULITH_SIM_SEED"));
    let shapes: Vec<Shape> = (2..=4).flat_map(Shape::of_length).collect();
    let began = Instant::now();
    let mut schedules = 0;
    let mut seed = first.unwrap_or(1);
    // For a time, or one, or always the same ones.
    let goes_on = |seed: u64| match (seconds, first) {
        (Some(seconds), _) => began.elapsed() < Duration::from_secs(seconds),
        (None, Some(first)) => seed == first,
        (None, None) => seed <= SEEDS,
    };
    while goes_on(seed) {
        // A seed decides its shape, so that it is found again.
        let shape = &shapes[seed as usize % shapes.len()];
        schedules += played(simulation(shape, Refusals::Each).seed(seed), shape);
        seed += 1;
    }
    print(&format!("seeds up to {seed}"), schedules, began);
}
