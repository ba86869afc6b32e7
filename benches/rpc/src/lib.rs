//! What all candidates share: the message, the sockets, the loop of the callers and what it reports.
//!
//! A candidate is two processes of one binary: `serve ADDRESS`, and `call ADDRESS`, which keeps its callers busy
//! and prints one [`Report`]. Threads are tokio's, as many as `TOKIO_WORKER_THREADS` says.

mod drive;
pub mod echo;
mod sockets;

pub use drive::{Caller, Report, call, drive};
pub use sockets::{Sockets, connect};

use std::time::Duration;

use callers::Load;
use clap::Parser;
use modulith_transport::Address;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The store's allocator, for all of them.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is sent, and comes back.
pub const TEXT: &str =
    "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

/// How long a caller would wait; tarpc's own default.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Request and answer of every candidate that has types.
#[derive(Clone, PartialEq, prost::Message, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// [`TEXT`]
    #[prost(string, tag = "1")]
    pub text: String,
}

impl Message {
    /// A new one, as a caller has to make it.
    pub fn filled() -> Self {
        Self { text: TEXT.to_owned() }
    }

    /// Whether this is what was sent.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(self.text.len() == TEXT.len(), "an answer of {} bytes", self.text.len());
        Ok(())
    }
}

/// Which of the two processes this is.
#[derive(Parser)]
pub enum Role {
    /// Answers until it is killed; says `ready` when it listens.
    Serve {
        /// HOST:PORT or unix:PATH
        address: Address,
    },
    /// Calls, and prints what it saw as JSON.
    Call {
        /// Where the other process serves.
        address: Address,
        /// From how many callers, and for how long.
        #[command(flatten)]
        load: Load,
    },
}
