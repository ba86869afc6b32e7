//! Real processes: shell scripts as children, and this test program itself as their parent.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, kill_process};

use super::lines::Lines;
use super::turns::Turns;
use super::{ChildSpec, GATEWAY, SuperviseOptions, supervise};

/// Far beyond what anything here takes: only a failure waits for it.
const PATIENCE: Duration = Duration::from_secs(30);
const SCRIPTS: &str = "SUPERVISOR_TEST_SCRIPTS";

/// Says that it is ready, then lives until its parent is gone.
const STEADY: &str = "echo ready; while read -r line; do :; done";
/// The same, and says when it is told to stop.
const POLITE: &str = "trap 'echo told >&2; exit 0' TERM; echo ready; while read -r line; do :; done";

fn options(scripts: &[(String, String)]) -> SuperviseOptions {
    let child = |(name, script): &(String, String)| ChildSpec {
        name: name.clone(),
        args: vec!["-c".into(), script.into()],
        listen: (name == GATEWAY).then(|| "127.0.0.1:0".to_owned()),
    };
    SuperviseOptions {
        program: "/bin/sh".into(),
        children: scripts.iter().map(child).collect(),
        drain: PATIENCE,
        lines: Lines::Plain,
        on_ready: Box::new(|url| eprintln!("all ready at {}", url.unwrap_or("no URL"))),
        stop: Default::default(),
        turns: Some(Turns::on(1, a_machine_without_others)),
    }
}

/// Time passes, and nobody computes.
fn a_machine_without_others(_: usize) -> Option<(u64, u64)> {
    static PASSED: AtomicU64 = AtomicU64::new(0);
    Some((PASSED.fetch_add(100, Ordering::Relaxed), 0))
}

#[test]
#[ignore = "no test: the program that the tests start and send signals to"]
fn parent() {
    let Ok(scripts) = std::env::var(SCRIPTS) else {
        return;
    };
    let scripts: Vec<(String, String)> = serde_json::from_str(&scripts).unwrap();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).without_time().init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let code = runtime.block_on(supervise(options(&scripts))).unwrap();
    std::process::exit(code.into());
}

struct Parent {
    process: Child,
    lines: Receiver<String>,
    /// Everything heard so far.
    heard: Vec<String>,
}

impl Parent {
    fn of(scripts: &[(&str, &str)]) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "supervisor::tests::parent", "--ignored", "--nocapture"])
            .env(SCRIPTS, serde_json::to_string(scripts).unwrap())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, lines) = channel();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| to.send(line)));
        Self { process, lines, heard: Vec::new() }
    }

    /// Waits for a line with this text, counted from those not heard yet.
    fn hear(&mut self, text: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no {text:?} was heard, but {:#?}", self.heard));
            self.heard.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    fn send(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Its exit code, after all of its lines were heard.
    fn end(&mut self) -> Option<i32> {
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            self.heard.push(line);
        }
        self.process.wait().unwrap().code()
    }

    fn place(&self, text: &str) -> usize {
        let place = self.heard.iter().position(|line| line.contains(text));
        place.unwrap_or_else(|| panic!("no {text:?} in {:#?}", self.heard))
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A named pipe: children that hold its end for writing keep its reader waiting.
struct Fifo {
    path: PathBuf,
    _folder: tempfile::TempDir,
}

impl Fifo {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        Self { path, _folder: folder }
    }

    /// A script that holds the pipe as long as it, or anything that it has started, lives.
    fn held_by(&self, script: &str) -> String {
        format!("exec 9>{}; {script}", self.path.display())
    }

    /// To be called before the children are started, which could not open the pipe otherwise.
    fn watch(&self) -> Watch {
        let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap();
        Watch(File::options().read(true).custom_flags(flags).open(&self.path).unwrap())
    }
}

struct Watch(File);

impl Watch {
    /// Waits until nobody holds the pipe.
    fn all_gone(self) {
        rustix::fs::fcntl_setfl(&self.0, OFlags::empty()).unwrap();
        let (to, gone) = channel();
        let mut file = self.0;
        std::thread::spawn(move || to.send(file.read_to_end(&mut Vec::new()).unwrap()));
        assert_eq!(gone.recv_timeout(PATIENCE).expect("a child was left behind"), 0);
    }
}

#[test]
fn logs_carry_names_and_readiness_is_announced_with_the_url() {
    let mut parent = Parent::of(&[
        ("products", &format!("echo hello >&2; echo also here; {STEADY}")),
        ("gateway", "echo waiting products; echo ready http://127.0.0.1:9; while read -r line; do :; done"),
    ]);
    parent.hear("all ready at http://127.0.0.1:9");
    parent.send(Signal::TERM);
    parent.end();
    parent.place("products | hello");
    parent.place("products | also here");
    assert!(!parent.heard.iter().any(|line| line.contains("waiting")), "{:#?}", parent.heard);
}

#[test]
fn a_child_that_ends_is_started_again() {
    let mut parent = Parent::of(&[("steady", STEADY), ("weak", "echo life $$ >&2; exit 3")]);
    let lives: Vec<String> = (0..3).map(|_| parent.hear("weak   | life")).collect();
    assert!(lives[0] != lives[1] && lives[1] != lives[2], "{lives:?}");
    parent.place("weak ended with exit code 3; it is started again in");
    parent.send(Signal::TERM);
    assert_eq!(parent.end(), Some(0));
}

#[test]
fn a_killed_child_returns_and_the_others_stay() {
    let mut parent = Parent::of(&[
        ("steady", &format!("echo life >&2; {STEADY}")),
        ("victim", &format!("echo pid $$ >&2; {STEADY}")),
    ]);
    // Its log and its words come through two pipes, in either order.
    let pid = parent.hear("victim | pid");
    if !parent.heard.iter().any(|line| line.contains("all ready")) {
        parent.hear("all ready");
    }
    let pid = pid.rsplit(' ').next().unwrap().parse().unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    parent.hear("victim was ended by signal 9");
    parent.hear("victim | pid");
    parent.send(Signal::INT);
    assert_eq!(parent.end(), Some(0));
    assert_eq!(parent.heard.iter().filter(|line| line.contains("steady | life")).count(), 1);
}

#[test]
fn a_gateway_that_is_started_again_listens_where_it_was() {
    let mut parent = Parent::of(&[("gateway", "echo ready http://127.0.0.1:9; echo \"at $1\" >&2; exit 1")]);
    let lives = [parent.hear("gateway | at"), parent.hear("gateway | at")];
    assert!(lives[0].ends_with("127.0.0.1:0") && lives[1].ends_with("127.0.0.1:9"), "{lives:?}");
    parent.send(Signal::TERM);
    parent.end();
}

#[test]
fn a_configuration_that_cannot_work_stops_everything() {
    let fifo = Fifo::new();
    let watch = fifo.watch();
    let mut parent = Parent::of(&[
        ("good", &fifo.held_by(POLITE)),
        // Goes when the other one is there, so that there is something to stop.
        ("bad", &format!("{} exit 78", wait_for_writer(&fifo.path))),
    ]);
    assert_eq!(parent.end(), Some(1));
    parent.place("bad cannot run with this configuration");
    watch.all_gone();
}

/// A script's line that waits until somebody has the pipe open for writing.
fn wait_for_writer(fifo: &Path) -> String {
    // Opening for reading waits for a writer.
    format!("exec 8<{};", fifo.display())
}

#[test]
fn a_stop_reaches_the_services_after_the_gateway_has_gone() {
    let gate = Fifo::new();
    // The gateway drains until the gate opens.
    let slow = "trap 'echo told >&2; read -r go < GATE; echo gone >&2; exit 0' TERM; \
                echo ready; while read -r line; do :; done";
    let mut parent = Parent::of(&[
        ("a", POLITE),
        ("gateway", &slow.replace("GATE", &gate.path.display().to_string())),
        ("b", POLITE),
    ]);
    parent.hear("all ready");
    parent.send(Signal::TERM);
    parent.hear("gateway | told");
    std::fs::write(&gate.path, "go\n").unwrap();
    assert_eq!(parent.end(), Some(0));
    let gone = parent.place("gateway | gone");
    assert!(
        gone < parent.place("a       | told") && gone < parent.place("b       | told"),
        "{:#?}",
        parent.heard
    );
}

#[test]
fn a_second_signal_ends_everything_at_once() {
    let fifo = Fifo::new();
    let watch = fifo.watch();
    // Deaf, and with a process of its own that is deaf, too.
    let deaf =
        "trap 'echo told >&2' TERM; (trap '' TERM; sleep 100) & echo ready; while kill -0 $!; do wait; done";
    let mut parent = Parent::of(&[("deaf", &fifo.held_by(deaf)), ("gateway", STEADY)]);
    parent.hear("all ready");
    parent.send(Signal::TERM);
    parent.hear("deaf    | told");
    parent.send(Signal::INT);
    assert_eq!(parent.end(), Some(130));
    watch.all_gone();
}

#[test]
fn other_signals_are_passed_on() {
    // A shell's `read` ends at a signal; its `wait` can be taken up again.
    let script = "trap 'echo again >&2' HUP; trap 'echo user >&2' USR1; exec 7<&0; (trap '' HUP USR1; cat <&7) & \
                  echo ready; while kill -0 $!; do wait; done";
    let mut parent = Parent::of(&[("a", script)]);
    parent.hear("all ready");
    parent.send(Signal::HUP);
    parent.hear("a | again");
    parent.send(Signal::USR1);
    parent.hear("a | user");
}

#[test]
fn a_killed_parent_leaves_no_child() {
    let fifo = Fifo::new();
    let watch = fifo.watch();
    let script = fifo.held_by(STEADY);
    let mut parent = Parent::of(&[("a", &script), ("b", &script), ("gateway", &script)]);
    parent.hear("all ready");
    parent.send(Signal::KILL);
    watch.all_gone();
}

#[tokio::test]
async fn a_dropped_supervisor_leaves_no_child() {
    let fifo = Fifo::new();
    let watch = fifo.watch();
    let (ready, is_ready) = tokio::sync::oneshot::channel();
    let mut options = options(&[("a".to_owned(), fifo.held_by("echo ready; exec sleep 100"))]);
    options.on_ready = Box::new(move |_| ready.send(()).unwrap());
    tokio::select! {
        code = supervise(options) => panic!("it ended with {code:?}"),
        ready = tokio::time::timeout(PATIENCE, is_ready) => ready.unwrap().unwrap(),
    }
    tokio::task::spawn_blocking(|| watch.all_gone()).await.unwrap();
}

#[tokio::test]
async fn a_program_that_is_not_there_ends_it() {
    let mut options = options(&[("a".to_owned(), String::new())]);
    options.program = "/nowhere/at/all".into();
    assert_eq!(supervise(options).await.unwrap(), 1);
}

#[tokio::test]
async fn a_wish_to_stop_is_like_a_signal() {
    let options = options(&[("a".to_owned(), POLITE.to_owned())]);
    let stop = options.stop.clone();
    let options = SuperviseOptions { on_ready: Box::new(move |_| stop.cancel()), ..options };
    assert_eq!(supervise(options).await.unwrap(), 0);
}

/// The second life has it from its start: nothing changes any more that it could be told of.
#[cfg(target_os = "linux")]
#[test]
fn children_are_a_batch_where_nobody_else_wants_the_cores() {
    // The policy is the 41st field of the process's `stat`, the 39th behind its name; 3 is the batch.
    let waits = "until read -r stat <\"/proc/$$/stat\"; set -- ${stat##*)}; [ \"${39}\" = 3 ]; do kill -0 $PPID || exit 1; done";
    let folder = tempfile::tempdir().unwrap();
    let lived = folder.path().join("lived");
    let lived = lived.display();
    let script = format!("{waits}; echo $$ is a batch >&2; [ -e {lived} ] && {{ {STEADY}; }}; : >{lived}");
    let mut parent = Parent::of(&[("a", &script)]);
    let first = parent.hear("is a batch");
    assert_ne!(first, parent.hear("is a batch"), "another process");
    parent.send(Signal::TERM);
    assert_eq!(parent.end(), Some(0));
}
