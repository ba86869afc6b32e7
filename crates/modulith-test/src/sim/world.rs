//! The simulated world: whatever coordinators and participants do to the outside becomes an event in a queue.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use modulith_core::{AnyBox, CallFault, Context, EffectFn, EffectRan, Fault, Unknown, UnknownReason};
use modulith_data::saga::{Asked, Place, Told};
use modulith_data::sqlite::InMemory;
use modulith_data::{Session, Urgency, World};
use tokio::sync::oneshot;

/// One process of the simulation: a service, in one of its lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) service: usize,
    pub(super) life: u64,
}

/// Something that a process wants to happen.
pub(super) struct Event {
    pub(super) by: Process,
    pub(super) what: What,
}

pub(super) enum What {
    Commit(Box<dyn FnOnce(Doing<'_>) -> Option<String> + Send>),
    Request {
        to: usize,
        asked: Asked,
        context: Context,
        done: oneshot::Sender<Heard>,
    },
    Reply {
        asker: Process,
        heard: Heard,
        done: oneshot::Sender<Heard>,
    },
    Attempt {
        run: Arc<dyn EffectFn>,
        context: Context,
        request: AnyBox,
        done: oneshot::Sender<EffectRan>,
    },
    /// Over at this time, which is known when it enters the queue.
    Pause {
        time: Duration,
        until_ms: i64,
        done: oneshot::Sender<()>,
    },
}

pub(super) type Heard = Result<Told, CallFault>;

/// What becomes of a transaction.
pub(super) enum Doing<'d> {
    Commit(&'d InMemory, i64),
    /// It commits, and the process ends before it hears of it.
    CommitUnheard(&'d InMemory, i64),
    /// The process ends before the commit.
    TakeBack(&'d InMemory, i64),
    Refuse(CallFault),
}

/// What all processes share: the queue, and where each contract's data lives.
#[derive(Default)]
pub(super) struct Shared {
    queue: Mutex<Vec<Event>>,
    places: Mutex<BTreeMap<&'static str, usize>>,
}

impl Shared {
    pub(super) fn push(&self, event: Event) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    pub(super) fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn set_places(&self, places: BTreeMap<&'static str, usize>) {
        *self.places.lock().unwrap_or_else(PoisonError::into_inner) = places;
    }
}

/// The world of one process.
pub(super) struct SimWorld {
    pub(super) shared: Arc<Shared>,
    pub(super) process: Process,
}

impl SimWorld {
    fn push(&self, what: What) {
        self.shared.push(Event { by: self.process, what });
    }
}

impl World for SimWorld {
    async fn commit<T: Send + 'static>(
        &self,
        _: Urgency,
        mut work: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, CallFault> {
        let (done, wait) = oneshot::channel::<Result<Box<dyn Any + Send>, CallFault>>();
        self.push(What::Commit(Box::new(move |doing| {
            let ended = match doing {
                Doing::Commit(database, now_ms) => {
                    database.run(now_ms, |session| work(session)).and_then(|pending| pending.commit())
                }
                Doing::CommitUnheard(database, now_ms) => {
                    // The process ends here, so nobody is told either way.
                    let _ =
                        database.run(now_ms, |session| work(session)).and_then(|pending| pending.commit());
                    return None;
                }
                Doing::TakeBack(database, now_ms) => {
                    drop(database.run(now_ms, |session| work(session)));
                    return None;
                }
                Doing::Refuse(fault) => Err(fault),
            };
            let failed = ended.as_ref().err().map(ToString::to_string);
            // A process that has ended does not listen.
            let _ = done.send(ended.map(|done| Box::new(done) as Box<dyn Any + Send>));
            failed
        })));
        match wait.await {
            Ok(ended) => ended.map(|done| *done.downcast::<T>().expect("it was made of this type above")),
            Err(_) => std::future::pending().await,
        }
    }

    fn place(&self, contract: &str) -> Place {
        let places = self.shared.places.lock().unwrap_or_else(PoisonError::into_inner);
        match places.get(contract) {
            Some(service) if *service != self.process.service => Place::Peer(*service),
            _ => Place::Here,
        }
    }

    async fn ask(&self, peer: usize, asked: Asked, context: Context, _: Duration, _: Urgency) -> Heard {
        let (done, wait) = oneshot::channel();
        self.push(What::Request { to: peer, asked, context, done });
        wait.await.unwrap_or_else(|_| Err(Unknown::new(UnknownReason::ConnectionLost, "it ended").into()))
    }

    async fn attempt(&self, run: Arc<dyn EffectFn>, context: Context, request: AnyBox) -> EffectRan {
        let (done, wait) = oneshot::channel();
        self.push(What::Attempt { run, context, request, done });
        wait.await.unwrap_or_else(|_| {
            EffectRan::Unknown(Unknown::new(UnknownReason::Provider, "no answer came back"))
        })
    }

    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send {
        let (done, wait) = oneshot::channel();
        self.push(What::Pause { time, until_ms: 0, done });
        async move {
            // Either way it is over.
            let _ = wait.await;
        }
    }

    fn is_ending(&self) -> bool {
        false
    }
}
