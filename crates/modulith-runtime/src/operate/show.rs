//! One saga as it stands: what is recorded of it, what its walk does, and what its participants have.

use std::collections::BTreeMap;

use modulith_core::{
    CallFault, ContractModel, MethodModel, Outcome, PlanModel, REDACTED, RefusalRecord, SagaEnd, SagaRefused,
    StepModel, UndoModel, redacted,
};
use modulith_data::inbox::{InboxRow, StepRows};
use modulith_data::saga::{Next, SagaContents, SagaName, SagaRow, Standing};
use serde_json::Value;

use super::service::read_framework;
use super::{Doing, End, Line, Refused, Row, Shown, Step, advice};
use crate::model::AppModel;
use crate::sagas::{Driven, Sagas};
use crate::topology::Topology;

/// The contracts of the whole application, with the service of each.
pub(crate) struct Contracts(BTreeMap<&'static str, (ContractModel, String)>);

impl Contracts {
    pub(crate) fn new(model: &AppModel, topology: &Topology) -> Self {
        let of_module = |module: &'static str| {
            topology.service_of(module).map_or_else(String::new, |service| service.name.clone())
        };
        let all = model.modules.iter().flat_map(|module| {
            let placed =
                move |contract: &ContractModel| (contract.name, (contract.clone(), of_module(module.name)));
            module.contracts.iter().map(placed)
        });
        Self(all.collect())
    }

    fn service(&self, contract: &str) -> String {
        self.0.get(contract).map_or_else(String::new, |(_, service)| service.clone())
    }

    fn method(&self, contract: &str, method: &str) -> Option<&MethodModel> {
        self.0.get(contract)?.0.methods.iter().find(|known| known.name == method)
    }

    fn answer(&self, step: &StepModel, answer: &[u8]) -> Value {
        self.shown(step.contract, step.method, answer, |method| &method.answer)
    }

    fn refusal(&self, step: &StepModel, record: RefusalRecord) -> Refused {
        let body = self.shown(step.contract, step.method, &record.body, |method| &method.refused);
        Refused { code: record.code, text: record.text, status: record.status, body }
    }

    /// How a saga ends; nothing of it without its plan.
    pub(super) fn end(&self, plan: Option<&PlanModel>, end: SagaEnd) -> Option<End> {
        let plan = plan?;
        Some(match end {
            SagaEnd::Done(answer) => End::Done(self.answer(&plan.steps[plan.answer], &answer)),
            SagaEnd::Refused(SagaRefused { step, refusal }) => {
                let model = plan.steps.iter().find(|model| model.name == step)?;
                End::Refused { step, refusal: self.refusal(model, refusal) }
            }
            SagaEnd::Aborted(not_run) => End::Aborted(not_run.detail),
        })
    }

    fn shown(
        &self,
        contract: &str,
        method: &str,
        bytes: &[u8],
        schema: impl Fn(&MethodModel) -> &Value,
    ) -> Value {
        self.method(contract, method)
            .map_or_else(|| Value::from(REDACTED), |method| redacted(bytes, schema(method)))
    }
}

/// A saga as a line of a list.
pub(super) fn line(sagas: &Sagas, row: &SagaRow, end: Option<End>) -> Line {
    let standing = sagas.standing(row.id).filter(|_| row.state.is_open());
    let at = at(sagas.plan_of(row).map(|plan| &**plan), row, standing.as_ref());
    Line {
        id: SagaName::of(sagas.module(), row.id).to_string(),
        module: sagas.module().to_owned(),
        plan: row.plan.clone(),
        version: row.version,
        state: row.state,
        step: at.as_ref().map(|(step, _)| step.clone()),
        doing: at.map(|(_, doing)| doing),
        begun_ms: row.begun_ms,
        ended_ms: row.ended_ms,
        attempts: row.attempts,
        attention: row.attention.clone(),
        end,
    }
}

/// The step where a saga stands, by what its walk does, or else by where it is recorded to have turned back.
fn at(plan: Option<&PlanModel>, row: &SagaRow, standing: Option<&Standing>) -> Option<(String, Doing)> {
    let plan = plan?;
    let (step, doing) = match standing.and_then(|standing| standing.next.clone()) {
        Some(Next::Run { steps, .. }) => (steps.start, Doing::Run),
        Some(Next::Effect { step, .. }) => (step, Doing::Run),
        Some(Next::Seal { step, .. }) => (step, Doing::Seal),
        Some(Next::Turn { frontier }) => (frontier, Doing::Turn),
        Some(Next::Undo { step, .. }) => (step, Doing::Undo),
        Some(Next::End { done }) => {
            let last = if done { plan.steps.len() - 1 } else { row.frontier.unwrap_or(0) };
            (last, Doing::End)
        }
        Some(Next::Over) => return None,
        None => (row.frontier.filter(|_| row.state.is_open())?, Doing::Turn),
    };
    Some((plan.steps.get(step)?.name.to_owned(), doing))
}

/// Asks every participant of a saga. `None`: the saga is not there any more.
pub(super) async fn shown(
    driven: &Driven,
    contracts: &Contracts,
    row: SagaRow,
) -> Result<Option<Shown>, CallFault> {
    let sagas = &driven.sagas;
    let read = {
        let sagas = sagas.clone();
        move |db: &modulith_core::Snapshot<'_>| sagas.contents(db, row.id)
    };
    let Some(SagaContents { input, end }) = read_framework(driven, read).await? else {
        return Ok(None);
    };
    let plan = sagas.plan_of(&row).cloned();
    let mut steps = Vec::new();
    if let Some(plan) = &plan {
        // All at once: those that do not answer cost their time together.
        let asked = (0..plan.steps.len()).map(|step| sagas.look(row.id, plan, step));
        let told = futures_util::future::join_all(asked).await;
        steps.extend((0..).zip(told).map(|(step, rows)| step_shown(contracts, plan, &row, step, rows)));
    }
    let has_no_row =
        |step: &Step| step.unreachable.is_none() && step.row.is_none() && step.undo_row.is_none();
    let standing = sagas.standing(row.id).filter(|_| row.state.is_open());
    let end = end.and_then(|end| contracts.end(plan.as_deref(), end));
    let mut shown = Shown {
        line: line(sagas, &row, end),
        src: row.id.src,
        walked: standing.is_some(),
        unanswered: standing.as_ref().map_or(0, |standing| standing.unanswered),
        fault: standing.as_ref().and_then(|standing| standing.fault.clone()),
        in_one_transaction: row.ended_ms == Some(row.begun_ms) && steps.iter().all(has_no_row),
        input: plan.as_ref().map(|plan| redacted(&input, &(plan.input_schema)())),
        steps,
        advice: Vec::new(),
    };
    let pivot_is_done = standing.is_some_and(|standing| standing.pivot_is_done)
        || matches!(&shown.line.end, Some(End::Done(_)));
    shown.advice = advice::of(&shown, pivot_is_done);
    Ok(Some(shown))
}

fn step_shown(
    contracts: &Contracts,
    plan: &PlanModel,
    row: &SagaRow,
    step: usize,
    rows: Result<StepRows, CallFault>,
) -> Step {
    let model = &plan.steps[step];
    let (rows, unreachable) = match rows {
        Ok(rows) => (rows, None),
        Err(fault) => (StepRows::default(), Some(fault.to_string())),
    };
    let undo = match model.undo {
        UndoModel::ByAnswer { contract, method } | UndoModel::ByKey { contract, method } => {
            Some(format!("{contract}.{method}"))
        }
        UndoModel::None | UndoModel::Forgotten => None,
    };
    Step {
        name: model.name.to_owned(),
        method: format!("{}.{}", model.contract, model.method),
        kind: model.kind,
        is_pivot: step == plan.pivot,
        undo,
        service: contracts.service(model.contract),
        key: row.id.key(step).to_string(),
        row: rows.step.map(|row| row_shown(contracts, model, row)),
        // An undo answers nothing.
        undo_row: rows.undo.map(|row| Row {
            state: row.state,
            attempts: row.attempts,
            first_at_ms: row.first_at_ms,
            answer: None,
            refusal: None,
        }),
        unreachable,
    }
}

fn row_shown(contracts: &Contracts, step: &StepModel, row: InboxRow) -> Row {
    let (answer, refusal) = match row.outcome() {
        Ok(Some(Outcome::Done(answer))) => (Some(contracts.answer(step, &answer)), None),
        Ok(Some(Outcome::Refused(record))) => (None, Some(contracts.refusal(step, record))),
        Ok(None) => (None, None),
        // What cannot be read is not shown.
        Err(_) => (Some(Value::from(REDACTED)), None),
    };
    Row { state: row.state, attempts: row.attempts, first_at_ms: row.first_at_ms, answer, refusal }
}
