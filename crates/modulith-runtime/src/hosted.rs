//! The modules that one process hosts, on their one database: what a local client, a remote caller and a saga
//! all end up calling.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use modulith_core::{
    AnyBox, BoxFuture, CallFault, ClientKey, Context, Direction, Done, EffectRan, Handler, LocalCalls,
    NotRun, NotRunReason, Origin, Outcome, Queried, QueryFn, Ran, ServedMethod, Snapshot, StepKey, Unknown,
    UnknownReason, crash_point,
};
use modulith_data::inbox::{self, CommandEnd, Known, body_hash};
use modulith_data::participant::{Participant, effect_of};
use modulith_data::saga::Modules;
use modulith_data::sqlite::Database;
use modulith_data::{ModuleCode, Session, World};
use uuid::Uuid;

use crate::calls::{Keyed, Told};
use crate::metrics::Metrics;
use crate::world::Surroundings;

/// How long a client's own key is kept at a command outside of a saga: 24 hours.
pub const CLIENT_KEYS_KEPT_MS: i64 = 24 * 60 * 60 * 1000;
/// How long an automatic key is kept: 10 minutes. Its caller repeats it within one deadline only, and no
/// deadline is longer than a minute.
pub const AUTOMATIC_KEYS_KEPT_MS: i64 = 10 * 60 * 1000;

/// Room for the answer to a query to begin with: most are shorter.
const ANSWER_BYTES: usize = 256;

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
    digested(&[&key.name, contract.as_bytes(), b".", method.as_bytes()])
}

/// The key that an effect shows its provider: a new one, but within another effect the same whenever it asks the same, since
/// that one is attempted again under its own key.
pub(crate) fn effect_key(
    context: &Context,
    keys: &ProcessKeys,
    contract: &str,
    method: &str,
    request: &[u8],
) -> StepKey {
    let Some(outer) = &context.key else { return keys.next() };
    let (outer, hash) = (outer.to_string(), body_hash(request));
    digested(&[outer.as_bytes(), b".", contract.as_bytes(), b".", method.as_bytes(), b".", &hash])
}

fn digested(parts: &[&[u8]]) -> StepKey {
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let digest = context.finish();
    let src = Uuid::from_slice(&digest.as_ref()[..16]).expect("a SHA-256 has 32 bytes");
    StepKey { origin: Origin::Client, src, seq: 0, step: 0, direction: Direction::Do }
}

/// One method of a module of this process, found by its names.
#[derive(Clone)]
pub(crate) struct Found {
    module: Arc<ModuleCode>,
    contract: usize,
    method: usize,
}

impl Found {
    pub(crate) fn new(module: &Arc<ModuleCode>, contract: usize, method: usize) -> Self {
        Self { module: module.clone(), contract, method }
    }

    pub(crate) fn served(&self) -> &ServedMethod {
        &self.module.contracts[self.contract].methods[self.method]
    }

    pub(crate) fn contract_name(&self) -> &'static str {
        self.module.contracts[self.contract].contract.name
    }

    pub(crate) fn is_heavy(&self) -> bool {
        matches!(self.served().handler, Handler::Query { heavy: true, .. })
    }

    fn is_no(&self, kind: &str) -> NotRun {
        not_a(self.contract_name(), self.served().name, kind)
    }
}

/// See the module's documentation.
pub(crate) struct Hosted {
    pub(crate) database: Arc<Database>,
    pub(crate) participant: Arc<Participant<Surroundings>>,
    pub(crate) keys: Arc<ProcessKeys>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Hosted {
    pub(crate) fn modules(&self) -> &Modules {
        self.participant.modules()
    }

    /// The link of a local client to one contract.
    pub(crate) fn link(self: &Arc<Self>, contract: &str) -> Option<LocalLink> {
        let module = self.modules().of(contract)?.clone();
        let contract = module.contracts.iter().position(|served| served.contract.name == contract)?;
        Some(LocalLink { hosted: self.clone(), module, contract })
    }

    /// The method of these names, or that it is not served here.
    pub(crate) fn find(&self, contract: &str, method: &str) -> Result<Found, NotRun> {
        let find = || {
            let module = self.modules().of(contract)?;
            let at = module.contracts.iter().position(|served| served.contract.name == contract)?;
            let method = module.contracts[at].methods.iter().position(|served| served.name == method)?;
            Some(Found::new(module, at, method))
        };
        find().ok_or_else(|| not_served(contract, method))
    }

    /// Answers another process's query, on this thread.
    pub(crate) fn query(&self, found: &Found, request: &[u8]) -> Told {
        let run = || -> Result<Told, NotRun> {
            let Handler::Query { run, .. } = &found.served().handler else {
                return Err(found.is_no("query"));
            };
            let mut out = Vec::with_capacity(ANSWER_BYTES);
            out.push(Told::DONE);
            let read = |db: &Snapshot<'_>| run.run_encoded(db, request, &mut out);
            let refused = unpanicked(|| self.database.read(&found.module.name, read))??;
            Ok(match refused {
                Some(record) => Told::Outcome(Outcome::Refused(record)),
                None => Told::Written(out),
            })
        };
        run().unwrap_or_else(Told::NotRun)
    }

    /// The same on a thread for what takes long; `took` is told for how long it ran.
    pub(crate) async fn heavy_query(
        self: Arc<Self>,
        deadline: Instant,
        found: Found,
        request: Bytes,
        took: impl FnOnce(Duration) + Send + 'static,
    ) -> Told {
        let run = move || {
            let began = Instant::now();
            if deadline <= began {
                // It has waited for a thread.
                return Told::NotRun(too_late());
            }
            let told = self.query(&found, &request);
            took(began.elapsed());
            told
        };
        tokio::task::spawn_blocking(run)
            .await
            .unwrap_or_else(|error| Told::NotRun(NotRun::new(NotRunReason::Panicked, error.to_string())))
    }

    /// Runs another process's command under its key, until its deadline.
    pub(crate) async fn command(
        &self,
        deadline: Instant,
        found: Found,
        Keyed { key, hash, kept_ms }: Keyed,
        request: Bytes,
    ) -> Result<Told, CallFault> {
        let contract = found.contract_name();
        let method = found.served().name;
        crash_point(|| format!("{contract}.{method}:before"));
        let told = self
            .database
            .write(Some(deadline), move |session| {
                crash_point(|| format!("{contract}.{method}:in-transaction"));
                let served = found.served();
                let request = (served.codec.decode_request)(&request)?;
                let expires_at = Some(session.now_ms() + kept_ms);
                let known = Known::ToOthers;
                let keyed = inbox::Keyed { key, request: request.as_ref(), hash, known, expires_at };
                Ok(match inbox::command(session, &found.module, served, &keyed)? {
                    CommandEnd::Done { stored, .. } => Told::Outcome(Outcome::Done(stored)),
                    CommandEnd::Refused(_, record) => Told::Outcome(Outcome::Refused(record)),
                    CommandEnd::Stored(outcome) => Told::Outcome(outcome),
                    CommandEnd::Sealed | CommandEnd::KeyReused | CommandEnd::Expired => {
                        Told::NotRun(key_reused())
                    }
                })
            })
            .await;
        crash_point(|| format!("{contract}.{method}:after"));
        told
    }

    /// An effect that is called outside of a saga: one attempt, under the context's key or an automatic one.
    pub(crate) async fn call_effect(&self, found: Found, request: Bytes, context: Context) -> Told {
        let served = found.served();
        let run = || -> Result<_, NotRun> {
            let request = (served.codec.decode_request)(&request)?;
            Ok((effect_of(served, found.contract_name())?.0, request))
        };
        let (run, request) = match run() {
            Ok(found) => found,
            Err(not_run) => return Told::NotRun(not_run),
        };
        let context = Context { key: Some(context.key.unwrap_or_else(|| self.keys.next())), ..context };
        let ran = match self.participant.world().attempt(run, context, request).await {
            EffectRan::Done(answer) => Ran::Done(answer),
            EffectRan::Refused(refusal) => Ran::Refused(refusal),
            EffectRan::NotRun(not_run) => return Told::NotRun(not_run),
            EffectRan::Unknown(unknown) => return Told::Unknown(unknown),
        };
        match served.codec.outcome(&ran) {
            Ok(outcome) => Told::Outcome(outcome),
            Err(fault) => Told::Unknown(Unknown::new(UnknownReason::Unreadable, fault.message)),
        }
    }
}

pub(crate) fn not_served(contract: &str, method: &str) -> NotRun {
    NotRun::new(NotRunReason::Incompatible, format!("{contract}.{method} is not served here"))
}

fn not_a(contract: &str, method: &str, kind: &str) -> NotRun {
    NotRun::new(NotRunReason::Incompatible, format!("{contract}.{method} is no {kind} here"))
}

/// A panic of a query's code reads alike in one process and across two: not run.
fn unpanicked<T>(read: impl FnOnce() -> Result<T, NotRun>) -> Result<T, NotRun> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(NotRun::new(NotRunReason::Panicked, "the query's code panicked")))
}

fn too_late() -> NotRun {
    NotRun::new(NotRunReason::Deadline, "the deadline passed before it began")
}

fn key_reused() -> NotRun {
    NotRun::new(NotRunReason::KeyReused, "the key was used before with another request")
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

    fn query_here(&self, run: &dyn QueryFn, slot: &mut (dyn Any + Send)) -> Result<(), NotRun> {
        if Context::is_late() {
            return Err(too_late());
        }
        let database = &self.hosted.database;
        unpanicked(|| database.read(&self.module.name, |db| run.run(db, slot))?.map_err(NotRun::from))
    }
}

impl LocalCalls for LocalLink {
    fn query(&self, method: usize, slot: &mut (dyn Any + Send)) -> Result<Queried, NotRun> {
        let served = self.method(method);
        match &served.handler {
            Handler::Query { heavy: true, .. } => Ok(Queried::IsHeavy),
            Handler::Query { run, heavy: false } => {
                self.query_here(&**run, slot)?;
                Ok(Queried::Here)
            }
            _ => Err(not_a(self.contract_name(), served.name, "query")),
        }
    }

    fn heavy_query(&self, method: usize, mut slot: AnyBox) -> BoxFuture<'_, Result<AnyBox, NotRun>> {
        if Context::is_late() {
            return Box::pin(std::future::ready(Err(too_late())));
        }
        let link = Self { hosted: self.hosted.clone(), module: self.module.clone(), contract: self.contract };
        let deadline = Context::current().deadline;
        let work = move || {
            // It may have waited for its thread.
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(too_late());
            }
            let served = link.method(method);
            let Handler::Query { run, .. } = &served.handler else {
                return Err(not_a(link.contract_name(), served.name, "query"));
            };
            link.query_here(&**run, slot.as_mut())?;
            Ok(slot)
        };
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
                let keyed = inbox::Keyed {
                    key: client_step_key(key, name, served.name),
                    request: request.as_ref(),
                    hash: key.body_hash(),
                    known: Known::ToOthers,
                    expires_at: Some(session.now_ms() + CLIENT_KEYS_KEPT_MS),
                };
                Ok(match inbox::command(session, &module, served, &keyed)? {
                    CommandEnd::Done { answer, .. } => Ok(Done::Ran(Ran::Done(answer))),
                    CommandEnd::Refused(refusal, _) => Ok(Done::Ran(Ran::Refused(refusal))),
                    CommandEnd::Stored(outcome) => Ok(Done::Stored(outcome)),
                    CommandEnd::Sealed | CommandEnd::KeyReused | CommandEnd::Expired => {
                        Err(CallFault::NotRun(key_reused()))
                    }
                })
            };
            self.hosted.database.write(Some(deadline), work).await?
        })
    }

    fn effect(&self, method: usize, request: AnyBox) -> BoxFuture<'_, EffectRan> {
        if Context::is_late() {
            return Box::pin(std::future::ready(EffectRan::NotRun(too_late())));
        }
        let (hosted, context) = (self.hosted.clone(), Context::current());
        let served = self.method(method);
        let keyed = || -> Result<_, NotRun> {
            let run = effect_of(served, self.contract_name())?.0;
            let request = match context.key {
                Some(_) => (served.codec.encode_request)(request.as_ref())?,
                None => Vec::new(),
            };
            let key = effect_key(&context, &hosted.keys, self.contract_name(), served.name, &request);
            Ok((run, key))
        };
        match keyed() {
            Ok((run, key)) => {
                let context = Context { key: Some(key), ..context };
                Box::pin(async move { hosted.participant.world().attempt(run, context, request).await })
            }
            Err(not_run) => Box::pin(std::future::ready(EffectRan::NotRun(not_run))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_effect_that_is_attempted_again_asks_under_the_same_keys() {
        let keys = ProcessKeys::new();
        let alone = Context::background("test");
        let key = |context: &Context, method: &str, request: &[u8]| {
            effect_key(context, &keys, "bank", method, request)
        };
        assert_ne!(key(&alone, "charge", b"1"), key(&alone, "charge", b"1"), "each is asked for itself");

        let [outer, other] =
            [keys.next(), keys.next()].map(|key| Context { key: Some(key), ..Context::background("test") });
        let first = key(&outer, "charge", b"1");
        assert_eq!(key(&outer, "charge", b"1"), first);
        for another in [
            key(&outer, "charge", b"2"),
            key(&outer, "refund", b"1"),
            key(&other, "charge", b"1"),
            key(
                &Context { key: outer.key.map(StepKey::undo), ..Context::background("test") },
                "charge",
                b"1",
            ),
        ] {
            assert_ne!(another, first);
        }
    }
}
