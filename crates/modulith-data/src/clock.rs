//! The wall clock, as far as it can be trusted.
//!
//! It decides how long a provider recognises a key and how long a client's key is kept, so a clock that is set back
//! must not make time pass twice: while a process runs, its time never falls behind that of its start plus what has
//! passed since.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970: the wall clock's, or those that passed since the first call if that is more. A clock that
/// is set forward is followed at once, one that is set back only by the next process.
pub fn now_ms() -> i64 {
    wall_ms().max(passed_ms())
}

/// How far the wall clock was set back while this process ran, if it was by a second or more.
pub fn set_back() -> Option<Duration> {
    let behind_ms = u64::try_from(passed_ms() - wall_ms()).ok()?;
    (behind_ms >= 1_000).then(|| Duration::from_millis(behind_ms))
}

fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn passed_ms() -> i64 {
    static BEGAN: OnceLock<(Instant, i64)> = OnceLock::new();
    let (at, ms) = BEGAN.get_or_init(|| (Instant::now(), wall_ms()));
    ms.saturating_add(i64::try_from(at.elapsed().as_millis()).unwrap_or(i64::MAX))
}
