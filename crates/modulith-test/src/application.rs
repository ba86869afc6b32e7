//! A program under test, and one running application of it.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use modulith_runtime::cli::{Running, start_program_with};

use crate::http::{Http, Request, Response};

/// A program and the topologies to test it in.
pub struct Program {
    path: PathBuf,
    topologies: Vec<(&'static str, Option<PathBuf>)>,
}

impl Program {
    /// `path`: usually `env!("CARGO_BIN_EXE_name")`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), topologies: Vec::new() }
    }

    /// A topology by a name for messages; without a file the built-in one.
    pub fn topology(mut self, name: &'static str, file: Option<&str>) -> Self {
        self.topologies.push((name, file.map(PathBuf::from)));
        self
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `body` against a new application in each topology, one after the other, and stops each.
    ///
    /// # Errors
    ///
    /// The first failure, with the topology's name.
    pub async fn in_every_topology(
        &self,
        body: impl AsyncFn(&Application) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        for (name, file) in &self.topologies {
            eprintln!("--- {name}");
            let app = Application::start(&self.path, name, file.as_deref(), &[])
                .await
                .with_context(|| (*name).to_owned())?;
            body(&app).await.with_context(|| format!("in topology `{name}`"))?;
            app.stop().await.with_context(|| format!("stopping topology `{name}`"))?;
        }
        Ok(())
    }
}

/// A running application on a data folder of its own.
pub struct Application {
    /// The topology's name.
    pub topology: &'static str,
    program: PathBuf,
    file: Option<PathBuf>,
    data: tempfile::TempDir,
    running: Running,
    http: Http,
}

impl Application {
    /// Starts the program on a new data folder and waits until it is ready. `environment` is set for it.
    pub async fn start(
        program: &Path,
        topology: &'static str,
        file: Option<&Path>,
        environment: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let running = start_program_with(program, file, data.path(), environment).await?;
        let http = Http::new(running.url(), running.admin_token());
        let (program, file) = (program.to_owned(), file.map(Path::to_owned));
        Ok(Self { topology, program, file, data, running, http })
    }

    /// One whose processes the test has started itself, and ends itself: it answers at `url`, and the keys are in
    /// `data`. [`Application::process`] is none, and [`Application::stop`] stops nothing.
    ///
    /// # Errors
    ///
    /// There is no operator's token in `data`.
    pub fn at(
        program: &Path,
        topology: &'static str,
        file: &Path,
        data: tempfile::TempDir,
        url: String,
    ) -> anyhow::Result<Self> {
        let running = Running::at(url, data.path())?;
        let http = Http::new(running.url(), running.admin_token());
        let (program, file) = (program.to_owned(), Some(file.to_owned()));
        Ok(Self { topology, program, file, data, running, http })
    }

    /// Starts it again on the same data, after [`Application::kill`] or a crash.
    pub async fn start_again(&mut self, environment: &[(&str, &str)]) -> anyhow::Result<()> {
        self.running =
            start_program_with(&self.program, self.file.as_deref(), self.data.path(), environment).await?;
        self.http = Http::new(self.running.url(), self.running.admin_token());
        Ok(())
    }

    /// Stops it as SIGTERM would, and waits for its end.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.running.stop().await
    }

    /// `kill -9` of the process that was started: the monolith, or the supervisor of a split.
    pub fn kill(&self) {
        if let Some(process) = self.process() {
            crate::kill(process);
        }
    }

    /// Kills it, and leaves its data folder behind for somebody to look at.
    pub fn abandon(self) -> PathBuf {
        self.data.keep()
    }

    /// The process that was started.
    pub fn process(&self) -> Option<u32> {
        self.running.process()
    }

    /// Whether the whole application is one process.
    pub fn is_monolith(&self) -> bool {
        self.file.is_none()
    }

    pub fn url(&self) -> &str {
        self.running.url()
    }

    pub fn data(&self) -> &Path {
        self.data.path()
    }

    pub fn program(&self) -> &Path {
        &self.program
    }

    pub fn topology_file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// A client that does not follow, retry or keep anything.
    pub fn http(&self) -> &Http {
        &self.http
    }

    pub async fn get(&self, path: &str) -> anyhow::Result<Response> {
        self.http.send(Request::get(path)).await
    }

    pub async fn send(&self, request: Request) -> anyhow::Result<Response> {
        self.http.send(request).await
    }
}
