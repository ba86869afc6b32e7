//! Every number that bounds a connection, in one place.
//!
//! Nothing in this crate grows with what the other side sends: each queue, buffer and wait is bounded by a
//! field here or by [`crate::HELLO_BYTES_MAX`], and the error that a bound causes names it.

use std::time::Duration;

/// The bounds of a peer or of a served connection.
///
/// The two sides need not agree, except on `frame_bytes_max`: a payload that the sender allows and the
/// receiver does not closes the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload of one call or answer. Default 8 MiB.
    ///
    /// A larger call is refused before it is sent; a larger answer is *unknown* to its caller, because the
    /// call has run.
    pub frame_bytes_max: usize,
    /// Calls that one [`crate::Peer`] has in flight, over all replicas, and calls that one served connection
    /// has running. Default 4096. The next is refused at once, as *not run*.
    pub in_flight_max: usize,
    /// The share of `in_flight_max` that only [`crate::Priority::Reserved`] calls may use; at
    /// most half of it counts. Default 256.
    pub in_flight_reserved: usize,
    /// Payload bytes of the calls that one served connection has running. Default 64 MiB. A call beyond it is
    /// rejected, unless it is the only one.
    pub in_flight_bytes_max: usize,
    /// Bytes waiting to be written to one connection. Default 16 MiB.
    ///
    /// A caller beyond it gets `QueueFull`. The serving side stops reading and running calls of a peer
    /// that does not read its answers. One frame may exceed it when nothing else waits.
    pub write_buffer_bytes_max: usize,
    /// From the first byte to the end of the handshake, and for a connection to be accepted. Default 5 s.
    pub handshake_max: Duration,
    /// Silence after which a ping is sent. Default 5 s.
    pub keep_alive_interval: Duration,
    /// Silence after which the connection is given up; at least one ping went unanswered by then. Default 15 s.
    pub dead_after: Duration,
    /// How long a served connection may take to finish its calls once it was told to shut down. Default 10 s.
    pub drain_max: Duration,
    /// The first wait before connecting again; it doubles, and half of it is random. Default 20 ms.
    pub back_off_min: Duration,
    /// The longest wait before connecting again. Default 1 s.
    pub back_off_max: Duration,
    /// Connections that one [`crate::serve`] has open; further ones wait in the kernel's backlog. Default 1024.
    pub connections_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 8 << 20,
            in_flight_max: 4096,
            in_flight_reserved: 256,
            in_flight_bytes_max: 64 << 20,
            write_buffer_bytes_max: 16 << 20,
            handshake_max: Duration::from_secs(5),
            keep_alive_interval: Duration::from_secs(5),
            dead_after: Duration::from_secs(15),
            drain_max: Duration::from_secs(10),
            back_off_min: Duration::from_millis(20),
            back_off_max: Duration::from_secs(1),
            connections_max: 1024,
        }
    }
}

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
}
