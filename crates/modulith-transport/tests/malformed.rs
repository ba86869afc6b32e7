//! Bytes that break the rules close their own connection, by name, and disturb nobody else.

mod support;

use bytes::Bytes;
use futures_util::StreamExt;
use modulith_transport::{
    BODY_WINDOW_BYTES, Body, BodyError, ConnectionError, Handled, Handler, Incoming, Limits, Priority,
    Stream, Terms,
};
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn call(id: u64, payload: &[u8]) -> Vec<u8> {
    call_with(0, id, payload)
}

/// Everything that still comes, until the other side closes.
async fn drained(mut stream: Stream) -> Vec<u8> {
    let mut rest = Vec::new();
    // A reset is an end like any other here.
    let _ = in_time(stream.read_to_end(&mut rest)).await;
    rest
}

#[tokio::test]
async fn each_broken_rule_is_named() {
    let limits = Limits::default();
    let gate = Gate::new();
    let mut served = Served::start(&tcp(), limits, std::sync::Arc::new(gate.clone())).await;
    let mut unknown_flag = call(1, b"");
    unknown_flag[5] = 0x80;
    let size = |size: u32| size.to_le_bytes();
    let window = [&frame(DATA, 1, &[0; 64 << 10])[..]; 4].concat();
    let cases: [(&str, Vec<u8>); 32] = [
        ("shorter than its header", vec![9, 0, 0, 0]),
        ("4294967285 bytes", vec![0xff; 4]),
        ("65541 bytes, 65540 are allowed", call(1, &[0; (64 << 10) + 1])[..4].to_vec()),
        ("unknown kind", frame(99, 0, b"")),
        ("unknown kind", frame(0, 0, b"")),
        ("unknown flags", unknown_flag),
        ("no place here", frame(ANSWER, 0, b"an answer to nothing")),
        ("no place here", frame(HELLO, 0, &[0; 100])),
        ("too short for its kind", frame(CALL, 1, &[1, 2])),
        ("without remaining time", frame(CALL, 1, &[0; 4])),
        ("id is in use", [call(7, b"a"), call(7, b"b")].concat()),
        ("a body on a frame that has none", frame(9, 0, b"ping")),
        ("a body on a frame that has none", frame(STOP, 1, b"stop")),
        ("unknown flags", flagged(PART, LAST, 1, b"p")),
        ("unknown flags", flagged(WINDOW, 1, 1, &size(1))),
        ("not a number above zero", call_with(PARTS, 1, &size(0))),
        ("not a number above zero", call_with(PARTS, 1, b"payload")),
        ("id is in use", [call_with(PARTS, 7, &size(70_000)), call(7, b"b")].concat()),
        ("id is in use", [call_with(STREAMED, 7, b""), call(7, b"b")].concat()),
        ("a part of a payload that was not announced", frame(PART, 1, b"p")),
        ("a part of a payload that was not announced", [call(1, b""), frame(PART, 1, b"p")].concat()),
        ("an empty part", [call_with(PARTS, 1, &size(9)), frame(PART, 1, b"")].concat()),
        ("beyond the announced size", [call_with(PARTS, 1, &size(2)), frame(PART, 1, b"abc")].concat()),
        ("beyond the announced size", [call_with(STREAMED, 1, b""), frame(PART, 1, b"p")].concat()),
        ("a body that is not open", frame(DATA, 1, b"d")),
        ("a body that is not open", [call(1, b""), frame(DATA, 1, b"d")].concat()),
        (
            "a body that is not open",
            [call_with(PARTS | STREAMED, 1, &size(9)), frame(DATA, 1, b"d")].concat(),
        ),
        (
            "a body that is not open",
            [call_with(STREAMED, 1, b""), flagged(DATA, LAST, 1, b""), frame(DATA, 1, b"d")].concat(),
        ),
        ("an empty piece", [call_with(STREAMED, 1, b""), frame(DATA, 1, b"")].concat()),
        (
            "more of a body than its window",
            [call_with(STREAMED, 1, b""), window, frame(DATA, 1, b"d")].concat(),
        ),
        ("a reset of nothing", frame(RESET, 1, b"why")),
        ("not a number above zero", frame(WINDOW, 1, &size(0))),
    ];
    for (rule, bytes) in cases {
        let mut stream = raw_caller(&served.address).await;
        stream.write_all(&bytes).await.expect("written");
        let ended = served.next_end().await.expect_err(rule).to_string();
        assert!(ended.contains(rule), "{ended} where {rule} was expected");
        // Its last word names the rule.
        let rest = drained(stream).await;
        assert!(String::from_utf8_lossy(&rest).contains(rule), "{rule}");
    }
    for cut in [1, 4, 13, 17, 20] {
        let mut stream = raw_caller(&served.address).await;
        stream.write_all(&call(1, b"payload")[..cut]).await.expect("written");
        stream.shutdown().await.expect("half closed");
        assert!(matches!(served.next_end().await, Err(ConnectionError::Truncated)), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_server_that_breaks_the_rules_loses_its_callers() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = modulith_transport::Listener::bind(&unix(&folder)).await.expect("a free address");
    let peer = peer(&unix(&folder));
    for (rule, bytes) in [
        ("an answer to a call that was never made", frame(ANSWER, 12, b"")),
        ("an answer to a call that was never made", flagged(ANSWER, STREAMED, 12, b"")),
        ("a part of a payload that was not announced", frame(PART, 0, b"p")),
        ("a body that is not open", frame(DATA, 0, b"d")),
        ("a reset of nothing", frame(RESET, 0, b"why")),
        ("not a number above zero", frame(WINDOW, 0, &[0; 4])),
        ("no place here", call(1, b"")),
        ("shorter than its header", vec![0; 4]),
        ("middle of a frame", vec![20, 0, 0]),
    ] {
        let (connected, mut stream) = tokio::join!(peer.connected(soon()), raw_served(&listener));
        connected.expect("a handshake");
        stream.write_all(&bytes).await.expect("written");
        drop(stream);
        while peer.is_connected() {
            tokio::task::yield_now().await;
        }
        assert!(peer.last_error().is_some_and(|text| text.contains(rule)), "{:?}", peer.last_error());
    }
}

/// What a hostile server does with an answer that comes in several frames.
#[tokio::test]
async fn a_server_that_breaks_the_rules_of_bodies_loses_its_callers() {
    let folder = tempfile::tempdir().expect("a folder");
    let listener = modulith_transport::Listener::bind(&unix(&folder)).await.expect("a free address");
    let peer = peer(&unix(&folder));
    for (rule, bytes) in [
        ("already begun", [flagged(ANSWER, STREAMED, 0, b""), flagged(ANSWER, STREAMED, 0, b"")].concat()),
        ("already begun", [&flagged(ANSWER, PARTS, 0, &9u32.to_le_bytes())[..]; 2].concat()),
        ("beyond the announced size", {
            [flagged(ANSWER, PARTS, 0, &2u32.to_le_bytes()), frame(PART, 0, b"abc")].concat()
        }),
        ("more of a body than its window", {
            [flagged(ANSWER, STREAMED, 0, b""), [&frame(DATA, 0, &[0; 64 << 10])[..]; 5].concat()].concat()
        }),
        ("more window than a body has", frame(WINDOW, 0, &1u32.to_le_bytes())),
    ] {
        let (connected, mut stream) = tokio::join!(peer.connected(soon()), raw_served(&listener));
        connected.expect("a handshake");
        let call = {
            let (peer, body) = (peer.clone(), Body::new(futures_util::stream::pending()));
            tokio::spawn(async move {
                peer.open(Terms::new(soon(), Priority::Ordinary), &[][..], Some(body)).await
            })
        };
        let (kind, id, _) = in_time(read_frame(&mut stream)).await.expect("a frame");
        assert_eq!((kind, id), (CALL, 0));
        stream.write_all(&bytes).await.expect("written");
        while peer.is_connected() {
            tokio::task::yield_now().await;
        }
        assert!(peer.last_error().is_some_and(|text| text.contains(rule)), "{rule}: {:?}", peer.last_error());
        // An answer that had begun has an end by name, if its head was delivered.
        if let Ok(answer) = in_time(call).await.expect("no panic") {
            let mut body = answer.body.expect("a body");
            while let Some(piece) = in_time(body.next()).await {
                if let Err(error) = piece {
                    assert_eq!(error, BodyError::ConnectionLost);
                }
            }
        }
    }
}

/// Runs each call for ever and reads nothing of its body.
fn unread() -> std::sync::Arc<dyn Handler> {
    std::sync::Arc::new(|call: Incoming| {
        Handled::Later(Box::pin(async move {
            let _unread = call.body;
            std::future::pending().await
        }))
    })
}

/// Many bodies of few bytes, which nobody reads: as many as the limit are held, the others are refused, and
/// whoever goes on without hearing of it is closed.
#[tokio::test]
async fn a_flood_of_bodies_is_bounded_and_closed() {
    let limits = Limits { bodies_max: 20, in_flight_max: 100, in_flight_reserved: 0, ..Limits::default() };
    let mut served = Served::start(&tcp(), limits, unread()).await;
    let mut stream = raw_caller(&served.address).await;
    let opened = |id| [call_with(STREAMED, id, b"x"), frame(DATA, id, b"y")].concat();
    for id in 0..1000 {
        stream.write_all(&opened(id)).await.expect("written");
    }
    for id in 20..1000 {
        let (kind, of, text) = in_time(read_frame(&mut stream)).await.expect("a frame");
        assert_eq!((kind, of), (REJECTED, id));
        assert!(String::from_utf8_lossy(&text).contains("too many bodies"));
    }
    let (mut read, mut write) = tokio::io::split(stream);
    // Writing fails once the other side has closed.
    let flood = async {
        let mut id = 1000;
        while write.write_all(&opened(id)).await.is_ok() {
            id += 1;
        }
    };
    let mut rest = Vec::new();
    let (ended, (), _) =
        tokio::join!(served.next_end(), in_time(flood), in_time(read.read_to_end(&mut rest)));
    let ended = ended.expect_err("a rule").to_string();
    assert!(ended.contains("too many streams that nobody wants"), "{ended}");
}

/// A body whose pieces are a byte each takes the memory of its bytes and not of its pieces, and its window is
/// its window.
#[tokio::test]
async fn tiny_pieces_fill_a_window_like_large_ones() {
    let mut served = Served::start(&tcp(), Limits::default(), unread()).await;
    let mut stream = raw_caller(&served.address).await;
    stream.write_all(&call_with(STREAMED, 1, b"")).await.expect("written");
    let thousand = [&frame(DATA, 1, b"y")[..]; 1024].concat();
    for _ in 0..BODY_WINDOW_BYTES / 1024 {
        stream.write_all(&thousand).await.expect("written");
    }
    stream.write_all(&frame(9, 0, b"")).await.expect("written");
    // The pong says that all of it was taken.
    assert_eq!(in_time(read_frame(&mut stream)).await.expect("a frame").0, 10);
    stream.write_all(&frame(DATA, 1, b"y")).await.expect("written");
    let ended = served.next_end().await.expect_err("a rule").to_string();
    assert!(ended.contains("more of a body than its window"), "{ended}");
}

/// SplitMix64, so that a failure can be repeated from its seed.
struct Seeded(u64);

impl Seeded {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_closes_only_its_own_connection() {
    let mut served = Served::start(&tcp(), Limits::default(), echo()).await;
    let honest = peer(&served.address);
    for seed in 0..300u64 {
        let mut random = Seeded(seed);
        let mut bytes: Vec<u8> = match seed % 3 {
            // Noise.
            0 => (0..random.below(5000)).map(|_| random.next() as u8).collect(),
            // Good frames with a few flipped bytes, and a cut.
            _ => (0..1 + random.below(20))
                .flat_map(|id| match random.below(10) {
                    0 => frame(9, 0, b""),
                    1 => frame(8, id as u64, b""),
                    2 => call_with(PARTS, id as u64, &(random.below(200_000) as u32).to_le_bytes()),
                    3 => call_with(STREAMED, id as u64, b"head"),
                    4 => frame(PART, random.below(20) as u64, &vec![2; random.below(3000)]),
                    5 => flagged(DATA, LAST * (id as u8 % 2), random.below(20) as u64, b"data"),
                    6 => frame(WINDOW + random.below(3) as u8, random.below(20) as u64, &[1, 0, 0, 0]),
                    _ => call(id as u64, &vec![1; random.below(3000)]),
                })
                .collect(),
        };
        for _ in 0..random.below(4) {
            if !bytes.is_empty() {
                let at = random.below(bytes.len());
                bytes[at] ^= 1 << random.below(8);
            }
        }
        bytes.truncate(bytes.len() - random.below(bytes.len() / 4 + 1));
        // One in four is thrown at the handshake.
        let mut stream = if seed % 4 == 0 {
            Stream::connect(&served.address).await.expect("a listener")
        } else {
            raw_caller(&served.address).await
        };
        // It may close before it has read everything.
        let _ = stream.write_all(&bytes).await;
        let _ = stream.shutdown().await;
        drained(stream).await;
        // Ends by name or in order; a panic would have dropped the report.
        let _ = served.next_end().await;
        let payload = Bytes::from(seed.to_le_bytes().to_vec());
        let answer = in_time(honest.call(soon(), Priority::Ordinary, payload.clone())).await;
        assert_eq!(answer, Ok(payload), "seed {seed}");
    }
}
