//! The modules that one process hosts, on their one database: what a local client, a remote caller and a saga
//! all end up calling.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use modulith_core::{
    AnyBox, BoxFuture, CallFault, ClientKey, Context, Direction, Done, EffectFn, EffectRan, Fault, Handler,
    LocalCalls, NotRun, NotRunReason, Origin, Outcome, PlanModel, Ran, ServedMethod, StepKey, Unknown,
    UnknownReason, crash_point, encode,
};
use modulith_data::inbox::{
    self, BodyHash, CommandEnd, EffectStart, Keyed, PRUNED_AT_ONCE, SealEnd, UndoEnd, body_hash,
};
use modulith_data::saga::{Modules, Run, RunEnd, SagaId, run_steps};
use modulith_data::sqlite::Database;
use modulith_data::{ModuleCode, Session};
use uuid::Uuid;

use crate::wire::{Ask, Bytes, Told};

/// How long a client's own key is kept at a command outside of a saga: 24 hours.
pub const CLIENT_KEYS_KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// How long an automatic key is kept: 10 minutes. Its caller repeats it within one deadline only, and no
/// deadline is longer than a minute.
pub const AUTOMATIC_KEYS_KEPT_MS: i64 = 10 * 60 * 1000;
/// How long an attempt at an effect may take: 30 seconds. After it the outcome is unknown.
pub const EFFECT_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a provider is trusted to recognise an idempotency key: 24 hours, as Stripe documents for its own.
pub const EFFECT_WINDOW_MS: i64 = 24 * 60 * 60 * 1000;

/// Numbers the automatic keys of this process.
pub(crate) struct ProcessKeys {
    incarnation: Uuid,
    next: AtomicI64,
}

impl ProcessKeys {
    pub(crate) fn new() -> Self {
        Self { incarnation: Uuid::now_v7(), next: AtomicI64::new(0) }
    }

    pub(crate) fn incarnation(&self) -> Uuid {
        self.incarnation
    }

    pub(crate) fn next(&self) -> StepKey {
        StepKey {
            origin: Origin::Process,
            src: self.incarnation,
            seq: self.next.fetch_add(1, Ordering::Relaxed),
            step: 0,
            direction: Direction::Do,
        }
    }
}

/// A client's key for one method: the same name at two methods is two keys.
pub(crate) fn client_step_key(key: &ClientKey, contract: &str, method: &str) -> StepKey {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in [&key.name[..], contract.as_bytes(), b".", method.as_bytes()] {
        context.update(part);
    }
    let digest = context.finish();
    let src = Uuid::from_slice(&digest.as_ref()[..16]).expect("a SHA-256 has 32 bytes");
    StepKey { origin: Origin::Client, src, seq: 0, step: 0, direction: Direction::Do }
}

/// A command of another process, with its key.
struct KeyedCall {
    contract: String,
    method: String,
    key: StepKey,
    hash: BodyHash,
    /// How long the key is kept; a saga's step has no such time.
    expires_ms: Option<i64>,
    request: Vec<u8>,
}

/// See the module's documentation.
pub(crate) struct Hosted {
    pub(crate) database: Arc<Database>,
    pub(crate) modules: Modules,
    /// All plans of the application: a peer's run needs the plan, not the module that begins it.
    pub(crate) plans: BTreeMap<&'static str, Arc<PlanModel>>,
    pub(crate) keys: Arc<ProcessKeys>,
}

impl Hosted {
    /// The link of a local client to one contract.
    pub(crate) fn link(self: &Arc<Self>, contract: &str) -> Option<LocalLink> {
        let module = self.modules.of(contract)?.clone();
        let contract = module.contracts.iter().position(|served| served.contract.name == contract)?;
        Some(LocalLink { hosted: self.clone(), module, contract })
    }

    /// Answers what another process asks. `deadline` is the caller's.
    pub(crate) fn query(&self, contract: &str, method: &str, request: &[u8]) -> Told {
        let run = || -> Result<Outcome, NotRun> {
            let module = self.modules.expect(contract)?;
            let Handler::Query { run, .. } = &module.expect_method(contract, method)?.handler else {
                return Err(not_a(contract, method, "query"));
            };
            unpanicked(|| self.database.read(&module.name, |db| run.run_encoded(db, request)))?
                .map_err(NotRun::from)
        };
        run().map_or_else(Told::NotRun, Told::Outcome)
    }

    pub(crate) fn is_heavy(&self, contract: &str, method: &str) -> bool {
        let method = self.modules.of(contract).and_then(|module| module.method(contract, method));
        method.is_some_and(|method| matches!(method.handler, Handler::Query { heavy: true, .. }))
    }

    /// Everything but queries.
    pub(crate) async fn answer(self: Arc<Self>, ask: Ask, context: Context) -> Told {
        let told = match ask {
            Ask::Query { contract, method, request } => {
                let work = move || self.query(&contract, &method, &request);
                return tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
                    Told::NotRun(NotRun::new(NotRunReason::Panicked, error.to_string()))
                });
            }
            Ask::Command { contract, method, key, hash, expires_ms, request } => {
                let call = KeyedCall { contract, method, key, hash, expires_ms: Some(expires_ms), request };
                self.command(context.deadline, call).await
            }
            Ask::Step { contract, method, key, request } => {
                let hash = body_hash(&request);
                let call = KeyedCall { contract, method, key, hash, expires_ms: None, request };
                self.command(context.deadline, call).await
            }
            Ask::Run { plan, version, fingerprint, id, first, last, input, answers } => {
                match self.plans.get(&*plan) {
                    Some(model) if model.version == version && model.fingerprint == fingerprint => {
                        self.run(context.deadline, model.clone(), id, first..last, &input, answers).await
                    }
                    _ => Ok(Told::PlanUnknown),
                }
            }
            Ask::Call { contract, method, request } => {
                Ok(self.call_effect(contract, method, request, context).await)
            }
            Ask::Effect { contract, method, key, request } => {
                self.effect(&contract, &method, key, request, context).await
            }
            Ask::Seal { contract, key } => self.seal(&contract, key).await.map(Told::Seal),
            Ask::Undo { contract, method, key, by_key } => {
                self.undo(&contract, &method, key, by_key, context).await.map(Told::Undo)
            }
        };
        told.unwrap_or_else(|fault| match fault {
            CallFault::NotRun(not_run) => Told::NotRun(not_run),
            CallFault::Unknown(unknown) => Told::Unknown(unknown),
        })
    }

    async fn command(&self, deadline: Option<Instant>, call: KeyedCall) -> Result<Told, CallFault> {
        let modules = self.modules.clone();
        let KeyedCall { contract, method, key, hash, expires_ms, request } = call;
        let place = format!("{contract}.{method}");
        crash_point(|| format!("{place}:before"));
        let told = self
            .database
            .write(deadline, move |session| {
                let module = modules.expect(&contract)?;
                let method = module.expect_method(&contract, &method)?;
                crash_point(|| format!("{}.{}:in-transaction", contract, method.name));
                let request = (method.codec.decode_request)(&request)?;
                let expires_at = expires_ms.map(|ms| session.now_ms() + ms);
                let keyed = Keyed { key, request: request.as_ref(), hash, fresh: false, expires_at };
                Ok(match inbox::command(session, module, method, &keyed)? {
                    CommandEnd::Done { stored, .. } => Told::Outcome(Outcome::Done(stored)),
                    CommandEnd::Refused(_, record) => Told::Outcome(Outcome::Refused(record)),
                    CommandEnd::Stored(outcome) => Told::Outcome(outcome),
                    CommandEnd::Sealed => Told::Sealed { step: usize::from(key.step) },
                    CommandEnd::KeyReused => Told::NotRun(key_reused()),
                })
            })
            .await;
        crash_point(|| format!("{place}:after"));
        told
    }

    async fn run(
        &self,
        deadline: Option<Instant>,
        plan: Arc<PlanModel>,
        id: SagaId,
        steps: std::ops::Range<usize>,
        input: &[u8],
        answers: Vec<Option<Bytes>>,
    ) -> Result<Told, CallFault> {
        let modules = self.modules.clone();
        let input = (plan.decode_input)(input).map_err(NotRun::from)?;
        let known = plan.steps.iter().zip(answers).map(|(step, answer)| match answer {
            Some(bytes) => (step.codec.decode_answer)(&bytes.0).map(Some),
            None => Ok(None),
        });
        let known: Vec<Option<AnyBox>> = known.collect::<Result<_, Fault>>().map_err(NotRun::from)?;
        self.database
            .write(deadline, move |session| {
                let known = |step: usize| known.get(step).and_then(Option::as_deref);
                let input = input.as_ref();
                let run = Run { plan: &plan, id, steps: steps.clone(), input, known: &known, fresh: false };
                Ok(match run_steps(session, &modules, &run)? {
                    RunEnd::Done(done) => {
                        Told::Steps(done.into_iter().map(|step| Bytes(step.stored)).collect())
                    }
                    RunEnd::Refused { step, record } => Told::Refused { step, record },
                    RunEnd::Sealed { step } => Told::Sealed { step },
                })
            })
            .await
    }

    pub(crate) async fn seal(&self, contract: &str, key: StepKey) -> Result<SealEnd, CallFault> {
        let module = self.modules.expect(contract).map_err(NotRun::from)?.clone();
        self.database.write_reserved(move |session| inbox::seal(session, &module, &key)).await
    }

    pub(crate) async fn undo(
        self: &Arc<Self>,
        contract: &str,
        method: &str,
        key: StepKey,
        by_key: bool,
        context: Context,
    ) -> Result<UndoEnd, CallFault> {
        if !by_key {
            let module = self.modules.expect(contract).map_err(NotRun::from)?.clone();
            let (contract, method) = (contract.to_owned(), method.to_owned());
            let place = format!("{contract}.{method}");
            let undone = self
                .database
                .write_reserved(move |session| {
                    let undo = module.expect_method(&contract, &method)?;
                    crash_point(|| format!("{contract}.{method}:in-transaction"));
                    inbox::undo_by_answer(session, &module, &key, undo)
                })
                .await;
            crash_point(|| format!("{place}:after"));
            return undone;
        }
        match self.seal(contract, key).await? {
            SealEnd::Sealed | SealEnd::Refused(_) => return Ok(UndoEnd::NothingDone),
            SealEnd::Started => return Ok(UndoEnd::Started),
            SealEnd::Done => {}
        }
        let request = encode(&key).map_err(NotRun::from)?;
        match self.effect(contract, method, key.undo(), request, context).await? {
            Told::Outcome(Outcome::Done(_)) => Ok(UndoEnd::Undone),
            Told::NotRun(not_run) => Err(not_run.into()),
            Told::Unknown(unknown) => Err(unknown.into()),
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
        let (codec, run) = (served.codec, effect_fn(served, contract)?);
        let start = {
            let (module, name) = (module.clone(), method.to_owned());
            let work =
                move |session: &mut dyn Session| inbox::begin_effect(session, &module, &name, &key, &request);
            self.database.write(context.deadline, work).await?
        };
        let request = match start {
            EffectStart::Stored(outcome) => return Ok(Told::Outcome(outcome)),
            EffectStart::Sealed => {
                return Ok(Told::Sealed { step: usize::from(key.step) });
            }
            EffectStart::KeyReused => return Ok(Told::NotRun(key_reused())),
            EffectStart::Attempt { attempts, first_at, .. }
                if attempts > 1 && now_ms() - first_at > EFFECT_WINDOW_MS =>
            {
                let detail = format!(
                    "{contract}.{method} under {key} was attempted and its provider's window is over"
                );
                return Ok(Told::Unknown(Unknown::new(UnknownReason::Provider, detail)));
            }
            EffectStart::Attempt { request, .. } => request,
        };
        let request = (codec.decode_request)(&request).map_err(NotRun::from)?;
        let context = Context { key: Some(key), ..context };
        crash_point(|| format!("{contract}.{method}:before"));
        let ran = attempt(run, context, request).await;
        crash_point(|| format!("{contract}.{method}:after"));
        let ran = match ran {
            EffectRan::Done(answer) => Ran::Done(answer),
            EffectRan::Refused(refusal) => Ran::Refused(refusal),
            EffectRan::Unknown(unknown) => return Ok(Told::Unknown(unknown)),
            EffectRan::NotRun(not_run) => {
                self.database
                    .write_reserved(move |session| inbox::forget_effect(session, &module, &key))
                    .await?;
                return Ok(Told::NotRun(not_run));
            }
        };
        let outcome =
            codec.outcome(&ran).map_err(|fault| Unknown::new(UnknownReason::Unreadable, fault.message))?;
        self.database
            .write_reserved(move |session| inbox::end_effect(session, &module, &key, &outcome))
            .await
            .map(Told::Outcome)
            // The effect happened, so even a certain failure to store it leaves the attempt unknown.
            .map_err(|fault| Unknown::new(UnknownReason::CommitLost, fault.to_string()).into())
    }

    /// An effect that is called outside of a saga: one attempt under an automatic key.
    async fn call_effect(
        &self,
        contract: String,
        method: String,
        request: Vec<u8>,
        context: Context,
    ) -> Told {
        let run = || -> Result<_, NotRun> {
            let served = self.modules.expect(&contract)?.expect_method(&contract, &method)?;
            let request = (served.codec.decode_request)(&request)?;
            Ok((served.codec, effect_fn(served, &contract)?, request))
        };
        let (codec, run, request) = match run() {
            Ok(found) => found,
            Err(not_run) => return Told::NotRun(not_run),
        };
        let context = Context { key: Some(self.keys.next()), ..context };
        let ran = match attempt(run, context, request).await {
            EffectRan::Done(answer) => Ran::Done(answer),
            EffectRan::Refused(refusal) => Ran::Refused(refusal),
            EffectRan::NotRun(not_run) => return Told::NotRun(not_run),
            EffectRan::Unknown(unknown) => return Told::Unknown(unknown),
        };
        match codec.outcome(&ran) {
            Ok(outcome) => Told::Outcome(outcome),
            Err(fault) => Told::Unknown(Unknown::new(UnknownReason::Unreadable, fault.message)),
        }
    }

    /// Deletes keys whose retention is over, a bounded number with each commit.
    pub(crate) async fn prune_keys(&self) -> Result<(), CallFault> {
        for module in self.modules.all() {
            let mut pruned = PRUNED_AT_ONCE;
            while pruned == PRUNED_AT_ONCE {
                let module = module.clone();
                let work = move |session: &mut dyn Session| inbox::prune_expired(session, &module);
                pruned = self.database.write(None, work).await?;
            }
        }
        Ok(())
    }
}

fn effect_fn(served: &ServedMethod, contract: &str) -> Result<Arc<dyn EffectFn>, NotRun> {
    match &served.handler {
        Handler::Effect { run, .. } => Ok(run.clone()),
        _ => Err(not_a(contract, served.name, "effect")),
    }
}

async fn attempt(run: Arc<dyn EffectFn>, context: Context, request: AnyBox) -> EffectRan {
    // On a task of its own: a panic of the module's code leaves the outcome unknown, not the process down, and a
    // caller that leaves does not cut an attempt short.
    let task =
        tokio::spawn(async move { tokio::time::timeout(EFFECT_TIME_MAX, run.run(context, request)).await });
    match task.await {
        Ok(Ok(ran)) => ran,
        Ok(Err(_)) => EffectRan::Unknown(Unknown::new(
            UnknownReason::Deadline,
            format!("the effect gave no answer within {} s", EFFECT_TIME_MAX.as_secs()),
        )),
        Err(error) => EffectRan::Unknown(Unknown::new(
            UnknownReason::Provider,
            format!("the effect ended early: {error}"),
        )),
    }
}

fn not_a(contract: &str, method: &str, kind: &str) -> NotRun {
    NotRun::new(NotRunReason::Incompatible, format!("{contract}.{method} is no {kind} here"))
}

/// A panic of a query's code reads alike in one process and across two: not run.
fn unpanicked<T>(read: impl FnOnce() -> Result<T, NotRun>) -> Result<T, NotRun> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(NotRun::new(NotRunReason::Panicked, "the query's code panicked")))
}

fn key_reused() -> NotRun {
    NotRun::new(NotRunReason::KeyReused, "the key was used before with another request")
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// A client's way to a module of the same process.
pub(crate) struct LocalLink {
    hosted: Arc<Hosted>,
    module: Arc<ModuleCode>,
    contract: usize,
}

impl LocalLink {
    fn method(&self, method: usize) -> &ServedMethod {
        // Tokens and served methods come from one macro; `Served` asserts their order.
        &self.module.contracts[self.contract].methods[method]
    }

    fn contract_name(&self) -> &'static str {
        self.module.contracts[self.contract].contract.name
    }
}

impl LocalCalls for LocalLink {
    fn query(&self, method: usize, slot: &mut (dyn Any + Send)) -> Result<(), NotRun> {
        let served = self.method(method);
        let Handler::Query { run, .. } = &served.handler else {
            return Err(not_a(self.contract_name(), served.name, "query"));
        };
        unpanicked(|| self.hosted.database.read(&self.module.name, |db| run.run(db, slot)))?
            .map_err(NotRun::from)
    }

    fn is_heavy(&self, method: usize) -> bool {
        matches!(self.method(method).handler, Handler::Query { heavy: true, .. })
    }

    fn heavy_query(&self, method: usize, mut slot: AnyBox) -> BoxFuture<'_, Result<AnyBox, NotRun>> {
        let link = Self { hosted: self.hosted.clone(), module: self.module.clone(), contract: self.contract };
        let work = move || link.query(method, slot.as_mut()).map(|()| slot);
        Box::pin(async move {
            tokio::task::spawn_blocking(work)
                .await
                .unwrap_or_else(|error| Err(NotRun::new(NotRunReason::Panicked, error.to_string())))
        })
    }

    fn command(
        &self,
        method: usize,
        request: AnyBox,
        key: Option<ClientKey>,
    ) -> BoxFuture<'_, Result<Done, CallFault>> {
        let deadline = Context::current().deadline_or_default();
        let (module, contract) = (self.module.clone(), self.contract);
        let name = self.contract_name();
        Box::pin(async move {
            let work = move |session: &mut dyn Session| {
                let served = &module.contracts[contract].methods[method];
                let Some(key) = &key else {
                    // An automatic key that never left the process cannot come again: no inbox row is needed.
                    return inbox::command_once(session, &module, served, request.as_ref())
                        .map(|ran| Ok(Done::Ran(ran)));
                };
                let keyed = Keyed {
                    key: client_step_key(key, name, served.name),
                    request: request.as_ref(),
                    hash: key.body[..16].try_into().expect("16 bytes of 32"),
                    fresh: false,
                    expires_at: Some(session.now_ms() + CLIENT_KEYS_KEPT_MS),
                };
                Ok(match inbox::command(session, &module, served, &keyed)? {
                    CommandEnd::Done { answer, .. } => Ok(Done::Ran(Ran::Done(answer))),
                    CommandEnd::Refused(refusal, _) => Ok(Done::Ran(Ran::Refused(refusal))),
                    CommandEnd::Stored(outcome) => Ok(Done::Stored(outcome)),
                    CommandEnd::Sealed | CommandEnd::KeyReused => Err(CallFault::NotRun(key_reused())),
                })
            };
            self.hosted.database.write(Some(deadline), work).await?
        })
    }

    fn effect(&self, method: usize, request: AnyBox) -> BoxFuture<'_, EffectRan> {
        let context = Context { key: Some(self.hosted.keys.next()), ..Context::current() };
        match effect_fn(self.method(method), self.contract_name()) {
            Ok(run) => Box::pin(attempt(run, context, request)),
            Err(not_run) => Box::pin(std::future::ready(EffectRan::NotRun(not_run))),
        }
    }
}
