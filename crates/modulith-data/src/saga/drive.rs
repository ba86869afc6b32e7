//! Drives one saga: does what its [`Walk`] says, tells it what was heard, records what has to be recorded.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use modulith_core::{
    BoxFuture, CallFault, Context, Fault, NotRun, PlanModel, Protection, RefusalRecord, SagaEnd, SagaRefused,
    Snapshot, StepKind, Trace, UndoModel, Unknown, UnknownReason, crash_point,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::ask::{Ask, Asked, Bytes, Told};
use super::attention::{Attention, AttentionReason};
use super::local::{LocalRun, Recorded, RunHere, aborted, known, local_run};
use super::name::SagaName;
use super::operator::Orders;
use super::run::{RunEnd, SagaId, StepDone};
use super::sagas::{RETRY_AFTER, Sagas};
use super::table::{Begun, NewSaga};
use super::walk::{Heard, Next, Place, Walk};
use super::{Begin, Facts};
use crate::panic::caught;
use crate::session::Session;
use crate::world::{Urgency, World};

/// How long one attempt at a step may take.
const STEP_TIME_MAX: Duration = Duration::from_secs(5);
/// How long one attempt at an effect may take, with the way to it.
const EFFECT_STEP_TIME_MAX: Duration = Duration::from_secs(35);
const PAUSE_FIRST: Duration = Duration::from_millis(20);
/// Before the pivot a caller waits, so pauses stay short.
const PAUSE_MAX_BEFORE_PIVOT: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// After so many attempts in a row without a certain answer a saga is marked for attention. It goes on.
const ATTENTION_AFTER: u32 = 10;

/// What a saga's first commit and its steps are sent with: a walk has no deadline of its own.
const ORDINARY: Urgency = Urgency::Ordinary { deadline: None };

type Reply = oneshot::Sender<Result<SagaEnd, CallFault>>;

/// One walk while it is driven.
pub struct Drive<W> {
    pub(super) sagas: Arc<Sagas<W>>,
    pub(super) id: SagaId,
    pub(super) plan: Arc<PlanModel>,
    pub(super) facts: Facts,
    pub(super) walk: Walk,
    /// Still to be recorded.
    pub(super) begin: Option<Begin>,
    /// How the saga ends, as far as it is decided.
    pub(super) end: Option<SagaEnd>,
    pub(super) reply: Option<Reply>,
    /// It was begun by a process that has ended since.
    pub(super) resumed: bool,
    /// The trace of the request that began it, for as long as its process lives.
    pub(super) trace: Option<Trace>,
    /// What was last said instead of a certain answer.
    pub(super) fault: Option<CallFault>,
    pub(super) orders: Arc<Orders>,
    /// Its place among the sagas of its plan in flight. Held, not read.
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

impl<W> Drop for Drive<W> {
    fn drop(&mut self) {
        self.sagas.left(self.id, &self.orders);
    }
}

/// Why a walk stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// The end is on disk, or the saga was never begun.
    Over,
    /// The process ends. The next start goes on.
    Ending,
}

impl<W: World> Drive<W> {
    /// Walks to the end.
    pub fn run(mut self) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            if self.resumed && !self.count_walk().await {
                return;
            }
            if self.walked().await == Stop::Over {
                self.sagas.over(self.id);
            }
        })
    }

    /// Counts the walk before it begins, so that a saga which kills its process is seen to do so. False when
    /// nothing can be committed any more.
    async fn count_walk(&self) -> bool {
        loop {
            let (sagas, id) = (self.sagas.clone(), self.id);
            let work = move |session: &mut dyn Session| sagas.table.attempt(session, id);
            match self.world().commit(Urgency::Reserved, work).await {
                Ok(()) => return true,
                Err(_) if self.world().is_ending() => return false,
                Err(fault) => {
                    self.warn("cannot count a walk yet", &fault);
                    self.world().pause(RETRY_AFTER).await;
                }
            }
        }
    }

    async fn walked(&mut self) -> Stop {
        let mut marked = None;
        let mut unanswered = 0;
        let mut resolves = false;
        loop {
            // Again at every step, since a seal may find its step done, so that the one behind it is to be sealed. Only
            // an effect that may have happened is attempted first.
            if self.orders.abort.load(Ordering::Relaxed) && !resolves {
                self.walk.turn_back();
            }
            if self.orders.resume.swap(false, Ordering::Relaxed) {
                (marked, unanswered) = (None, 0);
            }
            let sagas = self.sagas.clone();
            let next = self.walk.next(&|contract| sagas.world().place(contract));
            self.stand(&next, unanswered);
            self.fault = None;
            let heard = match self.step(next.clone()).await {
                Step::Heard(heard) => heard,
                Step::Stop(stop) => return stop,
            };
            self.walk.heard(&heard);
            if self.walk.pivot_is_done() {
                self.answer_done();
            }
            resolves = heard == Heard::Started;
            match heard {
                Heard::Nothing => unanswered += 1,
                // Not an answer either: the effect is attempted again, so an unknown one is counted on here, where
                // the walk's own tries begin anew.
                Heard::Started => {}
                _ => unanswered = 0,
            }
            if heard == Heard::Nothing {
                self.stand(&next, unanswered);
                if self.world().is_ending() {
                    return Stop::Ending;
                }
                if self.resumed {
                    self.resumed = false;
                    self.record_survived().await;
                }
                if let Some(reason) = self.needs_person(unanswered).filter(|reason| marked != Some(*reason))
                    && self.mark_unanswered(reason, unanswered).await
                {
                    marked = Some(reason);
                }
                self.pause(unanswered).await;
                if self.world().is_ending() {
                    return Stop::Ending;
                }
            }
        }
    }

    fn name(&self) -> SagaName {
        SagaName::of(self.sagas.module, self.id)
    }

    fn world(&self) -> &Arc<W> {
        self.sagas.world()
    }

    async fn record_survived(&self) {
        let (sagas, id) = (self.sagas.clone(), self.id);
        let work = move |session: &mut dyn Session| sagas.table.survived(session, id);
        if let Err(fault) = self.world().commit(Urgency::Reserved, work).await {
            self.warn("cannot reset the count of walks", &fault);
        }
    }

    /// Lets operators see where the walk stands.
    fn stand(&self, next: &Next, unanswered: u32) {
        let mut standing = self.orders.standing.lock();
        standing.next = Some(next.clone());
        standing.pivot_is_done = self.walk.pivot_is_done();
        standing.unanswered = unanswered;
        standing.fault = self.fault.as_ref().filter(|_| unanswered > 0).map(ToString::to_string);
    }

    fn needs_person(&self, unanswered: u32) -> Option<AttentionReason> {
        match &self.fault {
            Some(CallFault::Unknown(unknown)) if unknown.reason == UnknownReason::WindowOver => {
                Some(AttentionReason::WindowOver)
            }
            _ => (unanswered >= ATTENTION_AFTER).then_some(AttentionReason::NoAnswer),
        }
    }

    /// Whether it stands; what found no room is tried again later.
    async fn mark_unanswered(&self, reason: AttentionReason, unanswered: u32) -> bool {
        let sagas = self.sagas.clone();
        let doing = self.walk.next(&|contract| sagas.world().place(contract));
        let place = place_name(&self.plan, &doing);
        let fault = self.fault.as_ref().map(|fault| format!(": {fault}")).unwrap_or_default();
        self.mark(reason, format!("`{place}` has had no certain answer {unanswered} times{fault}")).await
    }

    async fn mark(&self, reason: AttentionReason, detail: String) -> bool {
        let marked = self.sagas.mark(self.id, Attention::new(reason, detail)).await;
        marked.inspect_err(|fault| self.warn("cannot mark for attention", fault)).is_ok()
    }

    fn warn(&self, what: &str, fault: &CallFault) {
        tracing::warn!(saga = %self.name(), plan = self.plan.name, "{what}: {fault}");
    }

    async fn pause(&self, unanswered: u32) {
        let waits = self.reply.as_ref().is_some_and(|reply| !reply.is_closed());
        let max = if waits { PAUSE_MAX_BEFORE_PIVOT } else { PAUSE_MAX };
        let time = PAUSE_FIRST.saturating_mul(1 << unanswered.min(10)).min(max);
        tokio::select! {
            // In this order, so that a simulation repeats.
            biased;
            () = self.orders.wake.notified() => {}
            () = self.world().pause(time) => {}
        }
    }

    async fn step(&mut self, next: Next) -> Step {
        // The saga's row comes before any remote step or effect; before a run here, it goes with it.
        if self.begin.is_some()
            && !matches!(next, Next::Run { place: Place::Here, .. })
            && (Protection::BeginFirst.is_on() || matches!(next, Next::Turn { .. } | Next::End { .. }))
            && let Err(stop) = self.record_begin().await
        {
            return Step::Stop(stop);
        }
        let (plan, here) = (self.plan.clone(), next.clone());
        let crash_at =
            |when: &str| crash_point(|| format!("{}:{}:{when}", plan.name, place_name(&plan, &here)));
        crash_at("before");
        let heard = match next {
            Next::Over => return Step::Stop(Stop::Over),
            Next::Run { steps, place: Place::Here } => match self.run_here(steps).await {
                Some(heard) => heard,
                None => return Step::Stop(Stop::Over),
            },
            Next::Run { steps, place: Place::Peer(peer) } => self.run_there(steps, peer).await,
            Next::Effect { step, place } => self.ask_step(step, place, EFFECT_STEP_TIME_MAX).await,
            Next::Seal { step, place } => self.seal(step, place).await,
            Next::Turn { frontier } => self.turn(frontier).await,
            Next::Undo { step, place } => self.undo(step, place).await,
            Next::End { done } => self.record_end(done).await,
        };
        crash_at("after");
        Step::Heard(heard)
    }

    /// Records the begin alone; or says why there is nothing to walk.
    async fn record_begin(&mut self) -> Result<(), Stop> {
        let Some(begin) = self.begin.clone() else {
            return Ok(());
        };
        let (sagas, plan, id) = (self.sagas.clone(), self.plan.clone(), self.id);
        let work = move |session: &mut dyn Session| {
            let new = NewSaga { id, plan: &plan, input: &begin.input, key: begin.key.as_ref() };
            sagas.table.begin(session, &new)
        };
        let begun = self.world().commit(ORDINARY, work).await;
        match begun {
            Ok(Begun::New) => {
                self.begin = None;
                Ok(())
            }
            Ok(Begun::Before(stored)) => {
                self.reply(stored.into_end().map_err(CallFault::from));
                Err(Stop::Over)
            }
            Err(fault) => {
                // Whether the row is there is known after the next start only; until then its number stays open, or
                // the low-water mark would pass a saga that is on disk.
                let stop = if matches!(fault, CallFault::NotRun(_)) { Stop::Over } else { Stop::Ending };
                self.reply(Err(fault));
                Err(stop)
            }
        }
    }

    /// A run on the coordinator's own database, with everything that can be recorded beside it. `None` when the
    /// saga was never begun.
    async fn run_here(&mut self, steps: Range<usize>) -> Option<Heard> {
        let begin = self.begin.clone();
        let work = {
            let (sagas, plan, facts, id) =
                (self.sagas.clone(), self.plan.clone(), self.facts.clone(), self.id);
            let steps = steps.clone();
            move |session: &mut dyn Session| {
                let run = RunHere {
                    table: &sagas.table,
                    modules: sagas.participant.modules(),
                    plan: &plan,
                    facts: &facts,
                    id,
                    steps: steps.clone(),
                    begin: begin.as_ref(),
                };
                local_run(session, run)
            }
        };
        let urgency = if self.begin.is_some() { ORDINARY } else { Urgency::Reserved };
        let ran = self.world().commit(urgency, work).await;
        let (end, recorded) = match ran {
            Ok(LocalRun::Ran { end, recorded }) => (end, recorded),
            Ok(LocalRun::Before(stored)) => {
                self.reply(stored.into_end().map_err(CallFault::from));
                return None;
            }
            // Begin and run were one transaction, so certainly nothing of the saga exists.
            Err(fault @ CallFault::NotRun(_)) if self.begin.is_some() => {
                let earlier = self.earlier().await;
                self.reply(earlier.unwrap_or(Err(fault)));
                return None;
            }
            Err(fault) => {
                return Some(self.nothing(steps.start, &fault));
            }
        };
        self.begin = None;
        let heard = match end {
            RunEnd::Done(done) => {
                for (step, done) in steps.clone().zip(done) {
                    self.facts.answers[step] = Some(Arc::new(done));
                }
                Heard::Done(steps)
            }
            RunEnd::Refused { step, record } => {
                self.end = Some(self.refused(step, record));
                Heard::Refused(step)
            }
            RunEnd::Sealed { step } => {
                self.end = Some(aborted(&self.plan, step));
                Heard::Sealed(step)
            }
            RunEnd::Expired => self.expired().await,
        };
        match recorded {
            Recorded::Begun | Recorded::Nothing => Some(heard),
            Recorded::Turned => {
                self.walk.heard(&heard);
                self.reply_end();
                Some(Heard::Turned)
            }
            Recorded::Ended => {
                self.walk.heard(&heard);
                if self.walk.pivot_is_done() {
                    self.answer_done();
                }
                self.reply_end();
                Some(Heard::Ended)
            }
        }
    }

    /// What stands under the client's key, if another saga was first.
    async fn earlier(&self) -> Option<Result<SagaEnd, CallFault>> {
        let key = self.begin.as_ref()?.key?;
        let sagas = self.sagas.clone();
        let look = move |session: &mut dyn Session| {
            let now_ms = session.now_ms();
            sagas.table.find(&Snapshot::new(session.statements(), now_ms), &key)
        };
        let found = self.world().commit(Urgency::Reserved, look).await.ok()??;
        Some(found.into_end().map_err(CallFault::from))
    }

    async fn run_there(&mut self, steps: Range<usize>, peer: usize) -> Heard {
        let step = steps.start;
        if steps.len() > 1 {
            let ask = match self.run_ask(&steps) {
                Ok(ask) => ask,
                Err(fault) => return self.nothing(step, &NotRun::from(fault).into()),
            };
            match self.ask_at(Place::Peer(peer), ask, STEP_TIME_MAX, ORDINARY).await {
                Ok(Told::PlanUnknown) => {}
                told => return self.told(steps, told).await,
            }
        }
        // One step; or a peer of another version, which is given one step at a time.
        self.ask_step(step, Place::Peer(peer), STEP_TIME_MAX).await
    }

    fn run_ask(&self, steps: &Range<usize>) -> Result<Ask, Fault> {
        let answers = self.facts.answers[..steps.start].iter();
        Ok(Ask::Run {
            plan: self.plan.name.to_owned(),
            version: self.plan.version,
            fingerprint: self.plan.fingerprint,
            first: steps.start,
            last: steps.end,
            input: caught(|| (self.plan.encode_input)(self.facts.input.as_ref().as_ref()))?,
            answers: answers
                .map(|answer| answer.as_ref().map(|answer| Bytes(answer.stored.clone())))
                .collect(),
        })
    }

    /// Asks for one step, alone.
    async fn ask_step(&mut self, step: usize, place: Place, time: Duration) -> Heard {
        let told = match self.step_ask(step) {
            Ok(ask) => self.ask_at(place, ask, time, ORDINARY).await,
            Err(fault) => Err(NotRun::from(fault).into()),
        };
        self.told(step..step + 1, told).await
    }

    fn step_ask(&self, step: usize) -> Result<Ask, Fault> {
        let model = &self.plan.steps[step];
        let input = self.facts.input.as_ref().as_ref();
        let request = caught(|| {
            let request = model.request(input, |step| known(&self.facts, step))?;
            (model.codec.encode_request)(request.as_ref())
        })?;
        let (contract, method) = (model.contract.to_owned(), model.method.to_owned());
        let step = self.id.key(step).step;
        Ok(match model.kind {
            StepKind::Command => Ask::Step { contract, method, step, request },
            StepKind::Effect => Ask::Effect { contract, method, step, request },
        })
    }

    async fn told(&mut self, steps: Range<usize>, told: Result<Told, CallFault>) -> Heard {
        let step = steps.start;
        match told {
            Ok(Told::Done(answers)) if answers.len() == steps.len() => {
                self.keep(steps, answers.into_iter().map(|bytes| bytes.0).collect())
            }
            Ok(Told::Refused { step, record }) if steps.contains(&step) => {
                self.end = Some(self.refused(step, record));
                Heard::Refused(step)
            }
            Ok(Told::Sealed { step }) if steps.contains(&step) => {
                self.end = Some(aborted(&self.plan, step));
                Heard::Sealed(step)
            }
            Ok(Told::Expired) => self.expired().await,
            Ok(_) => self
                .nothing(step, &Unknown::new(UnknownReason::Unreadable, "an answer of another kind").into()),
            Err(fault) => self.nothing(step, &fault),
        }
    }

    /// The saga is below its coordinator's own mark. Either another coordinator has ended it meanwhile, which the
    /// table says, or it came back with a backup and is a matter for a person.
    async fn expired(&mut self) -> Heard {
        let (sagas, id) = (self.sagas.clone(), self.id);
        let look = move |session: &mut dyn Session| {
            let now_ms = session.now_ms();
            sagas.table.ended(&Snapshot::new(session.statements(), now_ms), id)
        };
        match self.world().commit(Urgency::Reserved, look).await {
            Ok(Some(end)) => {
                self.reply(Ok(end));
                Heard::Ended
            }
            Ok(None) => {
                let detail =
                    "a participant holds this saga for ended, and has forgotten its steps".to_owned();
                self.mark(AttentionReason::HeldForEnded, detail).await;
                Heard::Nothing
            }
            Err(fault) => self.nothing(self.walk.frontier().min(self.plan.steps.len() - 1), &fault),
        }
    }

    fn keep(&mut self, steps: Range<usize>, answers: Vec<Vec<u8>>) -> Heard {
        for (step, stored) in steps.clone().zip(answers) {
            match caught(|| (self.plan.steps[step].codec.decode_answer)(&stored)) {
                Ok(answer) => self.facts.answers[step] = Some(Arc::new(StepDone { answer, stored })),
                Err(fault) => {
                    return self
                        .nothing(step, &Unknown::new(UnknownReason::Unreadable, fault.message).into());
                }
            }
        }
        Heard::Done(steps)
    }

    fn nothing(&mut self, step: usize, fault: &CallFault) -> Heard {
        let step = self.plan.steps[step].name;
        tracing::warn!(saga = %self.name(), plan = self.plan.name, step, "no certain answer: {fault}");
        self.fault = Some(fault.clone());
        Heard::Nothing
    }

    async fn seal(&mut self, step: usize, place: Place) -> Heard {
        let contract = self.plan.steps[step].contract.to_owned();
        let ask = Ask::Seal { contract, step: self.id.key(step).step };
        match self.ask_at(place, ask, STEP_TIME_MAX, Urgency::Reserved).await {
            Ok(Told::Started) => Heard::Started,
            told => self.told(step..step + 1, told).await,
        }
    }

    async fn turn(&mut self, frontier: usize) -> Heard {
        let end = self.end.clone().unwrap_or_else(|| aborted(&self.plan, frontier));
        let (sagas, id, recorded) = (self.sagas.clone(), self.id, end.clone());
        let work = move |session: &mut dyn Session| sagas.table.turn(session, id, frontier, &recorded);
        match self.world().commit(Urgency::Reserved, work).await {
            Ok(()) => {
                self.end = Some(end);
                self.reply_end();
                Heard::Turned
            }
            Err(fault) => self.nothing(frontier, &fault),
        }
    }

    async fn undo(&mut self, step: usize, place: Place) -> Heard {
        let (contract, method, by_key) = match self.plan.steps[step].undo {
            UndoModel::ByAnswer { contract, method } => (contract, method, false),
            UndoModel::ByKey { contract, method } => (contract, method, true),
            UndoModel::None | UndoModel::Forgotten => return Heard::Undone,
        };
        let key = self.id.key(step).step;
        let ask = Ask::Undo { contract: contract.to_owned(), method: method.to_owned(), step: key, by_key };
        let time = if by_key { EFFECT_STEP_TIME_MAX } else { STEP_TIME_MAX };
        match self.ask_at(place, ask, time, Urgency::Reserved).await {
            Ok(Told::Undone) => Heard::Undone,
            Ok(Told::Expired) => self.expired().await,
            Ok(_) => self
                .nothing(step, &Unknown::new(UnknownReason::Unreadable, "an answer of another kind").into()),
            Err(fault) => self.nothing(step, &fault),
        }
    }

    async fn record_end(&mut self, done: bool) -> Heard {
        let end = match (&self.end, done) {
            (_, true) => match self.done_end() {
                Some(end) => end,
                None => return Heard::Nothing,
            },
            (Some(end), false) => end.clone(),
            (None, false) => aborted(&self.plan, self.walk.frontier().min(self.plan.steps.len() - 1)),
        };
        let (sagas, id) = (self.sagas.clone(), self.id);
        let work = move |session: &mut dyn Session| sagas.table.end(session, id, &end);
        match self.world().commit(Urgency::Reserved, work).await {
            Ok(()) => Heard::Ended,
            Err(fault) => self.nothing(self.plan.pivot, &fault),
        }
    }

    async fn ask_at(
        &self,
        place: Place,
        ask: Ask,
        time: Duration,
        urgency: Urgency,
    ) -> Result<Told, CallFault> {
        let request_id = format!("saga-{}-{:x}", self.sagas.module, self.id.seq);
        let context = Context { trace: self.trace.clone(), ..Context::background(request_id) };
        let asked = Asked { saga: self.id, ask, water: self.sagas.water_for(self.id) };
        match place {
            Place::Here => self.sagas.participant.answer(asked, context).await,
            Place::Peer(peer) => self.world().ask(peer, asked, context, time, urgency).await,
        }
    }

    fn refused(&self, step: usize, record: RefusalRecord) -> SagaEnd {
        SagaEnd::Refused(SagaRefused { step: self.plan.steps[step].name.to_owned(), refusal: record })
    }

    fn done_end(&self) -> Option<SagaEnd> {
        let answer = self.facts.answers[self.plan.answer].as_ref()?;
        Some(SagaEnd::Done(answer.stored.clone()))
    }

    fn answer_done(&mut self) {
        if self.reply.is_some()
            && let Some(end) = self.done_end()
        {
            self.reply(Ok(end));
        }
    }

    fn reply_end(&mut self) {
        if let Some(end) = self.end.clone() {
            self.reply(Ok(end));
        }
    }

    fn reply(&mut self, end: Result<SagaEnd, CallFault>) {
        if let Some(reply) = self.reply.take() {
            // A client that hung up changes nothing.
            let _ = reply.send(end);
        }
    }
}

/// Whether a walk goes on.
enum Step {
    Heard(Heard),
    Stop(Stop),
}

/// How a place in a plan is called by [`crash_point`].
fn place_name(plan: &PlanModel, next: &Next) -> String {
    match next {
        Next::Run { steps, .. } => plan.steps[steps.start].name.to_owned(),
        Next::Effect { step, .. } => plan.steps[*step].name.to_owned(),
        Next::Seal { step, .. } => format!("seal-{}", plan.steps[*step].name),
        Next::Undo { step, .. } => format!("undo-{}", plan.steps[*step].name),
        Next::Turn { .. } => "turn".to_owned(),
        Next::End { .. } | Next::Over => "end".to_owned(),
    }
}
