//! How a call fails, and how a connection ends.
//!
//! A failed call is either *not run*, which is a promise, or *unknown*. The line between them is drawn by
//! bytes: as long as no byte of the call's frame was handed to the socket, or if the callee itself says that
//! it did not run it, the call did not run. Everything else is unknown, however unlikely.

use std::io;

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallFault {
    /// The call certainly did not run. Sending it again is safe.
    #[error("not run: {0}")]
    NotRun(NotRun),
    /// The call may have run, may still be running, or may run later.
    #[error("outcome unknown: {0}")]
    Unknown(Unknown),
}

/// Why a call certainly did not run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotRun {
    /// There is no connection; the text is the last thing that went wrong.
    #[error("peer unreachable: {0}")]
    Unreachable(String),
    /// The handshake was refused, by either side, and will be tried again with back-off.
    #[error("handshake refused: {0}")]
    Refused(String),
    /// `in_flight_max` calls are in flight, `write_buffer_bytes_max` bytes or `in_flight_bytes_max` bytes of large
    /// payloads wait to be written, or `bodies_max` bodies are being sent.
    #[error("too many calls wait for this peer")]
    QueueFull,
    /// The deadline passed before the first byte was sent.
    #[error("deadline passed before it was sent")]
    Deadline,
    /// The payload is larger than `payload_bytes_max`.
    #[error("payload of {bytes} bytes, {max} are allowed")]
    TooLarge { bytes: usize, max: usize },
    /// The callee says that it did not run the call.
    #[error("rejected: {0}")]
    Rejected(Rejection),
}

/// Why nobody on this side knows whether a call ran.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unknown {
    /// The connection ended after the call may have left; [`crate::Peer::last_error`] has the reason.
    #[error("connection lost after the call may have left")]
    ConnectionLost,
    /// The deadline passed after the call may have left. The callee was told to drop it.
    #[error("deadline passed after the call may have left")]
    Deadline,
    /// The callee ran the call, at least in part, and has no answer to give: its handler panicked, or its
    /// answer was too large or had a body too many.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

/// The callee's statement that it did not run a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Rejection {
    /// Why; at most 1024 bytes of it travel.
    pub reason: String,
    /// When a repeat is worth trying, if the callee has an opinion.
    pub retry_after_ms: Option<u32>,
}

impl Rejection {
    /// A rejection that says nothing about when to try again.
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), retry_after_ms: None }
    }

    /// A rejection that is worth repeating after this many milliseconds.
    pub fn retry_after(reason: impl Into<String>, retry_after_ms: u32) -> Self {
        Self { reason: reason.into(), retry_after_ms: Some(retry_after_ms) }
    }
}

/// What the caller is told when the callee has run the call and its answer is larger than either side takes.
pub(crate) fn answer_too_large(bytes: usize, max: usize) -> String {
    format!("answer of {bytes} bytes, {max} are allowed")
}

impl From<NotRun> for CallFault {
    fn from(fault: NotRun) -> Self {
        Self::NotRun(fault)
    }
}

impl From<Unknown> for CallFault {
    fn from(fault: Unknown) -> Self {
        Self::Unknown(fault)
    }
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    #[error("{0}")]
    Io(io::Error),
    /// A certificate, a key or a record that TLS refuses, on either side.
    #[error("TLS: {0}")]
    Tls(String),
    /// The other side is another service than it was called as, or than it says it is.
    #[error("the certificate is for service `{certified}`, where `{expected}` was expected")]
    Identity { expected: String, certified: String },
    #[error("a connection without TLS, where nothing else is spoken")]
    PlainAtTls,
    #[error("a TLS connection, where TLS is not spoken")]
    TlsAtPlain,
    /// The user id of the process at the other end of a Unix socket.
    #[error("user id {0} may not connect to this socket")]
    User(u32),
    /// The first bytes are not this protocol's.
    #[error("the other side does not speak this protocol")]
    NotFrames,
    #[error("protocol version {theirs} on the other side, {ours} on this one")]
    Version { theirs: u8, ours: u8 },
    #[error("the service token differs")]
    Token,
    /// This side's `admit` refused the other.
    #[error("not admitted: {0}")]
    NotAdmitted(String),
    /// The other side refused this one.
    #[error("refused by the other side: {0}")]
    RefusedByPeer(String),
    #[error("handshake not finished in time")]
    HandshakeTimeout,
    #[error("hello of {bytes} bytes, {max} are allowed")]
    HelloTooLarge { bytes: usize, max: usize },
    #[error("frame of {bytes} bytes, {max} are allowed")]
    FrameTooLarge { bytes: usize, max: usize },
    /// A frame that cannot be read, or that has no place here; the text names the rule it breaks.
    #[error("malformed: {0}")]
    Malformed(&'static str),
    /// The other side closed in the middle of a frame or of the handshake.
    #[error("closed in the middle of a frame")]
    Truncated,
    /// The other side closed, between frames.
    #[error("closed by the other side")]
    Closed,
    /// The other side closed for a reason that it named.
    #[error("closed by the other side: {0}")]
    ClosedByPeer(String),
    #[error("nothing heard for {0:?}")]
    Silent(std::time::Duration),
    /// Calls that were still running when the time to drain was over, and were dropped.
    #[error("{calls} calls dropped at the end of the time to drain")]
    DrainTimeout { calls: usize },
    /// This side no longer needs the connection.
    #[error("closed by this side")]
    ClosedHere,
}

impl ConnectionError {
    /// Whether the other process was reached and one of the two declined, so that trying again soon is futile.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NotFrames
                | Self::Tls(_)
                | Self::Identity { .. }
                | Self::PlainAtTls
                | Self::TlsAtPlain
                | Self::User(_)
                | Self::Version { .. }
                | Self::Token
                | Self::NotAdmitted(_)
                | Self::RefusedByPeer(_)
                | Self::HelloTooLarge { .. }
        )
    }
}

impl From<io::Error> for ConnectionError {
    /// TLS reports its own errors, and an end that was not announced, through the interface of a socket.
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Self::Truncated;
        }
        match error.downcast::<rustls::Error>() {
            Ok(error) => Self::Tls(error.to_string()),
            Err(error) => Self::Io(error),
        }
    }
}
