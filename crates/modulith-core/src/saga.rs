//! Sagas as plans: data, a list of steps with their undos, not code to be replayed.
//!
//! A plan names the answers that each step needs, so its edges are data: they are drawn in diagrams, they make
//! a version comparable, and they let a peer run several steps as one transaction. Use of an answer before its
//! step is impossible, and so is another saga's handle.

use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::contract::{AnyBox, Codec, Command, Effect, Kind, Wire, decode_any, downcast, encode_any};
use crate::key::StepKey;
use crate::outcome::{Fault, FaultKind, Never, Refusal, RefusalRecord};

/// A saga: its input, and the plan over it.
///
/// What a step asks is a pure function of the input and of earlier answers: it runs on the writer's thread, and
/// again on recovery. Look things up before, put them into the input, and let commands check them again.
pub trait Saga: Wire {
    /// Stored: renaming it is a migration. `module.name`.
    const NAME: &'static str;
    /// Raise it when the plan's structure changes; sagas in flight keep theirs.
    const VERSION: u32;
    /// Sagas of this plan in flight; one more is refused as *not run, overloaded*.
    const IN_FLIGHT_MAX: usize = 4_096;
    /// The pivot's answer.
    type Answer: Wire;
    fn plan(plan: &mut Plan<Self>) -> Handle<Self, Self::Answer>;
}

/// Stands for the answer `T` of one step of the plan of `S`.
pub struct Handle<S, T> {
    step: usize,
    types: PhantomData<fn(S) -> T>,
}

impl<S, T> Clone for Handle<S, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S, T> Copy for Handle<S, T> {}

/// A plan while it is written.
pub struct Plan<S> {
    steps: Vec<StepModel>,
    pivot: Option<usize>,
    problems: Vec<PlanProblem>,
    saga: PhantomData<fn(S)>,
}

/// What is wrong with a plan, found when the application starts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanProblem {
    #[error("step `{step}` has neither `.undo(..)`, `.undo_by_key(..)` nor `.no_undo()`")]
    UndoForgotten { step: &'static str },
    #[error("two steps are called `{step}`; step names are stored and must differ")]
    StepTwice { step: &'static str },
    #[error(
        "`{step}` stands behind the pivot and can refuse; write `plan.then(..)` with a method that cannot"
    )]
    RefusalAfterPivot { step: &'static str },
    #[error("a second pivot `{step}`; after the first one a plan only goes forward")]
    PivotTwice { step: &'static str },
    #[error("the plan has no pivot; write `plan.pivot(..)` for the step that decides")]
    NoPivot,
    #[error(
        "the plan answers with step `{step}`, which stands behind the pivot; a caller is answered at the pivot"
    )]
    AnswerAfterPivot { step: &'static str },
}

/// What a step may be: a command or an effect, by its token.
#[diagnostic::on_unimplemented(
    message = "a step is a command or an effect, and `{Self}` is neither",
    label = "is no step",
    note = "ask a query before the saga begins, and put its answer into the saga's input"
)]
pub trait StepMethod {
    type Request: Wire;
    type Answer: Wire;
    type Refused: Refusal;
    fn kind(&self) -> StepKind;
    fn contract(&self) -> &'static str;
    fn method(&self) -> &'static str;
}

/// The kinds of method that a step can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepKind {
    Command,
    Effect,
}

macro_rules! step_method {
    ($token:ident) => {
        impl<Req: Wire, T: Wire, E: Refusal> StepMethod for $token<Req, T, E> {
            type Request = Req;
            type Answer = T;
            type Refused = E;
            fn kind(&self) -> StepKind {
                match Self::KIND {
                    Kind::Effect => StepKind::Effect,
                    _ => StepKind::Command,
                }
            }
            fn contract(&self) -> &'static str {
                self.contract
            }
            fn method(&self) -> &'static str {
                self.method
            }
        }
    };
}
step_method!(Command);
step_method!(Effect);

/// The answers a step needs: `()`, a handle, or a tuple of up to four handles.
pub trait Needs<S> {
    fn steps(&self) -> Vec<usize>;
}

/// A function from a saga's input and the needed answers to a request.
pub trait RequestOf<S, N, Req>: Send + Sync + 'static {
    fn request(&self, input: &S, answers: &[&dyn Any]) -> Result<Req, Fault>;
}

impl<S> Needs<S> for () {
    fn steps(&self) -> Vec<usize> {
        Vec::new()
    }
}

impl<S, Req, F: Fn(&S) -> Req + Send + Sync + 'static> RequestOf<S, (), Req> for F {
    fn request(&self, input: &S, _: &[&dyn Any]) -> Result<Req, Fault> {
        Ok(self(input))
    }
}

impl<S, A> Needs<S> for Handle<S, A> {
    fn steps(&self) -> Vec<usize> {
        vec![self.step]
    }
}

impl<S, A: Wire, Req, F: Fn(&S, &A) -> Req + Send + Sync + 'static> RequestOf<S, Handle<S, A>, Req> for F {
    fn request(&self, input: &S, answers: &[&dyn Any]) -> Result<Req, Fault> {
        Ok(self(input, downcast(answers[0])?))
    }
}

macro_rules! needs {
    ($($name:ident . $index:tt),+) => {
        impl<S, $($name),+> Needs<S> for ($(Handle<S, $name>,)+) {
            fn steps(&self) -> Vec<usize> {
                vec![$(self.$index.step),+]
            }
        }
        impl<S, $($name: Wire,)+ Req, F> RequestOf<S, ($(Handle<S, $name>,)+), Req> for F
        where
            F: Fn(&S, $(&$name),+) -> Req + Send + Sync + 'static,
        {
            fn request(&self, input: &S, answers: &[&dyn Any]) -> Result<Req, Fault> {
                Ok(self(input, $(downcast::<$name>(answers[$index])?),+))
            }
        }
    };
}
needs!(A.0, B.1);
needs!(A.0, B.1, C.2);
needs!(A.0, B.1, C.2, D.3);

impl<S: Saga> Plan<S> {
    /// A step before the pivot. What it returns must be told how to undo the step.
    #[must_use = "a step before the pivot needs `.undo(..)`, `.undo_by_key(..)` or `.no_undo()`"]
    pub fn step<M: StepMethod, N: Needs<S>>(
        &mut self,
        name: &'static str,
        method: M,
        needs: N,
        request: impl RequestOf<S, N, M::Request>,
    ) -> Step<'_, S, M> {
        if self.pivot.is_some() {
            self.problems.push(PlanProblem::RefusalAfterPivot { step: name });
        }
        let step = self.push(name, &method, needs, request);
        Step { plan: self, step, method: PhantomData }
    }

    /// The point of no return: once it is done the plan only goes forward. It may refuse, and is never undone.
    pub fn pivot<M: StepMethod, N: Needs<S>>(
        &mut self,
        name: &'static str,
        method: M,
        needs: N,
        request: impl RequestOf<S, N, M::Request>,
    ) -> Handle<S, M::Answer> {
        if self.pivot.is_some() {
            self.problems.push(PlanProblem::PivotTwice { step: name });
        }
        let step = self.push(name, &method, needs, request);
        self.steps[step].undo = UndoModel::None;
        self.pivot = Some(step);
        Handle { step, types: PhantomData }
    }

    /// A step behind the pivot: it cannot refuse, by type, and is repeated until it is done.
    pub fn then<M: StepMethod<Refused = Never>, N: Needs<S>>(
        &mut self,
        name: &'static str,
        method: M,
        needs: N,
        request: impl RequestOf<S, N, M::Request>,
    ) -> Handle<S, M::Answer> {
        let step = self.push(name, &method, needs, request);
        self.steps[step].undo = UndoModel::None;
        Handle { step, types: PhantomData }
    }

    fn push<M: StepMethod, N: Needs<S>>(
        &mut self,
        name: &'static str,
        method: &M,
        needs: N,
        request: impl RequestOf<S, N, M::Request>,
    ) -> usize {
        if self.steps.iter().any(|step| step.name == name) {
            self.problems.push(PlanProblem::StepTwice { step: name });
        }
        self.steps.push(StepModel {
            name,
            contract: method.contract(),
            method: method.method(),
            kind: method.kind(),
            needs: needs.steps(),
            undo: UndoModel::Forgotten,
            codec: Codec::of::<M::Request, M::Answer, M::Refused>(),
            request: Arc::new(move |input, answers| {
                Ok(Box::new(request.request(downcast::<S>(input)?, answers)?) as AnyBox)
            }),
        });
        self.steps.len() - 1
    }
}

/// A step that waits for its undo.
pub struct Step<'p, S, M: StepMethod> {
    plan: &'p mut Plan<S>,
    step: usize,
    method: PhantomData<M>,
}

impl<S, M: StepMethod> Step<'_, S, M> {
    /// Undone by a command of the same module, which is given the step's answer from the module's own inbox.
    pub fn undo(self, undo: Command<M::Answer, (), Never>) -> Handle<S, M::Answer> {
        self.end(UndoModel::ByAnswer { contract: undo.contract, method: undo.method })
    }

    /// Undone by an effect that is given the step's key, since a lost answer of a provider leaves only the key.
    pub fn undo_by_key(self, undo: Effect<StepKey, (), Never>) -> Handle<S, M::Answer> {
        self.end(UndoModel::ByKey { contract: undo.contract, method: undo.method })
    }

    /// Nothing has to be undone.
    pub fn no_undo(self) -> Handle<S, M::Answer> {
        self.end(UndoModel::None)
    }

    fn end(self, undo: UndoModel) -> Handle<S, M::Answer> {
        self.plan.steps[self.step].undo = undo;
        Handle { step: self.step, types: PhantomData }
    }
}

type RequestFn = Arc<dyn Fn(&dyn Any, &[&dyn Any]) -> Result<AnyBox, Fault> + Send + Sync>;

/// One step of a plan as data.
#[derive(Clone)]
pub struct StepModel {
    pub name: &'static str,
    pub contract: &'static str,
    pub method: &'static str,
    pub kind: StepKind,
    /// The steps whose answers its request is made from.
    pub needs: Vec<usize>,
    pub undo: UndoModel,
    pub codec: Codec,
    request: RequestFn,
}

impl StepModel {
    /// The step's request. `answer` tells the answers of the steps before it.
    pub fn request<'a>(
        &self,
        input: &dyn Any,
        answer: impl Fn(usize) -> Option<&'a (dyn Any + Send + Sync)>,
    ) -> Result<AnyBox, Fault> {
        let mut needed: [&dyn Any; 4] = [&(); 4];
        for (place, step) in needed.iter_mut().zip(&self.needs) {
            *place = match answer(*step) {
                Some(answer) => answer,
                None => {
                    let message =
                        format!("step `{}` needs the answer of step {step}, which is not known", self.name);
                    return Err(Fault::new(FaultKind::Encoding, message));
                }
            };
        }
        (self.request)(input, &needed[..self.needs.len()])
    }
}

/// How a step is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UndoModel {
    /// Refused when the application starts.
    Forgotten,
    None,
    /// By a command that takes the step's answer.
    ByAnswer {
        contract: &'static str,
        method: &'static str,
    },
    /// By an effect that takes the step's key.
    ByKey {
        contract: &'static str,
        method: &'static str,
    },
}

/// A whole plan as data, with the saga's type erased.
#[derive(Clone)]
pub struct PlanModel {
    pub name: &'static str,
    pub version: u32,
    pub steps: Vec<StepModel>,
    pub pivot: usize,
    /// The step whose answer the caller gets.
    pub answer: usize,
    /// Equal exactly when the structure is: steps, edges, undos, pivot. The first 8 bytes of a SHA-256.
    pub fingerprint: i64,
    pub in_flight_max: usize,
    pub encode_input: fn(&dyn Any) -> Result<Vec<u8>, Fault>,
    pub decode_input: fn(&[u8]) -> Result<AnyBox, Fault>,
    /// The schema of its input, by which it is shown without what is secret.
    pub input_schema: fn() -> serde_json::Value,
}

impl PlanModel {
    /// Builds the plan of a saga.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with it.
    pub fn of<S: Saga>() -> Result<Self, Vec<PlanProblem>> {
        let mut plan = Plan::<S> { steps: Vec::new(), pivot: None, problems: Vec::new(), saga: PhantomData };
        let answer = S::plan(&mut plan).step;
        let mut problems = plan.problems;
        problems.extend(
            (plan.steps.iter().filter(|step| step.undo == UndoModel::Forgotten))
                .map(|step| PlanProblem::UndoForgotten { step: step.name }),
        );
        match plan.pivot {
            None => problems.push(PlanProblem::NoPivot),
            Some(pivot) if answer > pivot => {
                problems.push(PlanProblem::AnswerAfterPivot { step: plan.steps[answer].name });
            }
            Some(_) => {}
        }
        match plan.pivot {
            Some(pivot) if problems.is_empty() => Ok(Self {
                name: S::NAME,
                version: S::VERSION,
                fingerprint: fingerprint(&plan.steps, pivot, answer),
                steps: plan.steps,
                pivot,
                answer,
                in_flight_max: S::IN_FLIGHT_MAX,
                encode_input: encode_any::<S>,
                decode_input: decode_any::<S>,
                input_schema: || schemars::schema_for!(S).to_value(),
            }),
            _ => Err(problems),
        }
    }
}

fn fingerprint(steps: &[StepModel], pivot: usize, answer: usize) -> i64 {
    let steps: Vec<_> = (steps.iter())
        .map(|step| (step.name, step.contract, step.method, step.kind, &step.needs, step.undo))
        .collect();
    let bytes = serde_json::to_vec(&(steps, pivot, answer)).expect("names and numbers are JSON");
    let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
    i64::from_le_bytes(digest.as_ref()[..8].try_into().expect("a SHA-256 has 32 bytes"))
}

/// A step of a saga declined: which, and what it said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SagaRefused {
    pub step: String,
    pub refusal: RefusalRecord,
}

impl SagaRefused {
    /// The typed refusal of a method, if it was that method's.
    pub fn of<M: StepMethod>(&self, _method: M) -> Option<M::Refused> {
        self.refusal.typed()
    }
}

/// A saga's refusal reads like that of its step.
impl Refusal for SagaRefused {
    fn code(&self) -> &str {
        &self.refusal.code
    }
    fn text(&self) -> String {
        self.refusal.text.clone()
    }
    fn status(&self) -> u16 {
        self.refusal.status
    }
    fn record(&self) -> Result<RefusalRecord, Fault> {
        Ok(self.refusal.clone())
    }
}
