//! `/admin/sagas` of one service.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::StatusCode;
use modulith_core::{CallError, CallFault, Fault, Never, NotRun, NotRunReason, SagaEnd, Snapshot};
use modulith_data::saga::{OrderError, SagaFilter, SagaName, SagaRow};
use modulith_gateway::http::{Path, Problem, Query, finish};

use super::show::{Contracts, line, shown};
use super::{Line, Listed, Ordered, PATH, Wanted, listed};
use crate::sagas::Driven;

/// The sagas that a service begins, and what is needed to show them.
pub(crate) struct Operated {
    pub(crate) sagas: Vec<Driven>,
    pub(crate) contracts: Contracts,
}

pub(crate) fn routes(operated: Operated) -> (String, Router) {
    let router = Router::new()
        .route(PATH, get(list_all))
        .route(&format!("{PATH}/{{module}}"), get(list_one))
        .route(&format!("{PATH}/{{module}}/{{number}}"), get(show))
        .route(&format!("{PATH}/{{module}}/{{number}}/resume"), post(resume))
        .route(&format!("{PATH}/{{module}}/{{number}}/abort"), post(abort));
    (PATH.to_owned(), finish(router.with_state(Arc::new(operated))))
}

async fn list_all(State(operated): State<Arc<Operated>>, Query(wanted): Query<Wanted>) -> Response {
    let mut modules: Vec<String> =
        operated.sagas.iter().map(|driven| driven.sagas.module().to_owned()).collect();
    modules.sort();
    listed(&modules, &wanted, |module, wanted| {
        let operated = operated.clone();
        async move { operated.page(&module, wanted).await.map_err(|problem| problem.to_string()) }
    })
    .await
}

async fn list_one(
    State(operated): State<Arc<Operated>>,
    Path(module): Path<String>,
    Query(wanted): Query<Wanted>,
) -> Result<axum::Json<Listed>, Problem> {
    operated.page(&module, wanted).await.map(axum::Json)
}

async fn show(
    State(operated): State<Arc<Operated>>,
    Path((module, number)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (driven, row) = operated.one(&module, &number).await?;
    let shown = shown(&driven, &operated.contracts, row).await.map_err(failed)?;
    Ok(axum::Json(shown.ok_or_else(Problem::not_found)?).into_response())
}

async fn resume(
    State(operated): State<Arc<Operated>>,
    Path((module, number)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (driven, row) = operated.one(&module, &number).await?;
    let (resumes, id) = (driven.clone(), row.id);
    let resumed = to_its_end(async move {
        let drive = resumes.sagas.resume(id).await?;
        Ok(drive.map(|drive| resumes.drive(drive)))
    });
    let says = match resumed.await.map_err(|error| refused(error, &row))? {
        None => "It is walked already, and tries again at once.",
        Some(()) => "It is walked again from its beginning; steps that are done answer from their inboxes.",
    };
    Ok(accepted(&driven, &row, says))
}

async fn abort(
    State(operated): State<Arc<Operated>>,
    Path((module, number)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (driven, row) = operated.one(&module, &number).await?;
    let (aborts, id) = (driven.clone(), row.id);
    let aborted = to_its_end(async move {
        let drive = aborts.sagas.abort(id).await?;
        Ok(drive.map(|drive| aborts.drive(drive)))
    });
    aborted.await.map_err(|error| refused(error, &row))?;
    let says = if row.frontier.is_some() {
        "It has turned back already, and undoes what was done."
    } else {
        "It turns back, unless its pivot proves to be done: its first step that is not known to be done is sealed, \
         and those before it are undone."
    };
    Ok(accepted(&driven, &row, says))
}

/// An operator who hangs up must not leave a saga whose mark is taken away and that nobody walks.
async fn to_its_end<T: Send + 'static>(
    order: impl Future<Output = Result<T, OrderError>> + Send + 'static,
) -> Result<T, OrderError> {
    match tokio::spawn(order).await {
        Ok(ended) => ended,
        Err(error) => {
            let detail = error.to_string();
            Err(OrderError::Call(NotRun::new(NotRunReason::Panicked, detail).into()))
        }
    }
}

fn accepted(driven: &Driven, row: &SagaRow, says: &str) -> Response {
    let id = SagaName::of(driven.sagas.module(), row.id).to_string();
    (StatusCode::ACCEPTED, axum::Json(Ordered { id, says: says.to_owned() })).into_response()
}

impl Operated {
    fn module(&self, name: &str) -> Result<&Driven, Problem> {
        let found = self.sagas.iter().find(|driven| driven.sagas.module() == name);
        found.ok_or_else(Problem::not_found)
    }

    async fn page(&self, module: &str, wanted: Wanted) -> Result<Listed, Problem> {
        let driven = self.module(module)?.clone();
        let (limit, after) = wanted.checked()?;
        let filter = SagaFilter {
            state: wanted.state,
            attention: wanted.attention,
            plan: wanted.plan,
            after: after.and_then(|name| name.id()),
        };
        let sagas = driven.sagas.clone();
        let read = move |db: &Snapshot<'_>| {
            let rows = if limit == 0 { Vec::new() } else { sagas.list(db, &filter, limit)? };
            let end = |row: &SagaRow| Ok(sagas.contents(db, row.id)?.and_then(|contents| contents.end));
            let ends = rows.iter().map(|row| if wanted.end { end(row) } else { Ok(None) });
            let ends = ends.collect::<Result<Vec<Option<SagaEnd>>, Fault>>()?;
            Ok((sagas.table().counts(db)?, rows, ends))
        };
        let ((open, attention), rows, ends) = read_framework(&driven, read).await.map_err(failed)?;
        let is_full = limit > 0 && rows.len() == limit as usize;
        let last = rows.last().filter(|_| is_full);
        Ok(Listed {
            open: Some(open),
            attention: Some(attention),
            next: last.map(|row| SagaName::whole(module, row.id).to_string()),
            sagas: rows.iter().zip(ends).map(|(row, end)| self.line(&driven, row, end)).collect(),
            unreachable: Vec::new(),
        })
    }

    fn line(&self, driven: &Driven, row: &SagaRow, end: Option<SagaEnd>) -> Line {
        let plan = driven.sagas.plan_of(row).map(|plan| &**plan);
        line(&driven.sagas, row, end.and_then(|end| self.contracts.end(plan, end)))
    }

    /// The saga of a name.
    async fn one(&self, module: &str, number: &str) -> Result<(Driven, SagaRow), Problem> {
        let driven = self.module(module)?.clone();
        let name: SagaName = format!("{module}/{number}").parse().map_err(|_| Problem::not_found())?;
        let sagas = driven.sagas.clone();
        let found = read_framework(&driven, move |db| sagas.named(db, &name)).await.map_err(failed)?;
        match <[SagaRow; 1]>::try_from(found) {
            Ok([row]) => Ok((driven, row)),
            Err(found) if found.is_empty() => Err(Problem::not_found()),
            Err(found) => {
                let names: Vec<String> =
                    found.iter().map(|row| SagaName::whole(module, row.id).to_string()).collect();
                Err(Problem::new(
                    StatusCode::CONFLICT,
                    "saga-ambiguous",
                    "Several sagas have names like this",
                )
                .with("sagas", names))
            }
        }
    }
}

/// On a thread that may block: a list may read many rows.
pub(super) async fn read_framework<T: Send + 'static>(
    driven: &Driven,
    read: impl FnOnce(&Snapshot<'_>) -> Result<T, Fault> + Send + 'static,
) -> Result<T, CallFault> {
    let database = driven.sagas.world().database.clone();
    let read = move || Ok(database.read_framework(read)?.map_err(NotRun::from)?);
    let panicked = |error: tokio::task::JoinError| NotRun::new(NotRunReason::Panicked, error.to_string());
    tokio::task::spawn_blocking(read).await.map_err(panicked)?
}

fn failed(fault: CallFault) -> Problem {
    Problem::from(CallError::<Never>::from(fault))
}

/// What is impossible, and why.
fn refused(error: OrderError, row: &SagaRow) -> Problem {
    let conflict = |code, title| Problem::new(StatusCode::CONFLICT, code, title).with("state", row.state);
    match error {
        OrderError::NotOpen => conflict("saga-ended", "The saga has ended"),
        OrderError::PivotDone => conflict("saga-past-pivot", "The saga is past its pivot").detail(
            "Its point of no return is done, so it only goes forward. Once what it waits for is mended it goes on by \
             itself, or at once when it is resumed.",
        ),
        OrderError::Unwalkable(attention) => {
            conflict("saga-left-alone", "This build cannot walk the saga").with("attention", attention)
        }
        OrderError::Call(fault) => failed(fault),
    }
}
