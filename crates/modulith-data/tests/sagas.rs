//! The participant and the walk: what a key means, what a seal finds, where a walk turns back.

use std::any::Any;
use std::sync::Arc;

use modulith_core::{
    Answer, Command, ContractModel, Handle, Kind, MethodModel, Never, Outcome, Plan, PlanModel,
    ProviderModel, Refusal, Saga, Served, StepKey, Tx, decode,
};
use modulith_data::inbox::{
    self, CommandEnd, EffectStart, Keyed, Known, LowWater, PRUNED_AT_ONCE, SealEnd, UndoEnd, body_hash,
};
use modulith_data::saga::{
    Begun, Heard, Modules, NewSaga, Next, Place, Run, RunEnd, SagaId, SagaTable, Walk, run_steps,
};
use modulith_data::sqlite::{Database, WriterLimits};
use modulith_data::{Migration, ModuleCode, Session};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize, JsonSchema, PartialEq)]
enum Refused {
    TooMuch { left: i64 },
}

impl Refusal for Refused {
    fn code(&self) -> &str {
        "too_much"
    }
    fn text(&self) -> String {
        "too much".into()
    }
}

const TAKE: Command<i64, i64, Refused> = Command::new("pot", "take", 0);
const PUT_BACK: Command<i64, (), Never> = Command::new("pot", "put_back", 1);
const NOTE: Command<i64, i64, Refused> = Command::new("log", "note", 0);
const STAMP: Command<i64, i64, Never> = Command::new("log", "stamp", 1);

/// A pot of 10, and a log that refuses what is above 5.
fn modules() -> (Modules, Arc<ModuleCode>) {
    let contract = |name, methods| ContractModel { name, version: 1, methods };
    let method = |name| MethodModel::of::<i64, i64, Refused>(name, Kind::Command);
    let take = |tx: &mut Tx<'_>, amount: i64| -> Answer<i64, Refused> {
        let taken: Option<(i64,)> =
            tx.row("UPDATE pot_pot SET amount = amount - $1 WHERE amount >= $1 RETURNING amount", (amount,))?;
        match taken {
            Some(_) => Ok(amount),
            None => Err(Refused::TooMuch { left: amount }.into()),
        }
    };
    let put_back = |tx: &mut Tx<'_>, amount: i64| -> Answer<(), Never> {
        tx.execute("UPDATE pot_pot SET amount = amount + $1", (amount,))?;
        Ok(())
    };
    let note = |tx: &mut Tx<'_>, amount: i64| -> Answer<i64, Refused> {
        tx.execute("INSERT INTO log_note (amount) VALUES ($1)", (amount,))?;
        if amount > 5 { Err(Refused::TooMuch { left: 5 }.into()) } else { Ok(amount) }
    };
    let stamp = |tx: &mut Tx<'_>, amount: i64| -> Answer<i64, Never> {
        tx.execute("INSERT INTO log_note (amount) VALUES ($1)", (-amount,))?;
        Ok(amount)
    };
    let pot = Served::new(contract("pot", vec![method("take"), method("put_back")]))
        .command(TAKE, take)
        .command(PUT_BACK, put_back);
    let log = Served::new(contract("log", vec![method("note"), method("stamp")]))
        .command(NOTE, note)
        .command(STAMP, stamp);
    let pot = Arc::new(ModuleCode::new("pot", vec![pot]));
    (Modules::new(&[pot.clone(), Arc::new(ModuleCode::new("log", vec![log]))]), pot)
}

#[derive(Serialize, Deserialize, JsonSchema)]
struct Spend {
    amount: i64,
}

impl Saga for Spend {
    const NAME: &'static str = "log.spend";
    const VERSION: u32 = 1;
    type Answer = i64;
    fn plan(plan: &mut Plan<Self>) -> Handle<Self, i64> {
        let taken = plan.step("take", TAKE, (), |spend: &Spend| spend.amount).undo(PUT_BACK);
        let noted = plan.pivot("note", NOTE, taken, |_: &Spend, taken: &i64| *taken);
        plan.then("stamp", STAMP, noted, |_: &Spend, noted: &i64| *noted);
        noted
    }
}

fn open(folder: &tempfile::TempDir) -> Database {
    const POT: &[Migration] = &[Migration {
        name: "0001",
        sql: "CREATE TABLE pot_pot (amount bigint NOT NULL);\nINSERT INTO pot_pot VALUES (10);",
    }];
    const LOG: &[Migration] =
        &[Migration { name: "0001", sql: "CREATE TABLE log_note (amount bigint NOT NULL);" }];
    Database::open(
        &folder.path().join("a.db"),
        &[("pot".into(), POT), ("log".into(), LOG)],
        WriterLimits::default(),
    )
    .unwrap()
}

fn pot_and_notes(database: &Database) -> (i64, i64) {
    let pot = database.read(&"pot".into(), |db| db.row::<(i64,)>("SELECT amount FROM pot_pot", ()));
    let notes = database.read(&"log".into(), |db| db.row::<(i64,)>("SELECT count(*) FROM log_note", ()));
    (pot.unwrap().unwrap().unwrap().0, notes.unwrap().unwrap().unwrap().0)
}

fn saga(database: &Database, seq: i64) -> SagaId {
    SagaId { src: database.identity().id, seq }
}

async fn take(database: &Database, key: StepKey, amount: i64) -> Result<String, String> {
    let (_, pot) = modules();
    let end = database
        .write(None, move |session| {
            let hash = body_hash(&amount.to_le_bytes());
            let keyed = Keyed { key, request: &amount, hash, known: Known::ToOthers, expires_at: None };
            let method = pot.expect_method("pot", "take")?;
            Ok(match inbox::command(session, &pot, method, &keyed)? {
                CommandEnd::Done { .. } => "done".to_owned(),
                CommandEnd::Refused(..) => "refused".to_owned(),
                CommandEnd::Stored(Outcome::Done(bytes)) => format!("stored {}", decode::<i64>(&bytes)?),
                CommandEnd::Stored(Outcome::Refused(record)) => format!("stored {}", record.code),
                CommandEnd::Sealed => "sealed".to_owned(),
                CommandEnd::KeyReused => "key reused".to_owned(),
                CommandEnd::Expired => "expired".to_owned(),
            })
        })
        .await;
    end.map_err(|fault| fault.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_stands_for_one_request_and_one_answer() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder);
    let key = saga(&database, 1).key(0);
    assert_eq!(take(&database, key, 4).await.unwrap(), "done");
    assert_eq!(take(&database, key, 4).await.unwrap(), "stored 4");
    assert_eq!(take(&database, key, 5).await.unwrap(), "key reused");
    let other = saga(&database, 2).key(0);
    assert_eq!(take(&database, other, 99).await.unwrap(), "refused");
    assert_eq!(take(&database, other, 99).await.unwrap(), "stored too_much");
    assert_eq!(pot_and_notes(&database), (6, 0));
}

/// What the writer remembers of its keys is a hint: whoever wrote a row, a repeat is answered from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_another_connection_wrote_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder);
    assert_eq!(take(&database, saga(&database, 1).key(0), 4).await.unwrap(), "done");
    let other = rusqlite::Connection::open(folder.path().join("a.db")).unwrap();
    let copied = other.execute(
        "INSERT INTO pot__inbox (src, seq, step, dir, origin, method, body_hash, state, answer, attempts, first_at)
         SELECT src, 2, step, dir, origin, method, body_hash, state, answer, attempts, first_at FROM pot__inbox",
        (),
    );
    assert_eq!(copied, Ok(1));
    assert_eq!(take(&database, saga(&database, 2).key(0), 4).await.unwrap(), "stored 4");
    assert_eq!(take(&database, saga(&database, 3).key(0), 4).await.unwrap(), "done");
    assert_eq!(pot_and_notes(&database), (2, 0));
}

/// A process that was replaced begins no saga, from the moment at which its successor has opened the database.
#[tokio::test(flavor = "multi_thread")]
async fn a_replaced_process_begins_no_saga() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder);
    let table = Arc::new(SagaTable::new("log", &database.identity()));
    let plan = Arc::new(PlanModel::of::<Spend>().unwrap());
    let begin = async |seq| {
        let (table, plan, id) = (table.clone(), plan.clone(), saga(&database, seq));
        let begin = move |session: &mut dyn Session| {
            table.begin(session, &NewSaga { id, plan: &plan, input: b"", key: None })
        };
        database.write(None, begin).await.map(|begun| assert!(matches!(begun, Begun::New)))
    };
    assert!(begin(1).await.is_ok());
    assert!(begin(2).await.is_ok());
    let successor = rusqlite::Connection::open(folder.path().join("a.db")).unwrap();
    successor.execute("UPDATE modulith__identity SET incarnation = incarnation + 1", ()).unwrap();
    for seq in 3..5 {
        let fault = begin(seq).await.expect_err("it was replaced");
        assert!(fault.to_string().contains("another process has taken this database over"), "{fault}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seal_and_a_done_step_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder);
    let (_, pot) = modules();
    let seal = |key| {
        let pot = pot.clone();
        database.write(None, move |session| inbox::seal(session, &pot, &key))
    };
    let (never, done) = (saga(&database, 1).key(0), saga(&database, 2).key(0));
    assert_eq!(seal(never).await.unwrap(), SealEnd::Sealed);
    assert_eq!(take(&database, never, 4).await.unwrap(), "sealed");
    assert_eq!(take(&database, done, 4).await.unwrap(), "done");
    assert!(matches!(seal(done).await.unwrap(), SealEnd::Done(_)));
    let undo = |key| {
        let pot = pot.clone();
        database.write(None, move |session| {
            inbox::undo_by_answer(session, &pot, &key, pot.expect_method("pot", "put_back")?)
        })
    };
    assert_eq!(undo(done).await.unwrap(), UndoEnd::Undone);
    assert_eq!(undo(done).await.unwrap(), UndoEnd::Undone, "a repeat changes nothing");
    assert_eq!(undo(never).await.unwrap(), UndoEnd::NothingDone);
    let unheard = saga(&database, 3).key(0);
    assert_eq!(undo(unheard).await.unwrap(), UndoEnd::NothingDone);
    assert_eq!(
        take(&database, unheard, 1).await.unwrap(),
        "sealed",
        "a late step finds the seal of its undo"
    );
    assert_eq!(pot_and_notes(&database), (10, 0));
}

async fn spend(database: &Database, seq: i64, amount: i64, steps: std::ops::Range<usize>) -> String {
    let (modules, _) = modules();
    let plan = PlanModel::of::<Spend>().unwrap();
    let id = saga(database, seq);
    let end = database.write(None, move |session| {
        let earlier = |_: usize| -> Option<&(dyn Any + Send + Sync)> { None };
        let (input, steps) = (Spend { amount }, steps.clone());
        let run = Run { plan: &plan, id, steps, input: &input, earlier: &earlier, known: Known::ToOthers };
        Ok(match run_steps(session, &modules, &run)? {
            RunEnd::Done(done) => format!("done {}", done.len()),
            RunEnd::Refused { step, record } => format!("refused {step} {}", record.code),
            RunEnd::Sealed { step } => format!("sealed {step}"),
            RunEnd::Expired => "expired".to_owned(),
        })
    });
    end.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fused_run_is_one_transaction_and_replays_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder);
    assert_eq!(spend(&database, 1, 3, 0..3).await, "done 3");
    assert_eq!(pot_and_notes(&database), (7, 2));
    assert_eq!(spend(&database, 1, 3, 0..3).await, "done 3");
    assert_eq!(pot_and_notes(&database), (7, 2), "a repeat answers from the inbox");

    // Step 1 refuses: step 0 of the same run is rolled back with it, and both stay so.
    assert_eq!(spend(&database, 2, 6, 0..3).await, "refused 1 too_much");
    assert_eq!(pot_and_notes(&database), (7, 2));
    assert_eq!(spend(&database, 2, 6, 0..3).await, "refused 1 too_much");
    assert_eq!(pot_and_notes(&database), (7, 2));

    // Begun split, ended fused: step 0 is there already and is replayed.
    assert_eq!(spend(&database, 3, 2, 0..1).await, "done 1");
    assert_eq!(spend(&database, 3, 2, 0..3).await, "done 3");
    assert_eq!(pot_and_notes(&database), (5, 4));
}

/// The walk alone, over every placement of three steps and every place to fail.
#[test]
fn a_walk_goes_forward_turns_back_once_and_never_after_the_pivot() {
    let plan = Arc::new(PlanModel::of::<Spend>().unwrap());
    for split in [false, true] {
        let place = move |contract: &str| {
            if split && contract == "pot" { Place::Peer(0) } else { Place::Here }
        };
        let first_run = if split { 0..1 } else { 0..3 };

        let mut walk = Walk::forward(plan.clone());
        assert!(matches!(walk.next(&place), Next::Run { steps, .. } if steps == first_run));
        walk.heard(&Heard::Done(first_run.clone()));
        if split {
            assert!(matches!(walk.next(&place), Next::Run { steps, .. } if steps == (1..3)));
            assert!(!walk.pivot_is_done());
            walk.heard(&Heard::Done(1..3));
        }
        assert!(walk.pivot_is_done());
        assert_eq!(walk.next(&place), Next::End { done: true });
        walk.heard(&Heard::Ended);
        assert_eq!(walk.next(&place), Next::Over);

        // Refused at the pivot: turned on disk before the undo, and ended after it.
        let mut walk = Walk::forward(plan.clone());
        walk.next(&place);
        if split {
            walk.heard(&Heard::Done(0..1));
        }
        walk.heard(&Heard::Refused(1));
        assert_eq!(walk.next(&place), Next::Turn { frontier: 1 });
        walk.heard(&Heard::Nothing);
        assert_eq!(
            walk.next(&place),
            Next::Turn { frontier: 1 },
            "nothing is undone before the turn is on disk"
        );
        walk.heard(&Heard::Turned);
        assert!(matches!(walk.next(&place), Next::Undo { step: 0, .. }));
        walk.heard(&Heard::Nothing);
        assert!(
            matches!(walk.next(&place), Next::Undo { step: 0, .. }),
            "an undo is repeated until it is done"
        );
        walk.heard(&Heard::Undone);
        assert_eq!(walk.next(&place), Next::End { done: false });
    }
}

#[test]
fn without_a_certain_answer_the_frontier_is_sealed_first_and_after_the_pivot_never() {
    let plan = Arc::new(PlanModel::of::<Spend>().unwrap());
    let place = |contract: &str| {
        if contract == "pot" { Place::Peer(0) } else { Place::Here }
    };
    let mut walk = Walk::forward(plan.clone());
    let mut asked = 0;
    while matches!(walk.next(&place), Next::Run { .. }) {
        walk.heard(&Heard::Nothing);
        asked += 1;
        assert!(asked < 100, "a step before the pivot is given up some time");
    }
    assert!(matches!(walk.next(&place), Next::Seal { step: 0, .. }));
    walk.heard(&Heard::Done(0..1));
    assert!(
        matches!(walk.next(&place), Next::Run { steps, .. } if steps == (1..3)),
        "done after all: it goes on"
    );
    walk.heard(&Heard::Done(1..2));
    for _ in 0..1000 {
        walk.heard(&Heard::Nothing);
        assert!(
            matches!(walk.next(&place), Next::Run { steps, .. } if steps == (2..3)),
            "after the pivot only forward"
        );
        walk.heard(&Heard::Refused(2));
    }
}

/// Two attempts at one effect: whichever ends first decides, and a late one changes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_attempt_at_an_effect_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder);
    let (_, pot) = modules();
    let key = saga(&database, 1).key(0);
    let begin = || {
        let pot = pot.clone();
        database.write(None, move |session| {
            inbox::begin_effect(session, &pot, "charge", &key, b"the same bytes", &ProviderModel::DEFAULT)
        })
    };
    let attempt = EffectStart::Attempt { request: b"the same bytes".to_vec() };
    assert_eq!((begin().await.unwrap(), begin().await.unwrap()), (attempt.clone(), attempt));
    let (first, late) = (Outcome::Done(vec![1]), Outcome::Done(vec![2]));
    for ended in [first.clone(), late] {
        let module = pot.clone();
        let stands = database.write(None, move |session| inbox::end_effect(session, &module, &key, &ended));
        assert_eq!(stands.await.unwrap(), first);
    }
    let module = pot.clone();
    database.write(None, move |session| inbox::forget_effect(session, &module, &key)).await.unwrap();
    let module = pot.clone();
    let sealed = database.write(None, move |session| inbox::seal(session, &module, &key)).await.unwrap();
    assert!(matches!(sealed, SealEnd::Done(_)), "an effect that happened is not forgotten");
}

/// More rows than are deleted at once go in several commits, each of whole sagas.
#[tokio::test(flavor = "multi_thread")]
async fn many_rows_below_the_mark_go_saga_by_saga() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder);
    let (_, pot) = modules();
    let src = saga(&database, 0).src;
    // The third step of a saga is the one that would be cut off.
    let (sagas, steps) = (PRUNED_AT_ONCE as i64 / 2, 3);
    let code = pot.clone();
    let seal = move |session: &mut dyn Session| {
        for seq in 0..sagas {
            for step in 0..steps {
                let key = SagaId { src, seq }.key(step);
                assert!(matches!(inbox::seal(session, &code, &key)?, SealEnd::Sealed));
            }
        }
        Ok(())
    };
    database.write(None, seal).await.unwrap();

    // Saga 100 is open, and keeps its rows.
    let water = LowWater { below: sagas, open: vec![100] };
    let mut deleted = Vec::new();
    while deleted.last() != Some(&0) {
        let (pot, water) = (pot.clone(), water.clone());
        let raised = database.write(None, move |session| inbox::raise(session, &pot, src, &water));
        deleted.push(raised.await.unwrap());
    }
    assert_eq!(deleted, [1_002, 495, 0]);
}

/// What is below the mark is deleted, never runs again, and a mark never falls.
#[tokio::test(flavor = "multi_thread")]
async fn below_the_low_water_mark_nothing_runs() {
    let folder = tempfile::tempdir().unwrap();
    let database = open(&folder);
    let (_, pot) = modules();
    let src = saga(&database, 0).src;
    for seq in 1..=4 {
        assert_eq!(take(&database, saga(&database, seq).key(0), 1).await.unwrap(), "done");
    }
    let raise = |below, open: &[i64]| {
        let (pot, water) = (pot.clone(), LowWater { below, open: open.to_vec() });
        database.write(None, move |session| inbox::raise(session, &pot, src, &water))
    };
    // Saga 2 has not ended: its row stays, and so does its right to ask.
    assert_eq!(raise(4, &[2]).await.unwrap(), 2);
    assert_eq!(take(&database, saga(&database, 1).key(0), 1).await.unwrap(), "expired");
    assert_eq!(take(&database, saga(&database, 2).key(0), 1).await.unwrap(), "stored 1");
    assert_eq!(take(&database, saga(&database, 2).key(1), 1).await.unwrap(), "done");
    assert_eq!(take(&database, saga(&database, 4).key(0), 1).await.unwrap(), "stored 1");

    // It ends. A message that was sent before says otherwise, and is not believed.
    assert_eq!(raise(4, &[]).await.unwrap(), 2);
    assert_eq!(raise(4, &[2]).await.unwrap(), 0);
    assert_eq!(raise(3, &[2]).await.unwrap(), 0);
    assert_eq!(take(&database, saga(&database, 2).key(2), 1).await.unwrap(), "expired");
    assert_eq!(pot_and_notes(&database).0, 10 - 5);
}
