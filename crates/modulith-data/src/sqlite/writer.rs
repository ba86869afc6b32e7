//! The one writer of a database: a thread that takes work from a queue and commits many pieces with one sync (group
//! commit), each of which stands whole or not at all.
//!
//! An answer leaves only after the sync of its batch, also one that wrote nothing: what it read may be a
//! neighbour's. A statement can end the whole transaction (`ON CONFLICT ROLLBACK`, a full disk); the batch is
//! then run again without the culprit, so all work must be re-runnable. A failed sync leaves every answer of
//! the batch *unknown* and stops the database, reads included: the rows may or may not reappear when the file is
//! opened again, so until then nobody may be told that they are there or that they are not.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use modulith_core::{CallFault, Fault, FaultKind, NotRun, NotRunReason, Protection, Unknown, UnknownReason};
use parking_lot::{Condvar, Mutex, MutexGuard};
use rusqlite::{Connection, ErrorCode};
use tokio::sync::oneshot;

use super::error::described;
use super::guard::Guard;
use super::shed::{Shed, Shedding};
use super::statements::{Prepared, Rights};
use super::work::{Hooks, Ran, TakenBack, WriteSession, control, not_run, run_work};
use crate::session::Session;

/// Limits of the writer.
#[derive(Debug, Clone, Copy)]
pub struct WriterLimits {
    /// Work waiting in the queue; more is refused as *not run, overloaded*. Default 8,192.
    pub queue_max: usize,
    /// Pieces of work committed with one sync. Default 512.
    pub batch_max: usize,
    /// A batch takes no further work after this time. Default 5 ms.
    pub batch_time_max: Duration,
    /// How long work may wait for the writer while there is always more of it. Default 50 ms, several batches.
    /// Twice the time of a batch counts if that is longer.
    pub wait_target: Duration,
    /// How long even the shortest wait has to be above the target until new work is refused at once, as *not run,
    /// overloaded*. Default 500 ms.
    pub wait_interval: Duration,
}

/// What the writer has done and has before it, for telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriterSeen {
    /// Pieces of work in the queue.
    pub waiting: usize,
    /// Those of them that go first: undo, seal and the ends of sagas.
    pub waiting_reserved: usize,
    /// Batches begun since the database was opened.
    pub batches: u64,
    /// Pieces of work in these.
    pub work: u64,
    /// How long the work that came last before the last batch had waited when that began.
    pub last_wait: Duration,
    /// New work is refused because the queue stays long.
    pub is_shedding: bool,
    /// Work that was refused a place in the queue, since the start.
    pub shed: u64,
    /// Work that was dropped unstarted because it was too late, or nobody waited for it any more, since the start.
    pub late: u64,
}

impl Default for WriterLimits {
    fn default() -> Self {
        Self {
            queue_max: 8_192,
            batch_max: 512,
            batch_time_max: Duration::from_millis(5),
            wait_target: Duration::from_millis(50),
            wait_interval: Duration::from_millis(500),
        }
    }
}

/// Where work waits for the writer.
pub(super) struct Queue {
    state: Mutex<QueueState>,
    wake: Condvar,
    limits: WriterLimits,
    batches: AtomicU64,
    work: AtomicU64,
    /// Why nothing can be written or read any more.
    broken: OnceLock<String>,
}

struct QueueState {
    /// Undo, seal and the ends of sagas, which must not wait behind new work.
    reserved: VecDeque<Box<dyn Job>>,
    ordinary: VecDeque<Box<dyn Job>>,
    stopping: bool,
    shedding: Shedding,
    last_wait: Duration,
    shed: u64,
    late: u64,
}

/// Whether work may use the part of the queue that new work cannot fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    Ordinary,
    Reserved,
}

trait Job: Send {
    fn run(&mut self, session: &mut dyn Session) -> Result<(), Fault>;
    fn deadline(&self) -> Option<Instant>;
    fn queued_at(&self) -> Instant;
    /// Nobody waits for the answer any more.
    fn is_abandoned(&self) -> bool;
    fn finish(self: Box<Self>, fate: Result<(), CallFault>);
}

struct Work<T, F> {
    work: F,
    deadline: Option<Instant>,
    queued_at: Instant,
    answer: Option<T>,
    reply: oneshot::Sender<Result<T, CallFault>>,
}

impl<T: Send, F: FnMut(&mut dyn Session) -> Result<T, Fault> + Send> Job for Work<T, F> {
    fn run(&mut self, session: &mut dyn Session) -> Result<(), Fault> {
        self.answer = Some((self.work)(session)?);
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn queued_at(&self) -> Instant {
        self.queued_at
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }

    fn finish(self: Box<Self>, fate: Result<(), CallFault>) {
        let Work { answer, reply, .. } = *self;
        let result = fate.and_then(|()| {
            answer.ok_or_else(|| {
                CallFault::NotRun(NotRun::new(
                    NotRunReason::Fault,
                    "the writer left a piece of work without answer",
                ))
            })
        });
        // The caller may have gone; what is committed stays.
        let _ = reply.send(result);
    }
}

impl Queue {
    pub(super) fn new(limits: WriterLimits) -> Self {
        let state = QueueState {
            reserved: VecDeque::new(),
            ordinary: VecDeque::new(),
            stopping: false,
            shedding: Shedding::new(limits.wait_target, limits.wait_interval),
            last_wait: Duration::ZERO,
            shed: 0,
            late: 0,
        };
        Self {
            state: Mutex::new(state),
            wake: Condvar::new(),
            limits,
            batches: AtomicU64::new(0),
            work: AtomicU64::new(0),
            broken: OnceLock::new(),
        }
    }

    pub(super) fn seen(&self) -> WriterSeen {
        let state = self.state.lock();
        WriterSeen {
            waiting: state.reserved.len() + state.ordinary.len(),
            waiting_reserved: state.reserved.len(),
            batches: self.batches.load(Ordering::Relaxed),
            work: self.work.load(Ordering::Relaxed),
            last_wait: state.last_wait,
            is_shedding: state.shedding.is_standing(),
            shed: state.shed,
            late: state.late,
        }
    }

    pub(super) fn push<T: Send + 'static>(
        &self,
        urgency: Urgency,
        deadline: Option<Instant>,
        work: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, CallFault>>, NotRun> {
        let (reply, answer) = oneshot::channel();
        let queued_at = Instant::now();
        let job = Box::new(Work { work, deadline, queued_at, answer: None, reply });
        let mut state = self.state.lock();
        self.expect_whole()?;
        if state.stopping {
            return Err(NotRun::new(NotRunReason::Stopping, "the database is being closed"));
        }
        match urgency {
            Urgency::Reserved => state.reserved.push_back(job),
            Urgency::Ordinary => {
                self.expect_room(&mut state, queued_at, deadline)?;
                state.ordinary.push_back(job);
            }
        }
        let idle = state.reserved.len() + state.ordinary.len() == 1;
        drop(state);
        if idle {
            self.wake.notify_one();
        }
        Ok(answer)
    }

    /// A place for new work, or why there is none.
    fn expect_room(
        &self,
        state: &mut QueueState,
        now: Instant,
        deadline: Option<Instant>,
    ) -> Result<(), NotRun> {
        let waiting = state.ordinary.len();
        let (detail, retry_after) = if waiting >= self.limits.queue_max {
            (format!("{waiting} pieces of work wait for the writer"), self.limits.wait_target)
        } else {
            match state.shedding.admit(now, waiting, deadline) {
                Ok(()) => return Ok(()),
                Err(Shed::Standing { retry_after }) => (
                    format!("{waiting} pieces of work wait for the writer, and it does not catch up"),
                    retry_after,
                ),
                Err(Shed::TooLate { retry_after }) => {
                    let waits = retry_after.as_millis();
                    (
                        format!("it would wait {waits} ms for the writer, which is beyond its deadline"),
                        retry_after,
                    )
                }
            }
        };
        state.shed += 1;
        let retry_after_ms = u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX).max(1);
        Err(NotRun::new(NotRunReason::Overloaded, detail).retry_after_ms(retry_after_ms))
    }

    /// The writer finishes what waits and ends.
    pub(super) fn stop(&self) {
        self.state.lock().stopping = true;
        self.wake.notify_one();
    }

    pub(super) fn broken(&self) -> Option<&str> {
        self.broken.get().map(String::as_str)
    }

    /// An error once the database is broken.
    pub(super) fn expect_whole(&self) -> Result<(), NotRun> {
        match self.broken() {
            None => Ok(()),
            Some(reason) => Err(NotRun::new(NotRunReason::Fault, reason)),
        }
    }

    fn take(&self, batch: &mut VecDeque<Box<dyn Job>>) -> bool {
        let mut state = self.state.lock();
        while state.reserved.is_empty() && state.ordinary.is_empty() {
            if state.stopping {
                return false;
            }
            self.wake.wait(&mut state);
        }
        // Who pushed the first piece has more to push, as a rule. Where it waits for this core it goes on first, so that
        // the batch has all of it; where a core is free this is a system call for nothing.
        MutexGuard::unlocked(&mut state, std::thread::yield_now);
        batch.append(&mut state.reserved);
        // What comes too late is not to take the room of what does not; the oldest are looked at first.
        let useful_from = state.shedding.useful_from(Instant::now());
        let mut late = Vec::new();
        while batch.len() < self.limits.batch_max
            && let Some(job) = state.ordinary.pop_front()
        {
            match too_late(&*job, useful_from) {
                None => batch.push_back(job),
                Some(why) => late.push((job, why)),
            }
        }
        state.late += late.len() as u64;
        drop(state);
        for (job, why) in late {
            job.finish(Err(why.into()));
        }
        true
    }

    /// Takes note of a batch that stands.
    fn committed(&self, began: Instant, ran: &[(Box<dyn Job>, Ran)], is_full: bool) {
        let Some((youngest, _)) = ran.last() else { return };
        let youngest_wait = began.saturating_duration_since(youngest.queued_at());
        let mut state = self.state.lock();
        state.last_wait = youngest_wait;
        state.shedding.committed(began, Instant::now(), ran.len(), is_full, youngest_wait);
    }

    fn put_back(&self, jobs: impl DoubleEndedIterator<Item = Box<dyn Job>>) {
        let mut state = self.state.lock();
        for job in jobs.rev() {
            state.ordinary.push_front(job);
        }
    }

    /// Nothing is written or read any more; what waits is not run.
    fn fail(&self, reason: &str) {
        tracing::error!("the database is stopped: {reason}");
        let mut state = self.state.lock();
        let waiting: Vec<_> = state.reserved.drain(..).collect();
        let waiting: Vec<_> = waiting.into_iter().chain(state.ordinary.drain(..)).collect();
        // Under the lock of the queue, so that nothing is pushed behind what is drained here.
        self.broken.get_or_init(|| reason.to_owned());
        drop(state);
        for job in waiting {
            job.finish(Err(NotRun::new(NotRunReason::Fault, reason).into()));
        }
    }
}

/// The writer's thread, until the queue is stopped and empty.
pub(super) fn run(connection: Connection, guard: &Guard, queue: &Queue) {
    let prepared = Prepared::new(connection);
    let (mut batch, mut careful) = (VecDeque::new(), 0);
    while queue.take(&mut batch) {
        // Everything may have come too late.
        if !batch.is_empty() {
            queue.batches.fetch_add(1, Ordering::Relaxed);
            queue.work.fetch_add(batch.len() as u64, Ordering::Relaxed);
            let committed = AssertUnwindSafe(|| commit(&prepared, guard, queue, &mut batch, &mut careful));
            // Modules' code is caught where it runs. Without its thread the queue would take work for ever.
            if catch_unwind(committed).is_err() {
                queue.fail("the writer panicked, so what it wrote last may or may not be there");
                return;
            }
        }
    }
}

/// How many batches get savepoints after one in which a piece of work was taken back. A savepoint costs a copy of
/// every page that it sees changed, about an eighth of the writer's time, so without need there is none.
const CAREFUL_BATCHES: u32 = 16;

/// Runs one batch and answers it. When that fails in a way that leaves a doubt, the database is stopped.
///
/// While `careful` is zero, work runs without savepoints. The first piece that refuses or fails takes the whole
/// batch back, and it is run again with them.
fn commit(
    prepared: &Prepared,
    guard: &Guard,
    queue: &Queue,
    batch: &mut VecDeque<Box<dyn Job>>,
    careful: &mut u32,
) {
    let connection = prepared.connection();
    let mut ran: Vec<(Box<dyn Job>, Ran)> = Vec::with_capacity(batch.len());
    let mut is_full = batch.len() >= queue.limits.batch_max;
    'batch: loop {
        if let Err(error) = control(connection, "BEGIN IMMEDIATE") {
            let reason = format!("cannot begin: {}", described(connection, &error));
            if !is_passing(&error) {
                queue.fail(&reason);
            }
            answer(batch.drain(..).map(|job| (job, Ran::Ok(Hooks::default()))), || {
                Err(NotRun::new(NotRunReason::Fault, reason.clone()).into())
            });
            return;
        }
        prepared.check_recent();
        let began = Instant::now();
        let taken_back = if *careful > 0 { TakenBack::Alone } else { TakenBack::WithBatch };
        let mut session = WriteSession::new(Rights::new(prepared, guard), taken_back);
        while let Some(mut job) = batch.pop_front() {
            let outcome = run_one(&mut session, job.as_mut(), began);
            if connection.is_autocommit() {
                // The culprit ended the transaction for all; its neighbours run again without it.
                let fault =
                    Fault::new(FaultKind::Lost, "a statement ended the transaction; it was rolled back");
                job.finish(Err(CallFault::NotRun(match outcome {
                    Ran::Failed(CallFault::NotRun(not_run)) => not_run,
                    _ => fault.into(),
                })));
                for (neighbour, outcome) in ran.drain(..).rev() {
                    match outcome {
                        Ran::Ok(_) if Protection::BatchRunsAgain.is_on() => batch.push_front(neighbour),
                        Ran::Ok(_) => neighbour.finish(Ok(())),
                        Ran::Failed(fault) => neighbour.finish(Err(fault)),
                        Ran::Again => unreachable!("a batch ends with the first of these"),
                    }
                }
                if batch.is_empty() {
                    return;
                }
                continue 'batch;
            }
            if let Ran::Again = outcome {
                *careful = CAREFUL_BATCHES;
                batch.push_front(job);
                for (neighbour, outcome) in ran.drain(..).rev() {
                    match outcome {
                        Ran::Failed(fault) => neighbour.finish(Err(fault)),
                        Ran::Ok(_) | Ran::Again => batch.push_front(neighbour),
                    }
                }
                // Failing here leaves a transaction open, in which the next one cannot begin: the database stops.
                let _ = control(connection, "ROLLBACK");
                continue 'batch;
            }
            ran.push((job, outcome));
            if began.elapsed() > queue.limits.batch_time_max && !batch.is_empty() {
                queue.put_back(batch.drain(..));
                is_full = true;
            }
        }
        *careful = if session.took_back() { CAREFUL_BATCHES } else { careful.saturating_sub(1) };
        if !Protection::SyncBeforeAnswer.is_on() {
            answer(ran.drain(..), || Ok(()));
        }
        return match control(connection, "COMMIT") {
            Ok(()) => {
                queue.committed(began, &ran, is_full);
                answer(ran.into_iter(), || Ok(()));
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DiskFull) => {
                // The commit frame was not written: certainly not run.
                let _ = control(connection, "ROLLBACK");
                let detail = format!("the disk is full: {error}");
                answer(ran.into_iter(), || Err(NotRun::new(NotRunReason::Fault, detail.clone()).into()));
            }
            Err(error) => {
                let error = described(connection, &error);
                let reason = format!("a commit failed, so what it wrote may or may not be there: {error}");
                // Before the answers: whoever hears *unknown* may look at once, and would find nothing.
                if Protection::FailedSyncStops.is_on() {
                    queue.fail(&reason);
                }
                answer(ran.into_iter(), || {
                    Err(Unknown::new(UnknownReason::CommitLost, reason.clone()).into())
                });
            }
        };
    }
}

fn answer(ran: impl Iterator<Item = (Box<dyn Job>, Ran)>, fate: impl Fn() -> Result<(), CallFault>) {
    for (job, outcome) in ran {
        match outcome {
            Ran::Ok(mut hooks) => {
                let fate = fate();
                match &fate {
                    Ok(()) => hooks.end(true),
                    Err(CallFault::NotRun(_)) => hooks.end(false),
                    Err(CallFault::Unknown(_)) => hooks.forget(),
                }
                job.finish(fate);
            }
            Ran::Failed(fault) => job.finish(Err(fault)),
            Ran::Again => unreachable!("a batch with one of these is run again"),
        }
    }
}

/// A lock that another connection holds for longer than the busy timeout passes; everything else stays.
fn is_passing(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// Why work need not be begun.
fn too_late(job: &dyn Job, useful_from: Instant) -> Option<NotRun> {
    if job.deadline().is_some_and(|deadline| deadline < useful_from) {
        return Some(NotRun::new(NotRunReason::Deadline, "the deadline passed in the writer's queue"));
    }
    let why = "the caller left before it began";
    job.is_abandoned().then(|| NotRun::new(NotRunReason::Deadline, why))
}

fn run_one(session: &mut WriteSession<'_>, job: &mut dyn Job, now: Instant) -> Ran {
    // Looked at again, since a batch may be run again.
    if let Some(why) = too_late(job, now) {
        return not_run(why);
    }
    run_work(session, |session| job.run(session))
}
