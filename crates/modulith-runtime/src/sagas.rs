//! The sagas of this process: what modules start them through, and who drives them.

use std::sync::Arc;

use modulith_core::{
    AnyBox, BoxFuture, CallFault, ClientKey, Context, NotRun, SagaCalls, SagaEnd, Unknown, UnknownReason,
};
use modulith_data::saga::Drive;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use crate::world::Surroundings;

/// The sagas that one module of this process begins.
pub(crate) type Sagas = modulith_data::saga::Sagas<Surroundings>;

/// The sagas of one module, with the tasks that drive them.
#[derive(Clone)]
pub(crate) struct Driven {
    pub(crate) sagas: Arc<Sagas>,
    walks: TaskTracker,
}

impl Driven {
    /// `started` gives the sagas that commands begin.
    pub(crate) fn new(
        sagas: Arc<Sagas>,
        mut started: mpsc::UnboundedReceiver<Drive<Surroundings>>,
        walks: TaskTracker,
    ) -> Self {
        let spawner = walks.clone();
        // Ends with the engine, which holds the other end.
        tokio::spawn(async move {
            while let Some(drive) = started.recv().await {
                spawner.spawn(drive.run());
            }
        });
        Self { sagas, walks }
    }

    /// Walks a saga on a task of its own.
    pub(crate) fn drive(&self, drive: Drive<Surroundings>) {
        self.walks.spawn(drive.run());
    }

    /// Drives every saga again that has not ended.
    pub(crate) async fn sweep(&self) -> Result<(), CallFault> {
        let unfinished = self.sagas.unfinished().await?;
        if !unfinished.is_empty() {
            let (module, sagas) = (self.sagas.module(), unfinished.len());
            tracing::info!(module, sagas, "walking unfinished sagas again");
        }
        for drive in unfinished {
            self.drive(drive);
        }
        Ok(())
    }
}

/// What a module's endpoints hold.
impl SagaCalls for Driven {
    fn start(
        &self,
        plan: &'static str,
        input: AnyBox,
        key: Option<ClientKey>,
    ) -> BoxFuture<'_, Result<SagaEnd, CallFault>> {
        Box::pin(async move {
            let deadline = Context::current().deadline_or_default();
            let (drive, answered) = self.sagas.begin(plan, input, key)?;
            self.drive(drive);
            match tokio::time::timeout_at(deadline.into(), answered).await {
                Ok(Ok(end)) => end,
                Ok(Err(_)) => {
                    let detail = "the saga's walk ended without an answer";
                    Err(Unknown::new(UnknownReason::CommitLost, detail).into())
                }
                Err(_) => {
                    let detail = "the saga goes on behind the deadline";
                    Err(Unknown::new(UnknownReason::Deadline, detail).into())
                }
            }
        })
    }

    fn find(&self, key: ClientKey) -> Result<Option<SagaEnd>, NotRun> {
        self.sagas.world().database.look_up(|db| self.sagas.find(db, &key))?
    }
}
