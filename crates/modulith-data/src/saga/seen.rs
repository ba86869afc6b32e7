//! Sagas as an operator sees them: what is recorded, open or ended.

use modulith_core::{Fault, SagaEnd, Snapshot, decode};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::attention::Attention;
use super::name::SagaName;
use super::run::SagaId;
use super::table::{ABORTED, ABORTING, DONE, RUNNING};

/// What a saga's row says of its state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SagaState {
    Running = RUNNING as isize,
    /// It has turned back, and not everything is undone.
    Aborting = ABORTING as isize,
    Done = DONE as isize,
    Aborted = ABORTED as isize,
}

impl SagaState {
    fn of_stored(state: i64) -> Self {
        match state {
            RUNNING => Self::Running,
            ABORTING => Self::Aborting,
            DONE => Self::Done,
            _ => Self::Aborted,
        }
    }

    /// As it is written in JSON and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Aborting => "aborting",
            Self::Done => "done",
            Self::Aborted => "aborted",
        }
    }

    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Aborting)
    }
}

/// One saga's row, without what it was given and what it answered.
#[derive(Debug, Clone)]
pub struct SagaRow {
    pub id: SagaId,
    pub plan: String,
    pub version: i64,
    pub fingerprint: i64,
    pub state: SagaState,
    /// Where it turned back, if it did.
    pub frontier: Option<usize>,
    pub attention: Option<Attention>,
    /// Walks in a row that their process may not have survived, the present one included.
    pub attempts: i64,
    pub begun_ms: i64,
    pub ended_ms: Option<i64>,
}

/// What a saga was given, encoded, and how it ends, as far as that is decided.
#[derive(Debug)]
pub struct SagaContents {
    pub input: Vec<u8>,
    pub end: Option<SagaEnd>,
}

/// Which sagas to list.
#[derive(Debug, Clone, Default)]
pub struct SagaFilter {
    pub state: Option<SagaState>,
    /// Only those that need a person.
    pub attention: bool,
    pub plan: Option<String>,
    /// Only those behind this one.
    pub after: Option<SagaId>,
}

/// The statements of one module's list of sagas, written once.
pub(super) struct SeenSql {
    module: String,
    columns: &'static str,
}

type SeenRow = (Uuid, i64, String, i64, i64, i64, Option<i64>, Option<String>, i64, i64, Option<i64>);

impl SeenSql {
    pub(super) fn new(module: &str) -> Self {
        Self {
            module: module.to_owned(),
            columns: "src, seq, plan, version, fingerprint, state, frontier, attention, attempts, begun, ended",
        }
    }

    /// The newest first, of each coordinator in turn. A filter that only old sagas pass reads all of them; open ones
    /// are found by their index.
    pub(super) fn list(
        &self,
        db: &Snapshot<'_>,
        filter: &SagaFilter,
        limit: u32,
    ) -> Result<Vec<SagaRow>, Fault> {
        let Self { module, columns } = self;
        let open = format!("AND state < {DONE}");
        let state = match filter.state {
            None => String::new(),
            Some(state) if state.is_open() => format!("{open} AND state = {}", state as i64),
            Some(state) => format!("AND state = {}", state as i64),
        };
        // Ending takes the mark away.
        let attention =
            if filter.attention { format!("{open} AND attention IS NOT NULL") } else { String::new() };
        let sql = format!(
            "SELECT {columns} FROM {module}__saga
             WHERE (src, seq) < ($1, $2) AND ($3 = '' OR plan = $3) {state} {attention}
             ORDER BY src DESC, seq DESC LIMIT $4"
        );
        let after = filter.after.unwrap_or(SagaId { src: Uuid::max(), seq: i64::MAX });
        let plan = filter.plan.as_deref().unwrap_or("");
        let rows: Vec<SeenRow> = db.rows(&sql, (after.src, after.seq, plan, limit))?;
        Ok(rows.into_iter().map(seen).collect())
    }

    /// The sagas that a name may mean: at most one, unless two coordinators' ids begin alike.
    pub(super) fn named(&self, db: &Snapshot<'_>, name: &SagaName) -> Result<Vec<SagaRow>, Fault> {
        let Self { module, columns } = self;
        let row = format!("SELECT {columns} FROM {module}__saga WHERE src = $1 AND seq = $2");
        let first =
            format!("SELECT src FROM {module}__saga WHERE src >= $1 AND src <= $2 ORDER BY src LIMIT 1");
        let next =
            format!("SELECT src FROM {module}__saga WHERE src > $1 AND src <= $2 ORDER BY src LIMIT 1");
        let (from, until) = name.srcs();
        let mut found = Vec::new();
        let mut src: Option<(Uuid,)> = db.row(&first, (from, until))?;
        while let Some((at,)) = src {
            found.extend(db.row::<SeenRow>(&row, (at, name.seq))?.map(seen));
            src = db.row(&next, (at, until))?;
        }
        Ok(found)
    }

    pub(super) fn contents(&self, db: &Snapshot<'_>, id: SagaId) -> Result<Option<SagaContents>, Fault> {
        let sql = format!("SELECT input, answer FROM {}__saga WHERE src = $1 AND seq = $2", self.module);
        let Some((input, end)) = db.row::<(Vec<u8>, Option<Vec<u8>>)>(&sql, (id.src, id.seq))? else {
            return Ok(None);
        };
        let end = end.map(|bytes| decode(&bytes)).transpose()?;
        Ok(Some(SagaContents { input, end }))
    }
}

fn seen(row: SeenRow) -> SagaRow {
    let (src, seq, plan, version, fingerprint, state, frontier, attention, attempts, begun_ms, ended_ms) =
        row;
    let state = SagaState::of_stored(state);
    SagaRow {
        id: SagaId { src, seq },
        plan,
        version,
        fingerprint,
        state,
        frontier: frontier.and_then(|step| usize::try_from(step).ok()),
        attention: attention.map(Attention::of_stored),
        attempts,
        begun_ms,
        ended_ms,
    }
}
