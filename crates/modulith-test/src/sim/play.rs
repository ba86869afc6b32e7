//! One schedule: processes, their tasks, the events between them, and the faults at their moments.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as TaskContext, Poll, Waker};

use modulith_core::{
    AnyBox, CallFault, ClientKey, Context, EffectFn, EffectRan, NotRun, NotRunReason, SagaEnd, Unknown,
    UnknownReason,
};
use modulith_data::participant::Participant;
use modulith_data::saga::{Answered, Asked, Drive, Modules, Sagas};
use modulith_data::sqlite::InMemory;
use tokio::sync::{mpsc, oneshot};

use super::cast::{Cast, Placement, Start};
use super::fault::{Fault, Late, Moment};
use super::watch::Watch;
use super::world::{Doing, Event, Heard, Process, Shared, SimWorld, What};
use crate::random::Random;

/// Moments after which a schedule is cut: whatever has not ended by then waits for a person, or for ever.
const MOMENTS_MAX: usize = 300;
/// The same for a seed, which draws many faults.
const MOMENTS_MAX_OF_SEED: usize = 800;
/// How many requests an outage swallows: more than a walk tries before it turns back.
const OUTAGE_REQUESTS: u8 = 8;
/// The moment after which a seed draws no more faults.
const FAULTS_UNTIL: usize = 100;
/// How often a caller asks again.
const CALLS_MAX: usize = 3;
/// Callers of one schedule.
const CALLERS_MAX: usize = 5;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;
/// A clock that jumps forward is past a provider's window, and for so long not past the time that a look-up waits.
const LOOK_UP_LATER_MS: i64 = 5_000;
const LOOK_UP_DELAY_MS: i64 = modulith_core::LOOK_UP_DELAY.as_millis() as i64;

/// Which faults come, and in which order things happen.
#[derive(Debug, Clone)]
pub(super) enum Script {
    /// In order; these faults at these moments, counted from zero.
    Faults(Vec<(usize, Fault)>),
    /// In an order and with faults drawn from a seed.
    Seed(u64),
}

/// Where an effect's code runs while it is with the provider.
const OUTSIDE: Process = Process { service: usize::MAX, life: 0 };

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

struct Engine {
    process: Process,
    participant: Arc<Participant<SimWorld>>,
    sagas: BTreeMap<&'static str, Arc<Sagas<SimWorld>>>,
    started: Vec<mpsc::UnboundedReceiver<Drive<SimWorld>>>,
}

/// A caller that starts one saga under a key of its own.
pub(super) struct Caller {
    pub(super) start: usize,
    key: ClientKey,
    pub(super) waits: Option<Answered>,
    /// What it was told, each time it asked.
    pub(super) heard: Vec<Result<SagaEnd, CallFault>>,
}

/// A schedule while it is played.
pub(super) struct Play<'s> {
    pub(super) cast: &'s Cast,
    pub(super) databases: &'s [InMemory],
    pub(super) placement: &'s Placement,
    moved_to: &'s Placement,
    pub(super) callers: Vec<Caller>,
    pub(super) watch: Watch,
    /// The kind of each moment that came.
    pub(super) moments: Vec<Moment>,
    pub(super) transcript: Option<Vec<String>>,
    /// What time it is, whatever the clocks say.
    pub(super) true_ms: i64,
    /// By how much the wall clock is wrong, and how wrong each service takes it for: a process follows it forward,
    /// and back only when it starts.
    wall_ms: i64,
    clocks_ms: Vec<i64>,
    shared: Arc<Shared>,
    engines: Vec<Engine>,
    tasks: Vec<(Process, Task)>,
    queue: VecDeque<Event>,
    held: Vec<(Late, Event)>,
    /// Requests to this service, or attempts at effects, that are still to be lost.
    outage: Option<(Option<usize>, u8)>,
    random: Option<Random>,
    faults: Vec<(usize, Fault)>,
    lives: u64,
    starts: &'s [Start],
}

impl<'s> Play<'s> {
    pub(super) fn new(
        cast: &'s Cast,
        databases: &'s [InMemory],
        placement: &'s Placement,
        moved_to: &'s Placement,
        starts: &'s [Start],
        script: &Script,
        transcript: bool,
    ) -> Self {
        let (faults, random) = match script {
            Script::Faults(faults) => (faults.clone(), None),
            Script::Seed(seed) => (Vec::new(), Some(Random::new(*seed))),
        };
        let mut play = Self {
            cast,
            databases,
            placement,
            moved_to,
            callers: Vec::new(),
            watch: Watch::default(),
            moments: Vec::new(),
            transcript: transcript.then(Vec::new),
            true_ms: 1_700_000_000_000,
            wall_ms: 0,
            clocks_ms: vec![0; databases.len()],
            shared: Arc::default(),
            engines: Vec::new(),
            tasks: Vec::new(),
            queue: VecDeque::new(),
            held: Vec::new(),
            outage: None,
            random,
            faults,
            lives: 0,
            starts,
        };
        for service in 0..placement.services() {
            play.start_service(service);
        }
        play
    }

    /// Plays everything, and then asks again whoever was left without a certain answer.
    pub(super) fn play(&mut self) {
        self.call(0);
        self.until_quiet();
        self.release(Late::End);
        self.until_quiet();
        if self.held.iter().any(|(late, _)| *late == Late::Pruned) {
            self.overtake();
            self.release(Late::Pruned);
            self.until_quiet();
        }
        for _ in 0..CALLS_MAX {
            for caller in 0..self.callers.len() {
                self.call_again(caller);
            }
            self.until_quiet();
        }
    }

    fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(transcript) = &mut self.transcript {
            transcript.push(line());
        }
    }

    /// The time of a service.
    fn now_ms(&self, service: usize) -> i64 {
        self.true_ms + self.clocks_ms[service]
    }

    fn set_clock(&mut self, by_ms: i64) {
        self.wall_ms += by_ms;
        for clock in &mut self.clocks_ms {
            *clock = self.wall_ms.max(*clock);
        }
    }

    fn start_service(&mut self, service: usize) {
        self.clocks_ms[service] = self.wall_ms;
        self.lives += 1;
        let process = Process { service, life: self.lives };
        let codes = self.cast.codes_at(self.placement, service);
        let world = Arc::new(SimWorld { shared: self.shared.clone(), process });
        let participant = Arc::new(Participant::new(world, Modules::new(&codes), self.cast.plans.clone()));
        let identity = self.databases[service].reopen().expect("a database in memory takes an update");
        self.shared.set_places(self.cast.places(self.placement));
        let (mut sagas, mut started) = (BTreeMap::new(), Vec::new());
        for (module, plans) in self.cast.begins_at(self.placement, service) {
            let (engine, to_drive) = Sagas::new(module, &identity, participant.clone(), &plans);
            sagas.insert(module, engine);
            started.push(to_drive);
        }
        for engine in sagas.values() {
            let engine = engine.clone();
            let (to_drive, drives) = mpsc::unbounded_channel();
            started.push(drives);
            let sweep = async move {
                for drive in engine.unfinished().await.into_iter().flatten() {
                    // The play has ended if nobody takes it.
                    let _ = to_drive.send(drive);
                }
            };
            self.tasks.push((process, Box::pin(sweep)));
        }
        self.engines.retain(|engine| engine.process.service != service);
        self.engines.push(Engine { process, participant, sagas, started });
    }

    /// Ends all processes of a service, and with them what only they knew.
    fn kill(&mut self, service: usize) {
        self.note(|| format!("  !! service {service} ends"));
        self.gather();
        self.tasks.retain(|(process, _)| process.service != service);
        self.engines.retain(|engine| engine.process.service != service);
        let is_under_way = |event: &Event| {
            event.by.service != service || matches!(event.what, What::Request { .. } | What::Reply { .. })
        };
        self.queue.retain(is_under_way);
        self.held.retain(|(_, event)| is_under_way(event));
    }

    fn crash(&mut self, service: usize) {
        if service == OUTSIDE.service {
            return;
        }
        self.kill(service);
        self.start_service(service);
    }

    fn move_modules(&mut self) {
        let before = self.placement;
        for service in 0..before.services() {
            self.kill(service);
        }
        self.placement = if std::ptr::eq(before, self.moved_to) { before } else { self.moved_to };
        self.note(|| "  !! everything moves".to_owned());
        self.cast.move_data(self.databases, before, self.placement);
        for service in 0..self.placement.services() {
            self.start_service(service);
        }
    }

    fn engine_of(&self, module: &str) -> &Arc<Sagas<SimWorld>> {
        let engine = self.engines.iter().find_map(|engine| engine.sagas.get(module));
        engine.expect("every module that begins sagas has an engine")
    }

    fn call(&mut self, start: usize) {
        let number = self.callers.len();
        let key = ClientKey::new("caller", "simulation", &number.to_string(), &start.to_le_bytes());
        self.callers.push(Caller { start, key, waits: None, heard: Vec::new() });
        self.begin(number);
    }

    fn begin(&mut self, caller: usize) {
        let start = &self.starts[self.callers[caller].start];
        let sagas = self.engine_of(start.module).clone();
        let process = sagas.world().process;
        match sagas.begin(start.plan, (start.input)(caller as i64), Some(self.callers[caller].key)) {
            Ok((drive, answered)) => {
                self.callers[caller].waits = Some(answered);
                self.tasks.push((process, drive.run()));
            }
            Err(not_run) => self.callers[caller].heard.push(Err(not_run.into())),
        }
    }

    /// A caller that was not told for certain asks again under its key.
    fn call_again(&mut self, caller: usize) {
        if self.callers[caller].waits.is_none() && !matches!(self.callers[caller].heard.last(), Some(Ok(_))) {
            self.begin(caller);
        }
    }

    /// Another saga begins and ends, which tells participants what has ended, and that is deleted.
    fn overtake(&mut self) {
        self.call(0);
        let second = self.callers.len() - 1;
        self.until(|play| play.callers[second].waits.is_none());
        // Its own steps are heard of only with a third one's.
        self.call(0);
        let third = self.callers.len() - 1;
        self.until(|play| play.callers[third].waits.is_none());
        for service in 0..self.placement.services() {
            let Some(engine) = self.engines.iter().position(|engine| engine.process.service == service)
            else {
                continue;
            };
            let (process, participant) =
                (self.engines[engine].process, self.engines[engine].participant.clone());
            let sagas: Vec<_> = self.engines[engine].sagas.values().cloned().collect();
            let is_over = Arc::new(AtomicBool::new(false));
            let over = is_over.clone();
            let prune = async move {
                // What a fault keeps from being deleted is deleted another time.
                for sagas in sagas {
                    let _ = sagas.prune().await;
                }
                let _ = participant.prune().await;
                over.store(true, Ordering::Relaxed);
            };
            self.tasks.push((process, Box::pin(prune)));
            self.until(|play| is_over.load(Ordering::Relaxed) || !play.lives(process));
        }
    }

    /// Whether a process has something to do still.
    fn lives(&self, process: Process) -> bool {
        process == OUTSIDE || self.tasks.iter().any(|(other, _)| *other == process)
    }

    fn release(&mut self, wanted: Late) {
        let held = std::mem::take(&mut self.held);
        for (late, event) in held {
            if late == wanted {
                self.queue.push_back(event);
            } else {
                self.held.push((late, event));
            }
        }
    }

    fn until_quiet(&mut self) {
        self.until(|_| false);
    }

    fn until(&mut self, enough: impl Fn(&Self) -> bool) {
        loop {
            self.run_tasks();
            if enough(self) {
                return;
            }
            let max = if self.random.is_some() { MOMENTS_MAX_OF_SEED } else { MOMENTS_MAX };
            if self.moments.len() > max {
                return;
            }
            match self.next_event() {
                Some(event) => self.fire(event),
                None => return,
            }
        }
    }

    fn gather(&mut self) {
        for mut event in self.shared.take() {
            if let What::Pause { time, until_ms, .. } = &mut event.what {
                *until_ms = self.true_ms + i64::try_from(time.as_millis()).unwrap_or(0);
            }
            self.queue.push_back(event);
        }
        for engine in &mut self.engines {
            for started in &mut engine.started {
                while let Ok(drive) = started.try_recv() {
                    self.tasks.push((engine.process, drive.run()));
                }
            }
        }
    }

    fn run_tasks(&mut self) {
        let mut context = TaskContext::from_waker(Waker::noop());
        // One task may wait for another, so as often as one of them ends.
        let mut ended = true;
        while ended {
            ended = false;
            let mut at = 0;
            while at < self.tasks.len() {
                match self.tasks[at].1.as_mut().poll(&mut context) {
                    Poll::Ready(()) => {
                        drop(self.tasks.remove(at));
                        ended = true;
                    }
                    Poll::Pending => at += 1,
                }
            }
            let tasks = self.tasks.len();
            self.gather();
            ended |= self.tasks.len() > tasks;
        }
        for number in 0..self.callers.len() {
            let Some(waits) = &mut self.callers[number].waits else { continue };
            let heard = match waits.try_recv() {
                Ok(heard) => heard,
                Err(oneshot::error::TryRecvError::Empty) => continue,
                Err(oneshot::error::TryRecvError::Closed) => {
                    Err(Unknown::new(UnknownReason::ConnectionLost, "its service ended").into())
                }
            };
            self.note(|| format!("  caller {number} hears {heard:?}"));
            self.callers[number].waits = None;
            self.callers[number].heard.push(heard);
        }
    }

    fn next_event(&mut self) -> Option<Event> {
        for (late, _) in &mut self.held {
            if let Late::Moments(left) = late {
                *left = left.saturating_sub(1);
            }
        }
        self.release(Late::Moments(0));
        let is_pause = |event: &Event| matches!(event.what, What::Pause { .. });
        let ready: Vec<usize> = (0..self.queue.len()).filter(|at| !is_pause(&self.queue[*at])).collect();
        let chosen = match &mut self.random {
            _ if ready.is_empty() => {
                let until = |at: &usize| match &self.queue[*at].what {
                    What::Pause { until_ms, .. } => *until_ms,
                    _ => 0,
                };
                (0..self.queue.len()).min_by_key(until)?
            }
            Some(random) => ready[random.below(ready.len())],
            None => ready[0],
        };
        self.queue.remove(chosen)
    }

    fn fault_now(&mut self, moment: Moment) -> Option<Fault> {
        let number = self.moments.len();
        self.moments.push(moment);
        let may_jump = moment != Moment::Attempt && !self.attempt_is_under_way();
        let Some(random) = &mut self.random else {
            return self.faults.iter().find(|(at, _)| *at == number).map(|(_, fault)| *fault);
        };
        // Several in a schedule, and none for ever.
        if number >= FAULTS_UNTIL || random.below(8) != 0 {
            return None;
        }
        let mut faults = Fault::at(moment);
        // What is told and not promised away: a clock that is set back and believed by a process that starts
        // afterwards, and one that jumps past a provider's window while an attempt is on its way. Both take three
        // faults to do harm, so scripts of two may have them.
        faults.retain(|fault| match fault {
            Fault::ClockBack => false,
            Fault::ClockForward => may_jump,
            _ => true,
        });
        faults.get(random.below(faults.len())).copied()
    }

    fn fire(&mut self, event: Event) {
        let moment = match &event.what {
            What::Commit(_) => Moment::Commit,
            What::Request { .. } => Moment::Request,
            What::Reply { .. } => Moment::Reply,
            What::Attempt { .. } => Moment::Attempt,
            What::Pause { .. } => Moment::Pause,
        };
        let fault = self.fault_now(moment);
        let number = self.moments.len() - 1;
        self.note(|| {
            let with = fault.map(|fault| format!(" with {fault:?}")).unwrap_or_default();
            format!("{number:3} {}{with}", event.described())
        });
        // Faults of the whole come first; then the moment itself goes on, if its process still lives.
        match fault {
            Some(Fault::TwoCoordinators) if event.by != OUTSIDE => self.start_service(event.by.service),
            Some(Fault::Moved) => self.move_modules(),
            Some(Fault::Overtaken) if self.callers.len() < CALLERS_MAX => self.overtake(),
            Some(Fault::ClockForward) => self.set_clock(DAY_MS + LOOK_UP_DELAY_MS - LOOK_UP_LATER_MS),
            Some(Fault::ClockBack) => self.set_clock(-DAY_MS - 1),
            _ => {}
        }
        super::NOW_MS.set(self.true_ms);
        let is_under_way = matches!(event.what, What::Request { .. } | What::Reply { .. });
        if !is_under_way && !self.lives(event.by) {
            return;
        }
        match event.what {
            What::Commit(commit) => self.commit(event.by, commit, fault),
            What::Request { .. } => self.request(event, fault),
            What::Reply { asker, heard, done } => match fault {
                Some(Fault::Lost) => {
                    let lost = Unknown::new(UnknownReason::Deadline, "the answer was lost");
                    let _ = done.send(Err(lost.into()));
                }
                Some(Fault::CrashBefore) => self.crash(asker.service),
                Some(Fault::CrashAfter) => {
                    drop((heard, done));
                    self.crash(event.by.service);
                }
                _ => {
                    // Whoever asked may have ended.
                    let _ = done.send(heard);
                }
            },
            What::Attempt { .. } => self.attempt(event, fault),
            What::Pause { until_ms, done, .. } => {
                self.true_ms = self.true_ms.max(until_ms);
                let _ = done.send(());
            }
        }
    }

    fn commit(
        &mut self,
        by: Process,
        commit: Box<dyn FnOnce(Doing<'_>) -> Option<String> + Send>,
        fault: Option<Fault>,
    ) {
        let (database, now_ms) = (&self.databases[by.service], self.now_ms(by.service));
        let doing = match fault {
            Some(Fault::NotRun) => {
                Doing::Refuse(NotRun::new(NotRunReason::Overloaded, "the writer's queue is full").into())
            }
            Some(Fault::CrashBefore) => return self.crash(by.service),
            Some(Fault::CrashInside) => Doing::TakeBack(database, now_ms),
            Some(Fault::CrashAfter) => Doing::CommitUnheard(database, now_ms),
            _ => Doing::Commit(database, now_ms),
        };
        if let Some(failed) = commit(doing) {
            self.note(|| format!("      not run: {failed}"));
        }
        self.watch.after_commit(self.cast, database, self.placement, by.service, now_ms);
        if matches!(fault, Some(Fault::CrashInside | Fault::CrashAfter)) {
            self.crash(by.service);
        }
    }

    /// Whether an outage swallows what goes to this service, or to the outside.
    fn is_out(&mut self, to: Option<usize>) -> bool {
        match &mut self.outage {
            Some((out, left)) if *out == to => {
                *left -= 1;
                if *left == 0 {
                    self.outage = None;
                }
                true
            }
            _ => false,
        }
    }

    fn attempt_is_under_way(&self) -> bool {
        let held = self.held.iter().map(|(_, event)| event);
        self.queue.iter().chain(held).any(|event| matches!(event.what, What::Attempt { .. }))
    }

    fn request(&mut self, event: Event, fault: Option<Fault>) {
        let Event { by, what: What::Request { to, asked, context, done } } = event else {
            unreachable!("the caller looked");
        };
        let not_run = |why: &str| Err(NotRun::new(NotRunReason::Unavailable, why).into());
        let unknown = || Err(Unknown::new(UnknownReason::Deadline, "no answer in time").into());
        if self.is_out(Some(to)) {
            let _ = done.send(not_run("an outage"));
            return;
        }
        let (mute, _) = oneshot::channel();
        match fault {
            Some(Fault::Lost) => drop(done.send(unknown())),
            Some(Fault::Unreachable) => drop(done.send(not_run("nobody there"))),
            Some(Fault::Outage) => {
                self.outage = Some((Some(to), OUTAGE_REQUESTS));
                let _ = done.send(unknown());
            }
            Some(Fault::OutageAfter) => {
                self.outage = Some((Some(to), OUTAGE_REQUESTS));
                let _ = done.send(unknown());
                self.deliver(by, to, asked, context, mute);
            }
            Some(Fault::Delayed(late)) => {
                let _ = done.send(unknown());
                self.held.push((late, Event { by, what: What::Request { to, asked, context, done: mute } }));
            }
            Some(Fault::Twice(late)) => {
                let again = What::Request { to, asked: asked.clone(), context: context.clone(), done: mute };
                self.held.push((late, Event { by, what: again }));
                self.deliver(by, to, asked, context, done);
            }
            Some(Fault::CrashBefore) => {
                drop(done);
                self.crash(to);
            }
            _ => self.deliver(by, to, asked, context, done),
        }
    }

    fn deliver(
        &mut self,
        asker: Process,
        to: usize,
        asked: Asked,
        context: Context,
        done: oneshot::Sender<Heard>,
    ) {
        let Some(engine) = self.engines.iter().find(|engine| engine.process.service == to) else {
            let _ = done.send(Err(NotRun::new(NotRunReason::Unavailable, "no such service now").into()));
            return;
        };
        let (participant, process, shared) =
            (engine.participant.clone(), engine.process, self.shared.clone());
        let handle = async move {
            let heard = participant.answer(asked, context).await;
            shared.push(Event { by: process, what: What::Reply { asker, heard, done } });
        };
        self.tasks.push((process, Box::pin(handle)));
    }

    fn attempt(&mut self, event: Event, fault: Option<Fault>) {
        let Event { by, what: What::Attempt { run, context, request, done } } = event else {
            unreachable!("the caller looked");
        };
        let unknown = || EffectRan::Unknown(Unknown::new(UnknownReason::Provider, "no answer in time"));
        let not_run = || EffectRan::NotRun(NotRun::new(NotRunReason::Unavailable, "the outside is away"));
        if self.is_out(None) {
            let _ = done.send(not_run());
            return;
        }
        match fault {
            Some(Fault::NotRun) => drop(done.send(not_run())),
            Some(Fault::Lost) => drop(done.send(unknown())),
            Some(Fault::Outage) => {
                self.outage = Some((None, OUTAGE_REQUESTS));
                let _ = done.send(unknown());
            }
            Some(Fault::OutageAfter) => {
                self.happens(run, context, request, Some((done, Some(unknown()))));
                self.outage = Some((None, OUTAGE_REQUESTS));
            }
            // No attempt is on its way for a day: it is given up long before.
            Some(Fault::LostPastWindow) if !self.attempt_is_under_way() => {
                self.happens(run, context, request, Some((done, Some(unknown()))));
                // Also past the time that a look-up waits for what may be on its way.
                self.true_ms += DAY_MS + DAY_MS / 24;
            }
            Some(Fault::Delayed(late)) => {
                let _ = done.send(unknown());
                let (mute, _) = oneshot::channel();
                // It is on its way outside, and belongs to no process any more.
                let by = OUTSIDE;
                self.held
                    .push((late, Event { by, what: What::Attempt { run, context, request, done: mute } }));
            }
            Some(Fault::CrashBefore) => self.crash(by.service),
            Some(Fault::CrashAfter) => {
                self.happens(run, context, request, None);
                self.run_tasks();
                self.crash(by.service);
            }
            _ => self.happens(run, context, request, Some((done, None))),
        }
    }

    /// Lets an effect's code run, and tells whoever waits what came of it, or something else.
    fn happens(
        &mut self,
        run: Arc<dyn EffectFn>,
        context: Context,
        request: AnyBox,
        waits: Option<(oneshot::Sender<EffectRan>, Option<EffectRan>)>,
    ) {
        let attempt = run.run(context, request);
        let work = async move {
            let ran = attempt.await;
            if let Some((done, other)) = waits {
                // Whoever asked may have ended.
                let _ = done.send(other.unwrap_or(ran));
            }
        };
        // The outside does not end with the process that asked it.
        self.tasks.push((OUTSIDE, Box::pin(work)));
    }
}

impl Event {
    fn described(&self) -> String {
        let by = self.by.service;
        match &self.what {
            What::Commit(_) => format!("service {by} commits"),
            What::Request { to, asked, .. } => {
                format!("service {by} asks service {to}: saga {} {:?}", asked.saga.seq, asked.ask)
            }
            What::Reply { heard, .. } => format!("service {by} answers {heard:?}"),
            What::Attempt { context, .. } => {
                format!(
                    "service {by} attempts an effect under {:?}",
                    context.key.map(|key| (key.seq, key.step))
                )
            }
            What::Pause { time, .. } => format!("service {by} has waited {} ms", time.as_millis()),
        }
    }
}
