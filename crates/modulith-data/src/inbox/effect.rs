//! Effects: the intent before the attempt, what the attempt came to, and what holds when nobody knows.

use modulith_core::{Fault, FaultKind, Outcome, Protection, StepKey, encode};

use super::{Claimed, NewRow, RowState, body_hash, claim, find, finish, forget, with_key};
use crate::session::{ModuleCode, Session};

/// What an effect's contract says about its provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EffectTerms {
    /// How long the provider recognises a key, in milliseconds.
    pub window_ms: i64,
    /// Whether the provider can be asked what it has under a key.
    pub looks_up: bool,
}

/// Whether an effect may be attempted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectStart {
    /// Attempt it with exactly these bytes.
    Attempt {
        request: Vec<u8>,
    },
    /// It was attempted, nobody knows what came of it, and its provider no longer recognises the key: the same
    /// bytes would be a second effect. Look the key up.
    LookUp {
        request: Vec<u8>,
    },
    /// The same, and the provider cannot be asked.
    Overdue,
    Stored(Outcome),
    Sealed,
    KeyReused,
    Expired,
}

/// Commits the intent of an effect before it leaves: its row, with the exact bytes that every attempt sends.
pub fn begin_effect(
    session: &mut dyn Session,
    module: &ModuleCode,
    method: &str,
    key: &StepKey,
    request: &[u8],
    terms: EffectTerms,
) -> Result<EffectStart, Fault> {
    let hash = body_hash(request);
    let row = NewRow {
        method,
        hash: &hash,
        state: RowState::Started,
        request: Some(request),
        answer: None,
        expires_at: None,
    };
    if !Protection::Intent.is_on() {
        let row = find(session, module, key)?;
        return match row {
            Some(row) if matches!(row.state, RowState::Done | RowState::Refused) => {
                row.outcome().map(EffectStart::Stored)
            }
            Some(row) if row.state == RowState::Sealed => Ok(EffectStart::Sealed),
            _ => Ok(EffectStart::Attempt { request: request.to_owned() }),
        };
    }
    let row = match claim(session, module, key, &row)? {
        Claimed::New => return Ok(EffectStart::Attempt { request: request.to_owned() }),
        Claimed::Expired => return Ok(EffectStart::Expired),
        Claimed::Met(row) => row,
    };
    match row.state {
        RowState::Sealed => Ok(EffectStart::Sealed),
        _ if row.body_hash != hash && Protection::BodyHash.is_on() => Ok(EffectStart::KeyReused),
        RowState::Done | RowState::Refused => row.outcome().map(EffectStart::Stored),
        RowState::Started => {
            let age_ms = session.now_ms() - row.first_at;
            let request = row.request.unwrap_or_default();
            if age_ms > terms.window_ms && Protection::EffectWindow.is_on() {
                return Ok(match terms.looks_up {
                    true => EffectStart::LookUp { request },
                    false => EffectStart::Overdue,
                });
            }
            with_key(key, &[], |values| session.execute(&module.inbox.attempt, values))?;
            Ok(EffectStart::Attempt { request })
        }
    }
}

/// Begins the window of an intent anew: the provider was asked and has nothing under its key, so that the effect
/// certainly never happened and an attempt is as safe as the first one was.
pub fn renew_effect(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<(), Fault> {
    let now_ms = session.now_ms();
    let more = [modulith_core::Value::Integer(now_ms)];
    with_key(key, &more, |values| session.execute(&module.inbox.renew, values)).map(drop)
}

/// Stores what an attempt at an effect came to, and returns what stands: an attempt that ends late finds what
/// another one has stored before it, and changes nothing.
pub fn end_effect(
    session: &mut dyn Session,
    module: &ModuleCode,
    key: &StepKey,
    outcome: &Outcome,
) -> Result<Outcome, Fault> {
    if !Protection::Intent.is_on() {
        let row = NewRow {
            method: "",
            hash: &[],
            state: RowState::Started,
            request: None,
            answer: None,
            expires_at: None,
        };
        claim(session, module, key, &row)?;
    }
    match outcome {
        Outcome::Done(answer) => finish(session, module, key, RowState::Done, answer)?,
        Outcome::Refused(record) => finish(session, module, key, RowState::Refused, &encode(record)?)?,
    }
    let row = find(session, module, key)?;
    row.ok_or_else(|| Fault::new(FaultKind::Statement, "the intent of an effect is gone"))?.outcome()
}

/// Takes back the intent of an effect whose only attempt certainly never left.
pub fn forget_effect(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<(), Fault> {
    forget(session, module, key)
}
