//! What the coordinator and the participant need from the world around them.
//!
//! Their code is the same under the runtime and under a simulator: only what stands behind this trait differs. So
//! they open no socket, start no thread and read no clock.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use modulith_core::{AnyBox, CallFault, Context, EffectFn, EffectRan, Fault};

use crate::saga::{Asked, Place, Told};
use crate::session::Session;

/// Whether work may use the room that new work cannot fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Not run if it has not begun at the deadline.
    Ordinary { deadline: Option<Instant> },
    /// Undo, seal and the ends of sagas, which must not wait behind new work.
    Reserved,
}

/// See the module's documentation.
pub trait World: Send + Sync + 'static {
    /// Runs work as one transaction on this service's database, and answers after its sync. It may run several
    /// times.
    ///
    /// # Errors
    ///
    /// *Not run*: certainly nothing of it stands. *Unknown*: the commit itself failed.
    fn commit<T: Send + 'static>(
        &self,
        urgency: Urgency,
        work: impl FnMut(&mut dyn Session) -> Result<T, Fault> + Send + 'static,
    ) -> impl Future<Output = Result<T, CallFault>> + Send;

    /// Where a contract's data lives at this moment.
    fn place(&self, contract: &str) -> Place;

    /// Asks another service, once, and waits for at most `time`.
    fn ask(
        &self,
        peer: usize,
        asked: Asked,
        context: Context,
        time: Duration,
        urgency: Urgency,
    ) -> impl Future<Output = Result<Told, CallFault>> + Send;

    /// Lets an effect's code reach the outside.
    fn attempt(
        &self,
        run: Arc<dyn EffectFn>,
        context: Context,
        request: AnyBox,
    ) -> impl Future<Output = EffectRan> + Send;

    /// Waits for about this long; those who begin together do not end together.
    fn pause(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// Whether this process ends: it was told to, or nothing can be committed any more. What has no certain answer
    /// then is left to the next start.
    fn is_ending(&self) -> bool;
}
