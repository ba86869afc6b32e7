//! Whose turn it is on cores that the children share.
//!
//! By default a thread that is woken up may interrupt the one that runs. Where processes outnumber the cores that one is often
//! the very neighbour that is about to send more: it is interrupted after each frame, and each is received, committed
//! and answered alone. So the children are scheduled as a batch ([`SCHED_BATCH`]): who runs goes on until it waits, and what
//! has come meanwhile is done together. Threads of other programs do interrupt them, and go before them. So while others
//! want much of the cores, the children are scheduled like them.
//!
//! [`SCHED_BATCH`]: https://man7.org/linux/man-pages/man7/sched.7.html

use std::time::Duration;

use rustix::process::Pid;

/// How often it is looked at what the cores do.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The share of our cores' time from which on others want much, and below which they do not. Where this process may use
/// some of the machine's cores only, nothing says on which the others are, and all of them count.
const MUCH: f64 = 0.25;
const LITTLE: f64 = 0.125;

/// How a process is scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheduling {
    /// Like any other.
    Normal,
    /// None of its threads interrupts another thread.
    Batch,
}

/// The cores, as they were when they were last looked at.
pub(super) struct Turns {
    /// How many this process may use.
    cores: usize,
    machine: Machine,
    last: Option<Used>,
    scheduling: Scheduling,
}

/// What so many cores could have done, and what the machine's did for programs, in the kernel's ticks.
pub(super) type Machine = fn(usize) -> Option<(u64, u64)>;

/// Time in the kernel's ticks since some start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Used {
    /// What our cores could have done.
    all: u64,
    /// What the machine's did for programs.
    busy: u64,
    /// What they did for the children.
    ours: u64,
}

impl Turns {
    /// None where it makes no difference: there are cores for all children, or the system is not Linux.
    pub(super) fn new(children: usize, cores: usize) -> Option<Self> {
        (cfg!(target_os = "linux") && children > cores).then(|| Self::on(cores, this_machine))
    }

    pub(super) fn on(cores: usize, machine: Machine) -> Self {
        Self { cores, machine, last: None, scheduling: Scheduling::Normal }
    }

    /// How children are scheduled that start now.
    pub(super) fn scheduling(&self) -> Scheduling {
        self.scheduling
    }

    /// Looks at the cores. Something when the children are to be scheduled otherwise than before.
    pub(super) fn look(&mut self, children: impl Iterator<Item = Pid>) -> Option<Scheduling> {
        // A system that does not tell leaves everything as it is.
        let (all, busy) = (self.machine)(self.cores)?;
        let ours = children.filter_map(|pid| {
            process(&std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?)
        });
        self.decide(Used { all, busy, ours: ours.sum() })
    }

    fn decide(&mut self, now: Used) -> Option<Scheduling> {
        let last = self.last.replace(now)?;
        let passed = now.all.checked_sub(last.all).filter(|passed| *passed > 0)?;
        // A child that ended takes its time along, so that for once it seems to be the others'.
        let others = now.busy.saturating_sub(last.busy).saturating_sub(now.ours.saturating_sub(last.ours));
        let share = others as f64 / passed as f64;
        let scheduling = match self.scheduling {
            Scheduling::Normal if share < LITTLE => Scheduling::Batch,
            Scheduling::Batch if share > MUCH => Scheduling::Normal,
            _ => return None,
        };
        self.scheduling = scheduling;
        Some(scheduling)
    }
}

fn this_machine(cores: usize) -> Option<(u64, u64)> {
    machine(&std::fs::read_to_string("/proc/stat").ok()?, cores)
}

/// What so many of the machine's cores could do, and what all of them did, from `/proc/stat`: user, nice, system, idle, iowait,
/// and more that no program did, of all cores and then of each.
fn machine(stat: &str, cores: usize) -> Option<(u64, u64)> {
    let mut lines = stat.lines();
    let line = lines.next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line.split_whitespace().map_while(|number| number.parse().ok()).take(8).collect();
    let busy = ticks.get(..3)?.iter().sum();
    let all = lines.take_while(|line| line.starts_with("cpu")).count().max(1);
    Some((ticks.iter().sum::<u64>() * cores as u64 / all as u64, busy))
}

/// What was done for a process, from its `stat`: the 14th and 15th field, counted behind the name, which may have anything
/// in it.
fn process(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

impl Scheduling {
    /// Schedules all threads of a process like this, and those that they start. A refusal is not worth a word: the
    /// process then runs as it did.
    #[cfg(target_os = "linux")]
    pub(super) fn set(self, process: Pid) {
        let policy = match self {
            Scheduling::Normal => libc::SCHED_OTHER,
            Scheduling::Batch => libc::SCHED_BATCH,
        };
        let threads =
            std::fs::read_dir(format!("/proc/{}/task", process.as_raw_nonzero())).into_iter().flatten();
        for thread in threads.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()) {
            // SAFETY: the parameter is the caller's and only read; both policies have priority 0 only.
            unsafe { libc::sched_setscheduler(thread, policy, &libc::sched_param { sched_priority: 0 }) };
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn set(self, _: Pid) {}
}

#[cfg(test)]
mod tests {
    use super::{Scheduling, Turns, Used, machine, process};

    #[test]
    fn the_kernels_counts_are_understood() {
        let stat = "cpu  187 3 122 49 25 0 17 5 9 9\ncpu0 94 0 65 36 8 0 1 0 0 0\ncpu1 93 3 57\nintr 1\n";
        assert_eq!(machine(stat, 2), Some((187 + 3 + 122 + 49 + 25 + 17 + 5, 187 + 3 + 122)));
        assert_eq!(machine(stat, 1), Some((204, 187 + 3 + 122)), "one of two");
        for strange in ["", "cpu", "cpu  1 2", "intr 5 6 7 8"] {
            assert_eq!(machine(strange, 2), None, "{strange:?}");
        }
        let stat = "77 (a) R 1 (b) S 1 77 77 0 -1 4194560 5 0 0 0 31 11 0 0 20 0 8 0 100 1 2";
        assert_eq!(process(stat), Some(42));
        assert_eq!(process("77 (store) S 1 77"), None);
    }

    #[test]
    fn children_are_a_batch_while_others_want_little() {
        let mut turns = Turns::on(2, |_| None);
        let (mut all, mut busy, mut ours) = (1_000, 100, 10);
        let mut passes = |others: u64, own: u64| {
            (all, busy, ours) = (all + 100, busy + others + own, ours + own);
            turns.decide(Used { all, busy, ours })
        };
        assert_eq!(passes(0, 90), None, "one look says nothing");
        assert_eq!(passes(5, 90), Some(Scheduling::Batch), "busy, but with the children");
        assert_eq!(passes(20, 60), None, "not much yet");
        assert_eq!(passes(50, 45), Some(Scheduling::Normal));
        assert_eq!(passes(20, 20), None, "not little yet");
        assert_eq!(passes(2, 1), Some(Scheduling::Batch), "nor does it hurt where nobody wants the cores");
    }

    #[test]
    fn there_are_no_turns_where_there_are_cores_for_all() {
        assert!(Turns::new(6, 6).is_none());
        assert_eq!(Turns::new(7, 6).is_some(), cfg!(target_os = "linux"));
    }

    /// This process itself: others of its tests do not mind.
    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_scheduled_with_all_its_threads() {
        let process = rustix::process::getpid();
        let (policy_to, policies) = std::sync::mpsc::channel();
        let (asked, questions) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || {
            for () in questions {
                // SAFETY: it reads the policy of the thread that asks.
                policy_to.send(unsafe { libc::sched_getscheduler(0) }).expect("it is waited for");
            }
        });
        for (scheduling, policy) in
            [(Scheduling::Batch, libc::SCHED_BATCH), (Scheduling::Normal, libc::SCHED_OTHER)]
        {
            scheduling.set(process);
            asked.send(()).expect("it waits");
            assert_eq!(policies.recv(), Ok(policy), "{scheduling:?}");
        }
        drop(asked);
        other.join().expect("it ends");
    }
}
