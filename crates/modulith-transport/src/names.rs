//! Finds the addresses behind a host name, again and again.
//!
//! A name with several addresses, as a headless service of Kubernetes has, is that many replicas. A name that cannot be
//! resolved at the moment keeps the replicas that it had: a name server that fails must not take a service down.

use std::{io, net::SocketAddr, sync::Arc};

use futures_util::future::BoxFuture;
use tokio::time::{sleep, timeout};

use crate::{
    Address, NotRun,
    replica::{BackOff, Settings},
    replicas::Replicas,
};

/// How a `host:port` becomes addresses; the default is [`operating_system`].
pub type Resolve = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> + Send + Sync>;

/// Asks the operating system.
pub fn operating_system() -> Resolve {
    Arc::new(|host_port| {
        Box::pin(async move { Ok(tokio::net::lookup_host(host_port).await?.collect::<Vec<_>>()) })
    })
}

/// Whether there is a name to resolve in it: not a Unix socket, and not an IP address.
pub(crate) fn name_in(address: &Address) -> Option<&str> {
    match address {
        Address::Tcp(host_port) if host_port.parse::<SocketAddr>().is_err() => Some(host_port),
        Address::Tcp(_) | Address::Unix(_) => None,
    }
}

/// Keeps the replicas of one name, until the peer is dropped.
pub(crate) async fn follow(name: String, replicas: Arc<Replicas>, settings: Arc<Settings>) {
    let resolve = async {
        let limits = &settings.limits;
        let mut back_off = BackOff::new(limits);
        loop {
            // Registered before the look-up, so that a connection lost during it is not missed.
            let lost = settings.lost.notified();
            let looked_up = (settings.resolve)(name.clone());
            let found = match timeout(limits.handshake_max, looked_up).await {
                Ok(Ok(found)) if found.is_empty() => Err("it has no address".to_owned()),
                Ok(Ok(found)) => Ok(found),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("the name server does not answer".to_owned()),
            };
            match found {
                Ok(found) => {
                    back_off.reset();
                    replicas.set(&name, found, &settings);
                    // Those who wait for a replica's loss are not to make a look-up each.
                    sleep(limits.back_off_max.min(limits.resolve_every)).await;
                    let _ = timeout(limits.resolve_every.saturating_sub(limits.back_off_max), lost).await;
                }
                Err(error) => {
                    tracing::debug!(name, error, "cannot resolve");
                    let fault = NotRun::Unreachable(format!("{name}: cannot resolve: {error}"));
                    replicas.unresolved(&name, fault, &settings);
                    sleep(back_off.next()).await;
                }
            }
        }
    };
    settings.stop.run_until_cancelled(resolve).await;
}
