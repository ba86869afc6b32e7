//! The load, inside of the coordinator: so many sagas, so many of them in flight.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use callers::{Report, Seen};
use modulith::http::{Json, Problem, Router, StatusCode, post};
use modulith::{CallError, Links, NotRunReason, SagaClient};
use serde::{Deserialize, Serialize};

use crate::orders::{Order, PlaceOrder};
use crate::stock::PRODUCTS;

/// How long a caller waits when too many sagas are in flight: those that have answered and have steps behind their
/// pivot count too.
const OVERLOADED_PAUSE: Duration = Duration::from_millis(1);

/// `POST /load` begins a load, once in the life of the process; `GET /load` tells how far it is.
pub(crate) fn routes(links: &Links) -> Router {
    let desk = Arc::new(Desk { saga: links.saga(), run: OnceLock::new() });
    let progress = {
        let desk = desk.clone();
        async move || desk.progress()
    };
    Router::new().route("/load", post(async move |Json(asked)| desk.begin(asked)).get(progress))
}

#[derive(Clone, Copy, Deserialize)]
struct Asked {
    sagas: u64,
    in_flight: usize,
}

/// How far a load is.
#[derive(Serialize)]
struct Progress {
    is_over: bool,
    /// Of the sagas that have answered so far.
    report: Report,
}

struct Desk {
    saga: SagaClient<PlaceOrder>,
    run: OnceLock<Arc<Run>>,
}

/// A load that was begun.
struct Run {
    asked: Asked,
    began: Instant,
    next: AtomicU64,
    seen: Seen,
    /// When every saga had answered.
    over: OnceLock<Instant>,
}

impl Desk {
    fn begin(&self, asked: Asked) -> Result<(), Problem> {
        let (next, seen, over) = (AtomicU64::new(0), Seen::default(), OnceLock::new());
        let run = Arc::new(Run { asked, began: Instant::now(), next, seen, over });
        self.run
            .set(run.clone())
            .map_err(|_| Problem::new(StatusCode::CONFLICT, "load-begun", "A load was begun before"))?;
        tokio::spawn(run.run(self.saga.clone()));
        Ok(())
    }

    fn progress(&self) -> Result<Json<Progress>, Problem> {
        let missing = || Problem::new(StatusCode::NOT_FOUND, "no-load", "No load was begun");
        self.run.get().map(|run| Json(run.progress())).ok_or_else(missing)
    }
}

impl Run {
    async fn run(self: Arc<Self>, saga: SagaClient<PlaceOrder>) {
        let caller = |_| {
            let (run, saga) = (self.clone(), saga.clone());
            tokio::spawn(async move { run.call(&saga).await })
        };
        let callers: Vec<_> = (0..self.asked.in_flight).map(caller).collect();
        for caller in callers {
            caller.await.expect("a caller does not panic");
        }
        self.over.get_or_init(Instant::now);
    }

    /// One saga after the other, until there are enough.
    async fn call(&self, saga: &SagaClient<PlaceOrder>) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.asked.sagas {
                return;
            }
            let id = i64::try_from(number).expect("there are fewer sagas than that");
            let began = Instant::now();
            loop {
                let order = Order { id, product: id % PRODUCTS };
                match saga.start(PlaceOrder(order), None).await {
                    Ok(_) => break self.seen.done(Some(began.elapsed())),
                    Err(CallError::NotRun(not_run)) if not_run.reason == NotRunReason::Overloaded => {
                        tokio::time::sleep(OVERLOADED_PAUSE).await;
                    }
                    Err(error) => break self.seen.failed(&error.to_string()),
                }
            }
        }
    }

    fn progress(&self) -> Progress {
        let over = self.over.get().copied();
        let seconds = (over.unwrap_or_else(Instant::now) - self.began).as_secs_f64();
        Progress { is_over: over.is_some(), report: self.seen.report(self.asked.in_flight, seconds) }
    }
}
