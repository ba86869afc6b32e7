//! Of a service that stores something, one process is called. Each further one behind the same name has a database of its
//! own, and what callers store would be split among them.
//!
//! Goes by addresses, before any of them is connected. Several of one family are taken for as many processes; one of IPv4
//! beside one of IPv6, which is what `localhost` has, for one process that may listen at either. What a load balancer has
//! behind one address is not seen.

use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use modulith_transport::Resolve;
use parking_lot::Mutex;

use crate::check::stored_by;
use crate::model::AppModel;
use crate::topology::ServiceSection;

/// The addresses behind the name of a service: those that `resolve` finds, but of one process if the service stores
/// something. The log names those that are left alone, again whenever they are others.
pub(crate) fn resolver(model: &AppModel, service: &ServiceSection, resolve: Resolve) -> Resolve {
    let Some((module, stores)) = stored_by(model, service).next() else {
        return resolve;
    };
    let whose = format!("of service `{}`, whose module `{}` has {stores}", service.name, module.name);
    let (whose, choice): (Arc<str>, Arc<Mutex<Choice>>) = (whose.into(), Arc::default());
    Arc::new(move |name| {
        let (whose, choice, found) = (whose.clone(), choice.clone(), resolve(name.clone()));
        Box::pin(async move {
            let found = found.await?;
            if found.is_empty() {
                return Ok(found);
            }
            let mut choice = choice.lock();
            if choice.is_news(found) {
                let Choice { called, left_alone } = &*choice;
                tracing::warn!(
                    "{name} leads to several processes {whose}: {called:?} is called, {left_alone:?} are left alone"
                );
            }
            Ok(choice.called.clone())
        })
    })
}

#[derive(Default)]
struct Choice {
    called: Vec<SocketAddr>,
    left_alone: Vec<SocketAddr>,
}

impl Choice {
    /// Chooses among these. Whether others than before are left alone.
    fn is_news(&mut self, mut found: Vec<SocketAddr>) -> bool {
        found.sort();
        found.dedup();
        let ipv4 = found.iter().filter(|address| address.is_ipv4()).count();
        let mut others = Vec::new();
        if ipv4 > 1 || found.len() - ipv4 > 1 {
            // Who was called until now has what was stored until now. Among strangers all callers choose the same.
            let known = found.iter().position(|address| self.called.contains(address));
            let chosen = found.remove(known.unwrap_or(0));
            others = mem::replace(&mut found, vec![chosen]);
        }
        self.called = found;
        let is_news = !others.is_empty() && others != self.left_alone;
        self.left_alone = others;
        is_news
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::{Duration, Instant};

    use bytes::Bytes;
    use modulith_core::Kind;
    use modulith_transport::{Handled, Incoming, Limits, Peer, Priority};

    use super::super::tests::{anybody, hello, served};
    use super::*;
    use crate::check::fixture::{contract, module, shop};
    use crate::host::Known;
    use crate::topology::Topology;

    /// A name server and a log in the hand of the test.
    #[derive(Clone, Default)]
    struct Seen {
        leads_to: Arc<Mutex<Vec<SocketAddr>>>,
        asked: Arc<tokio::sync::Notify>,
        log: Arc<Mutex<Vec<u8>>>,
    }

    impl Seen {
        fn resolve(&self) -> Resolve {
            let seen = self.clone();
            Arc::new(move |_| {
                let found = seen.leads_to.lock().clone();
                seen.asked.notify_one();
                Box::pin(async move { Ok(found) })
            })
        }

        /// From now on the name leads there; returns when that is known.
        async fn lead_to(&self, addresses: &[SocketAddr]) {
            *self.leads_to.lock() = addresses.to_vec();
            // The first may have been under way.
            for _ in 0..3 {
                self.asked.notified().await;
            }
        }

        /// Every test here needs it: what a thread without a log has reached is logged by none.
        fn logged(&self) -> tracing::subscriber::DefaultGuard {
            let log = self.clone();
            let logged = tracing_subscriber::fmt().with_writer(move || log.clone()).with_ansi(false);
            tracing::subscriber::set_default(logged.without_time().with_target(false).finish())
        }

        /// What was logged since this was last asked, line by line.
        fn said(&self) -> Vec<String> {
            let log = mem::take(&mut *self.log.lock());
            String::from_utf8(log).expect("text").lines().map(str::to_owned).collect()
        }
    }

    impl io::Write for Seen {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.log.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// One process that answers with its address.
    async fn process() -> SocketAddr {
        let own: Arc<Mutex<Bytes>> = Arc::default();
        let said = own.clone();
        let address = served(move |_: Incoming| Handled::Now(Ok(said.lock().to_vec()))).await.to_string();
        *own.lock() = address.clone().into();
        address.parse().expect("a port")
    }

    fn resolver_of(service: &str, resolve: Resolve) -> Resolve {
        let mut model = shop();
        model.modules.push(module("search", vec![contract("search", &[("find", Kind::Query)])]));
        let section = ServiceSection {
            name: service.to_owned(),
            modules: vec![service.to_owned()],
            listen: None,
            addresses: Vec::new(),
            database: None,
            replicas: 1,
            workers: None,
        };
        resolver(&model, &section, resolve)
    }

    /// Who answers, of many calls.
    async fn answering(peer: &Peer) -> Vec<SocketAddr> {
        let mut answering = Vec::new();
        for _ in 0..20 {
            let soon = Instant::now() + Duration::from_secs(20);
            let answer = peer.call(soon, Priority::Ordinary, Bytes::new()).await.expect("an answer");
            answering.push(std::str::from_utf8(&answer).expect("text").parse().expect("an address"));
        }
        answering.sort();
        answering.dedup();
        answering
    }

    #[tokio::test]
    async fn one_process_is_called_of_what_stores_something_and_others_are_named() {
        let seen = Seen::default();
        let _logged = seen.logged();
        let mut at = [process().await, process().await, process().await];
        at.sort();
        let limits = Limits {
            resolve_every: Duration::from_millis(5),
            back_off_max: Duration::from_millis(5),
            back_off_min: Duration::from_millis(5),
            ..Limits::default()
        };
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("t.toml");
        // The processes say that they are `served`.
        let text = "[service.served]\nmodules = [\"products\"]\naddresses = [\"there:1\"]\n";
        std::fs::write(&file, text).expect("written");
        let topology = Topology::load(&file).expect("well formed");
        let (model, hello, admit) = (&shop(), &hello("caller"), &anybody());
        let known = Known { model, hello, admit, trust: None, resolve: seen.resolve() };
        let peer = known.peer(&topology, &topology.services[0], folder.path(), limits);
        let warning = |called: SocketAddr, left_alone: &[SocketAddr]| {
            format!(
                " WARN there:1 leads to several processes of service `served`, whose module `products` has the command \
                 `hold`: [{called}] is called, {left_alone:?} are left alone"
            )
        };

        // Among strangers it is the same for all callers, whatever comes first.
        *seen.leads_to.lock() = vec![at[2], at[1]];
        assert_eq!(answering(&peer).await, [at[1]]);
        seen.lead_to(&[at[1], at[2]]).await;
        assert_eq!(answering(&peer).await, [at[1]]);
        assert_eq!(seen.said(), [warning(at[1], &[at[2]])], "once");
        // One that would come first joins: what was stored so far stays in one place.
        seen.lead_to(&at).await;
        assert_eq!(answering(&peer).await, [at[1]]);
        assert_eq!(seen.said(), [warning(at[1], &[at[0], at[2]])]);
        seen.lead_to(&[at[0], at[2]]).await;
        assert_eq!(answering(&peer).await, [at[0]]);
        assert_eq!(seen.said(), [warning(at[0], &[at[2]])]);
        seen.lead_to(&at[2..]).await;
        assert_eq!(answering(&peer).await, [at[2]]);
        assert_eq!(seen.said(), Vec::<String>::new(), "nobody is left alone");
    }

    #[tokio::test]
    async fn one_of_each_family_is_one_process_and_what_stores_nothing_has_replicas() {
        for (service, leads_to, called) in [
            ("search", "10.0.0.2:1 10.0.0.1:1", "10.0.0.2:1 10.0.0.1:1"),
            ("products", "[::1]:1 127.0.0.1:1", "127.0.0.1:1 [::1]:1"),
            ("products", "[::2]:1 10.0.0.1:1 [::1]:1 10.0.0.2:1", "10.0.0.1:1"),
            ("products", "[::2]:1 [::1]:1", "[::1]:1"),
            ("payments", "10.0.0.2:1 10.0.0.1:1", "10.0.0.1:1"),
            ("products", "", ""),
        ] {
            let addresses = |text: &str| -> Vec<SocketAddr> {
                text.split_whitespace().map(|address| address.parse().expect("an address")).collect()
            };
            let seen = Seen::default();
            let _logged = seen.logged();
            *seen.leads_to.lock() = addresses(leads_to);
            let found = resolver_of(service, seen.resolve())("there:1".to_owned()).await;
            assert_eq!(found.expect("it is known"), addresses(called), "{service} {leads_to}");
            let are_left_alone = called.len() < leads_to.len();
            assert_eq!(seen.said().len(), usize::from(are_left_alone), "{service} {leads_to}");
        }
    }
}
