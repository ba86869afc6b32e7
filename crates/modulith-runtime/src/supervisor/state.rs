//! What the supervisor does about its children: starts, restarts, signals, the order of a stop. No clock, no
//! process, no signal.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::child::Ended;

const BACK_OFF_MIN: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(5);
/// A child that has lived this long has its back-off forgotten.
const LIFE_SOUND: Duration = Duration::from_secs(30);
/// Between the end of the drain and SIGKILL.
const KILL_AFTER: Duration = Duration::from_secs(2);
/// `EX_CONFIG` of sysexits.h: starting the child again is in vain.
const EXIT_CONFIGURATION: i32 = 78;

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Act {
    Start(usize),
    Send(usize, Signal),
    /// All are ready for the first time.
    Announce,
    /// For the log, about this child.
    Note(usize, String),
    /// Return with this exit code; whatever still runs is killed.
    End(u8),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running { since: Instant, ready: bool },
    Resting { until: Instant },
    Gone,
}

struct Child {
    phase: Phase,
    /// Ends since the last sound life.
    failures: u32,
}

struct Stopping {
    since: Instant,
    code: u8,
    services_told: bool,
    killed: bool,
}

pub(super) struct State {
    children: Vec<Child>,
    gateway: Option<usize>,
    drain: Duration,
    stopping: Option<Stopping>,
    announced: bool,
    random: fn() -> u64,
}

/// For jitter only.
pub(super) fn random() -> u64 {
    RandomState::new().hash_one(0_u8)
}

/// The pause before the next start: 100 ms doubling to 5 s, of which a random half to all is taken, so that
/// children that fell together do not return together.
fn back_off(failures: u32, random: u64) -> Duration {
    let whole = BACK_OFF_MIN.saturating_mul(1 << failures.min(16)).min(BACK_OFF_MAX);
    let half = whole / 2;
    half + half.mul_f64((random % 1024) as f64 / 1023.0)
}

impl State {
    pub(super) fn new(children: usize, gateway: Option<usize>, drain: Duration, random: fn() -> u64) -> Self {
        let children = (0..children).map(|_| Child { phase: Phase::Gone, failures: 0 }).collect();
        Self { children, gateway, drain, stopping: None, announced: false, random }
    }

    pub(super) fn begin(&mut self, now: Instant) -> Vec<Act> {
        (0..self.children.len()).map(|index| self.start(index, now)).collect()
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    pub(super) fn ready(&mut self, index: usize) -> Vec<Act> {
        if let Phase::Running { ready, .. } = &mut self.children[index].phase {
            *ready = true;
        }
        let all = self.children.iter().all(|child| matches!(child.phase, Phase::Running { ready: true, .. }));
        if all && !self.announced && self.stopping.is_none() {
            self.announced = true;
            return vec![Act::Announce];
        }
        Vec::new()
    }

    pub(super) fn not_ready(&mut self, index: usize) -> Vec<Act> {
        if let Phase::Running { ready, .. } = &mut self.children[index].phase {
            *ready = false;
        }
        Vec::new()
    }

    pub(super) fn ended(&mut self, index: usize, ended: Ended, now: Instant) -> Vec<Act> {
        if self.stopping.is_some() {
            self.children[index].phase = Phase::Gone;
            return self.go_on_stopping(now);
        }
        if ended == Ended::Code(EXIT_CONFIGURATION) {
            self.children[index].phase = Phase::Gone;
            let note =
                Act::Note(index, "cannot run with this configuration; everything is stopped".to_owned());
            return [vec![note], self.begin_stop(1, now)].concat();
        }
        if ended == Ended::Code(0) {
            // Somebody has told it to stop and it did: a service that is replaced is awaited, so it must not come late.
            self.children[index].failures = 0;
        }
        self.rest(index, &ended.to_string(), now)
    }

    /// The program is not there, or the system has no process left.
    pub(super) fn could_not_start(&mut self, index: usize, error: &io::Error, now: Instant) -> Vec<Act> {
        if self.stopping.is_some() {
            self.children[index].phase = Phase::Gone;
            return self.go_on_stopping(now);
        }
        let in_vain = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied);
        if in_vain && !self.announced {
            self.children[index].phase = Phase::Gone;
            return self.begin_stop(1, now);
        }
        self.rest(index, "could not be started", now)
    }

    /// A signal, by its number, or another wish to stop. A second signal ends everything at once.
    pub(super) fn stop(&mut self, signal: Option<u8>, now: Instant) -> Vec<Act> {
        match (signal, &self.stopping) {
            (Some(number), Some(_)) => vec![Act::End(128 + number)],
            (None, Some(_)) => Vec::new(),
            (_, None) => self.begin_stop(0, now),
        }
    }

    /// A signal that is none of ours.
    pub(super) fn pass(&self, signal: Signal) -> Vec<Act> {
        self.running(None).map(|index| Act::Send(index, signal)).collect()
    }

    /// When [`wake`](Self::wake) is to be called, if nothing happens before.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        if let Some(stopping) = &self.stopping {
            let drained = stopping.since + self.drain;
            return if !stopping.services_told {
                Some(drained)
            } else if !stopping.killed {
                Some(drained + KILL_AFTER)
            } else {
                None
            };
        }
        let rests = self.children.iter().filter_map(|child| match child.phase {
            Phase::Resting { until } => Some(until),
            _ => None,
        });
        rests.min()
    }

    pub(super) fn wake(&mut self, now: Instant) -> Vec<Act> {
        if self.stopping.is_some() {
            return self.go_on_stopping(now);
        }
        let due = |child: &Child| matches!(child.phase, Phase::Resting { until } if until <= now);
        let due: Vec<usize> = (0..self.children.len()).filter(|index| due(&self.children[*index])).collect();
        due.into_iter().map(|index| self.start(index, now)).collect()
    }

    fn start(&mut self, index: usize, now: Instant) -> Act {
        self.children[index].phase = Phase::Running { since: now, ready: false };
        Act::Start(index)
    }

    fn rest(&mut self, index: usize, what: &str, now: Instant) -> Vec<Act> {
        let child = &mut self.children[index];
        if let Phase::Running { since, .. } = child.phase
            && now.duration_since(since) >= LIFE_SOUND
        {
            child.failures = 0;
        }
        let pause = back_off(child.failures, (self.random)());
        child.failures += 1;
        child.phase = Phase::Resting { until: now + pause };
        vec![Act::Note(index, format!("{what}; it is started again in {} ms", pause.as_millis()))]
    }

    fn begin_stop(&mut self, code: u8, now: Instant) -> Vec<Act> {
        self.stopping = Some(Stopping { since: now, code, services_told: false, killed: false });
        for child in &mut self.children {
            if let Phase::Resting { .. } = child.phase {
                child.phase = Phase::Gone;
            }
        }
        let gateway = self.running(None).find(|index| Some(*index) == self.gateway);
        let mut acts: Vec<Act> = gateway.map(|index| Act::Send(index, Signal::TERM)).into_iter().collect();
        acts.extend(self.go_on_stopping(now));
        acts
    }

    fn go_on_stopping(&mut self, now: Instant) -> Vec<Act> {
        let gateway_runs = self.running(None).any(|index| Some(index) == self.gateway);
        let all: Vec<usize> = self.running(None).collect();
        let services: Vec<usize> = self.running(self.gateway).collect();
        let Some(stopping) = &mut self.stopping else {
            return Vec::new();
        };
        let drained = stopping.since + self.drain;
        let mut acts = Vec::new();
        if !stopping.services_told && (!gateway_runs || now >= drained) {
            stopping.services_told = true;
            acts.extend(services.into_iter().map(|index| Act::Send(index, Signal::TERM)));
        }
        if !stopping.killed && now >= drained + KILL_AFTER {
            stopping.killed = true;
            stopping.code = stopping.code.max(1);
            for index in &all {
                acts.push(Act::Send(*index, Signal::KILL));
                acts.push(Act::Note(*index, "did not stop in time and is killed".to_owned()));
            }
        }
        if all.is_empty() {
            acts.push(Act::End(stopping.code));
        }
        acts
    }

    fn running(&self, except: Option<usize>) -> impl Iterator<Item = usize> + '_ {
        let runs = |child: &Child| matches!(child.phase, Phase::Running { .. });
        (0..self.children.len()).filter(move |index| runs(&self.children[*index]) && Some(*index) != except)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const GATEWAY: usize = 2;

    /// Two services and the gateway, all ready.
    fn running(now: Instant) -> State {
        let mut state = State::new(3, Some(GATEWAY), Duration::from_secs(10), || 1023);
        assert_eq!(state.begin(now), [Act::Start(0), Act::Start(1), Act::Start(2)]);
        assert!(state.ready(2).is_empty() && state.ready(0).is_empty());
        assert_eq!(state.ready(1), [Act::Announce]);
        state
    }

    fn pause(state: &mut State, now: Instant) -> u128 {
        state.ended(0, Ended::Code(1), now);
        let until = state.next_wake().unwrap();
        assert_eq!(state.wake(until), [Act::Start(0)]);
        until.duration_since(now).as_millis()
    }

    #[test]
    fn a_child_that_ends_is_started_again_later_and_later() {
        let mut now = Instant::now();
        let mut state = running(now);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let waited = pause(&mut state, now);
            pauses.push(waited);
            now += MS * u32::try_from(waited).unwrap();
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(pause(&mut state, now + LIFE_SOUND), 100, "a sound life is forgiven");
        assert_eq!(back_off(0, 0), 50 * MS, "jitter takes up to a half");
    }

    #[test]
    fn a_child_that_was_told_to_stop_by_somebody_else_is_soon_back() {
        let mut now = Instant::now();
        let mut state = running(now);
        for _ in 0..8 {
            state.ended(0, Ended::Code(0), now);
            let until = state.next_wake().unwrap();
            assert_eq!(until.duration_since(now), BACK_OFF_MIN);
            assert_eq!(state.wake(until), [Act::Start(0)]);
            now = until;
        }
    }

    #[test]
    fn readiness_is_announced_once() {
        let now = Instant::now();
        let mut state = running(now);
        state.ended(0, Ended::Signal(9), now);
        state.wake(now + LIFE_SOUND);
        assert!(state.ready(0).is_empty());
    }

    #[test]
    fn a_child_that_falls_before_all_are_ready_delays_the_announcement() {
        let now = Instant::now();
        let mut state = State::new(2, None, Duration::from_secs(1), || 0);
        state.begin(now);
        state.ready(0);
        state.ended(0, Ended::Code(1), now);
        assert!(state.ready(1).is_empty());
        state.wake(now + LIFE_SOUND);
        assert_eq!(state.ready(0), [Act::Announce]);
    }

    #[test]
    fn a_stop_goes_to_the_gateway_and_then_to_the_services() {
        let now = Instant::now();
        let mut state = running(now);
        assert_eq!(state.stop(Some(15), now), [Act::Send(GATEWAY, Signal::TERM)]);
        let services = [Act::Send(0, Signal::TERM), Act::Send(1, Signal::TERM)];
        assert_eq!(state.ended(GATEWAY, Ended::Code(0), now + MS), services);
        assert!(state.ended(0, Ended::Code(0), now + MS).is_empty());
        assert_eq!(state.ended(1, Ended::Code(1), now + MS), [Act::End(0)]);
    }

    #[test]
    fn who_does_not_stop_in_time_is_killed() {
        let now = Instant::now();
        let mut state = running(now);
        state.stop(None, now);
        let drained = state.next_wake().unwrap();
        assert_eq!(drained, now + Duration::from_secs(10));
        assert_eq!(state.wake(drained), [Act::Send(0, Signal::TERM), Act::Send(1, Signal::TERM)]);
        assert!(state.ended(0, Ended::Code(0), drained).is_empty());
        let over = state.next_wake().unwrap();
        assert_eq!(over, drained + KILL_AFTER);
        let killed =
            |acts: Vec<Act>| acts.into_iter().filter(|act| matches!(act, Act::Send(..))).collect::<Vec<_>>();
        assert_eq!(killed(state.wake(over)), [Act::Send(1, Signal::KILL), Act::Send(GATEWAY, Signal::KILL)]);
        assert_eq!(state.next_wake(), None);
        state.ended(1, Ended::Signal(9), over);
        assert_eq!(state.ended(GATEWAY, Ended::Signal(9), over), [Act::End(1)]);
    }

    #[test]
    fn a_second_signal_ends_at_once_and_another_wish_does_not() {
        let now = Instant::now();
        let mut state = running(now);
        state.stop(Some(15), now);
        assert!(state.stop(None, now).is_empty());
        assert_eq!(state.stop(Some(2), now), [Act::End(130)]);
    }

    #[test]
    fn a_configuration_that_cannot_work_stops_everything() {
        let now = Instant::now();
        let mut state = running(now);
        state.ended(1, Ended::Signal(11), now);
        let acts = state.ended(0, Ended::Code(EXIT_CONFIGURATION), now);
        assert!(acts.contains(&Act::Send(GATEWAY, Signal::TERM)), "{acts:?}");
        // The one that rested is not started again.
        assert_eq!(state.ended(GATEWAY, Ended::Code(0), now), [Act::End(1)]);
    }

    #[test]
    fn a_program_that_is_not_there_is_not_tried_again_and_again() {
        let now = Instant::now();
        let mut state = State::new(1, None, Duration::from_secs(1), || 0);
        state.begin(now);
        let absent = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(state.could_not_start(0, &absent, now), [Act::End(1)]);
        let mut state = running(now);
        state.ended(0, Ended::Code(0), now);
        state.wake(now + LIFE_SOUND);
        assert!(matches!(&*state.could_not_start(0, &absent, now), [Act::Note(0, _)]), "it was there before");
    }

    #[test]
    fn other_signals_reach_everyone_who_runs() {
        let now = Instant::now();
        let mut state = running(now);
        state.ended(0, Ended::Code(0), now);
        assert_eq!(state.pass(Signal::HUP), [Act::Send(1, Signal::HUP), Act::Send(2, Signal::HUP)]);
    }
}
