//! The real database over a disk that fails at every single operation.

#[allow(dead_code, reason = "each test program uses a part of it")]
mod shelf;

use modulith_test::disk::{Event, Failure, Kept, Nth};
use shelf::{End, LARGE, Ledger, ORDINARY, SPILLING, Schedule, Script, Shelf, Start, block_on, bytes, step};

/// With which a power cut chooses what it leaves; what there is to choose from differs at each operation.
const SEED: u64 = 20;

/// At which the writer folds its log in.
const LOG_BYTES: usize = 16 * 1024 * 1024;

/// Runs the schedule at each operation. A workload with few operations would prove little.
fn holds_at_each(nth: fn(u64) -> Nth, start: Start, script: Script, event: Event, end: End) {
    let schedule = Schedule { start, script, event, end };
    let operations = schedule.at_each(nth).unwrap_or_else(|violation| panic!("{violation}"));
    assert!(operations > 5, "only {operations} operations");
}

#[test]
fn an_operation_fails_and_the_process_is_killed() {
    let event = Event::FailOnce(Failure::Io);
    holds_at_each(Nth::Any, Start::Empty, ORDINARY, event, End::Kill);
    holds_at_each(Nth::Any, Start::Used, ORDINARY, event, End::Kill);
}

#[test]
fn an_operation_fails_and_the_power_is_cut() {
    let event = Event::FailOnce(Failure::Io);
    holds_at_each(Nth::Any, Start::Used, ORDINARY, event, End::PowerCut(Kept::Nothing));
}

#[test]
fn the_disk_breaks() {
    let event = Event::FailFromThenOn(Failure::Io);
    holds_at_each(Nth::Sync, Start::Used, ORDINARY, event, End::Close);
}

#[test]
fn the_disk_is_full() {
    holds_at_each(Nth::Write, Start::Empty, ORDINARY, Event::FailFromThenOn(Failure::Full), End::Close);
    holds_at_each(Nth::Write, Start::Used, ORDINARY, Event::FailOnce(Failure::Full), End::Kill);
}

/// Once, so that a commit succeeds behind it.
#[test]
fn the_disk_is_full_in_the_middle_of_a_large_transaction() {
    holds_at_each(Nth::Write, Start::Used, SPILLING, Event::FailOnce(Failure::Full), End::Kill);
}

#[test]
fn the_process_is_killed() {
    holds_at_each(Nth::Any, Start::Used, ORDINARY, Event::Kill, End::Kill);
}

#[test]
fn the_power_is_cut() {
    for kept in [Kept::Nothing, Kept::Some(SEED)] {
        holds_at_each(Nth::Any, Start::Empty, ORDINARY, Event::PowerCut, End::PowerCut(kept));
    }
    holds_at_each(Nth::Any, Start::Used, ORDINARY, Event::PowerCut, End::PowerCut(Kept::Some(SEED)));
}

/// The writer folds its log into the file between two commits.
#[test]
fn a_large_log_is_folded_in() {
    let shelf = Shelf::new(Start::Used);
    let database = shelf.open().expect("it opens");
    for works in LARGE {
        block_on(step(&database, works, &mut Ledger::default()));
    }
    assert!(bytes(&shelf.path()).len() > LOG_BYTES, "the log was not folded in before the end");
    shelf.end(End::Kill, Some(database));

    holds_at_each(Nth::Sync, Start::Used, LARGE, Event::PowerCut, End::PowerCut(Kept::Some(SEED)));
    holds_at_each(Nth::Sync, Start::Used, LARGE, Event::FailOnce(Failure::Io), End::PowerCut(Kept::Nothing));
}
