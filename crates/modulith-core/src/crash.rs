//! Places where a test can end the process as abruptly as `kill -9` does.

/// Ends this process at once if `MODULITH_CRASH_AT` names this place; in builds with debug assertions only.
///
/// The variable is `PLACE@FILE`: the process ends the first time it comes to the place, and leaves the file as a
/// mark so that the next process, which inherits the variable, goes on.
#[inline]
pub fn crash_point(place: impl FnOnce() -> String) {
    if cfg!(debug_assertions)
        && let Some((wanted, mark)) = wanted()
    {
        crash(wanted, mark, &place());
    }
}

fn wanted() -> Option<(&'static str, &'static str)> {
    static WANTED: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    WANTED.get_or_init(|| std::env::var("MODULITH_CRASH_AT").ok()).as_deref()?.split_once('@')
}

fn crash(wanted: &str, mark: &str, place: &str) {
    if wanted == place && std::fs::File::options().write(true).create_new(true).open(mark).is_ok() {
        // No destructor runs and nothing is flushed, as with `kill -9`, and unlike it at exactly this line.
        std::process::abort();
    }
}
