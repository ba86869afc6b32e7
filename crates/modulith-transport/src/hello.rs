//! What a process says about itself before the first call.
//!
//! Owns the hello and its encoding. The text `about` stays opaque here: contracts, versions and fingerprints
//! are compared by the application above, in its [`Admit`].

use std::{
    any::Any,
    fmt,
    sync::{Arc, OnceLock},
};

use bytes::{BufMut, Bytes, BytesMut};

use crate::ConnectionError;

/// The largest hello, and so the most that a process without the token can make this one hold: 64 KiB.
pub const HELLO_BYTES_MAX: usize = 64 << 10;

/// A service token. Two processes talk only if theirs are equal.
///
/// It never travels: each side proves that it has it (HMAC-SHA-256 over fresh nonces and the hello). Use at
/// least 16 random bytes, since who sees a proof can try guesses at leisure. The empty token is a token like any
/// other; it leaves the socket's permissions as the only guard.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Arc<[u8]>);

impl Token {
    pub fn new(bytes: impl AsRef<[u8]>) -> Self {
        Self(Arc::from(bytes.as_ref()))
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(redacted)")
    }
}

/// What this process says to every other one.
#[derive(Debug, Clone)]
pub struct Hello {
    /// The service's name in the topology.
    pub service: String,
    /// Differs at each start of the process, so that an earlier one can be told apart and fenced off.
    pub incarnation: [u8; 16],
    pub token: Token,
    /// For the application above; it and `service` fit into [`HELLO_BYTES_MAX`].
    pub about: Bytes,
}

/// What the other process said, once its token was found right.
#[derive(Debug, Clone)]
pub struct HelloInfo {
    pub service: String,
    pub incarnation: [u8; 16],
    pub about: Bytes,
    /// What this side's [`Admit`] made of it.
    pub note: Note,
}

/// A value that an [`Admit`] leaves for the calls of the connection, so that `about` is read once and not at each
/// call.
#[derive(Clone, Default)]
pub struct Note(OnceLock<Arc<dyn Any + Send + Sync>>);

impl Note {
    /// Leaves a value; the first one stays.
    pub fn leave<T: Any + Send + Sync>(&self, value: T) {
        self.0.get_or_init(|| Arc::new(value));
    }

    /// The value that was left, if it is of this type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.get()?.downcast_ref()
    }
}

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Note(..)")
    }
}

/// The same facts, seen from a call.
pub type PeerInfo = HelloInfo;

/// Decides, on either side, whether to talk to the process that said this hello.
///
/// It runs once a connection, after the token was found right. The text of an `Err` travels to the other side
/// and stands in its [`crate::NotRun::Refused`]; at most 1024 bytes of it travel.
pub type Admit = Arc<dyn Fn(&HelloInfo) -> Result<(), String> + Send + Sync>;

impl Hello {
    /// `incarnation, u16 LE length of service, service, about`: what a proof covers.
    pub(crate) fn encode(&self) -> Result<BytesMut, ConnectionError> {
        let bytes = 16 + 2 + self.service.len() + self.about.len();
        // The nonce and the proof share the frame with it.
        let max = HELLO_BYTES_MAX - 64;
        if bytes > max {
            return Err(ConnectionError::HelloTooLarge { bytes, max });
        }
        let mut body = BytesMut::with_capacity(bytes);
        body.put_slice(&self.incarnation);
        // Within HELLO_BYTES_MAX, so it fits.
        body.put_u16_le(self.service.len() as u16);
        body.put_slice(self.service.as_bytes());
        body.put_slice(&self.about);
        Ok(body)
    }
}

impl HelloInfo {
    pub(crate) fn decode(body: &[u8]) -> Result<Self, ConnectionError> {
        let short = ConnectionError::Malformed("hello is too short");
        let Some((incarnation, rest)) = body.split_first_chunk::<16>() else {
            return Err(short);
        };
        let Some((length, rest)) = rest.split_first_chunk::<2>() else {
            return Err(short);
        };
        let Some((service, about)) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length))) else {
            return Err(short);
        };
        let service = std::str::from_utf8(service)
            .map_err(|_| ConnectionError::Malformed("service name in hello is not UTF-8"))?;
        Ok(Self {
            service: service.to_owned(),
            incarnation: *incarnation,
            about: Bytes::copy_from_slice(about),
            note: Note::default(),
        })
    }
}
