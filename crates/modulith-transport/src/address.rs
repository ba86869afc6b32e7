//! Where a process listens, as people write it.
//!
//! Owns parsing and printing only; names are resolved when a connection is made, so that a host that moves is
//! found again at the next attempt.

use std::{fmt, path::PathBuf, str::FromStr};

/// The place of a listener: `127.0.0.1:7001`, `[::1]:7001`, `products.internal:7001` or `unix:/run/products.sock`.
///
/// Its printed form parses back to itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    /// `host:port`. The host may be a name; it is resolved at each connection attempt.
    Tcp(String),
    /// The path of a Unix socket; the kernel takes about 100 bytes.
    Unix(PathBuf),
}

/// Why a text is not an [`Address`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("address {text:?}: {reason}; write host:port or unix:/path")]
pub struct AddressError {
    text: String,
    reason: &'static str,
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refuse = |reason| Err(AddressError { text: text.to_owned(), reason });
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.is_empty() { refuse("no path") } else { Ok(Self::Unix(PathBuf::from(path))) };
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return refuse("no port");
        };
        if host.is_empty() {
            return refuse("no host");
        }
        // An IPv6 address without brackets would lose its last group to the port.
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return refuse("an IPv6 host stands in brackets");
        }
        if port.parse::<u16>().is_err() {
            return refuse("the port is not a number up to 65535");
        }
        Ok(Self::Tcp(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host_port) => f.write_str(host_port),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Address;

    #[test]
    fn what_is_printed_parses_back() {
        for text in ["127.0.0.1:7001", "[::1]:7001", "products.internal:80", "unix:/run/products.sock"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, reason) in [
            ("unix:", "no path"),
            ("localhost", "no port"),
            (":80", "no host"),
            ("::1:80", "brackets"),
            ("localhost:http", "not a number"),
            ("localhost:70000", "not a number"),
        ] {
            let error = text.parse::<Address>().expect_err(text).to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
