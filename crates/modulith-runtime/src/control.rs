//! How a process hears that it has to end, and tells its parent how it is.
//!
//! A child of the supervisor (or of a command that starts the application for itself) has `MODULITH_CONTROL=1`
//! in its environment. Its standard output then carries lines for the parent: `ready [URL]`, `waiting TEXT`,
//! `stopping`. Its standard input is a pipe that the parent never writes to: its end says that the parent is
//! gone, however it went.

use std::io::{Read, Write};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Set for children.
pub(crate) const CONTROL: &str = "MODULITH_CONTROL";

/// The way to the parent, if there is one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Control {
    controlled: bool,
}

impl Control {
    pub(crate) fn from_environment() -> Self {
        Self { controlled: std::env::var_os(CONTROL).is_some_and(|value| value == "1") }
    }

    pub(crate) fn is_controlled(self) -> bool {
        self.controlled
    }

    /// Tells the parent. Without one, nothing.
    pub(crate) fn tell(self, line: &str) {
        if self.controlled {
            let mut out = std::io::stdout().lock();
            // A parent that is gone is heard of on the other pipe.
            let _ = writeln!(out, "{}", line.replace('\n', " ")).and_then(|()| out.flush());
        }
    }

    /// Cancelled at SIGTERM, SIGINT or the parent's end. A second signal ends the process at once, unless it is a
    /// supervisor's child.
    pub(crate) fn stop_token(self) -> std::io::Result<CancellationToken> {
        let stop = CancellationToken::new();
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        // Passed on by the supervisor; there is nothing to reload yet, and by default they would end the process.
        drop((signal(SignalKind::hangup())?, signal(SignalKind::user_defined1())?));
        tokio::spawn({
            let stop = stop.clone();
            async move {
                let mut heard = 0;
                loop {
                    let code = tokio::select! {
                        _ = terminate.recv() => 143,
                        _ = interrupt.recv() => 130,
                    };
                    heard += 1;
                    // A supervisor kills who is late, and tells those once more whom a signal to all of them has told.
                    if heard > 1 && !self.controlled {
                        std::process::exit(code);
                    }
                    stop.cancel();
                }
            }
        });
        if self.controlled {
            let stop = stop.clone();
            // A thread of its own: a blocked read of standard input would keep the runtime from ending.
            std::thread::Builder::new().name("modulith-parent".into()).spawn(move || {
                let mut byte = [0];
                while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
                stop.cancel();
            })?;
        }
        Ok(stop)
    }

    /// Tells the parent, and the log, what is missing until nothing is.
    pub(crate) async fn announce(self, missing: impl Fn() -> Vec<String>, ready: impl FnOnce()) {
        let mut told = Vec::new();
        loop {
            let missing = missing();
            if missing.is_empty() {
                ready();
                return;
            }
            if missing != told {
                tracing::info!("not ready: {}", missing.join("; "));
                self.tell(&format!("waiting {}", missing.join("; ")));
                told = missing;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
