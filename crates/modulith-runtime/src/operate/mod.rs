//! The operators' view of sagas: what `/admin/sagas` answers, in a service and at the gateway, and the command
//! `sagas` that asks it.
//!
//! `GET /admin/sagas` covers all services, `GET /admin/sagas/{module}` one module. A saga's name is its path below
//! `/admin/sagas`. Nothing that a contract calls secret is ever answered.

mod advice;
pub(crate) mod command;
mod print;
pub(crate) mod service;
mod show;

pub(crate) use show::Contracts;

use axum::response::{IntoResponse, Response};
use modulith_data::saga::{Attention, SagaName, SagaState};
use modulith_gateway::http::Problem;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where all of this is.
pub(crate) const PATH: &str = "/admin/sagas";
/// Sagas on one page, at most: 200.
pub const SAGAS_LISTED_MAX: u32 = 200;
/// Sagas on a page unless the caller says otherwise: 50.
pub const SAGAS_LISTED_DEFAULT: u32 = 50;

/// What to list.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    pub(crate) state: Option<SagaState>,
    /// Only those that need a person.
    #[serde(default)]
    pub(crate) attention: bool,
    pub(crate) plan: Option<String>,
    /// `next` of the page before.
    pub(crate) after: Option<String>,
    /// With 0 there are only the counts.
    pub(crate) limit: Option<u32>,
    /// Also how each of them ends.
    #[serde(default)]
    pub(crate) end: bool,
}

/// One page.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Listed {
    /// How many sagas are open, and how many of these need attention, whatever is listed. Null if not all services
    /// have said so.
    pub(crate) open: Option<i64>,
    pub(crate) attention: Option<i64>,
    pub(crate) sagas: Vec<Line>,
    /// There may be more behind this one.
    pub(crate) next: Option<String>,
    /// The modules whose sagas are not here because their service does not answer.
    pub(crate) unreachable: Vec<Unreachable>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Unreachable {
    pub(crate) module: String,
    pub(crate) reason: String,
}

/// A saga in a list.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) id: String,
    pub(crate) module: String,
    pub(crate) plan: String,
    pub(crate) version: i64,
    pub(crate) state: SagaState,
    /// The step that it stands at, as far as it is known: of an open saga that is walked, or that has turned back.
    pub(crate) step: Option<String>,
    pub(crate) doing: Option<Doing>,
    pub(crate) begun_ms: i64,
    pub(crate) ended_ms: Option<i64>,
    /// Walks in a row that their process may not have survived.
    pub(crate) attempts: i64,
    pub(crate) attention: Option<Attention>,
    /// How it ends, as far as that is decided. In a list only if it was asked for.
    pub(crate) end: Option<End>,
}

/// What is done at the step where a saga stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Doing {
    Run,
    Seal,
    Turn,
    Undo,
    End,
}

/// One saga with its steps.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Shown {
    #[serde(flatten)]
    pub(crate) line: Line,
    /// Its coordinator, whole.
    pub(crate) src: uuid::Uuid,
    /// Whether this process walks it.
    pub(crate) walked: bool,
    /// Attempts in a row without a certain answer, and what was said of the last.
    pub(crate) unanswered: u32,
    pub(crate) fault: Option<String>,
    /// It began and ended in one transaction, so there are no rows of its steps.
    pub(crate) in_one_transaction: bool,
    /// Null if this build does not have its plan.
    pub(crate) input: Option<Value>,
    pub(crate) steps: Vec<Step>,
    /// What an operator may do, if it needs one.
    pub(crate) advice: Vec<String>,
}

/// How a saga ends, as far as that is decided.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum End {
    Done(Value),
    Refused { step: String, refusal: Refused },
    Aborted(String),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) name: String,
    /// `contract.method`.
    pub(crate) method: String,
    pub(crate) kind: modulith_core::StepKind,
    pub(crate) is_pivot: bool,
    /// What undoes it, if anything does.
    pub(crate) undo: Option<String>,
    /// The service that has its data.
    pub(crate) service: String,
    pub(crate) key: String,
    /// What stands under its key, and under that of its undo: null for nothing.
    pub(crate) row: Option<Row>,
    pub(crate) undo_row: Option<Row>,
    /// Why the two are not known.
    pub(crate) unreachable: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) state: modulith_data::inbox::RowState,
    pub(crate) attempts: i64,
    pub(crate) first_at_ms: i64,
    pub(crate) answer: Option<Value>,
    pub(crate) refusal: Option<Refused>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Refused {
    pub(crate) code: String,
    pub(crate) text: String,
    pub(crate) status: u16,
    pub(crate) body: Value,
}

/// What will come of an operator's wish.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ordered {
    pub(crate) id: String,
    pub(crate) says: String,
}

impl Wanted {
    /// As the query of a request.
    pub(crate) fn query(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let Self { state, attention, plan, after, limit, end } = self;
        if let Some(state) = state {
            query.append_pair("state", state.name());
        }
        for (name, asked) in [("attention", attention), ("end", end)] {
            if *asked {
                query.append_pair(name, "true");
            }
        }
        for (name, value) in [("plan", plan), ("after", after)] {
            if let Some(value) = value {
                query.append_pair(name, value);
            }
        }
        if let Some(limit) = limit {
            query.append_pair("limit", &limit.to_string());
        }
        query.finish()
    }

    /// The limit and where to go on, checked.
    pub(crate) fn checked(&self) -> Result<(u32, Option<SagaName>), Problem> {
        let limit = self.limit.unwrap_or(SAGAS_LISTED_DEFAULT);
        let after = self.after.as_deref().map(str::parse::<SagaName>).transpose();
        let after = after.ok().filter(|after| after.as_ref().is_none_or(|name| name.id().is_some()));
        let mut invalid = modulith_gateway::http::Invalid::default();
        invalid.check(limit <= SAGAS_LISTED_MAX, "limit", &format!("must be at most {SAGAS_LISTED_MAX}"));
        invalid.check(after.is_some(), "after", "must be `next` of the page before");
        invalid.finish()?;
        Ok((limit, after.flatten()))
    }
}

/// One page over several modules, in order of their names. `page` asks one of them.
pub(crate) async fn listed<P: Future<Output = Result<Listed, String>> + Send>(
    modules: &[String],
    wanted: &Wanted,
    page: impl Fn(String, Wanted) -> P + Send,
) -> Response {
    let (limit, after) = match wanted.checked() {
        Ok(checked) => checked,
        Err(problem) => return problem.into_response(),
    };
    let mut all = Listed { open: Some(0), attention: Some(0), ..Listed::default() };
    for module in modules {
        let room = limit - u32::try_from(all.sagas.len()).unwrap_or(limit).min(limit);
        let (room, after) = match &after {
            // Listed before; only counted.
            Some(after) if *module < after.module => (0, None),
            Some(after) if *module == after.module => (room, wanted.after.clone()),
            _ => (room, None),
        };
        let wanted = Wanted { after, limit: Some(room), ..wanted.clone() };
        match page(module.clone(), wanted).await {
            Ok(more) => {
                let sum = |one: Option<i64>, other: Option<i64>| Some(one? + other?);
                all.open = sum(all.open, more.open);
                all.attention = sum(all.attention, more.attention);
                all.sagas.extend(more.sagas);
                all.next = more.next.or(all.next);
            }
            Err(reason) => {
                (all.open, all.attention) = (None, None);
                all.unreachable.push(Unreachable { module: module.clone(), reason });
            }
        }
    }
    axum::Json(all).into_response()
}
