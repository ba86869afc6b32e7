//! A fused run: consecutive command steps on one database, executed as one transaction.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use modulith_core::{
    AnyBox, Direction, Fault, FaultKind, Origin, Outcome, PlanModel, RefusalRecord, StepKey, StepModel,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::inbox::{self, BodyHash, CommandEnd, Keyed, Known, body_hash};
use crate::session::{ModuleCode, Session};

/// Which saga: the coordinator's database and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SagaId {
    pub src: Uuid,
    pub seq: i64,
}

impl SagaId {
    pub fn key(&self, step: usize) -> StepKey {
        StepKey {
            origin: Origin::Saga,
            src: self.src,
            seq: self.seq,
            step: u16::try_from(step).expect("a plan has fewer than 65,536 steps"),
            direction: Direction::Do,
        }
    }
}

/// The modules whose data lives in one database, by the contracts they serve.
#[derive(Clone, Default)]
pub struct Modules {
    by_contract: BTreeMap<&'static str, Arc<ModuleCode>>,
}

impl Modules {
    pub fn new(modules: &[Arc<ModuleCode>]) -> Self {
        let entries = modules
            .iter()
            .flat_map(|module| module.contracts.iter().map(|served| (served.contract.name, module.clone())));
        Self { by_contract: entries.collect() }
    }

    /// The module that serves a contract here.
    pub fn of(&self, contract: &str) -> Option<&Arc<ModuleCode>> {
        self.by_contract.get(contract)
    }

    /// Every module once.
    pub fn all(&self) -> Vec<Arc<ModuleCode>> {
        let mut modules: Vec<Arc<ModuleCode>> = self.by_contract.values().cloned().collect();
        modules.sort_by(|a, b| a.name.cmp(&b.name));
        modules.dedup_by(|a, b| a.name == b.name);
        modules
    }

    /// [`Modules::of`], or a fault that names what is missing.
    pub fn expect(&self, contract: &str) -> Result<&Arc<ModuleCode>, Fault> {
        self.of(contract).ok_or_else(|| {
            Fault::new(
                FaultKind::Encoding,
                format!("no module of this database serves contract `{contract}`"),
            )
        })
    }
}

/// The answer of a finished step, typed and as it was stored.
pub struct StepDone {
    pub answer: AnyBox,
    pub stored: Vec<u8>,
}

/// How a run ended. After a refusal or a seal, everything that this execution did is rolled back; rows that
/// were there before stay.
pub enum RunEnd {
    Done(Vec<StepDone>),
    Refused {
        step: usize,
        record: RefusalRecord,
    },
    Sealed {
        step: usize,
    },
    /// The saga is below its coordinator's low-water mark.
    Expired,
}

/// Consecutive command steps of one saga, to be executed as one transaction.
pub struct Run<'a> {
    pub plan: &'a PlanModel,
    pub id: SagaId,
    pub steps: Range<usize>,
    /// The saga's input.
    pub input: &'a dyn Any,
    /// The answers of the steps before.
    pub earlier: &'a dyn Fn(usize) -> Option<&'a (dyn Any + Send + Sync)>,
    pub known: Known,
}

/// Executes a run, replaying the steps that are already in their inbox. After a refusal or a seal the work is
/// rolled back, and whatever has to stand with that may be written behind it.
///
/// # Errors
///
/// A fault: nothing of it stands.
pub fn run_steps(session: &mut dyn Session, modules: &Modules, run: &Run<'_>) -> Result<RunEnd, Fault> {
    let Run { plan, id, steps, input, earlier, known } = run;
    let first = steps.start;
    let mut done: Vec<StepDone> = Vec::with_capacity(steps.len());
    for step in steps.clone() {
        let model = &plan.steps[step];
        modulith_core::crash_point(|| format!("{}:{}:in-transaction", plan.name, model.name));
        let request = model.request(*input, |needed| match needed.checked_sub(first) {
            Some(here) => done.get(here).map(|step| step.answer.as_ref()),
            None => earlier(needed),
        })?;
        let module = modules.expect(model.contract)?;
        let method = module.expect_method(model.contract, model.method)?;
        // Without a row there is nothing that a hash could stand beside.
        let hash = match known {
            Known::ToNobodyEver => BodyHash::default(),
            _ => body_hash(&(model.codec.encode_request)(request.as_ref())?),
        };
        let keyed =
            Keyed { key: id.key(step), request: request.as_ref(), hash, known: *known, expires_at: None };
        match inbox::command(session, module, method, &keyed)? {
            CommandEnd::Done { answer, stored } => done.push(StepDone { answer, stored }),
            CommandEnd::Stored(Outcome::Done(stored)) => {
                done.push(StepDone { answer: (model.codec.decode_answer)(&stored)?, stored });
            }
            // The command has rolled back the run and stored its refusal.
            CommandEnd::Refused(_, record) => return Ok(RunEnd::Refused { step, record }),
            CommandEnd::Stored(Outcome::Refused(record)) => {
                session.rollback()?;
                return Ok(RunEnd::Refused { step, record });
            }
            CommandEnd::Sealed => {
                session.rollback()?;
                return Ok(RunEnd::Sealed { step });
            }
            CommandEnd::Expired => {
                session.rollback()?;
                return Ok(RunEnd::Expired);
            }
            CommandEnd::KeyReused => return Err(key_reused(plan, model)),
        }
    }
    Ok(RunEnd::Done(done))
}

/// A plan's request functions must be pure: the same input and answers gave other bytes than before.
fn key_reused(plan: &PlanModel, step: &StepModel) -> Fault {
    Fault::new(
        FaultKind::Encoding,
        format!(
            "step `{}` of `{}` asks something else than it did before; a plan's request functions must be pure",
            step.name, plan.name
        ),
    )
}
