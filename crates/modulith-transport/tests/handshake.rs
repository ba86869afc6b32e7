//! Who is let in, and how the others are told; listeners and what they find.

mod support;

use std::{
    io::ErrorKind,
    os::unix::fs::PermissionsExt,
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use bytes::Bytes;
use modulith_transport::{
    Address, Admit, CallFault, ConnectionError, HELLO_BYTES_MAX, Hello, HelloInfo, Limits, Listener, NotRun,
    Peer, Priority, Protocol, Stream, Token, sniff_within,
};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The text that a caller gets for its refused handshake.
async fn refusal(peer: &Peer) -> String {
    match in_time(peer.call(soon(), Priority::Ordinary, Bytes::new())).await {
        Err(CallFault::NotRun(NotRun::Refused(text))) => text,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_wrong_token_is_refused_on_both_sides() {
    let mut served = Served::start(&tcp(), Limits::default(), echo()).await;
    let stranger = Hello { token: Token::new("another"), ..hello("stranger") };
    let peer = Peer::new(vec![served.address.clone()], stranger, anybody(), Limits::default());
    assert!(refusal(&peer).await.contains("token"));
    assert!(matches!(served.next_end().await, Err(ConnectionError::Token)));
    assert_eq!(format!("{:?}", Token::new("another")), "Token(redacted)");

    // An impostor on a stale port, without the token, gets no calls either: raw_served signs with the right
    // token, so the caller is the one with another.
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::bind(&unix(&folder)).await.expect("a free address");
    let stranger = Hello { token: Token::new("another"), ..hello("stranger") };
    let peer = Peer::new(vec![unix(&folder)], stranger, anybody(), Limits::default());
    let (text, _stream) = tokio::join!(refusal(&peer), async {
        let mut stream = raw_served(&listener).await;
        assert_eq!(in_time(read_frame(&mut stream)).await.expect("a refusal").0, REFUSED);
        stream
    });
    assert!(text.contains("token"), "{text}");
}

#[tokio::test]
async fn each_side_may_refuse_the_other_by_name() {
    let no_strangers: Admit = Arc::new(|other: &HelloInfo| {
        assert_eq!((other.incarnation, &other.about[..]), ([3; 16], &b"contracts"[..]));
        if other.service == "stranger" { Err("stranger is not in the topology".to_owned()) } else { Ok(()) }
    });
    let mut served = Served::start_as(&tcp(), Limits::default(), echo(), hello("served"), no_strangers).await;
    let addresses = vec![served.address.clone()];
    let stranger = Peer::new(addresses.clone(), hello("stranger"), anybody(), Limits::default());
    assert!(refusal(&stranger).await.contains("stranger is not in the topology"));
    assert!(matches!(served.next_end().await, Err(ConnectionError::NotAdmitted(_))));
    assert!(stranger.last_error().is_some_and(|text| text.contains("topology")));

    let picky: Admit = Arc::new(|other| Err(format!("{} lacks products v2", other.service)));
    let picky = Peer::new(addresses.clone(), hello("caller"), picky, Limits::default());
    assert!(refusal(&picky).await.contains("served lacks products v2"));
    // The stranger keeps trying, so its refusals may stand between.
    loop {
        match served.next_end().await {
            Err(ConnectionError::RefusedByPeer(text)) => {
                assert_eq!(text, "served lacks products v2");
                break;
            }
            Err(ConnectionError::NotAdmitted(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    let welcome = Peer::new(addresses, hello("caller"), anybody(), Limits::default());
    in_time(welcome.connected(soon())).await.expect("admitted");
}

#[tokio::test]
async fn another_protocol_version_is_named() {
    let mut served = Served::start(&tcp(), Limits::default(), echo()).await;
    let mut stream = Stream::connect(&served.address).await.expect("a listener");
    stream.write_all(b"MDLT\x02 whatever version 2 says").await.expect("written");
    let mut preface = [0; 5];
    stream.read_exact(&mut preface).await.expect("a preface");
    assert_eq!(preface, PREFACE);
    let (kind, _, text) = read_frame(&mut stream).await.expect("a refusal");
    assert_eq!((kind, &text[..]), (REFUSED, &b"protocol version 1 is spoken here, 2 was offered"[..]));
    drop(stream);
    assert!(matches!(served.next_end().await, Err(ConnectionError::Version { theirs: 2, ours: 1 })));

    // And a caller that meets a newer server.
    let folder = tempfile::tempdir().expect("a folder");
    let listener = Listener::bind(&unix(&folder)).await.expect("a free address");
    let peer = peer(&unix(&folder));
    let (text, ()) = tokio::join!(refusal(&peer), async {
        let mut stream = listener.accept().await.expect("a caller");
        stream.write_all(b"MDLT\x02").await.expect("written");
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.expect("its end");
    });
    assert!(text.contains("version 2"), "{text}");
}

#[tokio::test]
async fn a_slow_or_talkative_stranger_is_cut_off() {
    let limits = Limits { handshake_max: Duration::from_millis(50), ..Limits::default() };
    let mut served = Served::start(&tcp(), limits, echo()).await;
    let mut slow = Stream::connect(&served.address).await.expect("a listener");
    slow.write_all(b"MDLT").await.expect("written");
    assert!(matches!(served.next_end().await, Err(ConnectionError::HandshakeTimeout)));

    let mut talkative = Stream::connect(&served.address).await.expect("a listener");
    let length = u32::try_from(HELLO_BYTES_MAX + 11).expect("small").to_le_bytes();
    talkative.write_all(&[PREFACE, &length, &[HELLO]].concat()).await.expect("written");
    assert!(matches!(
        served.next_end().await,
        Err(ConnectionError::FrameTooLarge { max: HELLO_BYTES_MAX, .. })
    ));

    let mut hasty = Stream::connect(&served.address).await.expect("a listener");
    hasty.write_all(&[PREFACE, &frame(CALL, 1, &[0; 8])].concat()).await.expect("written");
    assert!(
        matches!(served.next_end().await, Err(ConnectionError::Malformed(rule)) if rule.contains("order"))
    );

    let wordy = Hello { about: Bytes::from(vec![0; HELLO_BYTES_MAX]), ..hello("wordy") };
    let wordy = Peer::new(vec![served.address.clone()], wordy, anybody(), Limits::default());
    assert!(refusal(&wordy).await.contains("hello of"));
}

#[tokio::test]
async fn the_first_bytes_tell_frames_from_http() {
    let folder = tempfile::tempdir().expect("a folder");
    for address in [unix(&folder), tcp()] {
        let listener = Listener::bind(&address).await.expect("a free address");
        let address = listener.address().expect("a bound address");
        for (first, rest, expected) in [
            (&b"GET / HTTP/1.1"[..], &b""[..], Protocol::Http),
            (b"MDLT\x01", b"", Protocol::Frames),
            (b"MD", b"LT\x01", Protocol::Frames),
            // A method that begins like the magic.
            (b"M", b"ERGE / HTTP/1.1", Protocol::Http),
            (b"\x16\x03\x01", b"", Protocol::Tls),
        ] {
            let mut caller = Stream::connect(&address).await.expect("a listener");
            let mut accepted = listener.accept().await.expect("a caller");
            caller.write_all(first).await.expect("written");
            let mut found = Box::pin(sniff_within(&accepted, Duration::from_secs(10)));
            if !rest.is_empty() {
                // Undecided, until the rest is there.
                for _ in 0..10 {
                    assert!(futures_util::poll!(&mut found).is_pending());
                    tokio::task::yield_now().await;
                }
                caller.write_all(rest).await.expect("written");
            }
            assert_eq!(in_time(found).await.expect("bytes"), expected);
            let mut read = vec![0; first.len() + rest.len()];
            accepted.read_exact(&mut read).await.expect("all bytes are still there");
            assert_eq!(read, [first, rest].concat());
        }
        let caller = Stream::connect(&address).await.expect("a listener");
        let accepted = listener.accept().await.expect("a caller");
        let error = sniff_within(&accepted, Duration::from_millis(20)).await.expect_err("nothing was said");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        drop(caller);
        let error = sniff_within(&accepted, Duration::from_secs(10)).await.expect_err("it hung up");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn a_unix_listener_takes_over_only_what_is_dead() {
    let folder = tempfile::tempdir().expect("a folder");
    let address = unix(&folder);
    let Address::Unix(path) = &address else { unreachable!("made above") };
    let listener = Listener::bind(&address).await.expect("a free address");
    assert_eq!(std::fs::metadata(path).expect("a socket").permissions().mode() & 0o777, 0o600);
    let error = Listener::bind(&address).await.expect_err("somebody is there");
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    drop(listener);
    assert!(!path.exists());

    // A socket file whose process is gone.
    drop(std::os::unix::net::UnixListener::bind(path).expect("a free path"));
    assert!(path.exists());
    let first = Listener::bind(&address).await.expect("the stale file is removed");
    // A successor that took the path keeps its file.
    std::fs::remove_file(path).expect("removed");
    let second = Listener::bind(&address).await.expect("a free path");
    drop(first);
    assert!(path.exists());
    drop(second);

    std::fs::write(path, "precious").expect("written");
    let error = Listener::bind(&address).await.expect_err("a file is not ours to remove");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(path).expect("still there"), b"precious");
}

#[tokio::test]
async fn a_server_that_shuts_down_admits_nobody() {
    let mut served = Served::start(&tcp(), Limits::default(), echo()).await;
    served.shutdown.cancel();
    let peer = peer(&served.address);
    assert!(refusal(&peer).await.contains("shutting down"));
    assert!(matches!(served.next_end().await, Err(ConnectionError::NotAdmitted(_))));
    let fault = peer.connected(Instant::now() + Duration::from_millis(30)).await.expect_err("still refused");
    assert!(matches!(fault, CallFault::NotRun(NotRun::Refused(_))), "{fault}");
}

/// Two that start at once where a dead process left its file: one of them listens there, and is the one that answers.
#[test]
fn one_of_two_takes_a_stale_path() {
    const ROUNDS: usize = 500;
    let folder = tempfile::tempdir().expect("a folder");
    let address = unix(&folder);
    let Address::Unix(path) = &address else { unreachable!("a Unix socket") };
    let together = Barrier::new(2);
    let starts = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let answers = |_: &usize| {
            if together.wait().is_leader() {
                drop(std::os::unix::net::UnixListener::bind(path));
            }
            together.wait();
            let listening = runtime.block_on(Listener::bind(&address));
            together.wait();
            listening.is_ok() && std::os::unix::net::UnixStream::connect(path).is_ok()
        };
        (0..ROUNDS).filter(answers).count()
    };
    let answered = std::thread::scope(|scope| {
        [scope.spawn(starts), scope.spawn(starts)].map(|starting| starting.join().expect("no panic"))
    });
    assert_eq!(answered.iter().sum::<usize>(), ROUNDS, "{answered:?}");
}
