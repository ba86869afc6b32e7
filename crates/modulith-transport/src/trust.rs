//! Who is who beyond one host: this process's certificate and key, and the authority that it believes.
//!
//! Owns the files, the two configurations of rustls made from them, and the names in certificates. An identity is a
//! service of an application, as a [SPIFFE ID](https://spiffe.io/docs/latest/spiffe-about/spiffe-concepts/) in the form
//! `spiffe://APPLICATION/SERVICE`: the one URI among a certificate's subject alternative names (SPIFFE X.509-SVID,
//! section 2). Host names are not looked at, since an address says where a service is and not which one it is.
//!
//! The files are looked at before each handshake, and read again when one of them has changed; that costs three calls
//! of `stat`. Connections that are open keep the certificate that they were opened with. Files that cannot be used
//! leave the last good ones in force, with an error in the log.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, ring, verify_tls13_signature},
    server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use tokio::time::timeout;
use webpki::{EndEntityCert, KeyUsage};

use crate::{ConnectionError, Stream, handshake, tls::TlsStream};

/// A certificate that ends sooner is warned of: 7 days.
pub const CERTIFICATE_WARN: Duration = Duration::from_secs(7 * DAY_S);
/// How often at most.
const WARN_EVERY: Duration = Duration::from_secs(DAY_S);
const DAY_S: u64 = 24 * 60 * 60;

/// Where a process's certificate, its key and its authority are; PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustFiles {
    /// The certificates of those who may sign certificates; usually one, two while one replaces the other.
    pub authority: PathBuf,
    /// This process's certificate, and behind it those between it and the authority, if there are any.
    pub certificate: PathBuf,
    /// Its private key; nobody but its owner may have any right to the file.
    pub key: PathBuf,
}

/// Why files are of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {reason}", file = file.display())]
pub struct TrustError {
    pub file: PathBuf,
    pub reason: String,
}

/// What mutual TLS needs: TLS 1.3, a certificate from each side, the same application in both. Cheap to clone.
///
/// No session is resumed and no early data taken: each connection is a handshake of its own, with the certificates of
/// its time, and its bytes are good for no other.
#[derive(Clone)]
pub struct Trust {
    inner: Arc<Inner>,
}

struct Inner {
    application: String,
    service: String,
    files: TrustFiles,
    state: Mutex<State>,
}

struct State {
    good: Arc<Loaded>,
    /// The files as they were when last read, whether or not they could be used.
    read: [Option<Stamp>; 3],
    warned: Option<SystemTime>,
}

struct Loaded {
    calling: Arc<ClientConfig>,
    served: Arc<ServerConfig>,
    /// When the certificate ends, if that is within the time to warn of it.
    ends: Option<UnixTime>,
}

/// Tells one content of a path from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    bytes: u64,
    file: (u64, u64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let file = fs::metadata(path).ok()?;
        Some(Self {
            modified: (file.mtime(), file.mtime_nsec()),
            bytes: file.len(),
            file: (file.dev(), file.ino()),
        })
    }
}

impl TrustFiles {
    fn stamps(&self) -> [Option<Stamp>; 3] {
        [&self.authority, &self.certificate, &self.key].map(|path| Stamp::of(path))
    }
}

impl Trust {
    /// Reads the files of this service.
    ///
    /// # Errors
    ///
    /// A file that cannot be read, a key that others may read, a key of another certificate, and a certificate that is
    /// another service's, not signed by the authority, or not valid at this time.
    pub fn load(application: &str, service: &str, files: TrustFiles) -> Result<Self, TrustError> {
        let read = files.stamps();
        let good = Arc::new(load(application, service, &files)?);
        let trust = Self {
            inner: Arc::new(Inner {
                application: application.to_owned(),
                service: service.to_owned(),
                files,
                state: Mutex::new(State { good, read, warned: None }),
            }),
        };
        trust.refresh();
        Ok(trust)
    }

    /// Looks whether the files have changed, and warns of a certificate that ends within 7 days, at most once a day.
    /// Each handshake does so; a process without handshakes asks for it now and then.
    pub fn refresh(&self) {
        self.current();
    }

    fn current(&self) -> Arc<Loaded> {
        let inner = &*self.inner;
        let read = inner.files.stamps();
        let mut state = inner.state.lock();
        if read != state.read {
            // Noted even if they are of no use: the same files are complained of once.
            state.read = read;
            match load(&inner.application, &inner.service, &inner.files) {
                Ok(loaded) => {
                    tracing::info!(
                        certificate = %inner.files.certificate.display(),
                        "certificate read again, for new connections"
                    );
                    state.good = Arc::new(loaded);
                    state.warned = None;
                }
                Err(error) => tracing::error!(%error, "the last good certificate stays in use"),
            }
        }
        let now = SystemTime::now();
        let due =
            state.warned.is_none_or(|warned| now.duration_since(warned).is_ok_and(|ago| ago >= WARN_EVERY));
        if let Some(ends) = ends_soon(state.good.ends, now)
            && due
        {
            state.warned = Some(now);
            tracing::warn!(
                certificate = %inner.files.certificate.display(),
                days = ends.as_secs() / DAY_S,
                "the certificate ends soon; put another into its place, no restart is needed"
            );
        }
        Arc::clone(&state.good)
    }

    /// Makes TLS out of a connection that was made to `service`, within `limit`.
    ///
    /// # Errors
    ///
    /// What is wrong with either certificate, and [`ConnectionError::Identity`] if the other side is another service;
    /// nothing but that refusal was sent then.
    pub async fn connect(
        &self,
        stream: Stream,
        service: &str,
        limit: Duration,
    ) -> Result<Stream, ConnectionError> {
        let Stream::Tcp(socket) = stream else {
            return Err(ConnectionError::Tls("it is for TCP connections only".to_owned()));
        };
        // Who it is is decided by the URI in its certificate, so no name is asked for.
        let name = ServerName::IpAddress(socket.peer_addr()?.ip().into());
        let tls = ClientConnection::new(Arc::clone(&self.current().calling), name)
            .map_err(|error| ConnectionError::Tls(error.to_string()))?;
        let mut stream = self.introduced(socket, tls.into(), limit).await?;
        match stream.identity() {
            Some(certified) if certified != service => {
                let error = ConnectionError::Identity {
                    expected: service.to_owned(),
                    certified: certified.to_owned(),
                };
                Err(handshake::refuse(&mut stream, error, true).await)
            }
            _ => Ok(stream),
        }
    }

    /// Makes TLS out of a connection that was accepted, within `limit`.
    ///
    /// # Errors
    ///
    /// What is wrong with either certificate. The other side was told.
    pub async fn accept(&self, stream: Stream, limit: Duration) -> Result<Stream, ConnectionError> {
        let Stream::Tcp(socket) = stream else {
            return Err(ConnectionError::Tls("it is for TCP connections only".to_owned()));
        };
        let tls = ServerConnection::new(Arc::clone(&self.current().served))
            .map_err(|error| ConnectionError::Tls(error.to_string()))?;
        self.introduced(socket, tls.into(), limit).await
    }

    async fn introduced(
        &self,
        socket: tokio::net::TcpStream,
        tls: Connection,
        limit: Duration,
    ) -> Result<Stream, ConnectionError> {
        let mut stream = Box::new(TlsStream::new(socket, tls));
        let shown =
            timeout(limit, stream.handshake()).await.map_err(|_| ConnectionError::HandshakeTimeout)?;
        let identity = match shown {
            Ok(shown) => identity(&self.inner.application, &shown).map_err(ConnectionError::Tls),
            Err(error) => Err(match error.into() {
                // Who declines says so by an alert. Nobody may be there behind a proxy, or no longer.
                ConnectionError::Truncated => ConnectionError::Io(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the other side closed in the middle of the TLS handshake",
                )),
                error => error,
            }),
        };
        match identity {
            Ok(identity) => {
                stream.set_identity(identity);
                Ok(Stream::Tls(stream))
            }
            Err(error) => {
                // An alert says why, and a reset must not overtake it.
                handshake::farewell(&mut stream, &[]).await;
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trust")
            .field("application", &self.inner.application)
            .field("service", &self.inner.service)
            .field("files", &self.inner.files)
            .finish_non_exhaustive()
    }
}

/// The name of a service in its certificate.
pub fn spiffe_id(application: &str, service: &str) -> String {
    format!("spiffe://{application}/{service}")
}

/// The service that a certificate is for, if it is one of this application's.
fn identity(application: &str, certificate: &CertificateDer<'_>) -> Result<String, String> {
    let certificate =
        EndEntityCert::try_from(certificate).map_err(|error| format!("unreadable certificate: {error}"))?;
    let mut names = certificate.valid_uri_names();
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(format!(
            "a certificate without exactly one name such as {}",
            spiffe_id(application, "orders")
        ));
    };
    match name.strip_prefix(&spiffe_id(application, "")) {
        Some(service) if !service.is_empty() && !service.contains('/') => Ok(service.to_owned()),
        _ => Err(format!("the certificate of {name} is for no service of `{application}`")),
    }
}

fn ends_soon(ends: Option<UnixTime>, now: SystemTime) -> Option<Duration> {
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(ends?.as_secs()).saturating_sub(now)).filter(|left| *left < CERTIFICATE_WARN)
}

fn load(application: &str, service: &str, files: &TrustFiles) -> Result<Loaded, TrustError> {
    let provider = Arc::new(ring::default_provider());
    let mut authority = RootCertStore::empty();
    for certificate in certificates(&files.authority)? {
        authority.add(certificate).map_err(refusing(&files.authority))?;
    }
    let authority = Arc::new(authority);
    let chain = certificates(&files.certificate)?;
    let ends = checked(application, service, &chain, &authority).map_err(refusing(&files.certificate))?;
    let own = CertifiedKey::from_der(chain, key(&files.key)?, &provider).map_err(|error| TrustError {
        file: files.key.clone(),
        reason: match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("it is not the key of {}", files.certificate.display())
            }
            error => error.to_string(),
        },
    })?;
    let own = Arc::new(SingleCertAndKey::from(own));
    let refuse = refusing(&files.authority);
    let callers = WebPkiClientVerifier::builder_with_provider(Arc::clone(&authority), Arc::clone(&provider))
        .build()
        .map_err(|error| refuse(error.to_string()))?;
    // TLS 1.3 is among what the provider can, so this does not fail.
    let refuse = refusing::<rustls::Error>(&files.certificate);
    let mut served = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(&refuse)?
        .with_client_cert_verifier(callers)
        .with_cert_resolver(Arc::clone(&own) as _);
    served.send_tls13_tickets = 0;
    served.session_storage = Arc::new(NoServerSessionStorage {});
    let mut calling = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&TLS13])
        .map_err(&refuse)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SignedByAuthority { authority, provider }))
        .with_client_cert_resolver(own);
    calling.resumption = Resumption::disabled();
    calling.enable_sni = false;
    Ok(Loaded { calling: Arc::new(calling), served: Arc::new(served), ends })
}

fn refusing<E: std::fmt::Display>(file: &Path) -> impl Fn(E) -> TrustError {
    move |error| TrustError { file: file.to_owned(), reason: error.to_string() }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, TrustError> {
    let refuse = refusing(file);
    let text = fs::read(file).map_err(refusing(file))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err(refuse("no certificate in it (PEM)".to_owned())),
        Ok(found) => Ok(found),
        Err(error) => Err(refuse(error.to_string())),
    }
}

fn key(file: &Path) -> Result<PrivateKeyDer<'static>, TrustError> {
    let refuse = refusing(file);
    let mode = fs::metadata(file).map_err(refusing(file))?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(refuse(format!("mode {mode:04o} lets others at the key; chmod 600 it")));
    }
    let text = fs::read(file).map_err(refusing(file))?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| refuse(error.to_string()))
}

/// Refuses a certificate that others would refuse; returns when it ends, if that is soon.
fn checked(
    application: &str,
    service: &str,
    chain: &[CertificateDer<'static>],
    authority: &RootCertStore,
) -> Result<Option<UnixTime>, String> {
    let (own, between) = chain.split_first().ok_or("no certificate in it")?;
    let certified = identity(application, own)?;
    if certified != service {
        return Err(format!("the certificate of service `{certified}`, not of `{service}`"));
    }
    let own = EndEntityCert::try_from(own).map_err(|error| error.to_string())?;
    let valid = |time, usage| {
        own.verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &authority.roots,
            between,
            time,
            usage,
            None,
            None,
        )
        .map(drop)
    };
    let now = UnixTime::now();
    for usage in [KeyUsage::server_auth(), KeyUsage::client_auth()] {
        valid(now, usage).map_err(|error| match error {
            // The second, if two authorities have one name.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
                "not signed by the authority".to_owned()
            }
            webpki::Error::CertExpired { not_after, .. } => {
                format!("it ended {} days ago", now.as_secs().saturating_sub(not_after.as_secs()) / DAY_S)
            }
            error => error.to_string(),
        })?;
    }
    // Looked at again and again for as long as it is in use, so the horizon is far.
    let horizon = UnixTime::since_unix_epoch(
        Duration::from_secs(u32::MAX.into()).max(Duration::from_secs(now.as_secs())),
    );
    match valid(horizon, KeyUsage::server_auth()) {
        Err(webpki::Error::CertExpired { not_after, .. }) => Ok(Some(not_after)),
        _ => Ok(None),
    }
}

/// Believes a certificate that the authority has signed and that is valid now. Whose it is is looked at afterwards, by
/// its URI: rustls' own verifier wants a host name.
#[derive(Debug)]
struct SignedByAuthority {
    authority: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for SignedByAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.authority,
            intermediates,
            now,
            algorithms,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
