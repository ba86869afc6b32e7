//! The participant: answers what coordinators ask, from the inboxes of the modules on one database.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use modulith_core::{
    AnyBox, BoxFuture, CallFault, Codec, Context, Direction, EffectFn, EffectRan, Fault, Handler, NotRun,
    NotRunReason, Outcome, PlanModel, ProviderModel, Ran, Repeats, ServedMethod, StepKey, Unknown,
    UnknownReason, crash_point, encode,
};
use parking_lot::Mutex;
use uuid::Uuid;

use crate::inbox::{
    self, CommandEnd, EffectStart, Keyed, Known, LowWater, PRUNED_AT_ONCE, SealEnd, UndoEnd, body_hash,
};
use crate::saga::{Ask, Asked, Bytes, Modules, Run, RunEnd, SagaId, Told, run_steps};
use crate::session::{ModuleCode, Session};
use crate::world::{Urgency, World};

/// See the module's documentation.
pub struct Participant<W> {
    world: Arc<W>,
    modules: Modules,
    /// All plans of the application: a coordinator's run needs the plan, not the module that begins it.
    plans: BTreeMap<&'static str, Arc<PlanModel>>,
    /// The newest low-water mark of every coordinator that asked since the start.
    waters: Mutex<BTreeMap<Uuid, LowWater>>,
}

impl<W: World> Participant<W> {
    pub fn new(world: Arc<W>, modules: Modules, plans: BTreeMap<&'static str, Arc<PlanModel>>) -> Self {
        Self { world, modules, plans, waters: Mutex::default() }
    }

    pub fn world(&self) -> &Arc<W> {
        &self.world
    }

    pub fn modules(&self) -> &Modules {
        &self.modules
    }

    pub fn plans(&self) -> &BTreeMap<&'static str, Arc<PlanModel>> {
        &self.plans
    }

    /// Answers a coordinator. A repeat is answered from the inbox.
    ///
    /// # Errors
    ///
    /// *Not run* and *unknown*, as certain as they say.
    pub fn answer(&self, asked: Asked, context: Context) -> BoxFuture<'_, Result<Told, CallFault>> {
        Box::pin(self.answered(asked, context))
    }

    async fn answered(&self, asked: Asked, context: Context) -> Result<Told, CallFault> {
        let saga = asked.saga;
        self.note(saga.src, &asked.water);
        match asked.ask {
            Ask::Step { contract, method, step, request } => {
                self.step(saga, contract, method, step, request, context.deadline).await
            }
            Ask::Run { plan, version, fingerprint, first, last, input, answers } => {
                match self.plans.get(&*plan) {
                    Some(model)
                        if model.version == version
                            && model.fingerprint == fingerprint
                            && first <= last
                            && last <= model.steps.len() =>
                    {
                        self.run(saga, model.clone(), first..last, &input, answers, context.deadline).await
                    }
                    _ => Ok(Told::PlanUnknown),
                }
            }
            Ask::Effect { contract, method, step, request } => {
                self.effect(&contract, &method, saga.key(usize::from(step)), request, context).await
            }
            Ask::Seal { contract, step } => {
                let end = self.seal(&contract, saga.key(usize::from(step))).await?;
                Ok(match end {
                    SealEnd::Sealed => Told::Sealed { step: usize::from(step) },
                    SealEnd::Done(answer) => Told::Done(vec![Bytes(answer)]),
                    SealEnd::Refused(record) => Told::Refused { step: usize::from(step), record },
                    SealEnd::Started => Told::Started,
                    SealEnd::Expired => Told::Expired,
                })
            }
            Ask::Undo { contract, method, step, by_key: false } => {
                self.undo_by_answer(contract, method, saga.key(usize::from(step))).await
            }
            Ask::Undo { contract, method, step, by_key: true } => {
                self.undo_by_key(&contract, &method, saga.key(usize::from(step)), context).await
            }
            Ask::Look { contract, step } => {
                let module = self.modules.expect(&contract).map_err(NotRun::from)?.clone();
                let key = saga.key(usize::from(step));
                let look = move |session: &mut dyn Session| inbox::look(session, &module, &key);
                let urgency = Urgency::Ordinary { deadline: context.deadline };
                self.world.commit(urgency, look).await.map(Told::Rows)
            }
        }
    }

    async fn step(
        &self,
        saga: SagaId,
        contract: String,
        method: String,
        step: u16,
        request: Vec<u8>,
        deadline: Option<Instant>,
    ) -> Result<Told, CallFault> {
        let modules = self.modules.clone();
        let place = format!("{contract}.{method}");
        crash_point(|| format!("{place}:before"));
        let work = move |session: &mut dyn Session| {
            let module = modules.expect(&contract)?;
            let method = module.expect_method(&contract, &method)?;
            crash_point(|| format!("{}.{}:in-transaction", contract, method.name));
            let decoded = (method.codec.decode_request)(&request)?;
            let keyed = Keyed {
                key: saga.key(usize::from(step)),
                request: decoded.as_ref(),
                hash: body_hash(&request),
                known: Known::ToOthers,
                expires_at: None,
            };
            let step = usize::from(step);
            Ok(match inbox::command(session, module, method, &keyed)? {
                CommandEnd::Done { stored, .. } | CommandEnd::Stored(Outcome::Done(stored)) => {
                    Told::Done(vec![Bytes(stored)])
                }
                CommandEnd::Refused(_, record) | CommandEnd::Stored(Outcome::Refused(record)) => {
                    Told::Refused { step, record }
                }
                CommandEnd::Sealed => Told::Sealed { step },
                CommandEnd::Expired => Told::Expired,
                CommandEnd::KeyReused => return Err(key_reused(&contract, method.name, &keyed.key)),
            })
        };
        let told = self.world.commit(Urgency::Ordinary { deadline }, work).await;
        crash_point(|| format!("{place}:after"));
        told
    }

    async fn run(
        &self,
        saga: SagaId,
        plan: Arc<PlanModel>,
        steps: Range<usize>,
        input: &[u8],
        answers: Vec<Option<Bytes>>,
        deadline: Option<Instant>,
    ) -> Result<Told, CallFault> {
        let modules = self.modules.clone();
        let input = (plan.decode_input)(input).map_err(NotRun::from)?;
        let known = plan.steps.iter().zip(answers).map(|(step, answer)| match answer {
            Some(bytes) => (step.codec.decode_answer)(&bytes.0).map(Some),
            None => Ok(None),
        });
        let known: Vec<Option<AnyBox>> = known.collect::<Result<_, Fault>>().map_err(NotRun::from)?;
        let work = move |session: &mut dyn Session| {
            let earlier = |step: usize| known.get(step).and_then(Option::as_deref);
            let run = Run {
                plan: &plan,
                id: saga,
                steps: steps.clone(),
                input: input.as_ref(),
                earlier: &earlier,
                known: Known::ToOthers,
            };
            Ok(match run_steps(session, &modules, &run)? {
                RunEnd::Done(done) => Told::Done(done.into_iter().map(|step| Bytes(step.stored)).collect()),
                RunEnd::Refused { step, record } => Told::Refused { step, record },
                RunEnd::Sealed { step } => Told::Sealed { step },
                RunEnd::Expired => Told::Expired,
            })
        };
        self.world.commit(Urgency::Ordinary { deadline }, work).await
    }

    async fn seal(&self, contract: &str, key: StepKey) -> Result<SealEnd, CallFault> {
        let module = self.modules.expect(contract).map_err(NotRun::from)?.clone();
        self.world.commit(Urgency::Reserved, move |session| inbox::seal(session, &module, &key)).await
    }

    async fn undo_by_answer(
        &self,
        contract: String,
        method: String,
        key: StepKey,
    ) -> Result<Told, CallFault> {
        let module = self.modules.expect(&contract).map_err(NotRun::from)?.clone();
        let place = format!("{contract}.{method}");
        let work = move |session: &mut dyn Session| {
            let undo = module.expect_method(&contract, &method)?;
            crash_point(|| format!("{contract}.{method}:in-transaction"));
            inbox::undo_by_answer(session, &module, &key, undo)
        };
        let undone = self.world.commit(Urgency::Reserved, work).await;
        crash_point(|| format!("{place}:after"));
        Ok(match undone? {
            UndoEnd::Undone | UndoEnd::NothingDone => Told::Undone,
            UndoEnd::Started => Told::Started,
            UndoEnd::Expired => Told::Expired,
        })
    }

    /// By an effect of its own, which is given the step's key: a lost answer of a provider leaves only that.
    async fn undo_by_key(
        &self,
        contract: &str,
        method: &str,
        key: StepKey,
        context: Context,
    ) -> Result<Told, CallFault> {
        match self.seal(contract, key).await? {
            SealEnd::Sealed | SealEnd::Refused(_) => return Ok(Told::Undone),
            SealEnd::Started => return Ok(Told::Started),
            SealEnd::Expired => return Ok(Told::Expired),
            SealEnd::Done(_) => {}
        }
        let request = encode(&key).map_err(NotRun::from)?;
        match self.effect(contract, method, key.undo(), request, context).await? {
            Told::Done(_) => Ok(Told::Undone),
            Told::Expired => Ok(Told::Expired),
            _ => Err(NotRun::new(NotRunReason::Fault, format!("undo {contract}.{method} declined")).into()),
        }
    }

    /// One attempt at an effect under a key: the intent is committed, the attempt made, its outcome stored.
    async fn effect(
        &self,
        contract: &str,
        method: &str,
        key: StepKey,
        request: Vec<u8>,
        context: Context,
    ) -> Result<Told, CallFault> {
        let module = self.modules.expect(contract).map_err(NotRun::from)?.clone();
        let served = module.expect_method(contract, method).map_err(NotRun::from)?;
        let (codec, (run, provider)) = (served.codec, effect_of(served, contract)?);
        let start = {
            let (module, name) = (module.clone(), method.to_owned());
            let work = move |session: &mut dyn Session| {
                inbox::begin_effect(session, &module, &name, &key, &request, &provider)
            };
            let urgency = match key.direction {
                Direction::Do => Urgency::Ordinary { deadline: context.deadline },
                Direction::Undo => Urgency::Reserved,
            };
            self.world.commit(urgency, work).await?
        };
        let step = usize::from(key.step);
        let request = match start {
            EffectStart::Attempt { request } => request,
            EffectStart::Stored(outcome) => return Ok(told_outcome(step, outcome)),
            EffectStart::Sealed => return Ok(Told::Sealed { step }),
            EffectStart::Expired => return Ok(Told::Expired),
            EffectStart::KeyReused => return Err(NotRun::from(key_reused(contract, method, &key)).into()),
            EffectStart::LookUp { first_at } => {
                return self.look_up(module.clone(), contract, served, key, first_at, context).await;
            }
            EffectStart::LookUpLater => {
                let detail = format!("{contract}.{method} under {key} is looked up at its provider soon");
                return Err(Unknown::new(UnknownReason::Provider, detail).into());
            }
            EffectStart::Overdue => {
                let detail = format!(
                    "{contract}.{method} under {key} was attempted and its provider's window is over"
                );
                return Err(Unknown::new(UnknownReason::WindowOver, detail).into());
            }
        };
        let request = (codec.decode_request)(&request).map_err(NotRun::from)?;
        let context = Context { key: Some(key), repeats: Repeats::none(), ..context };
        crash_point(|| format!("{contract}.{method}:before"));
        let ran = self.world.attempt(run, context, request).await;
        crash_point(|| format!("{contract}.{method}:after"));
        let ran = match ran {
            EffectRan::Done(answer) => Ran::Done(answer),
            EffectRan::Refused(refusal) => Ran::Refused(refusal),
            EffectRan::Unknown(unknown) => return Err(unknown.into()),
            EffectRan::NotRun(not_run) => {
                let work = move |session: &mut dyn Session| inbox::forget_effect(session, &module, &key);
                self.world.commit(Urgency::Reserved, work).await?;
                return Err(not_run.into());
            }
        };
        self.store(module, codec, key, &ran).await
    }

    /// Stores what an effect came to, and tells what stands.
    async fn store(
        &self,
        module: Arc<ModuleCode>,
        codec: Codec,
        key: StepKey,
        ran: &Ran,
    ) -> Result<Told, CallFault> {
        let outcome =
            codec.outcome(ran).map_err(|fault| Unknown::new(UnknownReason::Unreadable, fault.message))?;
        let work = move |session: &mut dyn Session| inbox::end_effect(session, &module, &key, &outcome);
        match self.world.commit(Urgency::Reserved, work).await {
            Ok(stands) => Ok(told_outcome(usize::from(key.step), stands)),
            // The effect happened, so even a certain failure to store it leaves the attempt unknown.
            Err(fault) => Err(Unknown::new(UnknownReason::CommitLost, fault.to_string()).into()),
        }
    }

    /// Asks the provider what it has under a key that it no longer recognises.
    async fn look_up(
        &self,
        module: Arc<ModuleCode>,
        contract: &str,
        served: &ServedMethod,
        key: StepKey,
        first_at: i64,
        context: Context,
    ) -> Result<Told, CallFault> {
        let (asks, provider) = effect_of(served, contract)?;
        let look_up = provider.look_up.unwrap_or_default();
        let finder = module.expect_method(contract, look_up).map_err(NotRun::from)?;
        let (finds, _) = effect_of(finder, contract)?;
        let context = Context { key: Some(key), repeats: Repeats::none(), ..context };
        let found = match self.world.attempt(finds, context, Box::new(key)).await {
            EffectRan::Done(found) => asks.found(found),
            EffectRan::Refused(_) => return Err(unanswered(contract, look_up, "it declined").into()),
            // Nothing is known that was not known before.
            EffectRan::NotRun(not_run) => return Err(unanswered(contract, look_up, &not_run.detail).into()),
            EffectRan::Unknown(unknown) => return Err(unanswered(contract, look_up, &unknown.detail).into()),
        };
        match found.map_err(|fault| unanswered(contract, look_up, &fault.message))? {
            Some(ran) => self.store(module, served.codec, key, &ran).await,
            None => {
                let work = move |session: &mut dyn Session| {
                    inbox::forget_looked_up(session, &module, &key, first_at)
                };
                self.world.commit(Urgency::Reserved, work).await?;
                let detail = format!("the provider of {contract}.{} has nothing under {key}", served.name);
                Err(NotRun::new(NotRunReason::Unavailable, detail).into())
            }
        }
    }

    pub(crate) fn note(&self, src: Uuid, water: &LowWater) {
        if water.below > 0 {
            self.waters.lock().entry(src).or_default().raise(water);
        }
    }

    /// Deletes keys that can never be asked again: those whose retention is over, and those below the low-water
    /// marks that coordinators have told. A bounded number with each commit.
    ///
    /// # Errors
    ///
    /// Those of a commit. What was deleted before stays deleted.
    pub async fn prune(&self) -> Result<(), CallFault> {
        let waters: Vec<(Uuid, LowWater)> =
            self.waters.lock().iter().map(|(src, water)| (*src, water.clone())).collect();
        for module in self.modules.all() {
            let code = module.clone();
            self.prune_by(move |session| inbox::prune_expired(session, &code)).await?;
            for (src, water) in waters.clone() {
                let code = module.clone();
                self.prune_by(move |session| inbox::raise(session, &code, src, &water)).await?;
            }
        }
        // A mark that was told since is kept for the next time.
        self.waters.lock().retain(|src, water| !waters.iter().any(|told| told.0 == *src && told.1 == *water));
        Ok(())
    }

    async fn prune_by(
        &self,
        prune: impl Fn(&mut dyn Session) -> Result<u64, Fault> + Clone + Send + 'static,
    ) -> Result<(), CallFault> {
        loop {
            let prune = prune.clone();
            let urgency = Urgency::Ordinary { deadline: None };
            if self.world.commit(urgency, move |session| prune(session)).await? < PRUNED_AT_ONCE {
                return Ok(());
            }
        }
    }
}

fn told_outcome(step: usize, outcome: Outcome) -> Told {
    match outcome {
        Outcome::Done(answer) => Told::Done(vec![Bytes(answer)]),
        Outcome::Refused(record) => Told::Refused { step, record },
    }
}

/// The code of an effect and what is known of its provider, or *not run* with the name of what is none.
pub fn effect_of(
    served: &ServedMethod,
    contract: &str,
) -> Result<(Arc<dyn EffectFn>, ProviderModel), NotRun> {
    match &served.handler {
        Handler::Effect { run, provider } => Ok((run.clone(), *provider)),
        _ => Err(NotRun::new(
            NotRunReason::Incompatible,
            format!("{contract}.{} is no effect here", served.name),
        )),
    }
}

/// The effect stays as unknown as it was.
fn unanswered(contract: &str, look_up: &str, why: &str) -> Unknown {
    Unknown::new(UnknownReason::Provider, format!("{contract}.{look_up} found nothing out: {why}"))
}

/// A plan's request functions must be pure: the same input and answers gave other bytes than before.
fn key_reused(contract: &str, method: &str, key: &StepKey) -> Fault {
    Fault::new(
        modulith_core::FaultKind::Encoding,
        format!(
            "{contract}.{method} under {key} was asked something else before; requests of a plan are pure"
        ),
    )
}
