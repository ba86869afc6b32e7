//! What stands under a step's keys, for operators to see. Nothing is changed.

use modulith_core::{Columns, Fault, FromRow, Outcome, StepKey};
use serde::{Deserialize, Serialize};

use super::{Row, RowState, row_state, with_key};
use crate::saga::Bytes;
use crate::session::{ModuleCode, Session};

/// One row of an inbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRow {
    /// Empty: it was sealed before it was asked for.
    pub method: String,
    pub state: RowState,
    /// Of an effect: how often it was attempted.
    pub attempts: i64,
    /// When it was first asked for, in milliseconds since 1970.
    pub first_at_ms: i64,
    answer: Option<Bytes>,
}

/// What stands under the keys of one step.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StepRows {
    pub step: Option<InboxRow>,
    pub undo: Option<InboxRow>,
}

impl InboxRow {
    /// What it came to, if it is done or refused.
    ///
    /// # Errors
    ///
    /// What is stored cannot be read.
    pub fn outcome(&self) -> Result<Option<Outcome>, Fault> {
        match self.state {
            RowState::Started | RowState::Sealed => Ok(None),
            state => {
                let answer = self.answer.clone().map(|bytes| bytes.0);
                Row { state, body_hash: Vec::new(), request: None, answer, first_at: self.first_at_ms }
                    .outcome()
                    .map(Some)
            }
        }
    }
}

impl FromRow for InboxRow {
    fn from_row(row: &dyn Columns) -> Result<Self, Fault> {
        let (method, state, attempts, first_at_ms, answer): (_, _, _, _, Option<Vec<u8>>) =
            FromRow::from_row(row)?;
        Ok(Self { method, state: row_state(state)?, attempts, first_at_ms, answer: answer.map(Bytes) })
    }
}

/// Reads what stands under the key of a step and under that of its undo.
pub fn look(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<StepRows, Fault> {
    let mut row = |key: &StepKey| {
        let mut found = None;
        with_key(key, &[], |values| {
            session.query(&module.inbox.look, values, &mut |row| {
                found = Some(InboxRow::from_row(row)?);
                Ok(false)
            })
        })?;
        Ok::<_, Fault>(found)
    };
    Ok(StepRows { step: row(key)?, undo: row(&key.undo())? })
}
