//! The end of a schedule, for checks.

use std::sync::Arc;

use modulith_core::{
    CallFault, Direction, Fault, FromRow, NotRunReason, Params, SagaEnd, Snapshot, UndoModel,
};
use modulith_data::ModuleCode;
use modulith_data::saga::AttentionReason;
use uuid::Uuid;

use super::play::Play;

/// What a schedule left behind.
pub struct View<'p> {
    pub(super) play: &'p Play<'p>,
}

/// A saga's row.
struct Saga {
    src: Uuid,
    seq: i64,
    plan: String,
    state: i64,
    attention: Option<String>,
}

/// A saga's state from which on it has ended.
const DONE: i64 = 2;
/// The states of a step's row.
const STARTED: i64 = 0;
const STEP_DONE: i64 = 1;

/// What an inbox says about a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Row {
    Is(i64),
    Absent,
    /// It is below the low-water mark.
    Deleted,
}

/// How a caller's saga ended, as far as the caller was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    Done,
    /// Refused or turned back.
    Aborted,
    /// Certainly nothing happened.
    NotRun,
    /// It is still open, and needs attention.
    Open,
}

fn certainly_not(heard: &Result<SagaEnd, CallFault>) -> bool {
    matches!(heard, Err(CallFault::NotRun(not_run)) if not_run.reason != NotRunReason::Running)
}

impl View<'_> {
    /// Rows of a module, by its own statement.
    ///
    /// # Panics
    ///
    /// A statement that fails.
    pub fn rows<R: FromRow>(&self, module: &'static str, sql: &str, params: impl Params) -> Vec<R> {
        let service = self.play.cast.service_of(self.play.placement, module);
        let database = &self.play.databases[service];
        let rows = database.read(Some(&Arc::from(module)), self.play.true_ms, |db| db.rows(sql, params));
        rows.unwrap_or_else(|fault| panic!("a check's statement: {fault}"))
    }

    /// What each caller was told in the end, by its number.
    pub fn told(&self) -> Vec<Told> {
        let callers = self.play.callers.iter();
        callers
            .map(|caller| match caller.heard.iter().rev().find_map(|heard| heard.as_ref().ok()) {
                Some(SagaEnd::Done(_)) => Told::Done,
                Some(_) => Told::Aborted,
                // A later attempt that found no room says nothing about an earlier one that is unknown.
                None if caller.waits.is_none() && caller.heard.iter().all(certainly_not) => Told::NotRun,
                None => Told::Open,
            })
            .collect()
    }

    /// How many sagas are still open at the end: they wait for a person, since a provider can neither be asked again
    /// nor asked what it did, or since too many processes ended while they walked them. Every other saga that has not ended is a violation.
    pub fn open_sagas(&self) -> usize {
        self.sagas().iter().filter(|saga| saga.state < DONE).count()
    }

    fn sagas(&self) -> Vec<Saga> {
        let play = self.play;
        let services = 0..play.placement.services();
        let modules = services.flat_map(|service| play.cast.begins_at(play.placement, service));
        modules
            .flat_map(|(module, _)| {
                let service = play.cast.service_of(play.placement, module);
                let sql = format!("SELECT src, seq, plan, state, attention FROM {module}__saga");
                let rows: Vec<(Uuid, i64, String, i64, Option<String>)> = play.databases[service]
                    .read(None, play.true_ms, |db| db.rows(&sql, ()))
                    .unwrap_or_else(|fault| panic!("the sagas of `{module}`: {fault}"));
                rows.into_iter().map(|(src, seq, plan, state, attention)| Saga {
                    src,
                    seq,
                    plan,
                    state,
                    attention,
                })
            })
            .collect()
    }

    fn step(&self, saga: &Saga, contract: &str, step: usize, direction: Direction) -> Row {
        let play = self.play;
        let service = play.cast.places(play.placement)[contract];
        let codes = play.cast.codes_at(play.placement, service);
        let serves =
            |code: &&Arc<ModuleCode>| code.contracts.iter().any(|served| served.contract.name == contract);
        let module = &codes.iter().find(serves).expect("a contract's place serves it").name;
        let rows = format!(
            "SELECT state FROM {module}__inbox WHERE src = $1 AND seq = $2 AND step = $3 AND dir = $4 AND origin = 2"
        );
        let mark = format!("SELECT below FROM {module}__low_water WHERE src = $1");
        let read = |db: &Snapshot<'_>| -> Result<Row, Fault> {
            let key = (saga.src, saga.seq, step as i64, direction as i64);
            let row: Option<(i64,)> = db.row(&rows, key)?;
            let below: Option<(i64,)> = db.row(&mark, (saga.src,))?;
            Ok(match row {
                Some((state,)) => Row::Is(state),
                None if below.is_some_and(|(below,)| below > saga.seq) => Row::Deleted,
                None => Row::Absent,
            })
        };
        play.databases[service]
            .read(None, play.true_ms, read)
            .unwrap_or_else(|fault| panic!("the inbox of `{module}`: {fault}"))
    }

    /// What always must hold, in words, where it does not.
    pub(super) fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        for saga in self.sagas() {
            let number = saga.seq & 0xffff_ffff;
            let plan = &self.play.cast.plans[&*saga.plan];
            let rows: Vec<Row> = (plan.steps.iter().enumerate())
                .map(|(step, model)| self.step(&saga, model.contract, step, Direction::Do))
                .collect();
            if saga.state < DONE {
                // An effect, or the one that undoes it, whose provider no longer recognises the key.
                let is_begun = |step: usize, direction: Direction| {
                    self.step(&saga, plan.steps[step].contract, step, direction) == Row::Is(STARTED)
                };
                let waits_for_a_provider = (0..plan.steps.len())
                    .any(|step| is_begun(step, Direction::Do) || is_begun(step, Direction::Undo));
                // Or it was walked by too many processes that ended, and is left alone until a person resumes it.
                let ends = AttentionReason::ProcessEnds.code();
                let is_left_alone = saga.attention.as_deref().is_some_and(|reason| reason.starts_with(ends));
                if saga.attention.is_none() || !(waits_for_a_provider || is_left_alone) {
                    broken.push(format!("saga {number} of `{}` has not ended", saga.plan));
                }
                continue;
            }
            // Of a saga that began and ended in one transaction no row was written.
            if rows.iter().all(|row| *row == Row::Absent) {
                continue;
            }
            for (step, (model, row)) in plan.steps.iter().zip(&rows).enumerate() {
                let undone = self.step(&saga, model.contract, step, Direction::Undo);
                let is_undone = matches!(undone, Row::Is(STEP_DONE) | Row::Deleted);
                let name = model.name;
                match (saga.state == DONE, row) {
                    (_, Row::Deleted) => {}
                    (true, Row::Is(STEP_DONE)) if undone != Row::Is(STEP_DONE) => {}
                    (true, _) => broken.push(format!("saga {number} is done and step `{name}` is {row:?}")),
                    (false, Row::Is(STARTED)) => {
                        broken.push(format!("saga {number} ended with `{name}` begun"))
                    }
                    (false, Row::Is(STEP_DONE)) if step >= plan.pivot => {
                        broken.push(format!("saga {number} turned back with `{name}` done"));
                    }
                    (false, Row::Is(STEP_DONE)) if !is_undone && model.undo != UndoModel::None => {
                        broken.push(format!("saga {number} turned back and `{name}` is not undone"));
                    }
                    _ => {}
                }
            }
        }
        for (number, caller) in self.play.callers.iter().enumerate() {
            let mut ends = caller.heard.iter().filter_map(|heard| heard.as_ref().ok());
            if let Some(first) = ends.next()
                && let Some(other) = ends.find(|end| *end != first)
            {
                broken.push(format!("caller {number} was told {first:?} and then {other:?}"));
            }
        }
        broken
    }
}
