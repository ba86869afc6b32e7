//! Which service hosts which modules: the topology file, and the built-in one.
//!
//! Owns the file's words and their defaults, and where a service listens and keeps its database. Knows no
//! application: whether a module exists is asked by [`check`](crate::check::check). A file with unknown keys or
//! wrong types is still read, so that `check` can list everything that is wrong at once; what could not be read
//! has its default, so nothing may be started from a topology that has not passed the check.

mod nearest;
mod outside;
mod problem;
mod read;
mod socket;
mod trust;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use modulith_gateway::Sampling;
use modulith_transport::Address;

pub(crate) use nearest::nearest;
pub use outside::{CallerSection, ExternalSection};
pub use problem::{Problem, Problems};
pub(crate) use socket::UNIX_PATH_BYTES_MAX;
pub use trust::{PLAINTEXT, SERVICE, Tls, TrustSection};
pub(crate) use trust::{ip, is_loopback, split};

/// The name of the gateway's process; no service may have it.
pub const GATEWAY: &str = "gateway";
/// Where the gateway, or the only service, answers HTTP.
pub const LISTEN_DEFAULT: &str = "127.0.0.1:8080";
pub const DRAIN_S_DEFAULT: u64 = 10;
pub const DRAIN_S_MAX: u64 = 600;

/// Which services there are, what they host, and the configuration of their modules.
#[derive(Debug, Clone)]
pub struct Topology {
    /// `None` for the built-in one.
    pub file: Option<PathBuf>,
    pub gateway: GatewaySection,
    pub trust: TrustSection,
    pub telemetry: TelemetrySection,
    /// In the order of the file.
    pub services: Vec<ServiceSection>,
    /// `expose.contracts`: what programs that are none of ours may be allowed to call.
    pub exposed: Vec<String>,
    /// The sections `[caller.NAME]`, in the order of the file.
    pub callers: Vec<CallerSection>,
    /// The sections `[external.NAME]`, in the order of the file.
    pub externals: Vec<ExternalSection>,
    /// The sections `[module.NAME]`.
    pub modules: BTreeMap<String, toml::Table>,
    /// What could not be read; listed by `check`.
    pub(crate) problems: Vec<Problem>,
    /// The line of each key, such as `service.cart.modules[0]`.
    pub(crate) lines: BTreeMap<String, usize>,
}

/// The most worker threads of a process: 512.
pub const WORKERS_MAX: usize = 512;

/// `[gateway]`: the front door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySection {
    /// Default [`LISTEN_DEFAULT`]. A port: `check` refuses a Unix socket.
    pub listen: Address,
    /// How long calls in flight may take when the application stops, 1 to [`DRAIN_S_MAX`]; default
    /// [`DRAIN_S_DEFAULT`].
    pub drain_s: u64,
    /// As [`ServiceSection::workers`].
    pub workers: Option<usize>,
}

impl GatewaySection {
    pub fn drain(&self) -> Duration {
        Duration::from_secs(self.drain_s)
    }
}

impl Default for GatewaySection {
    fn default() -> Self {
        Self { listen: Address::Tcp(LISTEN_DEFAULT.to_owned()), drain_s: DRAIN_S_DEFAULT, workers: None }
    }
}

/// `[telemetry]`: what is recorded of requests, and where it is read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TelemetrySection {
    /// The keys `sample_ratio` and `trust_parent`; see there for what they mean and their defaults.
    pub sampling: Sampling,
    /// Where the gateway, or the only service, shows its metrics to whoever asks. Nowhere by default; `check` refuses
    /// all but loopback.
    pub listen: Option<Address>,
}

/// `[service.NAME]`: one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceSection {
    pub name: String,
    pub modules: Vec<String>,
    /// As written; see [`Topology::listen_address`].
    pub listen: Option<Address>,
    /// As written; see [`Topology::call_addresses`].
    pub addresses: Vec<Address>,
    /// As written; see [`Topology::database_path`].
    pub database: Option<PathBuf>,
    pub replicas: u64,
    /// Threads that run what does not block, 1 to [`WORKERS_MAX`]; see [`Topology::workers`] for the default.
    pub workers: Option<usize>,
}

impl ServiceSection {
    fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            modules: Vec::new(),
            listen: None,
            addresses: Vec::new(),
            database: None,
            replicas: 1,
            workers: None,
        }
    }

    /// The database's file relative to the data folder (or absolute, if it was written so), without `.` and
    /// doubled slashes: equal texts are equal files.
    pub fn database_file(&self) -> PathBuf {
        match &self.database {
            Some(file) => plain(file),
            None => PathBuf::from(format!("{}.db", self.name)),
        }
    }
}

/// A path without `.` components, and without `name/..` pairs.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(plain.components().next_back(), Some(Component::Normal(_))) => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

impl Topology {
    /// How many worker threads a process has: of this service, of the gateway, or, without a name, of one that supervises
    /// them all. `None` is all cores.
    ///
    /// As written. Else the processes of one supervisor share its machine's `cores` evenly, rounded up: a thread
    /// more than there are cores to run it makes every one of them slower. A process that somebody else starts has what
    /// its container allows.
    pub(crate) fn workers(&self, name: Option<&str>, is_supervised: bool, cores: usize) -> Option<usize> {
        let Some(name) = name else {
            // The supervisor waits, and a monolith without a name is the whole application.
            return if self.is_monolith() { self.services[0].workers } else { Some(1) };
        };
        let written = match self.service(name) {
            Some(service) => service.workers,
            None => self.gateway.workers,
        };
        let processes = self.services.len() + 1;
        let share = || (is_supervised && !self.is_monolith()).then(|| cores.div_ceil(processes));
        written.or_else(share)
    }

    /// Everything in one service called like the application.
    pub fn built_in(app_name: &str, modules: &[&str]) -> Self {
        let service = ServiceSection {
            modules: modules.iter().map(|module| (*module).to_owned()).collect(),
            ..ServiceSection::named(app_name)
        };
        Self {
            file: None,
            gateway: GatewaySection::default(),
            trust: TrustSection::default(),
            telemetry: TelemetrySection::default(),
            services: vec![service],
            exposed: Vec::new(),
            callers: Vec::new(),
            externals: Vec::new(),
            modules: BTreeMap::new(),
            problems: Vec::new(),
            lines: BTreeMap::new(),
        }
    }

    /// Reads a topology file.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or is no TOML. Everything else that is wrong with it is listed by
    /// [`check`](crate::check::check), together with what it says about the application.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        read::load(path)
    }

    /// Exactly one service: no gateway process, and its HTTP is at `gateway.listen`.
    pub fn is_monolith(&self) -> bool {
        self.services.len() == 1
    }

    pub fn service(&self, name: &str) -> Option<&ServiceSection> {
        self.services.iter().find(|service| service.name == name)
    }

    /// The program that is none of ours and serves a contract.
    pub fn external_of(&self, contract: &str) -> Option<&ExternalSection> {
        self.externals.iter().find(|external| external.contracts.iter().any(|served| served == contract))
    }

    /// The service that hosts a module.
    pub fn service_of(&self, module: &str) -> Option<&ServiceSection> {
        self.services.iter().find(|service| service.modules.iter().any(|hosted| hosted == module))
    }

    /// The section `[module.NAME]`, with `MODULITH_NAME_KEY` from the environment on top: what
    /// [`Setup::config`](crate::Setup::config) reads.
    pub fn module_config(&self, module: &str) -> toml::Table {
        self.module_config_from(module, std::env::vars_os())
    }

    /// [`module_config`](Self::module_config) with another environment.
    ///
    /// `MODULITH_PAYMENTS_API_KEY` is the key `api_key` of `[module.payments]`. A value that reads as a TOML
    /// boolean, integer, float or quoted string is one; anything else, and whatever stands in for a string of
    /// the file, is a string.
    pub fn module_config_from(
        &self,
        module: &str,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> toml::Table {
        let mut config = self.modules.get(module).cloned().unwrap_or_default();
        let prefix = format!("MODULITH_{}_", module.to_ascii_uppercase());
        for (name, value) in environment {
            let (Some(name), Some(value)) = (name.to_str(), value.to_str()) else {
                continue;
            };
            let Some(key) = name.strip_prefix(&prefix).filter(|key| !key.is_empty()) else {
                continue;
            };
            let in_file = config.keys().find(|known| known.eq_ignore_ascii_case(key)).cloned();
            let key = in_file.unwrap_or_else(|| key.to_ascii_lowercase());
            let value = match config.get(&key) {
                Some(toml::Value::String(_)) => toml::Value::String(value.to_owned()),
                _ => scalar(value),
            };
            config.insert(key, value);
        }
        config
    }

    /// Where a service's database is.
    pub fn database_path(&self, service: &ServiceSection, data: &Path) -> PathBuf {
        data.join(service.database_file())
    }

    /// Where a service listens for its peers: what its section says, else the socket `run/<service>.sock`.
    ///
    /// A relative socket is in the data folder, which must exist. Where its path would be too long for the
    /// kernel, it is in a folder of the user's own below the system's one for temporary files, named after the
    /// data folder.
    pub fn listen_address(&self, service: &ServiceSection, data: &Path) -> Address {
        match &service.listen {
            Some(address) => placed(address, data),
            None => Address::Unix(socket::place(&service.socket_file(), data)),
        }
    }

    /// Where callers find a service: what its section says, else where it listens. Each is a replica, and a host name
    /// is as many as it has addresses.
    pub fn call_addresses(&self, service: &ServiceSection, data: &Path) -> Vec<Address> {
        match &service.addresses[..] {
            [] => vec![self.listen_address(service, data)],
            addresses => addresses.iter().map(|address| placed(address, data)).collect(),
        }
    }

    /// Makes the folders that sockets of this topology are in. Every process calls it before it listens or
    /// connects.
    ///
    /// # Errors
    ///
    /// Those of the operating system, and a folder for temporary sockets that belongs to somebody else.
    pub fn make_socket_folders(&self, data: &Path) -> std::io::Result<()> {
        for service in &self.services {
            if let Address::Unix(path) = self.listen_address(service, data) {
                socket::make_folder(&path, data)?;
            }
        }
        Ok(())
    }

    /// The line of a key, or of the nearest thing around it.
    pub(crate) fn line(&self, key: &str) -> Option<usize> {
        let mut key = key;
        loop {
            if let Some(line) = self.lines.get(key) {
                return Some(*line);
            }
            key = &key[..key.rfind(['.', '['])?];
        }
    }

    /// A problem with a key of this topology; `place` may name an element, such as `service.cart.modules[0]`.
    pub(crate) fn problem(
        &self,
        place: &str,
        message: impl Into<String>,
        mend: impl Into<String>,
    ) -> Problem {
        Problem {
            file: self.file.clone(),
            // What is missing altogether has no place of its own; an editor opens the file's beginning.
            line: self.line(place).or(self.file.is_some().then_some(1)),
            key: place.split('[').next().unwrap_or(place).to_owned(),
            message: message.into(),
            mend: mend.into(),
        }
    }
}

impl ServiceSection {
    pub(crate) fn socket_file(&self) -> PathBuf {
        PathBuf::from(format!("run/{}.sock", self.name))
    }
}

/// A relative socket is in the data folder.
fn placed(address: &Address, data: &Path) -> Address {
    match address {
        Address::Tcp(host_port) => Address::Tcp(host_port.clone()),
        Address::Unix(path) => Address::Unix(socket::place(path, data)),
    }
}

/// Dates and the words `nan` and `inf` stay strings: a name is likelier than a number.
fn scalar(text: &str) -> toml::Value {
    match text.parse::<toml::Value>() {
        Ok(value @ (toml::Value::Boolean(_) | toml::Value::Integer(_) | toml::Value::String(_))) => value,
        Ok(toml::Value::Float(number)) if number.is_finite() => toml::Value::Float(number),
        _ => toml::Value::String(text.to_owned()),
    }
}

#[cfg(test)]
mod tests;
