//! Real processes: whose children they are, killing, stopping and pausing one, and what memory they take. Linux only.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};

/// `kill -9`, before this returns: a program started for it would come milliseconds late.
pub fn kill(process: u32) {
    send(process, Signal::KILL);
}

/// SIGTERM: the process drains and ends by itself, some time after this has returned.
pub fn terminate(process: u32) {
    send(process, Signal::TERM);
}

/// SIGSTOP: the process is there, holds its connections and does nothing, until what is returned is dropped.
pub fn pause(process: u32) -> Paused {
    send(process, Signal::STOP);
    Paused(process)
}

/// A process that does nothing. Goes on when this is dropped, so that a test that fails leaves none behind.
#[must_use]
pub struct Paused(u32);

impl Drop for Paused {
    fn drop(&mut self) {
        send(self.0, Signal::CONT);
    }
}

fn send(process: u32, signal: Signal) {
    if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(process, signal);
    }
}

/// Whether any of its threads still runs. A process that was killed holds its files, and the locks on them, until
/// the last thread has returned from the system, say from a sync; by then its first thread may long be a zombie.
pub fn is_alive(process: u32) -> bool {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| stat(&thread.path())).any(|(state, _)| !matches!(state, 'Z' | 'X'))
}

/// The living children of a process, with their command lines.
pub fn children(parent: u32) -> Vec<(u32, Vec<String>)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|process| parent_of(*process) == Some(parent))
        .map(|process| (process, arguments(process)))
        .collect()
}

/// The child that runs `--service NAME`.
pub fn child_of(parent: u32, service: &str) -> Option<u32> {
    let runs =
        |arguments: &[String]| arguments.windows(2).any(|pair| pair[0] == "--service" && pair[1] == service);
    children(parent).into_iter().find(|(_, arguments)| runs(arguments)).map(|(process, _)| process)
}

fn parent_of(process: u32) -> Option<u32> {
    let (state, parent) = stat(Path::new(&format!("/proc/{process}")))?;
    (state != 'Z').then_some(parent)
}

/// State and parent of a process or thread.
fn stat(folder: &Path) -> Option<(char, u32)> {
    let stat = fs::read_to_string(folder.join("stat")).ok()?;
    // The name in parentheses may itself have spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

fn arguments(process: u32) -> Vec<String> {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
}

/// A process's memory with shared pages counted in proportion.
pub fn proportional_set_size_kib(process: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
    let line = rollup.lines().find(|line| line.starts_with("Pss:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}
