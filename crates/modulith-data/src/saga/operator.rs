//! What an operator may ask of a saga: to see where it stands, to go on, to turn back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use modulith_core::{CallFault, Context, Fault, PlanModel, Snapshot, Unknown, UnknownReason};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ask::{Ask, Asked, Told};
use super::attention::AttentionReason;
use super::drive::Drive;
use super::name::SagaName;
use super::run::SagaId;
use super::sagas::Sagas;
use super::seen::{SagaContents, SagaFilter, SagaRow};
use super::table::OpenSaga;
use super::walk::{Next, Place};
use crate::inbox::StepRows;
use crate::session::Session;
use crate::world::{Urgency, World};

/// How long a participant may take to say what stands under a step's keys.
const LOOK_TIME_MAX: Duration = Duration::from_secs(2);

/// What an operator asks of a walk, and where the walk stands.
#[derive(Default)]
pub(super) struct Orders {
    /// Turn back, as long as the pivot is not known to be done. It stands until the walk has turned.
    pub(super) abort: AtomicBool,
    /// Begin anew to count attempts without an answer.
    pub(super) resume: AtomicBool,
    /// Do not wait for the end of a pause.
    pub(super) wake: Notify,
    pub(super) standing: Mutex<Standing>,
}

/// Where a walk stands at this moment.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// What it does; `None` before its first word.
    pub next: Option<Next>,
    pub pivot_is_done: bool,
    /// Attempts in a row without a certain answer, and what was said of the last one.
    pub unanswered: u32,
    pub fault: Option<String>,
}

/// Why an operator's wish cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    #[error("the saga is not open")]
    NotOpen,
    #[error("its pivot is done: it only goes forward")]
    PivotDone,
    #[error("{0}")]
    Unwalkable(super::Attention),
    #[error("{0}")]
    Call(#[from] CallFault),
}

impl<W: World> Sagas<W> {
    /// The plan that this build has for a saga, if it is of the same version and structure.
    pub fn plan_of(&self, row: &SagaRow) -> Option<&Arc<PlanModel>> {
        self.plan(&row.plan, row.version, row.fingerprint)
    }

    /// The sagas that pass a filter, the newest first of each coordinator.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub fn list(&self, db: &Snapshot<'_>, filter: &SagaFilter, limit: u32) -> Result<Vec<SagaRow>, Fault> {
        self.table.seen().list(db, filter, limit)
    }

    /// The sagas that a name may mean.
    ///
    /// # Errors
    ///
    /// Those of the database.
    pub fn named(&self, db: &Snapshot<'_>, name: &SagaName) -> Result<Vec<SagaRow>, Fault> {
        self.table.seen().named(db, name)
    }

    /// What a saga was given and how it ends.
    ///
    /// # Errors
    ///
    /// Those of the database; an end that cannot be read.
    pub fn contents(&self, db: &Snapshot<'_>, id: SagaId) -> Result<Option<SagaContents>, Fault> {
        self.table.seen().contents(db, id)
    }

    /// Where the walk of a saga stands; `None` if nobody walks it here.
    pub fn standing(&self, id: SagaId) -> Option<Standing> {
        self.orders(id).map(|orders| orders.standing.lock().clone())
    }

    /// What the participant of one step has under its keys.
    ///
    /// # Errors
    ///
    /// It gives no answer.
    pub async fn look(&self, id: SagaId, plan: &PlanModel, step: usize) -> Result<StepRows, CallFault> {
        let contract = plan.steps[step].contract;
        let ask = Ask::Look { contract: contract.to_owned(), step: id.key(step).step };
        let asked = Asked { saga: id, ask, water: self.water_for(id) };
        let context = Context::background("operator");
        let told = match self.world().place(contract) {
            Place::Here => self.participant.answer(asked, context).await?,
            Place::Peer(peer) => {
                let urgency = Urgency::Ordinary { deadline: None };
                self.world().ask(peer, asked, context, LOOK_TIME_MAX, urgency).await?
            }
        };
        match told {
            Told::Rows(rows) => Ok(rows),
            _ => Err(Unknown::new(UnknownReason::Unreadable, "an answer of another kind than asked").into()),
        }
    }

    /// Lets an open saga go on at once, with a clean slate: its mark for attention is taken away and its attempts are
    /// counted anew. A walk that waits is woken; of one that was left alone this returns the drive. A repeat does the
    /// same again.
    ///
    /// # Errors
    ///
    /// The saga is not open, or cannot be walked; its mark stays then.
    pub async fn resume(self: &Arc<Self>, id: SagaId) -> Result<Option<Drive<W>>, OrderError> {
        let _one = self.ordering.lock().await;
        let saga = self.open_saga(id).await?;
        let walked = self.orders(id);
        let saga = OpenSaga { attempts: 0, ..saga };
        if walked.is_none() {
            self.walkable(&saga).map_err(OrderError::Unwalkable)?;
        }
        self.clear(id).await?;
        if let Some(orders) = walked {
            orders.resume.store(true, Ordering::Relaxed);
            orders.wake.notify_one();
            return Ok(None);
        }
        self.resumed(saga).map(Some).map_err(OrderError::Unwalkable)
    }

    /// Asks an open saga to turn back. It does so unless its pivot is done, and only after its first step that is
    /// not known to be done is sealed: what has happened is undone, what has not never will. It stands for as long as
    /// this process lives. Of a saga that nobody walks this returns the drive. A repeat changes nothing.
    ///
    /// # Errors
    ///
    /// The saga is not open, cannot be walked, or has its pivot behind it.
    pub async fn abort(self: &Arc<Self>, id: SagaId) -> Result<Option<Drive<W>>, OrderError> {
        let _one = self.ordering.lock().await;
        let saga = self.open_saga(id).await?;
        // A running saga has an answer from its pivot on.
        let answered = saga.frontier.is_none() && saga.answer.is_some();
        let walked = self.orders(id);
        if answered || walked.as_ref().is_some_and(|orders| orders.standing.lock().pivot_is_done) {
            return Err(OrderError::PivotDone);
        }
        if let Some(orders) = walked {
            orders.abort.store(true, Ordering::Relaxed);
            orders.wake.notify_one();
            return Ok(None);
        }
        let saga = OpenSaga { attempts: 0, ..saga };
        self.walkable(&saga).map_err(OrderError::Unwalkable)?;
        self.clear(id).await?;
        let drive = self.resumed(saga).map_err(OrderError::Unwalkable)?;
        drive.orders.abort.store(true, Ordering::Relaxed);
        Ok(Some(drive))
    }

    fn orders(&self, id: SagaId) -> Option<Arc<Orders>> {
        self.walked.lock().get(&id).cloned()
    }

    async fn open_saga(self: &Arc<Self>, id: SagaId) -> Result<OpenSaga, OrderError> {
        let sagas = self.clone();
        let read = move |session: &mut dyn Session| {
            let now_ms = session.now_ms();
            sagas.table.open_one(&Snapshot::new(session.statements(), now_ms), id)
        };
        self.world().commit(Urgency::Reserved, read).await?.ok_or(OrderError::NotOpen)
    }

    async fn clear(self: &Arc<Self>, id: SagaId) -> Result<(), CallFault> {
        let sagas = self.clone();
        let work = move |session: &mut dyn Session| sagas.table.clear(session, id);
        self.world().commit(Urgency::Reserved, work).await
    }
}

impl AttentionReason {
    /// Whether the saga is left alone until an operator says otherwise.
    pub fn is_left_alone(self) -> bool {
        matches!(self, Self::PlanUnknown | Self::ProcessEnds | Self::Unreadable)
    }
}
