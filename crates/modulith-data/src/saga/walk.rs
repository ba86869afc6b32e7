//! The walk over a plan: what to do next, given what was heard. No clock, no socket, no thread.
//!
//! A walk goes forward from the first step not known to be done. It turns back when that step, the frontier,
//! has refused or is sealed; a step that may have run is never passed over. After the pivot it only goes
//! forward.

use std::ops::Range;
use std::sync::Arc;

use modulith_core::{PlanModel, Protection, StepKind, StepModel, UndoModel};

/// Where a step's data lives, as far as fusing is concerned: steps at equal places share a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The coordinator's own database.
    Here,
    /// Another service, by its number.
    Peer(usize),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Execute these command steps as one transaction.
    Run { steps: Range<usize>, place: Place },
    /// Attempt this effect.
    Effect { step: usize, place: Place },
    /// Make sure that this step never runs, or learn that it has.
    Seal { step: usize, place: Place },
    /// Record that the saga turns back here, before anything is undone.
    Turn { frontier: usize },
    /// Undo this step.
    Undo { step: usize, place: Place },
    /// Record the end: all done, or all undone.
    End { done: bool },
    /// The end is recorded.
    Over,
}

/// What was heard of the last [`Next`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// These steps are done.
    Done(Range<usize>),
    /// This step declined, for good. Steps of the same run before it were rolled back with it.
    Refused(usize),
    /// This step is sealed and will never run.
    Sealed(usize),
    /// The step that was to be sealed may have happened outside, and has to be resolved.
    Started,
    /// No certain answer: not run, or unknown.
    Nothing,
    /// The turn is on disk.
    Turned,
    Undone,
    /// The end is on disk.
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// The frontier gave no certain answer for too long.
    Sealing,
    Turning {
        frontier: usize,
    },
    Undoing {
        below: usize,
    },
    Over,
}

/// How often a step before the pivot is tried before it is sealed and the saga turns back.
const TRIES_MAX: u32 = 6;

/// A walk over one plan.
pub struct Walk {
    plan: Arc<PlanModel>,
    /// The steps before this one are known to be done.
    done: usize,
    tries: u32,
    phase: Phase,
}

impl Walk {
    /// From the beginning; finished steps will answer from their inboxes.
    pub fn forward(plan: Arc<PlanModel>) -> Self {
        Self { plan, done: 0, tries: 0, phase: Phase::Running }
    }

    /// A saga that was recorded as turned back.
    pub fn backward(plan: Arc<PlanModel>, frontier: usize) -> Self {
        Self { plan, done: frontier, tries: 0, phase: Phase::Undoing { below: frontier } }
    }

    /// The first step not known to be done.
    pub fn frontier(&self) -> usize {
        self.done
    }

    /// Whether the pivot is known to be done, so that the caller can be answered.
    pub fn pivot_is_done(&self) -> bool {
        self.done > self.plan.pivot
    }

    /// `place` tells where a contract's data lives at this moment; it may change between two calls.
    pub fn next(&self, place: &dyn Fn(&str) -> Place) -> Next {
        let at = |step: usize| place(self.plan.steps[step].contract);
        match self.phase {
            Phase::Over => Next::Over,
            Phase::Turning { frontier } => Next::Turn { frontier },
            Phase::Sealing => Next::Seal { step: self.done, place: at(self.done) },
            Phase::Undoing { below } => {
                match (0..below).rev().find(|step| self.plan.steps[*step].undo != UndoModel::None) {
                    Some(step) => Next::Undo { step, place: at(step) },
                    None => Next::End { done: false },
                }
            }
            Phase::Running => match self.plan.steps.get(self.done) {
                None => Next::End { done: true },
                Some(StepModel { kind: StepKind::Effect, .. }) => {
                    Next::Effect { step: self.done, place: at(self.done) }
                }
                Some(_) => {
                    let here = at(self.done);
                    let fuses =
                        |step: &&StepModel| step.kind == StepKind::Command && place(step.contract) == here;
                    let length = self.plan.steps[self.done..].iter().take_while(fuses).count();
                    Next::Run { steps: self.done..self.done + length, place: here }
                }
            },
        }
    }

    /// Goes forward no more, if the pivot is not done: the frontier is sealed, and what lies before it undone.
    pub fn turn_back(&mut self) {
        if self.phase != Phase::Running || (self.pivot_is_done() && Protection::PivotIsFinal.is_on()) {
            return;
        }
        self.tries = 0;
        self.phase = match Protection::Seal.is_on() {
            true => Phase::Sealing,
            false => Phase::Turning { frontier: self.done },
        };
    }

    pub fn heard(&mut self, heard: &Heard) {
        match (heard, self.phase) {
            // Also of the step that was to be sealed: then the abort is off.
            (Heard::Done(steps), Phase::Running | Phase::Sealing) if steps.start == self.done => {
                self.done = steps.end;
                self.phase = Phase::Running;
                self.tries = 0;
            }
            (Heard::Refused(step) | Heard::Sealed(step), Phase::Running | Phase::Sealing)
                if !self.pivot_is_done() =>
            {
                self.phase = Phase::Turning { frontier: *step };
                self.tries = 0;
            }
            (Heard::Started, Phase::Sealing) => {
                self.phase = Phase::Running;
                self.tries = 0;
            }
            (Heard::Turned, Phase::Turning { frontier }) => {
                self.phase = Phase::Undoing { below: frontier };
                self.tries = 0;
            }
            (Heard::Undone, Phase::Undoing { below }) => {
                let step = (0..below).rev().find(|step| self.plan.steps[*step].undo != UndoModel::None);
                self.phase = Phase::Undoing { below: step.unwrap_or(0) };
                self.tries = 0;
            }
            (Heard::Ended, _) => self.phase = Phase::Over,
            // Nothing certain, or something that does not fit: try again, or turn back where that is allowed.
            (_, Phase::Running) => {
                self.tries += 1;
                if self.tries >= TRIES_MAX {
                    self.turn_back();
                }
            }
            (_, _) => self.tries += 1,
        }
    }
}
