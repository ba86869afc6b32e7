//! Sagas: beginning them, finding them, walking those again that a crash left unfinished.
//!
//! The engine owns a walk: a client that hangs up changes nothing. `drive` does what a walk says, `local` is the
//! transaction on the coordinator's own database.

mod drive;
mod local;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use modulith_core::{
    AnyBox, BoxFuture, CallFault, ClientKey, Context, NotRun, NotRunReason, PlanModel, SagaCalls, SagaEnd,
    Unknown, UnknownReason, decode,
};
use modulith_data::inbox::PRUNED_AT_ONCE;
use modulith_data::saga::{OpenSaga, Place, SagaId, SagaTable, StepDone, Stored, Walk};
use modulith_data::sqlite::Database;
use tokio::sync::{Semaphore, oneshot};
use tokio_util::task::TaskTracker;

use crate::hosted::Hosted;
use crate::remote::Peers;
use drive::Drive;

/// Sagas of one module in flight; more are refused as *not run, overloaded*. Default 4,096.
pub const SAGAS_IN_FLIGHT_MAX: usize = 4_096;

/// The sagas that one module begins.
pub(crate) struct Sagas {
    module: &'static str,
    table: SagaTable,
    hosted: Arc<Hosted>,
    peers: Arc<Peers>,
    plans: BTreeMap<&'static str, Arc<PlanModel>>,
    next_seq: AtomicI64,
    places: Arc<Semaphore>,
    walks: TaskTracker,
}

/// A saga's input and the answers known so far. Cheap to clone into the writer's thread.
#[derive(Clone)]
struct Facts {
    input: Arc<AnyBox>,
    answers: Vec<Option<Arc<StepDone>>>,
}

/// What is recorded with the first run: the saga's row.
#[derive(Clone)]
struct Begin {
    input: Arc<Vec<u8>>,
    key: Option<ClientKey>,
}

impl Sagas {
    pub(crate) fn new(
        module: &'static str,
        hosted: Arc<Hosted>,
        peers: Arc<Peers>,
        plans: BTreeMap<&'static str, Arc<PlanModel>>,
        walks: TaskTracker,
    ) -> Arc<Self> {
        let identity = hosted.database.identity();
        Arc::new(Self {
            module,
            table: SagaTable::new(module, &identity),
            hosted,
            peers,
            plans,
            // Every incarnation numbers above all before it, with no row to update for each saga.
            next_seq: AtomicI64::new(identity.incarnation << 32),
            places: Arc::new(Semaphore::new(SAGAS_IN_FLIGHT_MAX)),
            walks,
        })
    }

    pub(crate) fn module(&self) -> &'static str {
        self.module
    }

    fn database(&self) -> &Database {
        &self.hosted.database
    }

    fn place(&self, contract: &str) -> Place {
        match self.peers.of(contract) {
            Some(peer) if self.hosted.modules.of(contract).is_none() => Place::Peer(peer),
            _ => Place::Here,
        }
    }

    /// How many sagas have not ended, and how many of these need attention.
    pub(crate) fn counts(&self) -> Result<(i64, i64), NotRun> {
        Ok(self.database().read_framework(|db| self.table.counts(db))??)
    }

    /// Walks every saga again that has not ended. They were in flight before, so they are bounded like those.
    pub(crate) async fn sweep(self: &Arc<Self>) -> Result<(), CallFault> {
        let open = self.database().read_framework(|db| self.table.open(db))?.map_err(NotRun::from)?;
        if !open.is_empty() {
            tracing::info!(module = self.module, sagas = open.len(), "walking unfinished sagas again");
        }
        for saga in open {
            let id = saga.id;
            if let Err(reason) = self.resume(saga).await {
                // Left alone, and shown: one saga that cannot be read must not keep the others waiting.
                tracing::error!(module = self.module, saga = id.seq, "{reason}");
                self.mark(id, reason).await?;
            }
        }
        Ok(())
    }

    async fn resume(self: &Arc<Self>, saga: OpenSaga) -> Result<(), String> {
        let known = self
            .plans
            .get(&*saga.plan)
            .filter(|plan| i64::from(plan.version) == saga.version && plan.fingerprint == saga.fingerprint);
        let plan = known.cloned().ok_or_else(|| {
            format!("no plan `{}` version {} of this structure in this build", saga.plan, saga.version)
        })?;
        let input = (plan.decode_input)(&saga.input).map_err(|fault| fault.message)?;
        let end = saga.answer.map(|bytes| decode(&bytes)).transpose().map_err(|fault| fault.message)?;
        let (sagas, id) = (self.clone(), saga.id);
        // Counted before it runs, so that a saga which kills the process is seen to do so.
        let counted = self.database().write_reserved(move |session| sagas.table.attempt(session, id)).await;
        counted.map_err(|fault| fault.to_string())?;
        let facts = Facts { input: Arc::new(input), answers: vec![None; plan.steps.len()] };
        let walk = match saga.frontier {
            Some(frontier) => Walk::backward(plan.clone(), frontier),
            None => Walk::forward(plan.clone()),
        };
        let drive = Drive { sagas: self.clone(), id, plan, facts, walk, begin: None, end, reply: None };
        self.walks.spawn(drive.run());
        Ok(())
    }

    async fn mark(self: &Arc<Self>, id: SagaId, reason: String) -> Result<(), CallFault> {
        let sagas = self.clone();
        self.database().write_reserved(move |session| sagas.table.attention(session, id, &reason)).await
    }

    /// Deletes sagas whose retention is over, a bounded number with each commit.
    pub(crate) async fn prune(self: &Arc<Self>) -> Result<(), CallFault> {
        let mut pruned = PRUNED_AT_ONCE;
        while pruned == PRUNED_AT_ONCE {
            let sagas = self.clone();
            pruned = self.database().write(None, move |session| sagas.table.prune(session)).await?;
        }
        Ok(())
    }

    async fn start_one(
        self: Arc<Self>,
        plan: &'static str,
        input: AnyBox,
        key: Option<ClientKey>,
    ) -> Result<SagaEnd, CallFault> {
        let deadline = Context::current().deadline_or_default();
        let plan = self.plans.get(plan).cloned().ok_or_else(|| {
            NotRun::new(NotRunReason::Incompatible, format!("module `{}` has no plan `{plan}`", self.module))
        })?;
        let place = self.places.clone().try_acquire_owned().map_err(|_| {
            NotRun::new(
                NotRunReason::Overloaded,
                format!("{SAGAS_IN_FLIGHT_MAX} sagas of `{}` are in flight", self.module),
            )
        })?;
        let begin =
            Begin { input: Arc::new((plan.encode_input)(input.as_ref()).map_err(NotRun::from)?), key };
        let (reply, answer) = oneshot::channel();
        let drive = Drive {
            id: SagaId {
                src: self.database().identity().id,
                seq: self.next_seq.fetch_add(1, Ordering::Relaxed),
            },
            facts: Facts { input: Arc::new(input), answers: vec![None; plan.steps.len()] },
            walk: Walk::forward(plan.clone()),
            plan,
            begin: Some(begin),
            end: None,
            reply: Some(reply),
            sagas: self.clone(),
        };
        self.walks.spawn(async move {
            drive.run().await;
            drop(place);
        });
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(end)) => end,
            Ok(Err(_)) => {
                Err(Unknown::new(UnknownReason::CommitLost, "the saga's walk ended without an answer").into())
            }
            Err(_) => {
                Err(Unknown::new(UnknownReason::Deadline, "the saga goes on behind the deadline").into())
            }
        }
    }
}

/// What a module's endpoints hold.
pub(crate) struct SagaLink(pub(crate) Arc<Sagas>);

impl SagaCalls for SagaLink {
    fn start(
        &self,
        plan: &'static str,
        input: AnyBox,
        key: Option<ClientKey>,
    ) -> BoxFuture<'_, Result<SagaEnd, CallFault>> {
        Box::pin(self.0.clone().start_one(plan, input, key))
    }

    fn find(&self, key: ClientKey) -> Result<Option<SagaEnd>, NotRun> {
        let found = self.0.database().read_framework(|db| self.0.table.find(db, &key))??;
        found.map(Stored::into_end).transpose()
    }
}
