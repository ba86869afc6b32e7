//! Runs a topology of several services: one child process a service, and the gateway.
//!
//! All children start at once, in no order. One that ends is started again, with back-off if it failed, unless it
//! says that its configuration cannot work. A stop goes to the gateway first, so that no request loses its services. No
//! child outlives this process: each is in a process group of its own that is killed when its future is
//! dropped, and holds a pipe whose end tells it of a parent that was killed.
//!
//! What to do is decided in `state`, which has no clock and no process; this file carries it out.

mod child;
mod lines;
mod state;
mod turns;

use std::ffi::OsString;
use std::future::Future;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::control::Control;
use crate::topology::{GATEWAY, Topology};

use child::{Ended, Order, Said, Way};
use lines::{Lines, Sink};
use state::{Act, State};
use turns::{Scheduling, Turns};

/// Control lines that wait for the supervisor; children wait when there are more.
const SAID_MAX: usize = 64;

/// One child process.
pub(crate) struct ChildSpec {
    /// The service's name; `gateway` is stopped before the others.
    pub(crate) name: String,
    pub(crate) args: Vec<OsString>,
    /// Its `--listen`. At a later start it is the address of the URL that the child told before, so that a free
    /// port, once chosen, stays: whoever was told of it is not told again.
    pub(crate) listen: Option<String>,
}

impl ChildSpec {
    fn arguments(&self) -> Vec<OsString> {
        let listen = self.listen.iter().flat_map(|address| ["--listen".into(), address.into()]);
        self.args.iter().cloned().chain(listen).collect()
    }

    fn has_told(&mut self, url: &str) {
        if let (Some(listen), Some(address)) = (&mut self.listen, url.strip_prefix("http://")) {
            address.clone_into(listen);
        }
    }
}

/// Is given the URL of the application, if a child told one.
pub(crate) type OnReady = Box<dyn FnOnce(Option<&str>) + Send>;

/// What [`supervise`] runs.
pub(crate) struct SuperviseOptions {
    pub(crate) program: PathBuf,
    pub(crate) children: Vec<ChildSpec>,
    /// How long the children may take to stop; 2 s later they are killed.
    pub(crate) drain: Duration,
    /// How the children's logs are shown.
    pub(crate) lines: Lines,
    /// Called once, when all children are ready for the first time.
    pub(crate) on_ready: OnReady,
    /// Stops everything, as SIGTERM does.
    pub(crate) stop: CancellationToken,
    turns: Option<Turns>,
}

/// Runs the application's own binary once for each service and once for the gateway, until it is told to stop.
///
/// # Errors
///
/// Those of the operating system before the first child is started.
pub(crate) async fn run(
    topology: &Topology,
    topology_file: Option<&Path>,
    data: &Path,
    listen: &str,
    log: &str,
    control: Control,
) -> anyhow::Result<ExitCode> {
    let args = |service: &str| {
        let mut args: Vec<OsString> = ["--service", service, "--log", log].map(OsString::from).into();
        args.extend(["--data".into(), data.into()]);
        args.extend(topology_file.into_iter().flat_map(|file| ["--topology".into(), file.into()]));
        args
    };
    let mut children: Vec<ChildSpec> = (topology.services.iter())
        .map(|service| ChildSpec { name: service.name.clone(), args: args(&service.name), listen: None })
        .collect();
    let listen = Some(listen.to_owned());
    children.push(ChildSpec { name: GATEWAY.to_owned(), args: args(GATEWAY), listen });

    let stop = CancellationToken::new();
    if control.is_controlled() {
        stop_at_parents_end(stop.clone())?;
    }
    let on_ready: OnReady = Box::new(move |url| {
        let url = url.unwrap_or_default();
        control.tell(format!("ready {url}").trim_end());
        tracing::info!("ready on {url}");
    });
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let options = SuperviseOptions {
        program: std::env::current_exe()?,
        turns: Turns::new(children.len(), cores),
        children,
        drain: topology.gateway.drain(),
        lines: if log == "json" { Lines::Unchanged } else { Lines::prefixed() },
        on_ready,
        stop,
    };
    Ok(ExitCode::from(supervise(options).await?))
}

/// Runs the children until a signal, `stop`, or a configuration that cannot work. Returns the exit code: 0 after
/// a stop in time, 1 where a child had to be killed or its configuration cannot work, 128 and the signal's
/// number after a second signal.
///
/// Dropping the future kills all children.
///
/// # Errors
///
/// The signal handlers cannot be installed; nothing was started then.
pub(crate) async fn supervise(options: SuperviseOptions) -> std::io::Result<u8> {
    let SuperviseOptions { program, mut children, drain, lines, on_ready, stop, mut turns } = options;
    let mut on_ready = Some(on_ready);
    // Before the first child: a signal in between would end this process without them being told.
    let mut signals = Signals::install()?;
    let (sink, log_written) = Sink::start()?;
    let (said_to, mut said) = mpsc::channel(SAID_MAX);
    let gateway = children.iter().position(|child| child.name == GATEWAY);
    let mut state = State::new(children.len(), gateway, drain, state::random);
    let mut lives: FuturesUnordered<Life> = FuturesUnordered::new();
    let mut ways: Vec<Option<Way>> = children.iter().map(|_| None).collect();
    let prefixes = lines.prefixes(children.iter().map(|child| child.name.as_str()));
    let mut url = None;
    let mut look = tokio::time::interval(turns::LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);

    let mut acts = state.begin(Instant::now());
    let code = 'run: loop {
        for act in std::mem::take(&mut acts) {
            match act {
                Act::Start(index) => {
                    let child = &children[index];
                    let to = child::To {
                        index,
                        said: said_to.clone(),
                        sink: sink.clone(),
                        prefix: prefixes[index].clone(),
                    };
                    match child::start(&program, &child.arguments(), to) {
                        Ok((way, life)) => {
                            if turns.as_ref().map(Turns::scheduling) == Some(Scheduling::Batch) {
                                way.order(Order::Schedule(Scheduling::Batch));
                            }
                            ways[index] = Some(way);
                            lives.push(Box::pin(async move { (index, life.await) }));
                        }
                        Err(error) => {
                            tracing::error!("{}: {}: {error}", child.name, program.display());
                            acts.extend(state.could_not_start(index, &error, Instant::now()));
                        }
                    }
                }
                Act::Send(index, signal) => {
                    if let Some(way) = &ways[index] {
                        way.order(Order::Signal(signal));
                    }
                }
                Act::Announce => {
                    if let Some(on_ready) = on_ready.take() {
                        on_ready(url.as_deref());
                    }
                }
                Act::Note(index, note) => tracing::warn!("{} {note}", children[index].name),
                Act::End(code) => break 'run code,
            }
        }
        if !acts.is_empty() {
            continue;
        }
        let wake = state.next_wake();
        acts = tokio::select! {
            biased;
            heard = signals.next() => match heard {
                Heard::Stop(number) => state.stop(Some(number), Instant::now()),
                Heard::Pass(signal) => state.pass(signal),
            },
            Some((index, said)) = said.recv() => match said {
                Said::Ready(told) => {
                    if let Some(told) = &told {
                        children[index].has_told(told);
                    }
                    url = url.or(told);
                    state.ready(index)
                }
                Said::NotReady => state.not_ready(index),
            },
            Some((index, ended)) = lives.next(), if !lives.is_empty() => {
                ways[index] = None;
                state.ended(index, ended, Instant::now())
            }
            () = stop.cancelled(), if !state.is_stopping() => state.stop(None, Instant::now()),
            () = until(wake), if wake.is_some() => state.wake(Instant::now()),
            _ = look.tick(), if turns.is_some() => {
                let ways = ways.iter().flatten();
                let scheduling = turns.as_mut().and_then(|turns| turns.look(ways.clone().filter_map(|way| way.pid)));
                if let Some(scheduling) = scheduling {
                    ways.for_each(|way| way.order(Order::Schedule(scheduling)));
                }
                Vec::new()
            }
        };
    };
    // Kills what is left, before anything that could wait.
    drop(lives);
    drop(sink);
    log_written.wait().await;
    Ok(code)
}

/// For a supervisor that is a child itself, of a command that started the application for its own use.
fn stop_at_parents_end(stop: CancellationToken) -> std::io::Result<()> {
    let wait = move || {
        let mut byte = [0];
        while matches!(std::io::stdin().read(&mut byte), Ok(1..)) {}
        stop.cancel();
    };
    // A thread of its own: a blocked read of standard input would keep the runtime from ending.
    std::thread::Builder::new().name("modulith-parent".into()).spawn(wait).map(drop)
}

type Life = Pin<Box<dyn Future<Output = (usize, Ended)> + Send>>;

async fn until(wake: Option<Instant>) {
    if let Some(wake) = wake {
        tokio::time::sleep_until(wake.into()).await;
    }
}

enum Heard {
    /// SIGINT or SIGTERM, by its number.
    Stop(u8),
    Pass(Signal),
}

struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hang_up: unix::Signal,
    user1: unix::Signal,
}

impl Signals {
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hang_up: unix::signal(SignalKind::hangup())?,
            user1: unix::signal(SignalKind::user_defined1())?,
        })
    }

    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.interrupt.recv() => Heard::Stop(2),
            _ = self.terminate.recv() => Heard::Stop(15),
            _ = self.hang_up.recv() => Heard::Pass(Signal::HUP),
            _ = self.user1.recv() => Heard::Pass(Signal::USR1),
        }
    }
}

#[cfg(test)]
mod tests;
