//! Calls between two processes: opaque bytes go out, opaque bytes come back, and the caller learns for
//! certain whether a failed call may have run.
//!
//! One multiplexed connection a peer carries any number of calls, over TCP or a Unix socket. This crate
//! knows no contracts, no modules and no retries: a payload is [`bytes::Bytes`], and what may be repeated is
//! decided above, from [`CallFault`].
//!
//! A payload up to 64 KiB is one frame. A larger one, up to 8 MiB, travels in parts between which other calls
//! pass. A call and its answer may each have a streamed body of any length behind the payload, with a window of
//! its own, so that whoever does not read holds up nobody else.
//!
//! - [`Peer`] is the calling side: it connects on first use, reconnects with back-off, and spreads calls over
//!   the replicas it was given.
//! - [`serve`] and [`serve_connection`] are the called side: they hand each call to a [`Handler`].
//! - [`Body`] is a streamed body on the side that sends it, [`BodyReader`] on the side that reads it.
//! - [`Hello`] is what both sides say about themselves before the first call; an [`Admit`] function on each
//!   side may refuse the other by name.
//! - [`Limits`] has every number, with its default.
//!
//! - [`Trust`] makes mutual TLS of a TCP connection, with a service's certificate as its identity. Without it, a token
//!   proves who is calling, and the bytes stay readable on the network.
//!
//! What is deliberately absent: calls from the called side back to the caller, and automatic repeats, because only the
//! layer that knows what is idempotent may repeat.
//!
//! ```no_run
//! use std::{sync::Arc, time::{Duration, Instant}};
//! use bytes::Bytes;
//! use modulith_transport::{Hello, Limits, Peer, Priority, Token};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let hello = Hello {
//!     service: "orders".into(),
//!     incarnation: [7; 16],
//!     token: Token::new("a long random text"),
//!     about: Bytes::new(),
//! };
//! let peer = Peer::new(vec!["unix:/run/store/products.sock".parse()?], hello, Arc::new(|_| Ok(())), Limits::default());
//! let deadline = Instant::now() + Duration::from_secs(2);
//! let answer = peer.call(deadline, Priority::Ordinary, Bytes::from_static(b"hold")).await?;
//! # let _ = answer; Ok(())
//! # }
//! ```

mod address;
mod body;
mod breaker;
mod circuit;
mod client;
mod ejection;
mod fault;
mod frame;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
mod guard;
mod handshake;
mod hello;
mod keep_alive;
mod limits;
mod listener;
mod names;
mod outgoing;
mod peer;
mod random;
mod reader;
mod receiving;
mod repeat_budget;
mod replica;
mod replicas;
mod sending;
mod serve;
mod serving;
mod stream;
mod tally;
mod tls;
mod trust;

pub use address::{Address, AddressError};
pub use body::{Answer, Body, BodyError, BodyReader, Reply};
pub use breaker::{BreakerState, Ending};
pub use circuit::{Circuit, Leave};
pub use fault::{CallFault, ConnectionError, NotRun, Rejection, Unknown};
pub use frame::{BODY_WINDOW_BYTES, MAGIC, PROTOCOL_VERSION, Priority};
pub use hello::{Admit, HELLO_BYTES_MAX, Hello, HelloInfo, Note, PeerInfo, Token};
pub use limits::Limits;
pub use listener::{Listener, Protocol, sniff, sniff_within};
pub use names::{Resolve, operating_system};
pub use peer::{Payload, Peer, Snapshot, Terms};
pub use repeat_budget::RepeatBudget;
pub use replica::ReplicaSnapshot;
pub use serve::{Handled, Handler, HttpTask, Incoming, serve, serve_connection};
pub use stream::Stream;
pub use tally::{Apart, CELLS, Tally, cell};
pub use tls::TlsStream;
pub use trust::{CERTIFICATE_WARN, Trust, TrustError, TrustFiles, spiffe_id};
