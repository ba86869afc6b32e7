//! Effects: the intent before the attempt, what the attempt came to, and what holds when nobody knows.

use std::time::Duration;

use modulith_core::{
    Fault, FaultKind, LOOK_UP_DELAY, Outcome, Protection, ProviderModel, StepKey, Value, encode,
};

use super::{Claimed, NewRow, RowState, body_hash, claim, find, finish, forget, with_key};
use crate::session::{ModuleCode, Session};

/// Whether an effect may be attempted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EffectStart {
    /// Attempt it with exactly these bytes.
    Attempt {
        request: Vec<u8>,
    },
    /// It was attempted, nobody knows what came of it, and its provider no longer recognises the key: the same
    /// bytes would be a second effect. Look the key up; the intent is of this time.
    LookUp {
        first_at: i64,
    },
    /// The same, and the provider cannot be asked yet: an attempt may still be on its way to it.
    LookUpLater,
    /// The same, and the provider cannot be asked at all.
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
    provider: &ProviderModel,
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
    let row = match claim(session, module, key, &row)? {
        Claimed::New => {
            if !Protection::Intent.is_on() {
                forget(session, module, key)?;
            }
            return Ok(EffectStart::Attempt { request: request.to_owned() });
        }
        Claimed::Expired => return Ok(EffectStart::Expired),
        Claimed::Met(row) => row,
    };
    match row.state {
        RowState::Sealed => Ok(EffectStart::Sealed),
        _ if row.body_hash != hash && Protection::BodyHash.is_on() => Ok(EffectStart::KeyReused),
        RowState::Done | RowState::Refused => row.outcome().map(EffectStart::Stored),
        RowState::Started => {
            let age_ms = session.now_ms() - row.first_at;
            // Begun in the future: the clock was set back, and nobody knows how old the intent is.
            let is_recent = (0..=millis(provider.window)).contains(&age_ms);
            if !is_recent && Protection::EffectWindow.is_on() {
                let is_early = age_ms <= millis(provider.window + LOOK_UP_DELAY);
                return Ok(match provider.look_up {
                    None => EffectStart::Overdue,
                    Some(_) if is_early => EffectStart::LookUpLater,
                    Some(_) => EffectStart::LookUp { first_at: row.first_at },
                });
            }
            with_key(key, &[], |values| session.execute(&module.inbox.attempt, values))?;
            Ok(EffectStart::Attempt { request: row.request.unwrap_or_default() })
        }
    }
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
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
        claim(session, module, key, &NewRow::bare(RowState::Started))?;
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

/// Takes back the intent of an effect that its provider was asked for and has not: the effect certainly never
/// happened. An intent of another time stays: it was renewed since the provider was asked.
pub fn forget_looked_up(
    session: &mut dyn Session,
    module: &ModuleCode,
    key: &StepKey,
    first_at: i64,
) -> Result<(), Fault> {
    let more = [Value::Integer(first_at)];
    with_key(key, &more, |values| session.execute(&module.inbox.forget_since, values)).map(drop)
}
