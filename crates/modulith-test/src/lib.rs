//! Runs one test body in every topology of an application: real processes, real sockets, real files.
//!
//! A test names the program and its topologies, and gets an [`Application`] for each: started on a data folder
//! of its own, with a client for its HTTP interface, and with what is needed to kill a service and to wait for an
//! observable. There is no sleeping: [`until`] asks again until something holds, and fails after a minute.
//!
//! [`disk`] has a disk that fails, for tests in one process.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use modulith_test::{Application, Program};
//!
//! let program = Program::new(env!("CARGO")).topology("monolith", None).topology("split", Some("topology/split.toml"));
//! program
//! .in_every_topology(async |app: &Application| {
//!     let products = app.get("/products").await?;
//!     assert_eq!(products.status, 200);
//!     Ok(())
//! })
//! .await?;
//! # Ok(())
//! # }
//! ```

mod application;
mod connection;
pub mod disk;
mod http;
mod processes;
mod random;
pub mod sim;

pub use application::{Application, Program};
pub use connection::{HttpAnswer, HttpConnection};
pub use http::{Http, Request, Response};
pub use processes::{
    Paused, child_of, children, is_alive, kill, pause, proportional_set_size_kib, terminate,
};
pub use random::Random;

use std::time::{Duration, Instant};

/// How long [`until`] waits.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks again until `ask` gives something, and returns it.
///
/// # Panics
///
/// After [`PATIENCE`], with `what`.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < end, "gave up waiting: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
