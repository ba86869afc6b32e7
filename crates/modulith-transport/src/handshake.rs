//! From a fresh socket to two sides that know and accept each other.
//!
//! Owns the order of the first frames (layout in `frame.rs`), the proofs, and the time limit. Nothing that the other
//! side says is looked at before its proof was found right, except lengths; and no more than one hello is held.
//! The token itself never travels, so that neither a listener on the network nor an impostor on a stale port
//! learns it.

use std::sync::Arc;

use bytes::BytesMut;
use ring::{
    hmac,
    rand::{SecureRandom, SystemRandom},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use crate::{
    Admit, ConnectionError, HELLO_BYTES_MAX, Hello, HelloInfo, Limits, MAGIC, PROTOCOL_VERSION, Protocol,
    Stream, Token,
    frame::{self, Frame, Kind, PREFACE},
    listener,
};

type Nonce = [u8; 32];
const PROOF: usize = 32;

/// What a finished handshake leaves: who it is, and bytes that arrived behind the last frame of it.
pub(crate) struct Opened {
    pub(crate) other: Arc<HelloInfo>,
    pub(crate) inbound: BytesMut,
}

#[derive(Clone, Copy)]
enum Side {
    Caller,
    Served,
}

impl Side {
    /// Without it, a proof could be sent back to the side that made it.
    fn label(self) -> &'static [u8] {
        match self {
            Self::Caller => b"modulith caller 1\0",
            Self::Served => b"modulith served 1\0",
        }
    }
}

/// The handshake as the calling side.
pub(crate) async fn call(
    stream: &mut Stream,
    hello: &Hello,
    admit: &Admit,
    limits: &Limits,
) -> Result<Opened, ConnectionError> {
    let steps = async {
        let mut inbound = BytesMut::with_capacity(4096);
        stream.write_all(&PREFACE).await?;
        read_preface(stream, &mut inbound).await?;
        let challenge = expect(read_frame(stream, &mut inbound).await?, Kind::Challenge)?;
        let served_nonce: Nonce = challenge.body[..]
            .try_into()
            .map_err(|_| ConnectionError::Malformed("a challenge of the wrong size"))?;
        let caller_nonce = nonce()?;
        let frame = hello_frame(Side::Caller, hello, &caller_nonce, &served_nonce)?;
        stream.write_all(&frame).await?;
        let answer = expect(read_frame(stream, &mut inbound).await?, Kind::Hello)?;
        let other = verify(Side::Served, &hello.token, &answer.body, Some(&caller_nonce), &served_nonce)
            .and_then(|body| admitted(body, stream.identity(), admit));
        match other {
            Ok(other) => Ok(Opened { other, inbound }),
            Err(error) => Err(refuse(stream, error, false).await),
        }
    };
    timeout(limits.handshake_max, steps).await.unwrap_or(Err(ConnectionError::HandshakeTimeout))
}

/// The handshake as the served side. `closing` refuses every caller that has proved itself.
pub(crate) async fn serve(
    stream: &mut Stream,
    hello: &Hello,
    admit: &Admit,
    limits: &Limits,
    closing: impl Fn() -> bool,
) -> Result<Opened, ConnectionError> {
    let steps = async {
        let mut inbound = BytesMut::with_capacity(4096);
        match read_preface(stream, &mut inbound).await {
            Ok(()) => {}
            Err(error @ ConnectionError::Version { .. }) => return Err(refuse(stream, error, true).await),
            Err(ConnectionError::TlsAtPlain) => return Err(refuse_tls(stream).await),
            // Whoever does not speak this protocol would not understand a refusal either.
            Err(error) => return Err(error),
        }
        let served_nonce = nonce()?;
        let mut opening = PREFACE.to_vec();
        frame::put(&mut opening, Kind::Challenge, 0, &served_nonce);
        stream.write_all(&opening).await?;
        let said = expect(read_frame(stream, &mut inbound).await?, Kind::Hello)?;
        let other = verify(Side::Caller, &hello.token, &said.body, None, &served_nonce).and_then(|body| {
            if closing() {
                return Err(ConnectionError::NotAdmitted(ConnectionError::SHUTTING_DOWN.to_owned()));
            }
            admitted(body, stream.identity(), admit)
        });
        let other = match other {
            Ok(other) => other,
            Err(error) => return Err(refuse(stream, error, false).await),
        };
        let caller_nonce: Nonce = said.body[..32].try_into().map_err(|_| ConnectionError::Truncated)?;
        match hello_frame(Side::Served, hello, &caller_nonce, &served_nonce) {
            Ok(frame) => stream.write_all(&frame).await?,
            Err(error) => return Err(refuse(stream, error, false).await),
        }
        Ok(Opened { other, inbound })
    };
    timeout(limits.handshake_max, steps).await.unwrap_or(Err(ConnectionError::HandshakeTimeout))
}

fn nonce() -> Result<Nonce, ConnectionError> {
    let mut nonce = [0; 32];
    SystemRandom::new()
        .fill(&mut nonce)
        .map_err(|_| std::io::Error::other("the operating system has no random numbers"))?;
    Ok(nonce)
}

fn proof_context(
    token: &Token,
    side: Side,
    caller: &Nonce,
    served: &Nonce,
    body: &[u8],
) -> (hmac::Key, Vec<u8>) {
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.bytes());
    (key, [side.label(), caller, served, body].concat())
}

fn hello_frame(
    side: Side,
    hello: &Hello,
    caller: &Nonce,
    served: &Nonce,
) -> Result<Vec<u8>, ConnectionError> {
    let body = hello.encode()?;
    let (key, context) = proof_context(&hello.token, side, caller, served, &body);
    let proof = hmac::sign(&key, &context);
    let shown = match side {
        Side::Caller => *caller,
        Side::Served => [0; 32],
    };
    let mut frame = Vec::new();
    frame::put(&mut frame, Kind::Hello, 0, &[&shown, proof.as_ref(), &body].concat());
    Ok(frame)
}

/// Checks the proof (in constant time, by `ring`) and returns the hello that it covers, still unread.
fn verify<'a>(
    side: Side,
    token: &Token,
    said: &'a [u8],
    caller: Option<&Nonce>,
    served: &Nonce,
) -> Result<&'a [u8], ConnectionError> {
    let short = || ConnectionError::Malformed("hello is too short");
    let (shown, rest) = said.split_first_chunk::<32>().ok_or_else(short)?;
    let (proof, body) = rest.split_first_chunk::<PROOF>().ok_or_else(short)?;
    let (key, context) = proof_context(token, side, caller.unwrap_or(shown), served, body);
    hmac::verify(&key, &context, proof).map_err(|_| ConnectionError::Token)?;
    Ok(body)
}

fn admitted(body: &[u8], identity: Option<&str>, admit: &Admit) -> Result<Arc<HelloInfo>, ConnectionError> {
    let other = HelloInfo::decode(body)?;
    // The token is common to all services; the certificate is this one's.
    if let Some(certified) = identity
        && certified != other.service
    {
        return Err(ConnectionError::Identity { expected: other.service, certified: certified.to_owned() });
    }
    admit(&other).map_err(ConnectionError::NotAdmitted)?;
    Ok(Arc::new(other))
}

/// A frame of the handshake, which must be of this kind; a refusal is the other side's last word.
fn expect(frame: Frame, kind: Kind) -> Result<Frame, ConnectionError> {
    match frame.kind {
        Kind::Refused => Err(ConnectionError::RefusedByPeer(frame.text())),
        found if found == kind => Ok(frame),
        _ => Err(ConnectionError::Malformed("a frame out of order in the handshake")),
    }
}

/// Tells the other side why, as far as it listens, and gives the error back.
pub(crate) async fn refuse(
    stream: &mut Stream,
    error: ConnectionError,
    with_preface: bool,
) -> ConnectionError {
    let text = match &error {
        ConnectionError::NotAdmitted(text) => text.clone(),
        // "ours" and "theirs" would be read on the other side, where they are the other way round.
        ConnectionError::Version { theirs, ours } => {
            format!("protocol version {ours} is spoken here, {theirs} was offered")
        }
        other => other.to_string(),
    };
    let mut last = if with_preface { PREFACE.to_vec() } else { Vec::new() };
    frame::put_text(&mut last, Kind::Refused, 0, &text);
    farewell(stream, &last).await;
    error
}

/// The alert `handshake_failure` as a TLS record (RFC 8446, sections 5.1 and 6).
const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 40];

/// Tells a caller that speaks TLS that nobody else does here, in words that he understands.
pub(crate) async fn refuse_tls(stream: &mut Stream) -> ConnectionError {
    farewell(stream, &ALERT).await;
    ConnectionError::TlsAtPlain
}

/// Says a last word and closes. Best effort, for at most a second: what was decided stands whether or not the other
/// side can be told.
pub(crate) async fn farewell(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), last: &[u8]) {
    let words = async {
        stream.write_all(last).await?;
        stream.shutdown().await?;
        // Closing a socket with unread bytes resets it, and the reset can overtake the refusal.
        let mut unread = [0; 1024];
        let mut left = HELLO_BYTES_MAX;
        while left > 0 {
            match stream.read(&mut unread).await? {
                0 => break,
                read => left = left.saturating_sub(read),
            }
        }
        Ok::<(), std::io::Error>(())
    };
    let _ = timeout(std::time::Duration::from_secs(1), words).await;
}

/// Reads more, or says that the other side closed too early.
async fn read_more(stream: &mut Stream, inbound: &mut BytesMut) -> Result<(), ConnectionError> {
    inbound.reserve(4096);
    match stream.read_buf(inbound).await? {
        0 => Err(ConnectionError::Truncated),
        _ => Ok(()),
    }
}

async fn read_preface(stream: &mut Stream, inbound: &mut BytesMut) -> Result<(), ConnectionError> {
    loop {
        let seen = inbound.len().min(MAGIC.len());
        if inbound[..seen] != MAGIC[..seen] {
            if listener::recognized(&inbound[..seen]) == Some(Protocol::Tls) {
                return Err(ConnectionError::TlsAtPlain);
            }
            return Err(ConnectionError::NotFrames);
        }
        if let Some(preface) = inbound.first_chunk::<{ PREFACE.len() }>() {
            let theirs = preface[MAGIC.len()];
            let _ = inbound.split_to(PREFACE.len());
            return if theirs == PROTOCOL_VERSION {
                Ok(())
            } else {
                Err(ConnectionError::Version { theirs, ours: PROTOCOL_VERSION })
            };
        }
        read_more(stream, inbound).await?;
    }
}

async fn read_frame(stream: &mut Stream, inbound: &mut BytesMut) -> Result<Frame, ConnectionError> {
    loop {
        if let Some(frame) = Frame::take(inbound, HELLO_BYTES_MAX)? {
            return Ok(frame);
        }
        read_more(stream, inbound).await?;
    }
}
