//! The world of a service's coordinators and participants: its database, its peers, and tokio's clock.

use std::sync::Arc;
use std::time::{Duration, Instant};

use modulith_core::{
    AnyBox, CallFault, Context, EffectFn, EffectRan, Fault, NotRun, Trace, Unknown, UnknownReason,
    encode_onto,
};
use modulith_data::saga::{Asked, Place, Told as SagaTold};
use modulith_data::sqlite::Database;
use modulith_data::{Session, Urgency, World};
use modulith_transport::{Priority, Terms};

use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::calls::{Ask, Asker, Head, Peers, Told, jittered};
use crate::metrics::{Ended, Metrics};
use crate::spans;

/// How long an attempt at an effect may take: 30 seconds. After it the outcome is unknown.
pub const EFFECT_TIME_MAX: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub(crate) struct Surroundings {
    pub(crate) database: Arc<Database>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) stopping: CancellationToken,
    pub(crate) metrics: Arc<Metrics>,
}

impl World for Surroundings {
    async fn commit<T: Send + 'static>(
        &self,
        urgency: Urgency,
        work: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, CallFault> {
        match urgency {
            Urgency::Ordinary { deadline } => self.database.write(deadline, work).await,
            Urgency::Reserved => self.database.write_reserved(work).await,
        }
    }

    fn place(&self, contract: &str) -> Place {
        self.peers.of(contract).map_or(Place::Here, Place::Peer)
    }

    async fn ask(
        &self,
        peer: usize,
        asked: Asked,
        mut context: Context,
        time: Duration,
        urgency: Urgency,
    ) -> Result<SagaTold, CallFault> {
        let started = Instant::now();
        context.trace = context.trace.map(Trace::next);
        let (contract, method) = (asked.ask.contract().unwrap_or_default(), asked.ask.name());
        let span = spans::call(context.trace.as_ref(), &context.request_id, contract, method);
        let head = Head {
            ask: Ask::Saga,
            contract: "",
            method: "",
            request_id: &context.request_id,
            principal: context.principal.as_ref().map(Asker::from),
            keyed: None,
            trace: context.trace.clone(),
        };
        let mut payload = head.with_body(&[]).map_err(NotRun::from)?;
        encode_onto(&asked, &mut payload).map_err(NotRun::from)?;
        let priority = match urgency {
            Urgency::Ordinary { .. } => Priority::Ordinary,
            Urgency::Reserved => Priority::Reserved,
        };
        let terms = Terms { now: started, deadline: started + time, priority };
        let sent = self.peers.send(peer, &payload[..], terms);
        let result = match sent.instrument(span).await {
            Ok(Told::Saga(told)) => Ok(told),
            Ok(_) => {
                Err(Unknown::new(UnknownReason::Unreadable, "an answer of another kind than asked").into())
            }
            Err(fault) => Err(fault),
        };
        let ended = match &result {
            Ok(SagaTold::Refused { .. }) => Ended::Refused,
            Ok(_) => Ended::Done,
            Err(CallFault::NotRun(_)) => Ended::NotRun,
            Err(CallFault::Unknown(_)) => Ended::Unknown,
        };
        self.metrics.peers[peer].calls.ask(&asked.ask).ended(ended, started.elapsed());
        result
    }

    async fn attempt(&self, run: Arc<dyn EffectFn>, context: Context, request: AnyBox) -> EffectRan {
        // On a task of its own: a panic of the module's code leaves the outcome unknown, not the process down, and a
        // caller that leaves does not cut an attempt short.
        let context = Context { trace: context.trace.map(Trace::next), ..context };
        let span = spans::effect(context.trace.as_ref(), &context.request_id);
        let within = context.clone();
        let attempt = async move { tokio::time::timeout(EFFECT_TIME_MAX, run.run(context, request)).await };
        // What the effect calls has the effect's deadline, request and trace.
        let attempt = within.scope(attempt);
        match tokio::spawn(attempt.instrument(span)).await {
            Ok(Ok(ran)) => ran,
            Ok(Err(_)) => EffectRan::Unknown(Unknown::new(
                UnknownReason::Deadline,
                format!("the effect gave no answer within {} s", EFFECT_TIME_MAX.as_secs()),
            )),
            Err(error) => EffectRan::Unknown(Unknown::new(
                UnknownReason::Provider,
                format!("the effect ended early: {error}"),
            )),
        }
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = tokio::time::sleep(jittered(time)) => {}
            () = self.stopping.cancelled() => {}
        }
    }

    fn is_ending(&self) -> bool {
        self.stopping.is_cancelled() || self.database.broken().is_some()
    }
}
