//! Which steps of a plan fuse in a topology, and why the others do not.
//!
//! The same rule as the walk of the coordinator: consecutive command steps whose modules share a database run
//! as one transaction; an effect stands alone.

use std::ops::Range;

use modulith_core::{PlanModel, StepKind, StepModel};

use super::service_of;
use crate::model::AppModel;
use crate::topology::Topology;

/// Consecutive steps that stand or fall together.
pub(super) struct Run<'a> {
    /// `None` where the step's contract is served nowhere.
    pub(super) service: Option<&'a str>,
    pub(super) kind: RunKind,
    pub(super) steps: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RunKind {
    Transaction,
    Effect,
}

impl RunKind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Effect => "effect",
        }
    }
}

impl Run<'_> {
    /// Why the next run is not part of this one.
    pub(super) fn cut_from(&self, next: &Run<'_>) -> &'static str {
        if self.kind == RunKind::Effect || next.kind == RunKind::Effect { "effect" } else { "service" }
    }
}

pub(super) fn runs<'t>(model: &AppModel, topology: &'t Topology, plan: &PlanModel) -> Vec<Run<'t>> {
    let place = |step: &StepModel| service_of(model, topology, step.contract);
    let mut runs: Vec<Run<'t>> = Vec::new();
    for (number, step) in plan.steps.iter().enumerate() {
        let service = place(step);
        match runs.last_mut() {
            Some(last)
                if step.kind == StepKind::Command
                    && last.kind == RunKind::Transaction
                    && last.service == service =>
            {
                last.steps.end = number + 1;
            }
            _ => {
                let kind = match step.kind {
                    StepKind::Command => RunKind::Transaction,
                    StepKind::Effect => RunKind::Effect,
                };
                runs.push(Run { service, kind, steps: number..number + 1 });
            }
        }
    }
    runs
}
