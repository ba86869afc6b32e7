//! Real servers for the tests, and the protocol written out by hand, so that a change of the wire is noticed.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]

use std::{
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use modulith_transport::{
    Address, Admit, ConnectionError, Handled, Handler, Hello, HelloInfo, Incoming, Limits, Listener, Peer,
    Stream, Token, Trust, TrustFiles, serve_connection, spiffe_id,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType, date_time_ymd};
use ring::hmac;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, mpsc},
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

pub fn hello(service: &str) -> Hello {
    Hello {
        service: service.to_owned(),
        incarnation: [3; 16],
        token: Token::new("one token for all"),
        about: Bytes::from_static(b"contracts"),
    }
}

pub fn anybody() -> Admit {
    Arc::new(|_: &HelloInfo| Ok(()))
}

/// Far enough that only a defect reaches it.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Fails instead of hanging.
pub async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("an event that never came")
}

pub fn unix(folder: &tempfile::TempDir) -> Address {
    Address::Unix(folder.path().join("served.sock"))
}

pub fn tcp() -> Address {
    Address::Tcp("127.0.0.1:0".to_owned())
}

pub fn peer(address: &Address) -> Peer {
    peer_with(address, Limits::default())
}

pub fn peer_with(address: &Address, limits: Limits) -> Peer {
    Peer::new(vec![address.clone()], hello("caller"), anybody(), limits)
}

/// An authority of its own, which signs whatever it is asked to.
pub struct Authority {
    pub folder: tempfile::TempDir,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Default for Authority {
    fn default() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        // Two authorities of one name would be told apart by their signatures only.
        params.distinguished_name.push(DnType::CommonName, format!("{:?}", &key.public_key_raw()[1..9]));
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        let folder = tempfile::tempdir().expect("a folder");
        Self { folder, certificate, issuer: Issuer::new(params, key) }
    }
}

impl Authority {
    /// A certificate and key in files of this name, for a service of application `shop`.
    pub fn sign(&self, file: &str, service: &str) -> TrustFiles {
        self.sign_until(file, &spiffe_id("shop", service), (2100, 1, 1))
    }

    pub fn sign_until(&self, file: &str, name: &str, (year, month, day): (i32, u8, u8)) -> TrustFiles {
        self.sign_at(file, name, date_time_ymd(year, month, day).into())
    }

    pub fn sign_at(&self, file: &str, name: &str, ends: SystemTime) -> TrustFiles {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(name.try_into().expect("ASCII"))];
        params.not_after = ends.into();
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        let path = |ending: &str| self.folder.path().join(format!("{file}.{ending}"));
        let files = TrustFiles { authority: path("authority"), certificate: path("pem"), key: path("key") };
        put(&files.authority, &self.certificate);
        put(&files.certificate, &certificate.pem());
        put(&files.key, &key.serialize_pem());
        files
    }

    /// What a process of this service holds.
    pub fn trust(&self, service: &str) -> Trust {
        Trust::load("shop", service, self.sign(service, service)).expect("good files")
    }
}

/// Puts a file into the place of another, as those do who replace certificates.
pub fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).expect("written");
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).expect("its mode");
    std::fs::rename(&new, path).expect("renamed");
}

/// The kinds of connection between two processes.
pub enum Wire {
    Unix(tempfile::TempDir),
    Tcp,
    Tls(Box<Authority>),
}

impl Wire {
    pub fn all() -> [Self; 3] {
        [Self::Unix(tempfile::tempdir().expect("a folder")), Self::Tcp, Self::Tls(Box::default())]
    }

    /// The served side, at a place of its own or, after an earlier one, at that.
    pub async fn serve(&self, at: Option<&Address>, limits: Limits, handler: Arc<dyn Handler>) -> Served {
        let (address, trust) = match self {
            Self::Unix(folder) => (unix(folder), None),
            Self::Tcp => (tcp(), None),
            Self::Tls(authority) => (tcp(), Some(authority.trust("served"))),
        };
        Served::start_on(at.unwrap_or(&address), trust, limits, handler, hello("served"), anybody()).await
    }

    pub async fn listener(&self) -> Listener {
        match self {
            Self::Unix(folder) => bound(&unix(folder)).await,
            Self::Tcp => bound(&tcp()).await,
            Self::Tls(authority) => bound(&tcp()).await.over_tls(authority.trust("served")),
        }
    }

    pub fn peer(&self, address: &Address) -> Peer {
        self.peer_with(address, Limits::default())
    }

    pub fn peer_with(&self, address: &Address, limits: Limits) -> Peer {
        match self {
            Self::Unix(_) | Self::Tcp => peer_with(address, limits),
            Self::Tls(authority) => {
                let (addresses, trust) = (vec![address.clone()], authority.trust("caller"));
                Peer::over_tls(addresses, hello("caller"), anybody(), limits, trust, "served")
            }
        }
    }
}

pub async fn bound(address: &Address) -> Listener {
    Listener::bind(address).await.expect("a free address")
}

pub fn tls_peer(address: &Address, hello: Hello, trust: Trust, service: &str) -> Peer {
    Peer::over_tls(vec![address.clone()], hello, anybody(), Limits::default(), trust, service)
}

/// A process, as far as a test can see: dropping it is a kill.
pub struct Served {
    pub address: Address,
    pub shutdown: CancellationToken,
    /// How each connection ended.
    pub ended: mpsc::UnboundedReceiver<Result<(), ConnectionError>>,
    task: JoinHandle<()>,
}

impl Served {
    pub async fn start(address: &Address, limits: Limits, handler: Arc<dyn Handler>) -> Self {
        Self::start_as(address, limits, handler, hello("served"), anybody()).await
    }

    pub async fn start_as(
        address: &Address,
        limits: Limits,
        handler: Arc<dyn Handler>,
        hello: Hello,
        admit: Admit,
    ) -> Self {
        Self::start_on(address, None, limits, handler, hello, admit).await
    }

    pub async fn start_on(
        address: &Address,
        trust: Option<Trust>,
        limits: Limits,
        handler: Arc<dyn Handler>,
        hello: Hello,
        admit: Admit,
    ) -> Self {
        let listener = Listener::bind(address).await.expect("a free address");
        let address = listener.address().expect("a bound address");
        let (report, ended) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move {
            // Aborting this task drops the set, and with it every connection.
            let mut connections = JoinSet::new();
            while let Ok(stream) = listener.accept().await {
                let (hello, admit, limits) = (hello.clone(), admit.clone(), limits.clone());
                let (handler, stop, report) = (handler.clone(), stop.clone(), report.clone());
                let trust = trust.clone();
                connections.spawn(async move {
                    let stream = match trust {
                        Some(trust) => trust.accept(stream, limits.handshake_max).await,
                        None => Ok(stream),
                    };
                    let ended = match stream {
                        Ok(stream) => serve_connection(stream, hello, admit, limits, handler, stop).await,
                        Err(error) => Err(error),
                    };
                    let _ = report.send(ended);
                });
            }
        });
        Self { address, shutdown, ended, task }
    }

    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    pub async fn next_end(&mut self) -> Result<(), ConnectionError> {
        in_time(self.ended.recv()).await.expect("a running server")
    }
}

/// Counts a call's future out of the handler, however it ends.
struct Probe(Arc<AtomicUsize>, Arc<Semaphore>);

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.add_permits(1);
    }
}

/// A handler whose calls wait until the test lets them go.
#[derive(Clone)]
pub struct Gate {
    pub entered: Arc<Semaphore>,
    pub open: Arc<Semaphore>,
    pub dropped: Arc<AtomicUsize>,
    pub gone: Arc<Semaphore>,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            entered: Arc::new(Semaphore::new(0)),
            open: Arc::new(Semaphore::new(0)),
            dropped: Arc::new(AtomicUsize::new(0)),
            gone: Arc::new(Semaphore::new(0)),
        }
    }

    /// Waits until so many more calls have reached the handler.
    pub async fn entered(&self, calls: u32) {
        in_time(self.entered.acquire_many(calls)).await.expect("an open semaphore").forget();
    }

    /// Waits until so many more calls have left it, finished or dropped.
    pub async fn gone(&self, calls: u32) {
        in_time(self.gone.acquire_many(calls)).await.expect("an open semaphore").forget();
    }
}

impl Handler for Gate {
    fn handle_now(&self, call: Incoming) -> Handled {
        let gate = self.clone();
        gate.entered.add_permits(1);
        Handled::Later(Box::pin(async move {
            let _probe = Probe(gate.dropped, gate.gone);
            gate.open.acquire().await.expect("an open semaphore").forget();
            Ok(call.payload.into())
        }))
    }
}

pub fn echo() -> Arc<dyn Handler> {
    Arc::new(|call: Incoming| Handled::Now(Ok(call.payload.into())))
}

// The protocol by hand.

pub const CHALLENGE: u8 = 1;
pub const HELLO: u8 = 2;
pub const REFUSED: u8 = 3;
pub const CALL: u8 = 4;
pub const ANSWER: u8 = 5;
pub const REJECTED: u8 = 6;
pub const CANCEL: u8 = 8;
pub const VOID: u8 = 12;
pub const PART: u8 = 13;
pub const DATA: u8 = 14;
pub const WINDOW: u8 = 15;
pub const RESET: u8 = 16;
pub const STOP: u8 = 17;
pub const RESERVED: u8 = 1;
pub const PARTS: u8 = 2;
pub const STREAMED: u8 = 4;
pub const LAST: u8 = 8;
pub const PREFACE: &[u8] = b"MDLT\x01";

pub fn frame(kind: u8, id: u64, body: &[u8]) -> Vec<u8> {
    flagged(kind, 0, id, body)
}

pub fn flagged(kind: u8, flags: u8, id: u64, body: &[u8]) -> Vec<u8> {
    let length = 10 + u32::try_from(body.len()).expect("a small body");
    [&length.to_le_bytes()[..], &[kind, flags], &id.to_le_bytes(), body].concat()
}

/// A call that is followed by more, with a minute to run.
pub fn call_with(flags: u8, id: u64, payload: &[u8]) -> Vec<u8> {
    flagged(CALL, flags, id, &[&60_000u32.to_le_bytes()[..], payload].concat())
}

pub async fn read_frame(stream: &mut Stream) -> std::io::Result<(u8, u64, Vec<u8>)> {
    let mut header = [0; 14];
    stream.read_exact(&mut header).await?;
    let length = u32::from_le_bytes(header[..4].try_into().expect("four bytes")) as usize;
    let mut body = vec![0; length - 10];
    stream.read_exact(&mut body).await?;
    Ok((header[4], u64::from_le_bytes(header[6..].try_into().expect("eight bytes")), body))
}

fn hello_body(token: &[u8], label: &[u8], caller: &[u8], served: &[u8], shown: &[u8]) -> Vec<u8> {
    let body = [&[9; 16][..], &3u16.to_le_bytes(), b"raw", b"about"].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, token);
    let proof = hmac::sign(&key, &[label, caller, served, &body].concat());
    [shown, proof.as_ref(), &body].concat()
}

/// The calling side's handshake up to its hello.
pub async fn raw_hello(address: &Address, token: &[u8]) -> Stream {
    let mut stream = Stream::connect(address).await.expect("a listener");
    stream.write_all(PREFACE).await.expect("written");
    let mut preface = [0; 5];
    stream.read_exact(&mut preface).await.expect("a preface");
    assert_eq!(preface, PREFACE);
    let (kind, _, served) = read_frame(&mut stream).await.expect("a challenge");
    assert_eq!(kind, CHALLENGE);
    let body = hello_body(token, b"modulith caller 1\0", &[5; 32], &served, &[5; 32]);
    stream.write_all(&frame(HELLO, 0, &body)).await.expect("written");
    stream
}

pub async fn raw_caller(address: &Address) -> Stream {
    let mut stream = raw_hello(address, b"one token for all").await;
    assert_eq!(read_frame(&mut stream).await.expect("a hello").0, HELLO);
    stream
}

/// The served side's handshake with the next caller.
pub async fn raw_served(listener: &Listener) -> Stream {
    let mut stream = listener.accept().await.expect("a caller");
    let mut preface = [0; 5];
    stream.read_exact(&mut preface).await.expect("a preface");
    stream.write_all(PREFACE).await.expect("written");
    stream.write_all(&frame(CHALLENGE, 0, &[6; 32])).await.expect("written");
    let (kind, _, said) = read_frame(&mut stream).await.expect("a hello");
    assert_eq!(kind, HELLO);
    let body = hello_body(b"one token for all", b"modulith served 1\0", &said[..32], &[6; 32], &[0; 32]);
    stream.write_all(&frame(HELLO, 0, &body)).await.expect("written");
    stream
}
