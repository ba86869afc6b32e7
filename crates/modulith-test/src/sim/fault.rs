//! What can go wrong, and where.

/// What happens at one moment of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// A transaction on a service's database.
    Commit,
    /// A request on its way to another service.
    Request,
    /// An answer on its way back.
    Reply,
    /// An effect's code is about to reach the outside.
    Attempt,
    /// A walk's pause is over.
    Pause,
}

/// When something that was delayed comes after all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// After so many further moments: past a retry, a refusal, a seal.
    Moments(u8),
    /// When nothing else happens any more: past the end.
    End,
    /// When what has ended is also deleted.
    Pruned,
}

/// One fault, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The work is refused before it runs.
    NotRun,
    /// The process that does it ends before.
    CrashBefore,
    /// It ends after the module's code, before the commit.
    CrashInside,
    /// It ends after it, before anybody hears of it.
    CrashAfter,
    /// The request or answer is lost; the caller does not know.
    Lost,
    /// The request certainly does not leave.
    Unreachable,
    /// The request comes a second time, later.
    Twice(Late),
    /// The caller gives up; the request comes later.
    Delayed(Late),
    /// It is lost, and the other side, a service or the outside, cannot be reached for a while.
    Outage,
    /// It arrives and its answer is lost, and then the other side cannot be reached for a while.
    OutageAfter,
    /// The effect happens and its answer is lost; when the next attempt is made, the provider's window is over.
    LostPastWindow,
    /// A second coordinator goes on with the unfinished sagas while the first one lives.
    TwoCoordinators,
    /// Everything ends, and starts again in another placement.
    Moved,
    /// Another saga begins and ends first, and what has ended is deleted.
    Overtaken,
    /// The wall clock jumps by a day, forward or back.
    ClockForward,
    ClockBack,
}

const LATE: [Late; 4] = [Late::Moments(1), Late::Moments(4), Late::End, Late::Pruned];

impl Fault {
    /// Every fault that can happen at a moment of this kind.
    pub fn at(moment: Moment) -> Vec<Fault> {
        use Fault::*;
        let mut faults = match moment {
            Moment::Commit => vec![NotRun, CrashBefore, CrashInside, CrashAfter],
            Moment::Request => vec![Lost, Unreachable, Outage, OutageAfter, CrashBefore],
            // Whoever asked ends, or whoever answers.
            Moment::Reply => vec![Lost, CrashBefore, CrashAfter],
            Moment::Attempt => {
                vec![NotRun, Lost, Outage, OutageAfter, LostPastWindow, CrashBefore, CrashAfter]
            }
            Moment::Pause => Vec::new(),
        };
        match moment {
            Moment::Request => {
                faults.extend(LATE.map(Twice));
                faults.extend(LATE.map(Delayed));
            }
            Moment::Attempt => faults.extend(LATE.map(Delayed)),
            _ => {}
        }
        faults.extend([TwoCoordinators, Moved, Overtaken, ClockForward, ClockBack]);
        faults
    }
}
