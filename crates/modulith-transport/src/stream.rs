//! One type for the kinds of connection.
//!
//! Owns connecting, splitting, and the writes that do not wait. The halves are tokio's owned ones, because they
//! can be used from several tasks without a lock of ours.

use std::{
    future::Future,
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream, tcp, unix},
};

use crate::{
    Address, frame,
    tls::{TlsRead, TlsStream, TlsWrite},
};

/// An open connection, of any kind; a byte stream like any other.
#[derive(Debug)]
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// Mutual TLS over TCP; made by [`crate::Trust`].
    Tls(Box<TlsStream>),
}

pub(crate) enum ReadHalf {
    Tcp(tcp::OwnedReadHalf),
    Unix(unix::OwnedReadHalf),
    Tls(TlsRead),
}

pub(crate) enum WriteHalf {
    Tcp(tcp::OwnedWriteHalf),
    Unix(unix::OwnedWriteHalf),
    Tls(TlsWrite),
}

/// Runs one expression on whichever connection it is.
macro_rules! any {
    ($on:expr, $socket:ident => $body:expr) => {
        match $on {
            Self::Tcp($socket) => $body,
            Self::Unix($socket) => $body,
            Self::Tls($socket) => $body,
        }
    };
}

impl Stream {
    /// Connects once, without a time limit of its own; `TCP_NODELAY` is set.
    pub async fn connect(address: &Address) -> io::Result<Self> {
        match address {
            Address::Tcp(host_port) => {
                let socket = TcpStream::connect(host_port).await?;
                // Frames are already gathered into few writes; a delay would only add to them.
                socket.set_nodelay(true)?;
                Ok(Self::Tcp(socket))
            }
            Address::Unix(path) => Ok(Self::Unix(UnixStream::connect(path).await?)),
        }
    }

    /// The service that the other side's certificate names; only TLS has one.
    pub fn identity(&self) -> Option<&str> {
        match self {
            Self::Tls(stream) => Some(stream.identity()),
            Self::Tcp(_) | Self::Unix(_) => None,
        }
    }

    pub(crate) fn split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Tcp(socket) => {
                let (read, write) = socket.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Unix(socket) => {
                let (read, write) = socket.into_split();
                (ReadHalf::Unix(read), WriteHalf::Unix(write))
            }
            Self::Tls(stream) => {
                let (read, write) = stream.split();
                (ReadHalf::Tls(read), WriteHalf::Tls(write))
            }
        }
    }
}

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::Tcp(socket)
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self::Unix(socket)
    }
}

impl WriteHalf {
    /// Hands over what the kernel takes at once.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        any!(self, socket => socket.try_write(bytes))
    }

    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.as_ref().poll_write_ready(cx),
            Self::Unix(socket) => socket.as_ref().poll_write_ready(cx),
            Self::Tls(half) => half.poll_write_ready(cx),
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        any!(self.get_mut(), socket => Pin::new(socket).poll_read(cx, buffer))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        any!(self.get_mut(), socket => Pin::new(socket).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        any!(self.get_mut(), socket => Pin::new(socket).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        any!(self.get_mut(), socket => Pin::new(socket).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        any!(self.get_mut(), socket => Pin::new(socket).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        any!(self.get_mut(), socket => Pin::new(socket).poll_shutdown(cx))
    }
}

/// One read into the buffer's free part. A short read tells tokio that the socket is empty, which saves the
/// read that would find nothing.
pub(crate) fn poll_read(
    read: &mut ReadHalf,
    cx: &mut Context<'_>,
    buffer: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    frame::make_room(buffer);
    let mut future = pin!(read.read_buf(buffer));
    future.as_mut().poll(cx)
}
