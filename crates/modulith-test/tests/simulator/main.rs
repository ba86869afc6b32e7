//! The promises of sagas under every fault, by simulation. See `docs/guide/10-promises.md`.

mod chain;

use chain::{Shape, simulation};
use modulith_test::sim::{Report, Violation};

fn played(report: Result<Report, Box<Violation>>, shape: &Shape) -> usize {
    report.unwrap_or_else(|violation| panic!("{shape:?}\n{violation}")).schedules
}

#[test]
fn every_single_fault_of_every_plan() {
    let mut schedules = 0;
    let began = std::time::Instant::now();
    for length in 1..=2 {
        for shape in Shape::of_length(length) {
            schedules += played(simulation(&shape).single_faults(), &shape);
        }
    }
    println!("{schedules} schedules in {:?}", began.elapsed());
}
