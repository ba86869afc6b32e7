//! Which connections between services are encrypted, and where the certificates for that are.
//!
//! Owns the rule: what other hosts can reach speaks mutual TLS, unless the file says in so many words that it shall
//! not. Reads no certificate.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use modulith_transport::{Address, TrustFiles};

use super::{GATEWAY, ServiceSection, Topology};

/// What one has to write to have calls travel readable between hosts.
pub const PLAINTEXT: &str = "anyone on this network can read and change calls";
/// What stands for a service's name in the paths of its files.
pub const SERVICE: &str = "{service}";

/// `[trust]`: who is believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustSection {
    /// The certificates of the authority. Default `certs/authority.pem`. Relative paths are in the topology file's
    /// folder, here and below.
    pub authority: PathBuf,
    /// A service's certificate; `{service}` stands for its name. Default `certs/{service}.pem`.
    pub certificate: PathBuf,
    /// Its key. Default `certs/{service}.key`.
    pub key: PathBuf,
    pub tls: Tls,
    /// Users who may connect to Unix sockets, beside root and the user of the service.
    pub unix_uids: Vec<u32>,
}

/// Which TCP connections between services are made over mutual TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Those to an address that is not loopback.
    BeyondLoopback,
    /// `tls = "always"`: those over loopback too.
    Always,
    /// `plaintext` says [`PLAINTEXT`].
    Never,
}

impl Default for TrustSection {
    fn default() -> Self {
        Self {
            authority: "certs/authority.pem".into(),
            certificate: "certs/{service}.pem".into(),
            key: "certs/{service}.key".into(),
            tls: Tls::BeyondLoopback,
            unix_uids: Vec::new(),
        }
    }
}

impl Topology {
    /// Whether other processes reach this service over mutual TLS: as soon as one of the places where it listens, or
    /// where callers find it, is beyond loopback.
    pub fn is_over_tls(&self, service: &ServiceSection) -> bool {
        let places = service.listen.iter().chain(&service.addresses);
        let mut ports = places.filter_map(|place| match place {
            Address::Tcp(host_port) => Some(host_port),
            Address::Unix(_) => None,
        });
        match self.trust.tls {
            // One process has nobody to talk to.
            _ if self.is_monolith() => false,
            Tls::BeyondLoopback => ports.any(|host_port| !is_loopback(host_port)),
            Tls::Always => ports.next().is_some(),
            Tls::Never => false,
        }
    }

    /// Whether the processes of this topology need certificates: all of them do as soon as one is reached over TLS,
    /// since each may call it.
    pub fn needs_certificates(&self) -> bool {
        self.services.iter().any(|service| self.is_over_tls(service))
    }

    /// The processes that need a certificate: the services, in their order, and the gateway.
    pub(crate) fn certified(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|service| &*service.name).chain([GATEWAY])
    }

    /// Where the certificate of a service, or of the gateway, is.
    pub fn trust_files(&self, service: &str) -> TrustFiles {
        let folder = self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""));
        let place = |path: &Path| {
            // A path that is not UTF-8 cannot stand in the file.
            folder.join(path.to_string_lossy().replace(SERVICE, service))
        };
        TrustFiles {
            authority: place(&self.trust.authority),
            certificate: place(&self.trust.certificate),
            key: place(&self.trust.key),
        }
    }
}

/// The host and the port of an address as it is written.
pub(crate) fn split(host_port: &str) -> (&str, &str) {
    host_port.rsplit_once(':').unwrap_or((host_port, ""))
}

pub(crate) fn ip(host: &str) -> Option<IpAddr> {
    if host.eq_ignore_ascii_case("localhost") {
        return Some(IpAddr::from([127, 0, 0, 1]));
    }
    host.trim_start_matches('[').trim_end_matches(']').parse().ok()
}

/// A name other than `localhost` may be anywhere, so it is not.
pub(crate) fn is_loopback(host_port: &str) -> bool {
    ip(split(host_port).0).is_some_and(|ip| ip.is_loopback())
}
