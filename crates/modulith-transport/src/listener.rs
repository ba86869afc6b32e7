//! Accepting connections, and telling frames from HTTP on the same port.
//!
//! Refuses to take a Unix socket's path away from a process that still answers on it, and to remove a file that
//! is not a socket.

use std::{
    fs::File,
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use rustix::net::RecvFlags;
use tokio::{
    io::Interest,
    net::{TcpListener, TcpSocket, UnixListener, UnixSocket, UnixStream},
};

use crate::{Address, Limits, MAGIC, Stream, Trust, guard::Guard};

/// Connections that the kernel holds until they are accepted.
const BACKLOG: u32 = 1024;

/// A listening socket. Dropping it stops listening and removes a Unix socket's file, if it is still the one
/// that was made here.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    pub(crate) guard: Guard,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix { socket: UnixListener, path: PathBuf, inode: (u64, u64) },
}

impl Listener {
    /// Listens at the address.
    ///
    /// TCP: `SO_REUSEADDR`, so that a restart need not wait for old connections; a host name takes its first
    /// address; port 0 takes a free one. Unix: mode 0600 before the first connection can be made.
    ///
    /// # Errors
    ///
    /// `AddrInUse` if somebody answers there already, `AlreadyExists` if the path is a file of another kind.
    pub async fn bind(address: &Address) -> io::Result<Self> {
        Ok(match address {
            Address::Tcp(host_port) => {
                Self { socket: Socket::Tcp(bind_tcp(host_port).await?), guard: Guard::Plain }
            }
            Address::Unix(path) => {
                Self { socket: bind_unix(path).await?, guard: Guard::Users(Arc::default()) }
            }
        })
    }

    /// The same listener, at which [`crate::serve`] takes nothing but mutual TLS. On a Unix socket, where the kernel
    /// knows who is there, it changes nothing.
    #[must_use]
    pub fn over_tls(mut self, trust: Trust) -> Self {
        if let Socket::Tcp(_) = self.socket {
            self.guard = Guard::Tls(trust);
        }
        self
    }

    /// The same listener, at whose Unix socket [`crate::serve`] takes connections of these users too, beside root and
    /// the user of this process. They need a right to the socket's file as well, which is made with mode 0600.
    #[must_use]
    pub fn for_users(mut self, uids: &[u32]) -> Self {
        if let Socket::Unix { .. } = self.socket {
            self.guard = Guard::Users(uids.into());
        }
        self
    }

    /// Where this listener can be reached; with the port that was taken, if 0 was asked for.
    pub fn address(&self) -> io::Result<Address> {
        Ok(match &self.socket {
            Socket::Tcp(socket) => Address::Tcp(socket.local_addr()?.to_string()),
            Socket::Unix { path, .. } => Address::Unix(path.clone()),
        })
    }

    /// The next connection. Safe to drop: a connection is then left for the next call.
    ///
    /// # Errors
    ///
    /// Those of the operating system, such as too many open files; the listener stays usable.
    pub async fn accept(&self) -> io::Result<Stream> {
        match &self.socket {
            Socket::Tcp(socket) => {
                let (stream, _) = socket.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Socket::Unix { socket, .. } => Ok(Stream::Unix(socket.accept().await?.0)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix { path, inode, .. } = &self.socket
            // A successor may have bound the same path by now; its file must stay.
            && std::fs::symlink_metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == *inode)
        {
            // Nothing depends on it: a stale file is removed by the next bind.
            let _ = std::fs::remove_file(path);
        }
    }
}

async fn bind_tcp(host_port: &str) -> io::Result<TcpListener> {
    let address = tokio::net::lookup_host(host_port)
        .await?
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host_port} has no address")))?;
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn bind_unix(path: &Path) -> io::Result<Socket> {
    // From the look at what stands there until somebody answers there, one at a time: between bind and listen another one
    // would take the new file for a stale one.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let _alone = locked(folder.unwrap_or(Path::new("."))).await?;
    remove_stale(path).await?;
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    // Between bind and listen nobody can connect, so nobody connects before the mode is right.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let file = std::fs::symlink_metadata(path)?;
    let socket = socket.listen(BACKLOG)?;
    Ok(Socket::Unix { socket, path: path.to_owned(), inode: (file.dev(), file.ino()) })
}

/// The lock of a folder, until it is dropped.
async fn locked(folder: &Path) -> io::Result<File> {
    let folder = File::open(folder)?;
    tokio::task::spawn_blocking(move || folder.lock().map(|()| folder)).await?
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    let refuse = |kind, text: &str| Err(io::Error::new(kind, format!("{}: {text}", path.display())));
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) if !file.file_type().is_socket() => {
            return refuse(io::ErrorKind::AlreadyExists, "a file that is not a socket stands there");
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full backlog also means that somebody is there.
        Ok(_) => refuse(io::ErrorKind::AddrInUse, "another process answers there"),
        Err(error) => refuse(io::ErrorKind::AddrInUse, &format!("cannot tell whether it is in use: {error}")),
    }
}

/// What a new connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// This crate's frames: the first bytes are [`MAGIC`].
    Frames,
    /// The first byte is that of a TLS handshake (RFC 8446, section 5.1), which begins no request of HTTP.
    Tls,
    /// Anything else.
    Http,
}

/// Looks at the first bytes of a connection and leaves them in place. Waits at most 5 s for them.
///
/// # Errors
///
/// `TimedOut`, `UnexpectedEof` if the other side closed without a byte, and those of the socket.
pub async fn sniff(stream: &Stream) -> io::Result<Protocol> {
    sniff_within(stream, Limits::default().handshake_max).await
}

/// [`sniff`] with another limit.
pub async fn sniff_within(stream: &Stream, limit: Duration) -> io::Result<Protocol> {
    let first = async {
        match stream {
            Stream::Tcp(socket) => socket.async_io(Interest::READABLE, || peek(socket)).await,
            Stream::Unix(socket) => socket.async_io(Interest::READABLE, || peek(socket)).await,
            Stream::Tls(_) => {
                Err(io::Error::new(io::ErrorKind::Unsupported, "TLS has been recognized already"))
            }
        }
    };
    tokio::time::timeout(limit, first).await.unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "the first bytes did not arrive in time"))
    })
}

fn peek(socket: &impl std::os::fd::AsFd) -> io::Result<Protocol> {
    let mut first = [0u8; MAGIC.len()];
    let (seen, _) = rustix::net::recv(socket, &mut first[..], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    match &first[..seen] {
        [] => Err(io::ErrorKind::UnexpectedEof.into()),
        // The bytes so far could become either. Saying "would block" makes tokio wait for the next arrival, where
        // peeking again at once would spin, since these bytes stay readable.
        first => recognized(first).ok_or_else(|| io::ErrorKind::WouldBlock.into()),
    }
}

/// What begins with these bytes, if they are enough to tell.
pub(crate) fn recognized(first: &[u8]) -> Option<Protocol> {
    const TLS_HANDSHAKE: u8 = 22;
    match first {
        [] => None,
        [TLS_HANDSHAKE, ..] => Some(Protocol::Tls),
        first if first.starts_with(&MAGIC) => Some(Protocol::Frames),
        first if MAGIC.starts_with(first) => None,
        _ => Some(Protocol::Http),
    }
}
