//! Listens, says where, serves until it is told to stop.

use std::net::SocketAddr;
use std::thread;

use axum::serve::ListenerExt;
use axum::{Router, routing::get};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::database::Database;
use crate::problem::Problem;

/// Who may end this process besides a signal.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Parent {
    /// Nobody.
    Absent,
    /// A process that holds our standard input open for as long as it lives, however it dies.
    HoldsStdin,
}

/// Serves `router` on `listen` until SIGTERM, SIGINT, or the end of the parent.
///
/// The address is printed once connections are taken, so port 0 works.
///
/// # Errors
///
/// When the port cannot be had.
pub async fn serve(router: Router, listen: SocketAddr, parent: Parent) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    println!("listening on {}", listener.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    // An unwritten answer is worth more than a full packet.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
    let serving = axum::serve(listener, router);
    tokio::select! {
        served = serving.into_future() => served?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = parent_ended(), if parent == Parent::HoldsStdin => {}
    }
    Ok(())
}

/// `GET /healthz`, and `GET /readyz` that asks the database.
pub fn health(database: Database) -> Router {
    Router::new().route("/healthz", get(async || "ok")).route(
        "/readyz",
        get(async move || -> Result<&str, Problem> {
            sqlx::query("SELECT 1").execute(&database.read).await?;
            Ok("ok")
        }),
    )
}

/// A thread of its own, because the runtime would wait for a blocked read before it stops.
async fn parent_ended() {
    let (ended, wait) = oneshot::channel();
    thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = ended.send(());
    });
    let _ = wait.await;
}
