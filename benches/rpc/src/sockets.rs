//! TCP and Unix sockets under one type, for those who read and write bytes.
//!
//! A Unix socket's descriptor serves as a [`TcpStream`]: reading, writing and waiting are the same system calls, and
//! nothing else is asked of it. So no candidate has a branch, or a second copy of its code, in its way.

use std::io;
use std::os::fd::OwnedFd;

use modulith_transport::Address;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Where connections come from; none of them waits for more to send.
pub enum Sockets {
    /// A port.
    Tcp(TcpListener),
    /// A path.
    Unix(UnixListener),
}

impl Sockets {
    /// Listens, and says so on standard output.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub async fn listen(address: &Address) -> io::Result<Self> {
        let sockets = match address {
            Address::Tcp(host) => Self::Tcp(TcpListener::bind(host).await?),
            Address::Unix(path) => Self::Unix(UnixListener::bind(path)?),
        };
        println!("ready");
        Ok(sockets)
    }

    /// The next connection.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub async fn next(&self) -> io::Result<TcpStream> {
        match self {
            Self::Tcp(listener) => without_delay(listener.accept().await?.0),
            Self::Unix(listener) => as_tcp(listener.accept().await?.0),
        }
    }
}

/// A connection to whoever listens there.
///
/// # Errors
///
/// The operating system's.
pub async fn connect(address: &Address) -> io::Result<TcpStream> {
    match address {
        Address::Tcp(host) => without_delay(TcpStream::connect(host).await?),
        Address::Unix(path) => as_tcp(UnixStream::connect(path).await?),
    }
}

fn without_delay(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn as_tcp(stream: UnixStream) -> io::Result<TcpStream> {
    TcpStream::from_std(OwnedFd::from(stream.into_std()?).into())
}
