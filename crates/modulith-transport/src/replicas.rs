//! The replicas of one peer: which there are, which of them a call goes to, and which is left out.
//!
//! Owns the choice and the set, which changes when a host name leads elsewhere. It never leaves out more than half.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::{
    Address, NotRun, ReplicaSnapshot,
    breaker::Ending,
    client::Connection,
    names, random,
    replica::{Replica, Settings, State},
};

/// Where a call goes. Without a replica, it is the only one that there is, and nothing has to be known of it.
pub(crate) type Picked = (Option<Arc<Replica>>, Arc<Connection>);

pub(crate) struct Replicas {
    /// There is one address, which is no name: nothing is chosen, and the set never changes.
    only: Option<Arc<Replica>>,
    now: ArcSwap<Vec<Arc<Replica>>>,
    /// The host names among the addresses, and why the last look-up of each failed; a name that was never looked up
    /// has [`LookUp::UnderWay`]. Its lock is held while the set changes.
    names: Mutex<Vec<(String, LookUp)>>,
}

enum LookUp {
    UnderWay,
    Done,
    Failed(NotRun),
}

/// Whether waiting for a connection is worth it.
pub(crate) enum Prospect {
    /// An attempt is under way.
    UnderWay,
    /// A replica that said that it goes is awaited until then.
    Until(Instant),
    None,
}

impl Replicas {
    pub(crate) fn new(addresses: Vec<Address>) -> Self {
        let (mut fixed, mut named) = (Vec::new(), Vec::new());
        for address in addresses {
            match names::name_in(&address) {
                Some(name) => named.push((name.to_owned(), LookUp::UnderWay)),
                None => fixed.push(Arc::new(Replica::new(address, None, None))),
            }
        }
        let only = match (&fixed[..], &named[..]) {
            ([only], []) => Some(Arc::clone(only)),
            _ => None,
        };
        Self { only, now: ArcSwap::from_pointee(fixed), names: Mutex::new(named) }
    }

    /// Starts the tasks that connect and those that look names up.
    pub(crate) fn start(self: &Arc<Self>, settings: &Arc<Settings>) {
        for replica in self.now.load().iter() {
            tokio::spawn(Arc::clone(replica).maintain(Arc::clone(settings)));
        }
        for (name, _) in &*self.names.lock() {
            tokio::spawn(names::follow(name.clone(), Arc::clone(self), Arc::clone(settings)));
        }
    }

    pub(crate) fn all(&self) -> Arc<Vec<Arc<Replica>>> {
        self.now.load_full()
    }

    /// What was configured, for messages.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let names: Vec<_> = self.names.lock().iter().map(|(name, _)| name.clone()).collect();
        let now = self.now.load();
        let fixed = now.iter().filter(|replica| replica.name.is_none());
        fixed.map(|replica| replica.address.to_string()).chain(names).collect()
    }

    /// From now on the name leads to these addresses.
    pub(crate) fn set(&self, name: &str, mut found: Vec<SocketAddr>, settings: &Arc<Settings>) {
        found.sort();
        found.dedup();
        found.truncate(settings.limits.replicas_max);
        let mut names = self.names.lock();
        if let Some((_, look_up)) = names.iter_mut().find(|(known, _)| known == name) {
            *look_up = LookUp::Done;
        }
        let before = self.now.load_full();
        let found: Vec<_> = found.into_iter().map(|found| Address::Tcp(found.to_string())).collect();
        let is_of_name = |replica: &Replica| replica.name.as_deref() == Some(name);
        let (stay, gone): (Vec<_>, Vec<_>) = before
            .iter()
            .cloned()
            .partition(|replica| !is_of_name(replica) || found.contains(&replica.address));
        let is_known = |address: &Address| {
            stay.iter().any(|replica: &Arc<Replica>| is_of_name(replica) && replica.address == *address)
        };
        // Whoever takes the place of one that said that it goes may have an address before it listens.
        let awaited_until = gone.iter().filter_map(|replica| replica.awaited_until()).max();
        let new: Vec<_> = found
            .iter()
            .filter(|address| !is_known(address))
            .map(|address| Arc::new(Replica::new(address.clone(), Some(name.to_owned()), awaited_until)))
            .collect();
        if !new.is_empty() || !gone.is_empty() {
            tracing::debug!(name, joined = new.len(), left = gone.len(), "a name leads elsewhere");
            self.now.store(Arc::new(stay.iter().chain(&new).cloned().collect()));
        }
        drop(names);
        for replica in new {
            tokio::spawn(replica.maintain(Arc::clone(settings)));
        }
        for replica in gone {
            replica.leave.cancel();
        }
        settings.changed.send_replace(());
    }

    /// The name leads nowhere at the moment; what it led to before stays.
    pub(crate) fn unresolved(&self, name: &str, fault: NotRun, settings: &Settings) {
        let mut names = self.names.lock();
        if let Some((_, look_up)) = names.iter_mut().find(|(known, _)| known == name) {
            *look_up = LookUp::Failed(fault);
        }
        drop(names);
        settings.changed.send_replace(());
    }

    /// A connected replica, by two random choices among those that are not left out, unless all are.
    pub(crate) fn pick(&self) -> Option<Picked> {
        if let Some(only) = &self.only {
            return only.usable().map(|connection| (None, connection));
        }
        let replicas = self.now.load();
        if let [only] = &replicas[..] {
            return only.usable().map(|connection| (Some(Arc::clone(only)), connection));
        }
        let now = Instant::now();
        let up = |replica: &Arc<Replica>| Some((Arc::clone(replica), replica.usable()?));
        let mut up: Vec<_> = replicas.iter().filter_map(up).collect();
        if up.iter().any(|(replica, _)| !replica.ejection.lock().is_out(now)) {
            up.retain(|(replica, _)| !replica.ejection.lock().is_out(now));
        }
        let first = random::below(up.len());
        // The second choice is among the others.
        let second = (first + 1 + random::below(up.len().saturating_sub(1))) % up.len().max(1);
        let busy = |at: usize| up.get(at).map(|(replica, _)| replica.in_flight.load(Ordering::Relaxed));
        let chosen = if busy(second) < busy(first) { second } else { first };
        up.into_iter().nth(chosen).map(|(replica, connection)| (Some(replica), connection))
    }

    /// Takes note of how a call to this replica ended, and leaves it out when it has failed too often.
    pub(crate) fn ended(&self, replica: &Replica, ending: Ending, settings: &Settings) {
        let replicas = self.now.load();
        if replicas.len() < 2 {
            return;
        }
        let (now, limits) = (Instant::now(), &settings.limits);
        if !replica.ejection.lock().ended(now, ending, limits) {
            return;
        }
        // One at a time, so that two of them do not go over the half together.
        let _deciding = self.names.lock();
        let out = replicas.iter().filter(|replica| replica.ejection.lock().is_out(now)).count();
        if (out + 1) * 2 <= replicas.len() {
            tracing::info!(address = %replica.address, "a replica is left out for a while: calls to it fail");
            replica.ejection.lock().eject(now, limits);
        }
    }

    /// Each of them, for telemetry. What is in flight at the only one is what is in flight at the peer.
    pub(crate) fn snapshot(&self, now: Instant, in_flight: usize) -> Vec<ReplicaSnapshot> {
        let of = |replica: &Replica| match self.only {
            Some(_) => replica.snapshot(now, in_flight),
            None => replica.snapshot(now, replica.in_flight.load(Ordering::Relaxed)),
        };
        self.all().iter().map(|replica| of(replica)).collect()
    }

    pub(crate) fn prospect(&self, now: Instant) -> Prospect {
        let mut latest = None;
        for replica in self.now.load().iter() {
            match replica.state() {
                State::Connecting | State::Up(_) => return Prospect::UnderWay,
                State::Down(_) => latest = latest.max(replica.awaited_until()),
            }
        }
        if self.names.lock().iter().any(|(_, look_up)| matches!(look_up, LookUp::UnderWay)) {
            return Prospect::UnderWay;
        }
        match latest {
            Some(until) if now < until => Prospect::Until(until),
            _ => Prospect::None,
        }
    }

    /// What is wrong with each, as far as something is.
    pub(crate) fn faults(&self) -> Vec<NotRun> {
        let mut faults: Vec<_> = self.now.load().iter().filter_map(|replica| replica.fault()).collect();
        for (_, look_up) in &*self.names.lock() {
            if let LookUp::Failed(fault) = look_up {
                faults.push(fault.clone());
            }
        }
        faults
    }

    /// The refusal of a replica that was reached says more than the silence of one that was not.
    pub(crate) fn why_not(&self) -> NotRun {
        let mut faults = self.faults();
        let refused = faults.iter().position(|fault| matches!(fault, NotRun::Refused(_)));
        match refused {
            Some(at) => faults.swap_remove(at),
            None => faults.pop().unwrap_or_else(|| {
                if self.now.load().is_empty() {
                    NotRun::Unreachable("no address".to_owned())
                } else {
                    NotRun::Deadline
                }
            }),
        }
    }
}
