//! Who is believed: certificates over TLS, users at Unix sockets, and what happens to everybody else.

mod support;

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use modulith_transport::{
    Address, CallFault, Limits, Listener, NotRun, Peer, Priority, Stream, Trust, TrustError, TrustFiles,
    serve, spiffe_id,
};
use rustls::{
    ClientConfig, ClientConnection, StreamOwned,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

/// What was logged on this thread, and so in this test: its runtime has one thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn start() -> (Self, tracing::subscriber::DefaultGuard) {
        let log = Self::default();
        let writer = log.clone();
        let lines = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false);
        (log, tracing::subscriber::set_default(lines.finish()))
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().expect("no panic")).into_owned()
    }

    async fn says(&self, text: &str) {
        let found = tokio::time::timeout(Duration::from_secs(20), async {
            while !self.text().contains(text) {
                tokio::task::yield_now().await;
            }
        });
        assert!(found.await.is_ok(), "nothing about {text:?} in:\n{}", self.text());
    }
}

/// A process that accepts in a loop, as the runtime does.
struct Running {
    address: Address,
    shutdown: CancellationToken,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn running(listener: Listener, limits: Limits) -> Running {
    let address = listener.address().expect("a bound address");
    let shutdown = CancellationToken::new();
    tokio::spawn(serve(listener, hello("served"), anybody(), limits, echo(), None, shutdown.clone()));
    Running { address, shutdown }
}

async fn running_over_tls(trust: Trust) -> Running {
    running(bound(&tcp()).await.over_tls(trust), Limits::default())
}

async fn call(peer: &Peer, payload: &'static [u8]) -> Result<Bytes, CallFault> {
    in_time(peer.call(soon(), Priority::Ordinary, Bytes::from_static(payload))).await
}

/// Why the two do not talk, as the caller is told.
async fn refusal(peer: &Peer) -> String {
    match call(peer, b"").await {
        Err(CallFault::NotRun(NotRun::Refused(text))) => text,
        other => panic!("{other:?}"),
    }
}

/// Nobody behind a proxy that accepts: it is worth trying again, unlike where somebody declines.
#[tokio::test]
async fn who_closes_in_the_middle_of_the_handshake_is_not_there() {
    let authority = Authority::default();
    let proxy = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = Address::Tcp(proxy.local_addr().expect("a bound address").to_string());
    let proxy = tokio::spawn(async move {
        loop {
            let (mut caller, _) = proxy.accept().await.expect("a caller");
            // Its greeting is read, so that what follows is an end and no reset.
            let _ = caller.read(&mut [0; 4096]).await;
        }
    });
    let peer = tls_peer(&address, hello("caller"), authority.trust("caller"), "served");
    let outcome = call(&peer, b"").await;
    assert!(
        matches!(&outcome, Err(CallFault::NotRun(NotRun::Unreachable(why))) if why.contains("in the middle")),
        "{outcome:?}"
    );
    proxy.abort();
}

/// A caller that believes every certificate and shows what it is told to, as no honest one would.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

/// Shakes hands with these files, or with none, and returns how that ended.
async fn shown(address: &Address, files: Option<TrustFiles>) -> String {
    let Address::Tcp(address) = address.clone() else { unreachable!("TLS is over TCP") };
    let ended = tokio::task::spawn_blocking(move || {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a version of the provider")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible));
        let config = match files {
            Some(files) => {
                let chain = CertificateDer::from_pem_file(&files.certificate).expect("a certificate");
                let key = PrivateKeyDer::from_pem_file(&files.key).expect("a key");
                config.with_client_auth_cert(vec![chain], key).expect("they match")
            }
            None => config.with_no_client_auth(),
        };
        let name = ServerName::try_from("served").expect("a name");
        let session = ClientConnection::new(Arc::new(config), name).expect("a session");
        let mut stream = StreamOwned::new(session, TcpStream::connect(address).expect("a listener"));
        let mut said = Vec::new();
        match stream.write_all(PREFACE).and_then(|()| stream.read_to_end(&mut said)) {
            Ok(_) => "nothing wrong".to_owned(),
            Err(error) => error.to_string(),
        }
    });
    in_time(ended).await.expect("no panic")
}

#[tokio::test]
async fn each_wrong_certificate_is_refused_by_name() {
    let (log, _guard) = Log::start();
    let authority = Authority::default();
    let server = running_over_tls(authority.trust("served")).await;
    let strangers = Authority::default();
    let cases = [
        (None, "CertificateRequired", "no certificates"),
        (Some(strangers.sign("stranger", "caller")), "UnknownCA", "UnknownIssuer"),
        (
            Some(authority.sign_until("late", &spiffe_id("shop", "caller"), (2020, 1, 1))),
            "CertificateExpired",
            "expired",
        ),
        (
            Some(authority.sign_until("bank", &spiffe_id("bank", "caller"), (2100, 1, 1))),
            "nothing wrong",
            "spiffe://bank/caller is for no service of `shop`",
        ),
    ];
    for (files, told, logged) in cases {
        let ended = shown(&server.address, files).await;
        assert!(ended.contains(told), "{ended} where {told} was expected");
        log.says(logged).await;
    }

    // Another service's identity than it says, and another than was called.
    let liar = tls_peer(&server.address, hello("orders"), authority.trust("caller"), "served");
    let told = refusal(&liar).await;
    assert!(told.contains("is for service `caller`, where `orders` was expected"), "{told}");
    let lost = tls_peer(&server.address, hello("caller"), authority.trust("caller"), "payments");
    let told = refusal(&lost).await;
    assert!(told.contains("is for service `served`, where `payments` was expected"), "{told}");
    log.says("is for service `served`, where `payments` was expected").await;

    // A callee of another authority gets no byte of a call.
    let honest = tls_peer(&server.address, hello("caller"), strangers.trust("caller"), "served");
    let told = refusal(&honest).await;
    assert!(told.contains("UnknownIssuer"), "{told}");

    // Who says something else in the hello than in the certificate, as a callee.
    let server = running_over_tls(authority.trust("payments")).await;
    let misled = tls_peer(&server.address, hello("caller"), authority.trust("caller"), "payments");
    let told = refusal(&misled).await;
    assert!(told.contains("is for service `payments`, where `served` was expected"), "{told}");
}

#[tokio::test]
async fn plain_and_tls_do_not_meet() {
    let (log, _guard) = Log::start();
    let authority = Authority::default();
    let server = running_over_tls(authority.trust("served")).await;
    let told = refusal(&peer(&server.address)).await;
    assert!(told.contains("without TLS"), "{told}");
    log.says("a connection without TLS, where nothing else is spoken").await;
    let mut browser = Stream::connect(&server.address).await.expect("a listener");
    browser.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let mut answer = Vec::new();
    // A reset is an end like any other here.
    let _ = in_time(browser.read_to_end(&mut answer)).await;
    assert_eq!(answer, b"", "no word of HTTP");

    let server = running(bound(&tcp()).await, Limits::default());
    let caller = tls_peer(&server.address, hello("caller"), authority.trust("caller"), "served");
    let told = refusal(&caller).await;
    assert!(told.contains("TLS") && told.contains("HandshakeFailure"), "{told}");
    log.says("a TLS connection, where TLS is not spoken").await;

    // A connection handed over without an accept loop names it too.
    let mut served = Served::start(&tcp(), Limits::default(), echo()).await;
    let caller = tls_peer(&served.address, hello("caller"), authority.trust("caller"), "served");
    let told = refusal(&caller).await;
    assert!(told.contains("TLS"), "{told}");
    let ended = served.next_end().await.expect_err("refused").to_string();
    assert!(ended.contains("TLS is not spoken"), "{ended}");
}

/// One call of the largest size each way: what the socket does not take at once leaves without another call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_large_call_arrives_whole() {
    let wire = Wire::Tls(Box::default());
    let served = wire.serve(None, Limits::default(), echo()).await;
    let peer = wire.peer(&served.address);
    for _ in 0..5 {
        let payload = Bytes::from(vec![7; Limits::default().payload_bytes_max]);
        let answer = in_time(peer.call(soon(), Priority::Ordinary, payload.clone())).await;
        assert!(answer == Ok(payload));
    }
}

#[tokio::test]
async fn files_are_read_again_and_bad_ones_are_not_used() {
    let (log, _guard) = Log::start();
    let authority = Authority::default();
    let files = authority.sign("served", "served");
    let first = std::fs::read_to_string(&files.certificate).expect("a certificate");
    let server = running_over_tls(Trust::load("shop", "served", files.clone()).expect("good files")).await;
    let caller = || tls_peer(&server.address, hello("caller"), authority.trust("caller"), "served");
    let certificate = async || presented(&server.address).await;
    let shown_first = certificate().await;
    assert_eq!(CertificateDer::from_pem_slice(first.as_bytes()).expect("a certificate"), shown_first);

    // Calls go on over the old connection all the while.
    let (busy, stop, calls) = (caller(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let going = tokio::spawn({
        let (stop, calls) = (stop.clone(), calls.clone());
        async move {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(call(&busy, b"on").await, Ok(Bytes::from_static(b"on")));
                calls.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let more_calls = async || {
        let before = calls.load(Ordering::Relaxed);
        while calls.load(Ordering::Relaxed) < before + 10 && !going.is_finished() {
            tokio::task::yield_now().await;
        }
    };
    more_calls().await;

    authority.sign("served", "served");
    let shown_second = certificate().await;
    assert_ne!(shown_first, shown_second, "a new connection gets the new certificate");
    log.says("certificate read again").await;
    assert_eq!(call(&caller(), b"new").await, Ok(Bytes::from_static(b"new")));
    more_calls().await;

    for (file, text, complaint) in [
        (&files.certificate, "garbage", "no certificate in it"),
        (&files.key, "garbage", "no items found"),
        (&files.authority, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "BadEncoding"),
        // Somebody else's, in good order.
        (&files.certificate, &first, "it is not the key of"),
    ] {
        let good = std::fs::read_to_string(file).expect("a file");
        put(file, text);
        assert_eq!(certificate().await, shown_second, "the last good one stays");
        log.says(complaint).await;
        log.says(&file.display().to_string()).await;
        let complaints = log.text().matches("stays in use").count();
        assert_eq!(certificate().await, shown_second);
        assert_eq!(log.text().matches("stays in use").count(), complaints, "complained of once");
        more_calls().await;
        put(file, &good);
        assert_eq!(call(&caller(), b"good").await, Ok(Bytes::from_static(b"good")));
    }
    stop.store(true, Ordering::Relaxed);
    in_time(going).await.expect("no call failed");
    assert!(!log.text().contains("-----BEGIN"), "no key or certificate in the log");
}

/// The certificate that a listener shows at this moment.
async fn presented(address: &Address) -> CertificateDer<'static> {
    let Address::Tcp(address) = address.clone() else { unreachable!("TLS is over TCP") };
    let shown = tokio::task::spawn_blocking(move || {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("a version of the provider")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Gullible))
            .with_no_client_auth();
        let name = ServerName::try_from("served").expect("a name");
        let mut session = ClientConnection::new(Arc::new(config), name).expect("a session");
        let mut socket = TcpStream::connect(address).expect("a listener");
        while session.is_handshaking() {
            session.complete_io(&mut socket).expect("a handshake, up to the missing certificate");
        }
        session.peer_certificates().expect("shown")[0].clone().into_owned()
    });
    in_time(shown).await.expect("no panic")
}

fn refused(files: &TrustFiles) -> TrustError {
    Trust::load("shop", "served", files.clone()).expect_err("refused files")
}

#[test]
fn each_unusable_file_is_named() {
    let authority = Authority::default();
    let files = authority.sign("served", "served");
    assert!(Trust::load("shop", "served", files.clone()).is_ok());
    let name = |file: &Path| file.file_name().expect("a name").to_str().expect("text").to_owned();
    let complaint = |files: &TrustFiles| {
        let error = refused(files);
        (name(&error.file), error.reason)
    };

    let others = authority.sign("orders", "orders");
    let (file, reason) = complaint(&others);
    assert_eq!(file, "orders.pem");
    assert!(reason.contains("of service `orders`, not of `served`"), "{reason}");

    let (file, reason) = complaint(&TrustFiles { key: others.key.clone(), ..files.clone() });
    assert_eq!(file, "orders.key");
    assert!(reason.contains("not the key of") && reason.contains("served.pem"), "{reason}");

    let strangers = Authority::default().sign("stranger", "served");
    let unsigned = TrustFiles { authority: files.authority.clone(), ..strangers.clone() };
    drop(strangers);
    let (_, reason) = complaint(&unsigned);
    assert!(reason.contains("No such file"), "{reason}");
    let strangers = Authority::default();
    let unsigned = TrustFiles { authority: files.authority.clone(), ..strangers.sign("stranger", "served") };
    let (file, reason) = complaint(&unsigned);
    assert_eq!((&*file, &*reason), ("stranger.pem", "not signed by the authority"));

    let late = authority.sign_until("late", &spiffe_id("shop", "served"), (2020, 1, 1));
    let (file, reason) = complaint(&late);
    assert!(file == "late.pem" && reason.contains("days ago"), "{reason}");

    let nameless = authority.sign_until("nameless", "https://example.org/", (2100, 1, 1));
    assert!(complaint(&nameless).1.contains("for no service of `shop`"));

    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o640)).expect("its mode");
    let (file, reason) = complaint(&files);
    assert!(file == "served.key" && reason.contains("0640"), "{reason}");
    std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(0o600)).expect("its mode");

    std::fs::write(&files.authority, "").expect("written");
    let (file, reason) = complaint(&files);
    assert!(file == "served.authority" && reason.contains("no certificate in it"), "{reason}");
}

#[test]
fn a_certificate_that_ends_soon_is_warned_of_once() {
    let (log, _guard) = Log::start();
    let authority = Authority::default();
    let files = authority.sign("served", "served");
    let soon = std::time::SystemTime::now() + Duration::from_secs(3 * 24 * 3600 + 60);
    authority.sign_at("served", &spiffe_id("shop", "served"), soon);
    let trust = Trust::load("shop", "served", files).expect("still good");
    trust.refresh();
    assert_eq!(log.text().matches("ends soon").count(), 1, "{}", log.text());
    assert!(log.text().contains("days=3"), "{}", log.text());
    authority.sign("served", "served");
    trust.refresh();
    assert_eq!(log.text().matches("ends soon").count(), 1, "{}", log.text());
}

/// What was overheard of one connection is good for no other.
#[tokio::test]
async fn a_recorded_handshake_opens_nothing() {
    let authority = Authority::default();
    for tls in [false, true] {
        let ran = Arc::new(AtomicUsize::new(0));
        let counted = ran.clone();
        let handler = move |call: modulith_transport::Incoming| {
            counted.fetch_add(1, Ordering::SeqCst);
            modulith_transport::Handled::Now(Ok(call.payload.into()))
        };
        let trust = tls.then(|| authority.trust("served"));
        let hello_here = hello("served");
        let mut served =
            Served::start_on(&tcp(), trust, Limits::default(), Arc::new(handler), hello_here, anybody())
                .await;

        // A tap between the two.
        let tap = bound(&tcp()).await;
        let tapped = tap.address().expect("a bound address");
        let recorded = Arc::new(Mutex::new(Vec::new()));
        let (record, target) = (recorded.clone(), served.address.clone());
        tokio::spawn(async move {
            let (Ok(Stream::Tcp(caller)), Ok(Stream::Tcp(callee))) =
                (tap.accept().await, Stream::connect(&target).await)
            else {
                panic!("two connections");
            };
            let ((mut from, mut back), (mut answers, mut to)) = (caller.into_split(), callee.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut back).await });
            let mut bytes = vec![0; 4096];
            while let Ok(read @ 1..) = from.read(&mut bytes).await {
                record.lock().expect("no panic").extend_from_slice(&bytes[..read]);
                to.write_all(&bytes[..read]).await.expect("written");
            }
        });
        let peer = if tls {
            tls_peer(&tapped, hello("caller"), authority.trust("caller"), "served")
        } else {
            peer(&tapped)
        };
        assert_eq!(call(&peer, b"pay").await, Ok(Bytes::from_static(b"pay")));
        drop(peer);
        assert!(served.next_end().await.is_ok());
        assert_eq!(ran.load(Ordering::SeqCst), 1);

        let replayed = recorded.lock().expect("no panic").clone();
        let mut again = Stream::connect(&served.address).await.expect("a listener");
        again.write_all(&replayed).await.expect("written");
        again.shutdown().await.expect("half closed");
        let ended = served.next_end().await.expect_err("refused").to_string();
        let reason = if tls { "TLS" } else { "token" };
        assert!(ended.contains(reason), "{ended}");
        assert_eq!(ran.load(Ordering::SeqCst), 1, "no call ran again");
    }
}

/// Strangers that say little hold their places for the time of a handshake and no longer.
#[tokio::test]
async fn who_dawdles_at_the_handshake_is_cut_off() {
    let authority = Authority::default();
    let limits =
        Limits { handshake_max: Duration::from_millis(300), connections_max: 2, ..Limits::default() };
    for said in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01"] {
        let server = running(bound(&tcp()).await.over_tls(authority.trust("served")), limits.clone());
        let mut slow = Vec::new();
        for _ in 0..2 {
            let mut stream = Stream::connect(&server.address).await.expect("a listener");
            stream.write_all(said).await.expect("written");
            slow.push(stream);
        }
        // All places are taken, so this one waits until they are given up.
        let caller = tls_peer(&server.address, hello("caller"), authority.trust("caller"), "served");
        in_time(caller.connected(soon())).await.expect("a place");
        assert_eq!(call(&caller, b"in").await, Ok(Bytes::from_static(b"in")));
        for mut stream in slow {
            let mut rest = Vec::new();
            // Closed or reset.
            let _ = in_time(stream.read_to_end(&mut rest)).await;
        }
    }
}

/// Needs root, since only root can become somebody else.
#[tokio::test]
async fn another_user_is_refused_at_a_unix_socket() {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: only root can become another user");
        return;
    }
    let (log, _guard) = Log::start();
    let folder = tempfile::tempdir().expect("a folder");
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("its mode");
    };
    open(folder.path());
    let address = unix(&folder);
    let Address::Unix(path) = address.clone() else { unreachable!("made so") };
    // As that user: the preface, and then all that comes, or the challenge.
    let heard = async || {
        let path = path.clone();
        let heard = std::thread::spawn(move || {
            let nobody = rustix::process::Uid::from_raw(NOBODY);
            // Of this thread alone, which ends with it.
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody).expect("root may");
            let mut stream = UnixStream::connect(path).expect("a listener");
            stream.write_all(PREFACE).expect("written");
            let mut header = vec![0; PREFACE.len() + 14];
            stream.read_exact(&mut header).expect("a frame");
            let kind = header[PREFACE.len() + 4];
            let mut text = Vec::new();
            if kind == REFUSED {
                stream.shutdown(std::net::Shutdown::Write).expect("half closed");
                stream.read_to_end(&mut text).expect("a text");
            }
            (kind, String::from_utf8(text).expect("text"))
        });
        in_time(tokio::task::spawn_blocking(|| heard.join())).await.expect("no panic").expect("no panic")
    };
    let server = running(bound(&address).await, Limits::default());
    open(&path);
    let (kind, text) = heard().await;
    assert_eq!((kind, &*text), (REFUSED, "user id 65534 may not connect to this socket"));
    log.says("user id 65534").await;
    assert_eq!(call(&peer(&address), b"own").await, Ok(Bytes::from_static(b"own")));
    drop(server);

    while path.exists() {
        tokio::task::yield_now().await;
    }
    let _server = running(bound(&address).await.for_users(&[NOBODY]), Limits::default());
    open(&path);
    assert_eq!(heard().await.0, CHALLENGE);
}
