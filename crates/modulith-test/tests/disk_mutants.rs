//! Without any one of SQLite's protections some schedule of `disk.rs` breaks a promise; with it, it holds.
//!
//! One test, because a protection is switched off for the whole process.

#[allow(dead_code, reason = "each test program uses a part of it")]
mod shelf;

use modulith_core::Protection;
use modulith_test::disk::{Event, Failure, Kept, Nth};
use shelf::{End, ORDINARY, Schedule, Shelf, Start, as_module, block_on};

type Promise = fn() -> Result<(), String>;

#[test]
#[cfg(debug_assertions)]
fn every_protection_is_needed() {
    let protections: [(Protection, Promise, &str); 7] = [
        (Protection::SyncBeforeAnswer, power_is_cut_during_a_sync, "is gone"),
        (Protection::CheckpointOnOpen, sync_fails, "after a second cut: "),
        (Protection::FailedSyncStops, looking_settles_what_is_unknown, "was told not to be"),
        (Protection::BatchRunsAgain, batches_have_culprits, "is gone"),
        (Protection::DeferredKeys, batches_have_culprits, "without a fault of the disk, Good"),
        (Protection::StatementsPerModule, statements_are_the_modules_own, "read a table of another module"),
        (Protection::OneOwner, one_owner, "a second owner"),
    ];
    for (protection, promise, words) in protections {
        promise().unwrap_or_else(|violation| panic!("with {protection:?}: {violation}"));
        let off = protection.switch_off();
        let violation = promise().expect_err(&format!("without {protection:?} every promise still holds"));
        drop(off);
        assert!(violation.contains(words), "without {protection:?}: {violation}");
    }
}

fn power_is_cut_during_a_sync() -> Result<(), String> {
    let end = End::PowerCut(Kept::Nothing);
    Schedule { start: Start::Used, script: ORDINARY, event: Event::PowerCut, end }
        .at_each(Nth::Sync)
        .map(drop)
}

/// A process whose sync failed is killed. The next one reads what no disk has, answers, and then the power is cut.
fn sync_fails() -> Result<(), String> {
    let event = Event::FailOnce(Failure::Io);
    Schedule { start: Start::Used, script: ORDINARY, event, end: End::Kill }.at_each(Nth::Sync).map(drop)
}

/// Of the same schedule only this: what somebody looked for in vain, after *unknown*, does not come back when the
/// next process reads the log.
fn looking_settles_what_is_unknown() -> Result<(), String> {
    let event = Event::FailOnce(Failure::Io);
    let schedule = Schedule { start: Start::Used, script: ORDINARY, event, end: End::Kill };
    for number in 1.. {
        match schedule.at(Nth::Sync(number)) {
            Err(violation) if violation.contains("was told not to be") => return Err(violation),
            Ok(false) => break,
            _ => {}
        }
    }
    Ok(())
}

/// No workload has that many writes, so the disk does what it should.
fn batches_have_culprits() -> Result<(), String> {
    let event = Event::FailOnce(Failure::Full);
    let schedule = Schedule { start: Start::Used, script: ORDINARY, event, end: End::Close };
    schedule.at(Nth::Write(u64::MAX)).map(drop)
}

/// The same text is prepared for its owner first.
fn statements_are_the_modules_own() -> Result<(), String> {
    let shelf = Shelf::new(Start::Empty);
    let database = shelf.open().map_err(|error| error.to_string())?;
    let read_as = |module: &'static str| {
        block_on(database.write(None, move |session| {
            as_module(module, session, |tx| tx.rows::<(i64,)>("SELECT piece FROM shelf_part", ()))
        }))
    };
    read_as("shelf").map_err(|fault| format!("its owner cannot read: {fault}"))?;
    match read_as("other") {
        Ok(_) => Err("`other` read a table of another module".to_owned()),
        Err(_) => Ok(()),
    }
}

fn one_owner() -> Result<(), String> {
    let shelf = Shelf::new(Start::Empty);
    let _first = shelf.open().map_err(|error| error.to_string())?;
    match shelf.open() {
        Ok(_) => Err("a second owner opened the file".to_owned()),
        Err(_) => Ok(()),
    }
}
