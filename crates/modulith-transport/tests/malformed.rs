//! Bytes that break the rules close their own connection, by name, and disturb nobody else.

mod support;

use bytes::Bytes;
use modulith_transport::{ConnectionError, Limits, Priority, Stream};
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
    let cases: [(&str, Vec<u8>); 12] = [
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
                .flat_map(|id| match random.below(4) {
                    0 => frame(9, 0, b""),
                    1 => frame(8, id as u64, b""),
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
