//! What a new connection has to show before its first byte is believed.
//!
//! Owns the order: which user it is on a Unix socket, TLS where TLS is wanted, and then frames or HTTP. The token comes
//! after it, for frames in `handshake.rs`, for HTTP above.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use crate::{ConnectionError, Protocol, Stream, Trust, handshake, listener::sniff_within};

#[derive(Debug, Clone)]
pub(crate) enum Guard {
    /// TCP; what is said travels readable.
    Plain,
    /// TCP, and nothing but mutual TLS.
    Tls(Trust),
    /// A Unix socket, for root, the user of this process, and these.
    Users(Arc<[u32]>),
}

impl Guard {
    /// Each step within `limit`. Who is refused is told so, as far as he would understand it.
    pub(crate) async fn enter(
        &self,
        mut stream: Stream,
        limit: Duration,
    ) -> Result<(Stream, Protocol), ConnectionError> {
        let protocol = sniff_within(&stream, limit).await?;
        let refused = match (self, protocol) {
            (Self::Tls(trust), Protocol::Tls) => {
                let mut stream = trust.accept(stream, limit).await?;
                let found = match &mut stream {
                    Stream::Tls(tls) => timeout(limit, tls.sniff()).await,
                    _ => unreachable!("TLS was just made of it"),
                };
                return Ok((stream, found.map_err(|_| ConnectionError::HandshakeTimeout)??));
            }
            (Self::Tls(_), _) => ConnectionError::PlainAtTls,
            (_, Protocol::Tls) => return Err(handshake::refuse_tls(&mut stream).await),
            (Self::Users(users), _) => match refused_user(&stream, users)? {
                Some(uid) => ConnectionError::User(uid),
                None => return Ok((stream, protocol)),
            },
            (Self::Plain, _) => return Ok((stream, protocol)),
        };
        match protocol {
            Protocol::Frames => Err(handshake::refuse(&mut stream, refused, true).await),
            Protocol::Http | Protocol::Tls => Err(refused),
        }
    }
}

/// Which user is on the other side, if it is none of those who may connect. The kernel tells, as of the moment of
/// connecting (`SO_PEERCRED`).
fn refused_user(stream: &Stream, users: &[u32]) -> std::io::Result<Option<u32>> {
    let Stream::Unix(socket) = stream else {
        return Ok(None);
    };
    let uid = socket.peer_cred()?.uid();
    let own = rustix::process::geteuid().as_raw();
    Ok((uid != 0 && uid != own && !users.contains(&uid)).then_some(uid))
}
