//! How a command reaches the application: at a URL, or by starting it for itself on a data folder.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, bail};
use modulith_gateway::AccessToken;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::control::CONTROL;

/// An application that runs, with the token of its operators. Started by this process, it stops with it.
pub struct Running {
    url: String,
    token: AccessToken,
    child: Option<Child>,
}

impl Running {
    /// One that runs elsewhere on this machine; the token comes from its data folder.
    ///
    /// # Errors
    ///
    /// No token can be read there.
    pub fn at(url: String, data: &Path) -> anyhow::Result<Self> {
        let folder = data.join("keys");
        if !folder.join("admin.token").exists() {
            bail!(
                "no admin token in {}; give the data folder of the running application with --data",
                folder.display()
            );
        }
        Ok(Self {
            url: url.trim_end_matches('/').to_owned(),
            token: AccessToken::load_or_create(&folder, "admin.token")?,
            child: None,
        })
    }

    /// `http://127.0.0.1:8080`, without a slash at the end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The operators' token. Never log it.
    pub fn admin_token(&self) -> &str {
        self.token.expose()
    }

    /// The process id of the application, if this process started it.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Stops what was started for this command, and waits until it has closed its databases.
    ///
    /// # Errors
    ///
    /// It did not end well.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else {
            return Ok(());
        };
        // The end of its standard input tells it to stop.
        drop(child.stdin.take());
        let status = tokio::time::timeout(Duration::from_secs(30), child.wait())
            .await
            .context("it does not stop")??;
        if !status.success() {
            bail!("the application ended with {status}");
        }
        Ok(())
    }
}

/// Starts this very program on a data folder, at a free port, and waits until it is ready.
///
/// # Errors
///
/// It cannot start; what it said stands on standard error.
pub async fn started(topology: Option<&Path>, data: &Path) -> anyhow::Result<Running> {
    let program = std::env::current_exe().context("the path of this program")?;
    start_program_with(&program, topology, data, &[]).await
}

/// The same for another program, with more in its environment: for tests.
///
/// # Errors
///
/// See [`started`].
pub async fn start_program_with(
    program: &Path,
    topology: Option<&Path>,
    data: &Path,
    environment: &[(&str, &str)],
) -> anyhow::Result<Running> {
    let mut command = Command::new(program);
    command.arg("run").arg("--data").arg(data).args(["--listen", "127.0.0.1:0"]);
    if let Some(topology) = topology {
        command.arg("--topology").arg(topology);
    }
    if std::env::var_os("MODULITH_LOG").is_none() {
        command.env("MODULITH_LOG", "warn");
    }
    command.envs(environment.iter().copied());
    command.env(CONTROL, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
    let mut lines = BufReader::new(child.stdout.take().context("standard output is piped")?).lines();
    let url = loop {
        match lines.next_line().await? {
            Some(line) => {
                if let Some(url) = line.strip_prefix("ready ") {
                    break url.to_owned();
                }
            }
            None => bail!("the application could not start on {}: {}", data.display(), child.wait().await?),
        }
    };
    // What it says later must not fill the pipe.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let token = AccessToken::load_or_create(&data.join("keys"), "admin.token")?;
    Ok(Running { url, token, child: Some(child) })
}
