//! Each protection of sagas is switched off in turn, and some schedule must then break a promise. It is a program of
//! its own, since a protection is switched off for a whole process.

#[path = "simulator/chain.rs"]
mod chain;

use chain::{Refusals, Shape, simulation};
use modulith_core::{Outcome, Protection, ProviderModel, StepKey};
use modulith_data::inbox::{self, EffectStart};
use modulith_data::saga::SagaId;
use modulith_data::sqlite::InMemory;
use modulith_data::{ModuleCode, Session};
use modulith_test::sim::Violation;

/// Plays what a protection should keep, until something breaks.
fn first_violation(off: Protection) -> Option<(usize, Box<Violation>)> {
    let _off = off.switch_off();
    let mut schedules = 0;
    let mut play = |shape: &Shape| {
        let report = match off {
            // It needs a second fault.
            Protection::Fence => simulation(shape, Refusals::None).pairs_of_faults(),
            _ => simulation(shape, Refusals::Each).single_faults(),
        };
        match report {
            Ok(report) => {
                schedules += report.schedules;
                None
            }
            Err(violation) => Some((schedules, violation)),
        }
    };
    (1..=3).flat_map(Shape::of_length).find_map(|shape| play(&shape))
}

#[test]
fn without_its_protection_some_promise_breaks() {
    for off in [
        Protection::Seal,
        Protection::ClaimFirst,
        Protection::StoredRefusal,
        Protection::RefusalRollsBack,
        Protection::Intent,
        Protection::StartedIsNotSealed,
        Protection::EffectWindow,
        Protection::BeginFirst,
        Protection::Fence,
        Protection::PivotIsFinal,
        Protection::LowWater,
        Protection::LowWaterWaits,
    ] {
        match first_violation(off) {
            Some((kept, violation)) => {
                println!("{off:?}: after {kept} schedules, {}: {:?}", violation.schedule, violation.broken);
            }
            None => panic!("without {off:?} no schedule broke a promise"),
        }
    }
    rows_stand_for_one_request_and_one_outcome().expect("with every protection");
    for off in [Protection::BodyHash, Protection::FirstOutcomeStands] {
        let _off = off.switch_off();
        let broken = rows_stand_for_one_request_and_one_outcome().expect_err("without a protection of rows");
        println!("{off:?}: {broken}");
    }
}

/// What no provider that honours its keys can bring about, asked of the inbox itself.
fn rows_stand_for_one_request_and_one_outcome() -> Result<(), String> {
    let database = InMemory::open(&[("a".into(), chain::FACTS[0])]).expect("it opens");
    let module = ModuleCode::new("a", vec![chain::serve(0, &chain::Shared::default())]);
    let key: StepKey = SagaId { src: uuid::Uuid::nil(), seq: 1 }.key(0);
    let begin = |request: &[u8]| {
        let begin = |session: &mut dyn Session| {
            inbox::begin_effect(session, &module, "reach", &key, request, &ProviderModel::DEFAULT)
        };
        database.run(0, begin).and_then(|pending| pending.commit()).expect("it commits")
    };
    let end = |outcome: Outcome| {
        let end = |session: &mut dyn Session| inbox::end_effect(session, &module, &key, &outcome);
        database.run(0, end).and_then(|pending| pending.commit()).expect("it commits")
    };
    begin(b"one request");
    let other = begin(b"another request");
    if other != EffectStart::KeyReused {
        return Err(format!("another request under the same key: {other:?}"));
    }
    let first = Outcome::Done(vec![1]);
    end(first.clone());
    let late = end(Outcome::Done(vec![2]));
    if late != first {
        return Err(format!("a late attempt made {late:?} of {first:?}"));
    }
    Ok(())
}
