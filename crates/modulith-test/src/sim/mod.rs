//! A deterministic simulator: coordinators, participants, network, databases and clock in one thread, under one
//! script of faults or one seed.
//!
//! What is simulated is the real code: the same coordinator, participant, inbox and statements as in a service,
//! over SQLite in memory. Only what lies behind [`World`](modulith_data::World) differs: a commit, a message, an
//! attempt at an effect and a pause are events, and between two events anything may end, get lost, come twice or
//! come late.
//!
//! ```no_run
//! # use modulith_test::sim::{Cast, Simulation, Start};
//! # fn example(cast: Cast, start: Start) -> Result<(), Box<modulith_test::sim::Violation>> {
//! let simulation = Simulation::new(cast, vec![start]).check(|view| {
//!     let left = view.rows::<(i64,)>("products", "SELECT sum(stock) FROM products_product", ());
//!     if left[0].0 == 10 { Ok(()) } else { Err(format!("{} are left of 10", left[0].0)) }
//! });
//! let report = simulation.single_faults()?;
//! let more = simulation.seeds(0..1_000)?;
//! println!("{} schedules", report.schedules + more.schedules);
//! # Ok(())
//! # }
//! ```

mod cast;
mod fault;
mod play;
mod view;
mod watch;
mod world;

pub use cast::{Cast, Placement, Start};
pub use fault::{Fault, Late, Moment};
pub use view::{Told, View};

use std::ops::Range;
use std::time::{Duration, Instant};

use modulith_data::sqlite::InMemory;
use play::{Play, Script};

thread_local! {
    static NOW_MS: std::cell::Cell<i64> = const { std::cell::Cell::new(0) };
}

/// What time it is in the schedule that this thread plays, in milliseconds since 1970, whatever the services' clocks
/// say: for stand-ins of providers.
pub fn now_ms() -> i64 {
    NOW_MS.get()
}

/// After a fault, the next one is tried at each of so many moments. A saga that waits for a person goes on asking, and
/// its moments are alike.
const MOMENTS_TRIED: usize = 50;

type Check = Box<dyn Fn(&View<'_>) -> Result<(), String> + Send + Sync>;

/// Schedules of one application, in some placements.
pub struct Simulation {
    cast: Cast,
    starts: Vec<Start>,
    placements: Vec<Placement>,
    check: Check,
    reset: Box<dyn Fn() + Send + Sync>,
}

/// What was played.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    pub schedules: usize,
}

/// A schedule that broke a promise, with everything that is needed to see it again.
#[derive(Debug, Clone)]
pub struct Violation {
    /// The placement, and the seed or the faults with the numbers of their moments.
    pub schedule: String,
    pub broken: Vec<String>,
    pub transcript: Vec<String>,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.schedule)?;
        for broken in &self.broken {
            writeln!(f, "  broken: {broken}")?;
        }
        for line in &self.transcript {
            writeln!(f, "  {line}")?;
        }
        Ok(())
    }
}

impl Simulation {
    /// In every schedule the first of `starts` is begun; the others take turns with it, one a simulation of their
    /// own. Plays all modules together and each alone, until [`Simulation::placements`] says otherwise.
    pub fn new(cast: Cast, starts: Vec<Start>) -> Self {
        let placements = vec![cast.together(), cast.apart()];
        Self { cast, starts, placements, check: Box::new(|_| Ok(())), reset: Box::new(|| {}) }
    }

    /// The placements to play in. A fault that moves everything moves to the next of them.
    pub fn placements(mut self, placements: Vec<Placement>) -> Self {
        assert!(!placements.is_empty(), "a simulation needs a placement");
        self.placements = placements;
        self
    }

    /// What must hold at the end of every schedule, besides what always must.
    pub fn check(mut self, check: impl Fn(&View<'_>) -> Result<(), String> + Send + Sync + 'static) -> Self {
        self.check = Box::new(check);
        self
    }

    /// Called before every schedule: makes what lies outside of the databases as it was.
    pub fn reset(mut self, reset: impl Fn() + Send + Sync + 'static) -> Self {
        self.reset = Box::new(reset);
        self
    }

    /// Plays every start in every placement, with no fault.
    ///
    /// # Errors
    ///
    /// The first schedule that broke a promise.
    pub fn without_faults(&self) -> Result<Report, Box<Violation>> {
        self.enumerate(0)
    }

    /// Plays these too, and each single fault at each moment.
    ///
    /// # Errors
    ///
    /// The first schedule that broke a promise.
    pub fn single_faults(&self) -> Result<Report, Box<Violation>> {
        self.enumerate(1)
    }

    /// Plays these too, and each pair of faults.
    ///
    /// # Errors
    ///
    /// The first schedule that broke a promise.
    pub fn pairs_of_faults(&self) -> Result<Report, Box<Violation>> {
        self.enumerate(2)
    }

    fn enumerate(&self, depth: usize) -> Result<Report, Box<Violation>> {
        let databases = self.databases();
        let mut report = Report::default();
        for at in 0..self.placements.len() {
            for start in 0..self.starts.len() {
                self.deeper(&databases, at, start, Vec::new(), depth, &mut report)?;
            }
        }
        Ok(report)
    }

    fn deeper(
        &self,
        databases: &[InMemory],
        at: usize,
        start: usize,
        faults: Vec<(usize, Fault)>,
        depth: usize,
        report: &mut Report,
    ) -> Result<(), Box<Violation>> {
        let first = faults.last().map_or(0, |(moment, _)| moment + 1);
        let moments = self.play(databases, at, start, &Script::Faults(faults.clone()), report)?;
        if depth == 0 {
            return Ok(());
        }
        for (number, moment) in moments.iter().enumerate().skip(first).take(MOMENTS_TRIED) {
            for fault in Fault::at(*moment) {
                let faults = faults.iter().copied().chain([(number, fault)]).collect();
                self.deeper(databases, at, start, faults, depth - 1, report)?;
            }
        }
        Ok(())
    }

    /// Plays one schedule a seed: an order of events, and faults among them.
    ///
    /// # Errors
    ///
    /// The first schedule that broke a promise; [`Simulation::seed`] plays it again.
    pub fn seeds(&self, seeds: Range<u64>) -> Result<Report, Box<Violation>> {
        let databases = self.databases();
        let mut report = Report::default();
        for seed in seeds {
            self.play_seed(&databases, seed, &mut report)?;
        }
        Ok(report)
    }

    /// Plays seed after seed from `first` for about this long.
    ///
    /// # Errors
    ///
    /// The first schedule that broke a promise.
    pub fn for_time(&self, first: u64, time: Duration) -> Result<Report, Box<Violation>> {
        let (databases, end) = (self.databases(), Instant::now() + time);
        let mut report = Report::default();
        let mut seed = first;
        while Instant::now() < end {
            self.play_seed(&databases, seed, &mut report)?;
            seed += 1;
        }
        Ok(report)
    }

    /// Plays the schedule of one seed.
    ///
    /// # Errors
    ///
    /// What it broke.
    pub fn seed(&self, seed: u64) -> Result<Report, Box<Violation>> {
        self.seeds(seed..seed + 1)
    }

    fn play_seed(
        &self,
        databases: &[InMemory],
        seed: u64,
        report: &mut Report,
    ) -> Result<(), Box<Violation>> {
        let (at, start) = (seed as usize % self.placements.len(), seed as usize % self.starts.len());
        self.play(databases, at, start, &Script::Seed(seed), report).map(drop)
    }

    fn databases(&self) -> Vec<InMemory> {
        self.cast.databases().unwrap_or_else(|error| panic!("the databases of a simulation: {error}"))
    }

    /// Plays one schedule; when it breaks a promise, plays it again to write down what happened.
    fn play(
        &self,
        databases: &[InMemory],
        at: usize,
        start: usize,
        script: &Script,
        report: &mut Report,
    ) -> Result<Vec<Moment>, Box<Violation>> {
        report.schedules += 1;
        let (moments, broken, _) = self.play_once(databases, at, start, script, false);
        if broken.is_empty() {
            return Ok(moments);
        }
        let (_, again, transcript) = self.play_once(databases, at, start, script, true);
        let schedule = format!("placement {:?}, saga {start}, {script:?}", self.placements[at].0);
        let broken = if again == broken {
            broken
        } else {
            vec![format!("{broken:?}, and another time {again:?}: the simulated code is not deterministic")]
        };
        Err(Box::new(Violation { schedule, broken, transcript }))
    }

    fn play_once(
        &self,
        databases: &[InMemory],
        at: usize,
        start: usize,
        script: &Script,
        transcript: bool,
    ) -> (Vec<Moment>, Vec<String>, Vec<String>) {
        (self.reset)();
        for database in databases {
            database.clear().unwrap_or_else(|error| panic!("clearing a database: {error}"));
        }
        let placement = &self.placements[at];
        let moved_to = &self.placements[(at + 1) % self.placements.len()];
        let starts = &self.starts[start..=start];
        let mut play = Play::new(&self.cast, databases, placement, moved_to, starts, script, transcript);
        play.play();
        let mut broken = play.watch.violations().to_vec();
        let view = View { play: &play };
        broken.extend(view.broken());
        if broken.is_empty() {
            broken.extend((self.check)(&view).err());
        }
        (std::mem::take(&mut play.moments), broken, play.transcript.take().unwrap_or_default())
    }
}
