//! A run on the coordinator's own database, with what is recorded beside it.

use std::any::Any;
use std::ops::Range;

use modulith_core::{Fault, NotRun, NotRunReason, PlanModel, SagaEnd, SagaRefused};

use super::run::{Modules, Run, RunEnd, SagaId, run_steps};
use super::table::{Begun, NewSaga, SagaTable, Stored};
use super::{Begin, Facts};
use crate::inbox::Known;
use crate::session::Session;

/// What a run in the coordinator's own database did, besides its steps.
pub(super) enum LocalRun {
    Ran {
        end: RunEnd,
        recorded: Recorded,
    },
    /// The client's key stands for another saga.
    Before(Stored),
}

/// What was recorded in the same transaction as a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    Begun,
    Turned,
    Ended,
    /// Nothing: the saga is below its own low-water mark.
    Nothing,
}

/// A run on the coordinator's own database.
pub(super) struct RunHere<'a> {
    pub(super) table: &'a SagaTable,
    pub(super) modules: &'a Modules,
    pub(super) plan: &'a PlanModel,
    pub(super) facts: &'a Facts,
    pub(super) id: SagaId,
    pub(super) steps: Range<usize>,
    pub(super) begin: Option<&'a Begin>,
}

/// Begin, steps, and whatever follows from them, in one transaction. In a monolith this is a whole saga.
pub(super) fn local_run(session: &mut dyn Session, run: RunHere<'_>) -> Result<LocalRun, Fault> {
    let RunHere { table, modules, plan, facts, id, steps, begin } = run;
    let input = facts.input.as_ref().as_ref();
    let earlier = |step: usize| known(facts, step);
    let known = match begin {
        None => Known::ToOthers,
        Some(_) if steps == (0..plan.steps.len()) => Known::ToNobodyEver,
        Some(_) => Known::ToNobodyYet,
    };
    let run = Run { plan, id, steps: steps.clone(), input, earlier: &earlier, known };
    let end = run_steps(session, modules, &run)?;
    if let RunEnd::Expired = end {
        return Ok(LocalRun::Ran { end, recorded: Recorded::Nothing });
    }
    let new = begin.map(|begin| NewSaga { id, plan, input: &begin.input, key: begin.key.as_ref() });

    let Some(answer) = answered(plan, facts, &steps, &end) else {
        // The pivot is still to come: what is recorded is that the saga began.
        return Ok(match new.map(|new| table.begin(session, &new)).transpose()? {
            Some(Begun::Before(stored)) => before(session, stored)?,
            _ => LocalRun::Ran { end, recorded: Recorded::Begun },
        });
    };
    let forward = matches!(end, RunEnd::Done(_));
    // A run that turned back was rolled back, and a saga that begins with it has nothing else to undo.
    let is_over = if forward { steps.end == plan.steps.len() } else { begin.is_some() };
    let recorded = match (is_over, forward) {
        (true, _) => Recorded::Ended,
        (false, true) => Recorded::Begun,
        (false, false) => Recorded::Turned,
    };
    match (new, recorded) {
        (Some(new), _) => {
            if let Begun::Before(stored) = table.begin_answered(session, &new, &answer, is_over)? {
                return before(session, stored);
            }
        }
        (None, Recorded::Ended) => table.end(session, id, &answer)?,
        (None, Recorded::Begun) => table.answer(session, id, &answer)?,
        (None, Recorded::Turned | Recorded::Nothing) => {
            let (RunEnd::Refused { step, .. } | RunEnd::Sealed { step }) = end else {
                unreachable!("only a refusal or a seal turns a saga back");
            };
            table.turn(session, id, step, &answer)?;
        }
    }
    Ok(LocalRun::Ran { end, recorded })
}

/// What the caller is answered after this run; `None` while the pivot is to come.
fn answered(plan: &PlanModel, facts: &Facts, steps: &Range<usize>, end: &RunEnd) -> Option<SagaEnd> {
    match end {
        RunEnd::Done(_) if steps.end <= plan.pivot => None,
        RunEnd::Done(done) => {
            let stored = match plan.answer.checked_sub(steps.start) {
                Some(here) => &done.get(here)?.stored,
                None => &facts.answers[plan.answer].as_ref()?.stored,
            };
            Some(SagaEnd::Done(stored.clone()))
        }
        RunEnd::Refused { step, record } => {
            let step = plan.steps[*step].name.to_owned();
            Some(SagaEnd::Refused(SagaRefused { step, refusal: record.clone() }))
        }
        RunEnd::Sealed { step } => Some(aborted(plan, *step)),
        RunEnd::Expired => None,
    }
}

/// The client's key stands for another saga, so this one never was.
fn before(session: &mut dyn Session, stored: Stored) -> Result<LocalRun, Fault> {
    session.rollback()?;
    Ok(LocalRun::Before(stored))
}

pub(super) fn known(facts: &Facts, step: usize) -> Option<&(dyn Any + Send + Sync)> {
    facts.answers.get(step).and_then(Option::as_ref).map(|answer| answer.answer.as_ref())
}

pub(super) fn aborted(plan: &PlanModel, step: usize) -> SagaEnd {
    let detail = format!(
        "step `{}` of `{}` was sealed before it ran, and never will",
        plan.steps[step].name, plan.name
    );
    SagaEnd::Aborted(NotRun::new(NotRunReason::Aborted, detail))
}
