//! The sagas that one module begins: beginning them, finding them, walking those again that a crash left
//! unfinished.
//!
//! A walk belongs to the engine: a client that hangs up changes nothing. What is made here is driven by whoever
//! has the threads: the runtime, or a simulator.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use modulith_core::{
    AnyBox, CallFault, ClientKey, Context, Fault, FaultKind, NotRun, NotRunReason, PlanModel, SagaEnd,
    Snapshot, decode,
};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::attention::{Attention, AttentionReason};
use super::drive::Drive;
use super::name::SagaName;
use super::numbers::Numbers;
use super::operator::Orders;
use super::run::SagaId;
use super::table::{Begun, NewSaga, OpenSaga, SagaTable, Stored};
use super::walk::Walk;
use super::{Begin, Facts};
use crate::inbox::LowWater;
use crate::panic::caught;
use crate::participant::Participant;
use crate::session::{Session, StartSaga};
use crate::sqlite::Identity;
use crate::world::{Urgency, World};

/// How often in a row a saga may be walked by a process that does not survive it: 10. After that it is marked for
/// attention and left alone until an operator resumes it.
pub const WALKS_MAX: i64 = 10;
/// How long after a commit that was refused it is tried again, where nobody else would.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(100);

/// See the module's documentation.
pub struct Sagas<W> {
    pub(super) module: &'static str,
    pub(super) table: SagaTable,
    pub(super) participant: Arc<Participant<W>>,
    plans: BTreeMap<&'static str, PlanRoom>,
    numbers: Numbers,
    /// The sagas that are walked here, with what is asked of their walks.
    pub(super) walked: Mutex<HashMap<SagaId, Arc<Orders>>>,
    /// Held by who decides that a saga is walked again, so that no two do.
    pub(super) ordering: tokio::sync::Mutex<()>,
    /// Sagas that a command of the module began; committed, and to be driven.
    started: mpsc::UnboundedSender<Drive<W>>,
    this: OnceLock<Weak<Self>>,
}

/// A plan, and room for its sagas.
struct PlanRoom {
    plan: Arc<PlanModel>,
    room: Arc<Semaphore>,
}

/// Where the answer of a saga arrives: at its pivot, or when it has turned back.
pub type Answered = oneshot::Receiver<Result<SagaEnd, CallFault>>;

impl<W> Sagas<W> {
    /// Nobody drives this walk any more.
    pub(super) fn left(&self, id: SagaId, orders: &Arc<Orders>) {
        let mut walked = self.walked.lock();
        if walked.get(&id).is_some_and(|known| Arc::ptr_eq(known, orders)) {
            walked.remove(&id);
        }
    }
}

impl<W: World> Sagas<W> {
    /// The receiver gives the sagas that commands begin.
    pub fn new(
        module: &'static str,
        identity: &Identity,
        participant: Arc<Participant<W>>,
        plans: &BTreeMap<&'static str, Arc<PlanModel>>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Drive<W>>) {
        let (started, to_drive) = mpsc::unbounded_channel();
        let plans = plans.iter().map(|(name, plan)| {
            (*name, PlanRoom { plan: plan.clone(), room: Arc::new(Semaphore::new(plan.in_flight_max)) })
        });
        let sagas = Arc::new(Self {
            module,
            table: SagaTable::new(module, identity),
            participant,
            plans: plans.collect(),
            numbers: Numbers::new(module, identity),
            walked: Mutex::default(),
            ordering: tokio::sync::Mutex::default(),
            started,
            this: OnceLock::new(),
        });
        let this = Arc::downgrade(&sagas);
        let starts: Weak<dyn StartSaga> = this.clone();
        // Filled once, here: nobody else has seen the cell.
        let _ = sagas.this.set(this);
        for code in sagas.participant.modules().all() {
            if &*code.name == module {
                code.set_starts(starts.clone());
            }
        }
        (sagas, to_drive)
    }

    pub fn module(&self) -> &'static str {
        self.module
    }

    pub fn table(&self) -> &SagaTable {
        &self.table
    }

    pub fn world(&self) -> &Arc<W> {
        self.participant.world()
    }

    pub(super) fn water_for(&self, id: SagaId) -> LowWater {
        // A saga that moved here with its module, or came back with a backup, has another source's number.
        if id.src == self.numbers.src { self.numbers.water() } else { LowWater::default() }
    }

    /// A new saga, to be driven, and where it answers.
    ///
    /// # Errors
    ///
    /// *Not run*: the module has no such plan, its input cannot be encoded, or too many sagas of the plan are in
    /// flight.
    pub fn begin(
        self: &Arc<Self>,
        plan: &str,
        input: AnyBox,
        key: Option<ClientKey>,
    ) -> Result<(Drive<W>, Answered), NotRun> {
        let (plan, room) = self.room(plan)?;
        let key = key.map(|key| self.table.keyed(&key));
        let begin = Begin { input: Arc::new((plan.encode_input)(input.as_ref())?), key };
        let (reply, answered) = oneshot::channel();
        let id = SagaId { src: self.numbers.src, seq: self.numbers.begin() };
        let mut drive = self.drive(id, plan.clone(), input, Walk::forward(plan), Some(room));
        drive.begin = Some(begin);
        drive.reply = Some(reply);
        drive.trace = Context::current().trace;
        Ok((drive, answered))
    }

    fn room(&self, plan: &str) -> Result<(Arc<PlanModel>, OwnedSemaphorePermit), NotRun> {
        let known = self.plans.get(plan).ok_or_else(|| {
            NotRun::new(NotRunReason::Incompatible, format!("module `{}` has no plan `{plan}`", self.module))
        })?;
        let room = known.room.clone().try_acquire_owned().map_err(|_| {
            let detail = format!("{} sagas of `{plan}` are in flight", known.plan.in_flight_max);
            NotRun::new(NotRunReason::Overloaded, detail)
        })?;
        Ok((known.plan.clone(), room))
    }

    fn drive(
        self: &Arc<Self>,
        id: SagaId,
        plan: Arc<PlanModel>,
        input: AnyBox,
        walk: Walk,
        room: Option<OwnedSemaphorePermit>,
    ) -> Drive<W> {
        let orders = Arc::new(Orders::default());
        self.walked.lock().insert(id, orders.clone());
        Drive {
            sagas: self.clone(),
            id,
            facts: Facts { input: Arc::new(input), answers: vec![None; plan.steps.len()] },
            plan,
            walk,
            begin: None,
            end: None,
            reply: None,
            resumed: false,
            trace: None,
            fault: None,
            orders,
            _room: room,
        }
    }

    /// The saga's walk is over, and its end is on disk, or it was never begun.
    pub(super) fn over(&self, id: SagaId) {
        if id.src == self.numbers.src {
            self.numbers.end(id.seq);
        }
    }

    /// What an earlier saga with this client's key came to.
    ///
    /// # Errors
    ///
    /// *Not run*: it still runs, or the key stands for another request.
    pub fn find(&self, db: &Snapshot<'_>, key: &ClientKey) -> Result<Option<SagaEnd>, NotRun> {
        self.table.find(db, &self.table.keyed(key))?.map(Stored::into_end).transpose()
    }

    /// Every saga that has not ended, to be driven again. They were in flight before, so they are bounded like
    /// those. One that cannot be walked is marked for attention and left alone. It stays at it until it has read
    /// them: a full queue must not leave them lying until the next start.
    ///
    /// # Errors
    ///
    /// The database is broken, so that the process has to end.
    pub async fn unfinished(self: &Arc<Self>) -> Result<Vec<Drive<W>>, CallFault> {
        // Held until the drives are made, so that no operator begins a second walk; not while it pauses.
        let (_one, mut open) = loop {
            let one = self.ordering.lock().await;
            let sagas = self.clone();
            let read = move |session: &mut dyn Session| {
                let now_ms = session.now_ms();
                sagas.table.open(&Snapshot::new(session.statements(), now_ms))
            };
            match self.world().commit(Urgency::Reserved, read).await {
                Ok(open) => break (one, open),
                Err(fault) if self.world().is_ending() => return Err(fault),
                Err(fault) => {
                    drop(one);
                    tracing::warn!(module = self.module, "cannot look up unfinished sagas yet: {fault}");
                    self.world().pause(RETRY_AFTER).await;
                }
            }
        };
        // What this incarnation began while the table was read is driven already.
        open.retain(|saga| self.numbers.is_earlier(saga.id));
        let ours = open.iter().map(|saga| saga.id).filter(|id| id.src == self.numbers.src);
        self.numbers.swept(ours.map(|id| id.seq));
        // Nor is walked twice what an operator resumed meanwhile.
        open.retain(|saga| !self.walked.lock().contains_key(&saga.id));
        let mut drives = Vec::new();
        for saga in open {
            let id = saga.id;
            match self.resumed(saga) {
                Ok(drive) => drives.push(drive),
                Err(attention) => {
                    let saga = SagaName::of(self.module, id);
                    tracing::error!(%saga, "{attention}");
                    if let Err(fault) = self.mark(id, attention).await {
                        tracing::error!(%saga, "cannot mark for attention: {fault}");
                    }
                }
            }
        }
        Ok(drives)
    }

    pub(super) fn plan(&self, name: &str, version: i64, fingerprint: i64) -> Option<&Arc<PlanModel>> {
        let plan = &self.plans.get(name)?.plan;
        (i64::from(plan.version) == version && plan.fingerprint == fingerprint).then_some(plan)
    }

    /// The plan of a saga that this process can walk, or why it cannot.
    pub(super) fn walkable(&self, saga: &OpenSaga) -> Result<&Arc<PlanModel>, Attention> {
        let plan = self.plan(&saga.plan, saga.version, saga.fingerprint).ok_or_else(|| {
            let detail =
                format!("no plan `{}` version {} of this structure in this build", saga.plan, saga.version);
            Attention::new(AttentionReason::PlanUnknown, detail)
        })?;
        if saga.attempts >= WALKS_MAX {
            let detail = format!("the process ended {WALKS_MAX} times in a row while it walked this saga");
            return Err(Attention::new(AttentionReason::ProcessEnds, detail));
        }
        Ok(plan)
    }

    pub(super) fn resumed(self: &Arc<Self>, saga: OpenSaga) -> Result<Drive<W>, Attention> {
        let plan = self.walkable(&saga)?.clone();
        let unreadable = |fault: Fault| Attention::new(AttentionReason::Unreadable, fault.message);
        let input = caught(|| (plan.decode_input)(&saga.input)).map_err(unreadable)?;
        let end = saga.answer.map(|bytes| decode(&bytes)).transpose().map_err(unreadable)?;
        let walk = match saga.frontier {
            Some(frontier) => Walk::backward(plan.clone(), frontier),
            None => Walk::forward(plan.clone()),
        };
        let mut drive = self.drive(saga.id, plan, input, walk, None);
        drive.end = end;
        drive.resumed = true;
        Ok(drive)
    }

    /// Marks a saga for a person to look at. The low-water mark does not wait for it any more.
    pub(super) async fn mark(self: &Arc<Self>, id: SagaId, attention: Attention) -> Result<(), CallFault> {
        if id.src == self.numbers.src {
            self.numbers.pass(id.seq);
        }
        let sagas = self.clone();
        let work = move |session: &mut dyn Session| sagas.table.attention(session, id, &attention);
        self.world().commit(Urgency::Reserved, work).await
    }

    /// Deletes sagas whose retention is over, a bounded number with each commit, and tells the participant of this
    /// process which have ended: steps on the coordinator's own database are asked for without a message.
    ///
    /// # Errors
    ///
    /// Those of a commit. What was deleted before stays deleted.
    pub async fn prune(self: &Arc<Self>) -> Result<(), CallFault> {
        self.participant.note(self.numbers.src, &self.numbers.water());
        let mut pruned = 1;
        while pruned > 0 {
            let sagas = self.clone();
            let work = move |session: &mut dyn Session| sagas.table.prune(session);
            pruned = self.world().commit(Urgency::Ordinary { deadline: None }, work).await?;
        }
        Ok(())
    }
}

/// A saga begun by a command: its row is written in the command's transaction, and it is driven once that has
/// committed.
impl<W: World> StartSaga for Sagas<W> {
    fn start(&self, session: &mut dyn Session, plan: &str, input: AnyBox) -> Result<(), Fault> {
        let sagas =
            self.this.get().and_then(Weak::upgrade).expect("the engine outlives the work it is given");
        let refuse = |not_run: NotRun| Fault::new(FaultKind::Limit, not_run.to_string());
        let (plan, room) = self.room(plan).map_err(refuse)?;
        let bytes = (plan.encode_input)(input.as_ref())?;
        let id = SagaId { src: self.numbers.src, seq: self.numbers.begin() };
        let begun = self.table.begin(session, &NewSaga { id, plan: &plan, input: &bytes, key: None });
        if !matches!(begun, Ok(Begun::New)) {
            self.numbers.end(id.seq);
            begun?;
            return Err(Fault::new(FaultKind::Constraint, "a saga without a key met another one"));
        }
        let drive = sagas.drive(id, plan.clone(), input, Walk::forward(plan), Some(room));
        let started = self.started.clone();
        session.on_end(Box::new(move |committed| {
            if committed {
                // Nobody drives any more only when the process stops; the next start finds the row.
                let _ = started.send(drive);
            } else {
                sagas.over(id);
            }
        }));
        Ok(())
    }
}
