//! Every number that bounds a connection, in one place.
//!
//! Nothing in this crate grows with what the other side sends: each queue, buffer and wait is bounded by a
//! field here, by [`crate::HELLO_BYTES_MAX`] or by [`crate::BODY_WINDOW_BYTES`], and the error that a bound
//! causes names it.
//!
//! What one connection holds at most because of its other side, on each side and with the defaults: payloads
//! that run or arrive in parts, `in_flight_bytes_max` and one more (72 MiB); payloads that leave in parts, as
//! much again (72 MiB); bytes waiting to be written, `write_buffer_bytes_max` and one turn (16 MiB); streamed
//! bodies that nobody reads, `bodies_max` windows (128 MiB, and twice that while a buffer grows); the read
//! buffer (256 KiB); 65,536 notes of 48 bytes about what was refused and is still on its way, in a table of
//! twice as many places (6 MiB); and for each call that runs with a payload of 8 to 64 KiB, `in_flight_max` of them,
//! the read buffer that it came in (128 KiB each, so 128 MiB). Only a peer that uses every limit at once gets that far, and lowering the first, the third and
//! `bodies_max` lowers all of it. What handlers and bodies make of it is theirs to bound; of each body that is
//! sent, one piece is held.

use std::time::Duration;

/// The bounds of a peer or of a served connection.
///
/// The two sides need not agree: what one allows and the other does not is refused by name, and the connection
/// stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload of one call or answer. Default 8 MiB. Streamed bodies have no such limit.
    ///
    /// A larger call is refused before it is sent; a larger answer is *unknown* to its caller, because the call
    /// has run. It must stay below 4 GiB. Payloads above 64 KiB travel in parts, between which other calls
    /// pass.
    pub payload_bytes_max: usize,
    /// Calls that one [`crate::Peer`] has in flight, over all replicas, those included that wait for a connection; and
    /// calls that [`crate::serve`] has running for one calling service, over all its connections. Default 1024.
    /// The next is refused at once, as *not run*.
    pub in_flight_max: usize,
    /// The share of `in_flight_max` that only [`crate::Priority::Reserved`] calls may use; at
    /// most half of it counts. Default 128.
    pub in_flight_reserved: usize,
    /// Payload bytes of the calls that one served connection has running, those included that are not wholly
    /// received. Default 64 MiB, an eighth of which only [`crate::Priority::Reserved`] calls may use. A call beyond it is
    /// rejected, unless it is the only one.
    ///
    /// It also bounds the payloads above 64 KiB that wait to be sent to one connection: a caller beyond it gets
    /// `QueueFull`, and the serving side stops reading and running calls. Answers that a caller has received
    /// in part are bounded by it too: one more is *unknown*.
    pub in_flight_bytes_max: usize,
    /// Streamed bodies that one connection receives, and that it sends. Default 512; each may hold
    /// [`crate::BODY_WINDOW_BYTES`].
    ///
    /// A call with one more is refused, as *not run*; an answer with one more is *unknown* to its caller.
    pub bodies_max: usize,
    /// How long a streamed body may make no progress: nothing sent, or nothing read. Default 60 s.
    ///
    /// The deadline of a call ends with the payload of its answer, so this is what keeps a body from being held
    /// for ever. Then both sides break it off, by name, at most a quarter late. Streams that are silent for
    /// longer must send something now and then.
    pub body_idle_max: Duration,
    /// Bytes waiting to be written to one connection, not counting payloads above 64 KiB. Default 16 MiB, an eighth of
    /// which only [`crate::Priority::Reserved`] calls may use.
    ///
    /// A caller beyond it gets `QueueFull`. The serving side stops reading and running calls of a peer
    /// that does not read its answers. One frame may exceed it when nothing else waits.
    pub write_buffer_bytes_max: usize,
    /// From the first byte to the end of the handshake, and for a connection to be accepted. Default 5 s.
    pub handshake_max: Duration,
    /// Silence after which a ping is sent. Default 2 s.
    ///
    /// With `dead_after`, this finds a partition that drops packets, and a machine that vanished, in 6 s.
    pub keep_alive_interval: Duration,
    /// Silence after which the connection is given up; a ping went unanswered by then. Default 6 s.
    pub dead_after: Duration,
    /// How long a served connection may take to finish its calls, and their bodies, once it was told to shut
    /// down. Default 10 s.
    pub drain_max: Duration,
    /// The first wait before connecting again; it doubles, and half of it is random. Default 20 ms.
    pub back_off_min: Duration,
    /// The longest wait before connecting again. Default 1 s.
    pub back_off_max: Duration,
    /// How long a call that was certainly not sent waits for a replica that said that it goes: its successor is
    /// awaited. Default 5 s, and never beyond the call's deadline.
    ///
    /// A connection that was lost without a word is waited for through the first attempt to make another. While a
    /// replica is awaited, attempts come every `back_off_min`.
    pub drain_wait_max: Duration,
    /// The time over which a peer's breaker looks. Default 10 s.
    pub breaker_window: Duration,
    /// Calls within the window below which the breaker does not judge. Default 20.
    pub breaker_calls_min: u64,
    /// The share of calls that ended badly from which on the breaker opens, in percent. Default 50.
    pub breaker_bad_percent: u64,
    /// How long an open breaker refuses calls before its first probe; it doubles with each probe that fails, and half
    /// of it is random. A new connection is probed at once. Default 1 s.
    pub breaker_open_min: Duration,
    /// The longest time between two probes. Default 30 s.
    pub breaker_open_max: Duration,
    /// Calls in a row that end badly at one replica, after which it is left out. Default 5. Never more than half of a
    /// peer's replicas are.
    pub ejection_failures: u32,
    /// How long a replica is left out, times the number of times that it was. Default 1 s.
    pub ejection_min: Duration,
    /// The longest time for which a replica is left out, and the time after which its earlier ones are forgotten.
    /// Default 30 s.
    pub ejection_max: Duration,
    /// How often a host name is resolved again, besides when a connection is lost and while a successor is awaited (then
    /// at most once in `back_off_max`). Default 5 s.
    pub resolve_every: Duration,
    /// Addresses of one host name that are connected to; further ones are left alone. Default 64.
    pub replicas_max: usize,
    /// Connections that one [`crate::serve`] has open; further ones wait in the kernel's backlog. Default 1024.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            payload_bytes_max: 8 << 20,
            in_flight_max: 1024,
            in_flight_reserved: 128,
            in_flight_bytes_max: 64 << 20,
            bodies_max: 512,
            body_idle_max: Duration::from_secs(60),
            write_buffer_bytes_max: 16 << 20,
            handshake_max: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(2),
            dead_after: Duration::from_secs(6),
            drain_max: Duration::from_secs(10),
            back_off_min: Duration::from_millis(20),
            back_off_max: Duration::from_secs(1),
            drain_wait_max: Duration::from_secs(5),
            breaker_window: Duration::from_secs(10),
            breaker_calls_min: 20,
            breaker_bad_percent: 50,
            breaker_open_min: Duration::from_secs(1),
            breaker_open_max: Duration::from_secs(30),
            ejection_failures: 5,
            ejection_min: Duration::from_secs(1),
            ejection_max: Duration::from_secs(30),
            resolve_every: Duration::from_secs(5),
            replicas_max: 64,
            connections_max: 1024,
        }
    }
}

/// One in so many bytes of a limit is for [`crate::Priority::Reserved`] calls only.
const RESERVED_SHARE: usize = 8;

impl Limits {
    /// How many calls may be in flight before one of this priority is refused.
    pub(crate) fn in_flight_for(&self, priority: crate::Priority) -> usize {
        match priority {
            crate::Priority::Ordinary => {
                self.in_flight_max - self.in_flight_reserved.min(self.in_flight_max / 2)
            }
            crate::Priority::Reserved => self.in_flight_max,
        }
    }

    /// How many of these bytes may be taken before a call of this priority is refused.
    pub(crate) fn bytes_for(&self, priority: crate::Priority, bytes_max: usize) -> usize {
        match priority {
            crate::Priority::Ordinary => bytes_max - bytes_max / RESERVED_SHARE,
            crate::Priority::Reserved => bytes_max,
        }
    }
}
