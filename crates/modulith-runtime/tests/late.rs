//! A query that takes long waits for a thread, and is not begun once nobody waits for it any more.

use std::time::{Duration, Instant};

use modulith::{Answer, App, CallError, Context, Module, Never, NotRunReason, Setup, SetupError, contract};
use modulith_test::until;
use parking_lot::{Condvar, Mutex};

#[contract(name = "reports", version = 1)]
trait Reports {
    /// Notes that it has begun, and answers when it may.
    #[query(heavy)]
    fn report(&self, db: &modulith::Snapshot<'_>, name: String) -> Answer<(), Never>;
}

struct Desk {
    begun: Mutex<Vec<String>>,
    may_end: Mutex<bool>,
    told: Condvar,
}

static DESK: Desk = Desk { begun: Mutex::new(Vec::new()), may_end: Mutex::new(false), told: Condvar::new() };

struct ReportsModule;

impl Reports for ReportsModule {
    fn report(&self, _: &modulith::Snapshot<'_>, name: String) -> Answer<(), Never> {
        DESK.begun.lock().push(name);
        let mut may_end = DESK.may_end.lock();
        while !*may_end {
            DESK.told.wait(&mut may_end);
        }
        Ok(())
    }
}

fn reports_module(_: &Setup<'_>) -> Result<Module, SetupError> {
    Ok(Module::new("reports").serves(Reports.serve(ReportsModule)))
}

#[test]
fn a_heavy_query_that_found_a_thread_too_late_does_not_begin() -> anyhow::Result<()> {
    // One thread for everything that takes long, so that the second has to wait for the first.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .max_blocking_threads(1)
        .enable_all()
        .build()?;
    let data = tempfile::tempdir()?;
    runtime.block_on(async {
        let mounted = App::new("late").module(reports_module).mount(data.path()).await?;
        let client: ReportsClient = mounted.client().expect("reports are served here");
        let first = tokio::spawn({
            let client = client.clone();
            async move { client.report("first".into()).await }
        });
        until("the first to begin", async || (*DESK.begun.lock() == ["first"]).then_some(())).await;

        let deadline = Instant::now() + Duration::from_millis(50);
        let context = Context { deadline: Some(deadline), ..Context::background("late") };
        let late = tokio::spawn(context.scope({
            let client = client.clone();
            async move { client.report("late".into()).await }
        }));
        until("the deadline to pass", async || (deadline < Instant::now()).then_some(())).await;
        *DESK.may_end.lock() = true;
        DESK.told.notify_all();

        first.await??;
        let late = late.await?;
        assert!(
            matches!(&late, Err(CallError::NotRun(late)) if late.reason == NotRunReason::Deadline),
            "{late:?}"
        );
        client.report("third".into()).await?;
        assert_eq!(*DESK.begun.lock(), ["first", "third"]);
        mounted.stop().await;
        Ok(())
    })
}
