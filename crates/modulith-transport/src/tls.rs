//! A connection over TLS, as two halves that share one session.
//!
//! Owns the way of bytes through rustls, and the ciphertext that the socket did not take at once. Whose certificates
//! are shown and believed is `trust.rs`'s.
//!
//! A writer may be any task; it encrypts and writes at once, as on a plain socket. What it leaves behind is written by
//! the task that reads, which it wakes for that: plaintext that was taken must not wait for more plaintext. At most
//! one write's worth waits there, since nothing more is taken before it is gone. Several records go out in one
//! system call, and one read takes whatever has arrived.

use std::{
    io::{self, BufRead, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use parking_lot::Mutex;
use rustls::Connection;
use rustls_pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpStream, tcp},
};

use crate::{Protocol, listener};

/// What one read takes from the socket; as much as plain connections read.
const READ: usize = 64 << 10;

/// An open connection over mutual TLS. A byte stream; dropping it tells the other side that this was the end.
pub struct TlsStream {
    read: TlsRead,
    write: TlsWrite,
    /// The service that the other side's certificate names.
    identity: String,
}

pub(crate) struct TlsRead {
    socket: tcp::OwnedReadHalf,
    session: Arc<Mutex<Session>>,
    /// Ciphertext that was read, and which of it rustls has not seen yet.
    inbound: Box<[u8]>,
    from: usize,
    to: usize,
    /// Plaintext that was looked at to tell frames from HTTP, and is read first.
    first: Vec<u8>,
}

pub(crate) struct TlsWrite {
    socket: tcp::OwnedWriteHalf,
    session: Arc<Mutex<Session>>,
}

struct Session {
    tls: Connection,
    /// Writes what writers leave.
    reader: Option<Waker>,
}

/// Hands rustls' records to the socket, several in one system call.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Session {
    /// Writes the ciphertext that waits; false if the socket did not take all of it.
    fn flush(&mut self, socket: &TcpStream) -> io::Result<bool> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(socket)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn poll_flush(&mut self, socket: &TcpStream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.flush(socket)? {
            ready!(socket.poll_write_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Takes plaintext, and leaves no more ciphertext than that was.
    fn try_write(&mut self, socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
        if !self.flush(socket)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // rustls takes 64 KiB at most.
        let taken = self.tls.writer().write(bytes)?;
        // Part of it may have left even if this fails, so the failure is not told here, where it would mean that nothing was
        // taken: the reader meets it at its next flush.
        if !matches!(self.flush(socket), Ok(true))
            && let Some(reader) = &self.reader
        {
            reader.wake_by_ref();
        }
        Ok(taken)
    }

    /// Lets rustls see ciphertext; returns how much of it.
    fn take(&mut self, socket: &TcpStream, mut ciphertext: &[u8]) -> io::Result<usize> {
        let seen = self.tls.read_tls(&mut ciphertext)?;
        if let Err(error) = self.tls.process_new_packets() {
            // An alert tells the other side why, if the socket takes it.
            let _ = self.flush(socket);
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(seen)
    }
}

impl TlsRead {
    /// Reads ciphertext once and lets rustls see all of it, or as much as it takes before plaintext has to be fetched.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.from == self.to {
            let mut into = ReadBuf::new(&mut self.inbound);
            ready!(Pin::new(&mut self.socket).poll_read(cx, &mut into))?;
            (self.from, self.to) = (0, into.filled().len());
        }
        let mut session = self.session.lock();
        loop {
            // Nothing to see is how rustls learns of the end.
            let seen = session.take(self.socket.as_ref(), &self.inbound[self.from..self.to])?;
            self.from += seen;
            if self.from == self.to || !session.tls.wants_read() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncRead for TlsRead {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.first.is_empty() {
            let taken = this.first.len().min(buffer.remaining());
            buffer.put_slice(&this.first[..taken]);
            this.first.drain(..taken);
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        loop {
            let mut session = this.session.lock();
            while buffer.remaining() > 0 {
                let mut reader = session.tls.reader();
                match reader.fill_buf() {
                    // The other side said that this is the end.
                    Ok([]) => return Poll::Ready(Ok(())),
                    Ok(record) => {
                        let taken = record.len().min(buffer.remaining());
                        buffer.put_slice(&record[..taken]);
                        reader.consume(taken);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // Or it did not, and was cut off.
                    Err(_) if buffer.filled().len() > before => break,
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
            if buffer.filled().len() > before && (this.from == this.to || buffer.remaining() == 0) {
                return Poll::Ready(Ok(()));
            }
            // If the socket takes no more now, the task is woken when it does, and reading goes on meanwhile.
            let _ = session.poll_flush(this.socket.as_ref(), cx)?;
            // Under the same lock as the look at what waits, so that no writer's rest is missed.
            if session.reader.as_ref().is_none_or(|reader| !reader.will_wake(cx.waker())) {
                session.reader = Some(cx.waker().clone());
            }
            drop(session);
            ready!(this.poll_fill(cx))?;
        }
    }
}

impl TlsWrite {
    /// Takes plaintext; `WouldBlock` while earlier ciphertext waits for the socket.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.session.lock().try_write(self.socket.as_ref(), bytes)
    }

    /// Ready when [`try_write`](Self::try_write) would take something.
    pub(crate) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.session.lock().poll_flush(self.socket.as_ref(), cx)
    }
}

impl Drop for TlsWrite {
    fn drop(&mut self) {
        let mut session = self.session.lock();
        session.tls.send_close_notify();
        // A socket that takes no more leaves the other side to find a connection that was cut off, which it was.
        let _ = session.flush(self.socket.as_ref());
    }
}

impl TlsStream {
    /// A session over a socket that nothing was said on yet; its handshake is still to be made.
    pub(crate) fn new(socket: TcpStream, tls: Connection) -> Self {
        let (read, write) = socket.into_split();
        let session = Arc::new(Mutex::new(Session { tls, reader: None }));
        Self {
            read: TlsRead {
                socket: read,
                session: Arc::clone(&session),
                inbound: vec![0; READ].into_boxed_slice(),
                from: 0,
                to: 0,
                first: Vec::new(),
            },
            write: TlsWrite { socket: write, session },
            identity: String::new(),
        }
    }

    /// The TLS handshake, without a time limit of its own. Returns the other side's certificate, which its authority
    /// has signed.
    pub(crate) async fn handshake(&mut self) -> io::Result<CertificateDer<'static>> {
        std::future::poll_fn(|cx| {
            loop {
                let mut session = self.read.session.lock();
                ready!(session.poll_flush(self.read.socket.as_ref(), cx))?;
                if !session.tls.is_handshaking() {
                    return Poll::Ready(io::Result::Ok(()));
                }
                drop(session);
                ready!(self.read.poll_fill(cx))?;
                if self.read.to == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
        })
        .await?;
        let session = self.read.session.lock();
        let shown = session.tls.peer_certificates().and_then(<[_]>::first);
        shown
            .cloned()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, rustls::Error::NoCertificatesPresented))
    }

    pub(crate) fn set_identity(&mut self, identity: String) {
        self.identity = identity;
    }

    pub(crate) fn identity(&self) -> &str {
        &self.identity
    }

    /// Looks at the first bytes and leaves them in place.
    pub(crate) async fn sniff(&mut self) -> io::Result<Protocol> {
        let mut first = Vec::new();
        let found = loop {
            if self.read.read_buf(&mut first).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Some(found) = listener::recognized(&first) {
                break found;
            }
        };
        self.read.first = first;
        Ok(found)
    }

    pub(crate) fn split(self) -> (TlsRead, TlsWrite) {
        (self.read, self.write)
    }
}

impl std::fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsStream").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().read).poll_read(cx, buffer)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.write.poll_write_ready(cx))?;
        Poll::Ready(self.write.try_write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write.poll_write_ready(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.write.session.lock().tls.send_close_notify();
        ready!(this.write.poll_write_ready(cx))?;
        Pin::new(&mut this.write.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
    use tokio::{io::AsyncReadExt, net::TcpListener};

    use crate::{Stream, Trust, TrustFiles, spiffe_id, stream::ReadHalf, stream::WriteHalf};

    fn trust(folder: &std::path::Path) -> Trust {
        use std::os::unix::fs::PermissionsExt;

        let authority_key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = params.self_signed(&authority_key).expect("a certificate").pem();
        let issuer = Issuer::new(params, authority_key);
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        let name = spiffe_id("shop", "orders").try_into().expect("ASCII");
        params.subject_alt_names = vec![SanType::URI(name)];
        let certificate = params.signed_by(&key, &issuer).expect("a certificate").pem();
        let file = |name: &str, text: String| {
            let path = folder.join(name);
            std::fs::write(&path, text).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("its mode");
            path
        };
        let files = TrustFiles {
            authority: file("authority", authority),
            certificate: file("certificate", certificate),
            key: file("key", key.serialize_pem()),
        };
        Trust::load("shop", "orders", files).expect("good files")
    }

    /// The socket takes part of a write, and no other write follows: the rest leaves all the same.
    #[tokio::test]
    async fn what_the_socket_left_leaves_without_another_write() {
        const IN_TIME: Duration = Duration::from_secs(20);
        let folder = tempfile::tempdir().expect("a folder");
        let trust = trust(folder.path());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (caller, mut callee) = tokio::join!(
            async {
                let stream = Stream::connect(&crate::Address::Tcp(address)).await.expect("a listener");
                trust.connect(stream, "orders", IN_TIME).await.expect("a handshake")
            },
            async {
                let (socket, _) = listener.accept().await.expect("a caller");
                trust.accept(socket.into(), IN_TIME).await.expect("a handshake")
            }
        );
        let (ReadHalf::Tls(mut read), WriteHalf::Tls(write)) = caller.split() else {
            unreachable!("TLS was made of it")
        };
        tokio::spawn(async move { read.read_u8().await });
        while write.session.lock().reader.is_none() {
            tokio::task::yield_now().await;
        }
        let mut taken = 0;
        while !write.session.lock().tls.wants_write() {
            taken += write.try_write(&[7; 100_000]).expect("room");
        }
        let mut bytes = vec![0; taken];
        let read = tokio::time::timeout(IN_TIME, callee.read_exact(&mut bytes)).await;
        read.expect("the rest did not leave").expect("an open connection");
        assert!(bytes.iter().all(|byte| *byte == 7));
        assert_eq!(write.try_write(&[1]).expect("room again"), 1);
    }
}
