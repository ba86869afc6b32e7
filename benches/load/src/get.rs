//! The same page over and over: what a request costs that does next to nothing.

use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;

use callers::{Interval, Load, Report, Seen};
use tokio::task::LocalSet;

use crate::http::Connection;

/// Gets `path` from every caller; in the report requests stand where orders do.
pub(crate) async fn get(address: SocketAddr, path: &str, load: Load) -> anyhow::Result<Report> {
    let (seen, path) = (Rc::new(Seen::default()), Rc::<str>::from(path));
    let callers = LocalSet::new();
    let interval = load.interval();
    for _ in 0..load.callers {
        callers.spawn_local(call(address, path.clone(), interval, seen.clone()));
    }
    tokio::join!(callers, interval.announce());
    Ok(seen.report(load.callers, load.seconds))
}

/// One caller, until the interval ends or its connection breaks.
async fn call(address: SocketAddr, path: Rc<str>, interval: Interval, seen: Rc<Seen>) {
    let mut connection = match Connection::open(address).await {
        Ok(connection) => connection,
        Err(error) => return seen.failed(&error.to_string()),
    };
    loop {
        let sent = Instant::now();
        if interval.is_over(sent) {
            return;
        }
        match connection.call("GET", &path, "", b"").await {
            Ok(answer) if answer.status == 200 => {
                let answered = Instant::now();
                seen.done(interval.counts(answered).then(|| answered - sent));
            }
            Ok(answer) => seen.failed(&answer.status.to_string()),
            Err(error) => return seen.failed(&error.to_string()),
        }
    }
}
