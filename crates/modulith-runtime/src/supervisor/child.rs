//! One child process: its start, its signals, what it says, its end.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::{ChildStdout, Command};
use tokio::sync::mpsc;

use super::lines::{BoundedLines, Sink};
use super::turns::Scheduling;
use crate::control::CONTROL;

/// How long the last lines of a child that has ended are waited for. They are there already, unless a process
/// that it left behind holds its pipes.
const LAST_LINES_MAX: Duration = Duration::from_secs(1);

/// What a child says about itself on its standard output.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    /// With the URL, if it has one.
    Ready(Option<String>),
    /// It waits for something, or is stopping. What for stands in its log.
    NotReady,
}

impl Said {
    fn of(line: &str) -> Option<Self> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "ready" => Some(Self::Ready(Some(rest.trim()).filter(|url| !url.is_empty()).map(str::to_owned))),
            "waiting" | "stopping" => Some(Self::NotReady),
            _ => None,
        }
    }
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Code(i32),
    Signal(i32),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Code(code),
            (None, signal) => Self::Signal(signal.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with exit code {code}"),
            Self::Signal(signal) => write!(f, "was ended by signal {signal}"),
        }
    }
}

/// Where a child's words and log go.
pub(super) struct To {
    pub(super) index: usize,
    pub(super) said: mpsc::Sender<(usize, Said)>,
    pub(super) sink: Sink,
    /// In front of each line of its log.
    pub(super) prefix: Arc<[u8]>,
}

/// What is done to a child while it lives.
pub(super) enum Order {
    Signal(Signal),
    Schedule(Scheduling),
}

/// The way to a child that was started.
pub(super) struct Way {
    /// Its number, which may be another process's once the child has ended.
    pub(super) pid: Option<Pid>,
    orders: mpsc::UnboundedSender<Order>,
}

impl Way {
    pub(super) fn order(&self, order: Order) {
        // A child that has just ended needs none.
        let _ = self.orders.send(order);
    }
}

/// Starts a child in a process group of its own, so that Ctrl-C in a terminal reaches the supervisor only. It
/// lives in the future, and is killed when that is dropped.
pub(super) fn start(
    program: &Path,
    args: &[OsString],
    to: To,
) -> io::Result<(Way, impl Future<Output = Ended> + Send + use<>)> {
    let mut child = Command::new(program)
        .args(args)
        .env(CONTROL, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    let mut group = Group { pid };
    // Taken, since waiting for a child would close it, and its end says that this process is gone.
    let parent_is_alive = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (orders_to, mut orders) = mpsc::unbounded_channel();

    let life = async move {
        let reading = async {
            let log = async {
                if let Some(stderr) = stderr {
                    let mut lines = BoundedLines::new(stderr);
                    while let Some(line) = lines.next().await {
                        to.sink.write(&to.prefix, line).await;
                    }
                }
            };
            let control = async {
                if let Some(stdout) = stdout {
                    listen(stdout, &to).await;
                }
            };
            tokio::join!(log, control);
        };
        let waiting = async {
            loop {
                tokio::select! {
                    status = child.wait() => {
                        group.pid = None;
                        break status;
                    }
                    Some(order) = orders.recv() => group.obey(order),
                }
            }
        };
        tokio::pin!(reading, waiting);
        let status = tokio::select! {
            status = &mut waiting => {
                // Lines that come too late are lost; the next start must not wait for them.
                let _ = tokio::time::timeout(LAST_LINES_MAX, reading).await;
                status
            }
            () = &mut reading => waiting.await,
        };
        drop(parent_is_alive);
        status.map_or(Ended::Code(-1), Ended::from)
    };
    Ok((Way { pid, orders: orders_to }, life))
}

/// Words for the supervisor; anything else that is printed belongs to the log.
async fn listen(stdout: ChildStdout, to: &To) {
    let mut lines = BoundedLines::new(stdout);
    while let Some(line) = lines.next().await {
        match std::str::from_utf8(line).ok().and_then(Said::of) {
            // The supervisor is gone only when this future is, too.
            Some(said) => _ = to.said.send((to.index, said)).await,
            None => to.sink.write(&to.prefix, line).await,
        }
    }
}

/// A child's process group, while the child has not been waited for: until then no other process can have its
/// number.
struct Group {
    pid: Option<Pid>,
}

impl Group {
    fn obey(&mut self, order: Order) {
        match (order, self.pid) {
            (Order::Signal(signal), _) => self.send(signal),
            (Order::Schedule(scheduling), Some(pid)) => scheduling.set(pid),
            (Order::Schedule(_), None) => {}
        }
    }

    /// SIGKILL reaches whatever the child has started, too; the others are for the child to pass on.
    fn send(&mut self, signal: Signal) {
        let Some(pid) = self.pid else { return };
        // It may have ended meanwhile, which is what the signal was for.
        let _ = match signal {
            Signal::KILL => kill_process_group(pid, signal),
            _ => kill_process(pid, signal),
        };
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.send(Signal::KILL);
    }
}

#[cfg(test)]
mod tests {
    use super::Said;

    #[test]
    fn what_children_say_is_understood_and_nothing_else() {
        for (line, said) in [
            ("ready", Some(Said::Ready(None))),
            ("ready http://127.0.0.1:8080", Some(Said::Ready(Some("http://127.0.0.1:8080".to_owned())))),
            ("waiting products: does not answer", Some(Said::NotReady)),
            ("stopping", Some(Said::NotReady)),
            ("readying", None),
            ("", None),
        ] {
            assert_eq!(Said::of(line), said, "{line:?}");
        }
    }
}
