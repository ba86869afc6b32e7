//! The participant: commands, effects, seals and undos under their keys, in the inbox of each module.
//!
//! A key's answer stands in the transaction of its effects, so a repeat is answered from here. A sealed key
//! never runs. Done, refused and sealed never change.

use std::any::Any;

use modulith_core::{
    AnyBox, Columns, Fault, FaultKind, FromRow, Origin, Outcome, Params, Protection, Ran, RefusalRecord,
    ServedMethod, Snapshot, StepKey, Value, decode, encode,
};
use ring::digest;
use serde::{Deserialize, Serialize};

mod effect;
mod look;
mod water;

pub use effect::{EffectStart, begin_effect, end_effect, forget_effect, forget_looked_up};
pub use look::{InboxRow, StepRows, look};
pub use water::{LowWater, OPEN_BELOW_MAX, raise};

use crate::session::{ModuleCode, Session};

/// The largest answer or refusal that is stored: 1 MiB.
pub const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Stands beside a key, so that the key cannot be used for another request: the first 16 bytes of a SHA-256 of
/// the request as it is stored and sent.
pub type BodyHash = [u8; 16];

pub fn body_hash(request: &[u8]) -> BodyHash {
    let mut hash = [0; 16];
    hash.copy_from_slice(&digest::digest(&digest::SHA256, request).as_ref()[..16]);
    hash
}

/// The statements of one module's inbox, written once.
pub(crate) struct InboxSql {
    claim: String,
    insert: String,
    finish: String,
    overwrite: String,
    find: String,
    look: String,
    attempt: String,
    forget: String,
    forget_since: String,
    highest: String,
    prune: String,
    water: water::WaterSql,
}

impl InboxSql {
    pub(crate) fn new(module: &str) -> Self {
        let key = "src = $1 AND seq = $2 AND step = $3 AND dir = $4 AND origin = $5";
        let columns = "src, seq, step, dir, origin, method, body_hash, state, request, answer, attempts, first_at, expires_at";
        let values = "($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)";
        let insert = format!("INSERT INTO {module}__inbox ({columns}) VALUES {values}");
        Self {
            claim: format!("{insert} ON CONFLICT DO NOTHING"),
            insert,
            finish: format!("UPDATE {module}__inbox SET state = $6, answer = $7 WHERE {key} AND state = 0"),
            overwrite: format!("UPDATE {module}__inbox SET state = $6, answer = $7 WHERE {key}"),
            find: format!(
                "SELECT state, body_hash, request, answer, first_at FROM {module}__inbox WHERE {key}"
            ),
            look: format!(
                "SELECT method, state, attempts, first_at, answer FROM {module}__inbox WHERE {key}"
            ),
            attempt: format!("UPDATE {module}__inbox SET attempts = attempts + 1 WHERE {key}"),
            forget: format!("DELETE FROM {module}__inbox WHERE {key} AND state = 0 AND attempts = 1"),
            forget_since: format!(
                "DELETE FROM {module}__inbox WHERE {key} AND state = 0 AND first_at = $6"
            ),
            highest: format!("SELECT max(seq) FROM {module}__inbox WHERE src = $1"),
            prune: format!(
                "DELETE FROM {module}__inbox WHERE (src, seq, step, dir, origin) IN
                 (SELECT src, seq, step, dir, origin FROM {module}__inbox WHERE expires_at < $1 LIMIT {PRUNED_AT_ONCE})"
            ),
            water: water::WaterSql::new(module),
        }
    }
}

/// What an inbox row says. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowState {
    /// An effect was begun; it may have happened outside.
    Started = 0,
    Done = 1,
    Refused = 2,
    Sealed = 3,
}

fn row_state(stored: i64) -> Result<RowState, Fault> {
    Ok(match stored {
        0 => RowState::Started,
        1 => RowState::Done,
        2 => RowState::Refused,
        3 => RowState::Sealed,
        other => {
            return Err(Fault::new(FaultKind::Type, format!("an inbox row has the unknown state {other}")));
        }
    })
}

struct Row {
    state: RowState,
    body_hash: Vec<u8>,
    request: Option<Vec<u8>>,
    answer: Option<Vec<u8>>,
    first_at: i64,
}

impl FromRow for Row {
    fn from_row(row: &dyn Columns) -> Result<Self, Fault> {
        let (state, body_hash, request, answer, first_at) = FromRow::from_row(row)?;
        Ok(Self { state: row_state(state)?, body_hash, request, answer, first_at })
    }
}

impl Row {
    fn outcome(self) -> Result<Outcome, Fault> {
        let answer = self.answer.unwrap_or_default();
        match self.state {
            RowState::Done => Ok(Outcome::Done(answer)),
            RowState::Refused => decode::<RefusalRecord>(&answer).map(Outcome::Refused),
            RowState::Started | RowState::Sealed => {
                Err(Fault::new(FaultKind::Type, "an inbox row without an outcome was asked for one"))
            }
        }
    }
}

fn with_key<R>(key: &StepKey, more: &[Value<'_>], run: impl FnOnce(&[Value<'_>]) -> R) -> R {
    let mut values = [Value::Null; 13];
    values[0] = Value::Bytes(key.src.as_bytes());
    values[1] = Value::Integer(key.seq);
    values[2] = Value::Integer(i64::from(key.step));
    values[3] = Value::Integer(key.direction as i64);
    values[4] = Value::Integer(key.origin as i64);
    values[5..5 + more.len()].copy_from_slice(more);
    run(&values[..5 + more.len()])
}

fn find(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<Option<Row>, Fault> {
    let mut found = None;
    with_key(key, &[], |values| {
        session.query(&module.inbox.find, values, &mut |row| {
            found = Some(Row::from_row(row)?);
            Ok(false)
        })
    })?;
    Ok(found)
}

struct NewRow<'a> {
    method: &'a str,
    hash: &'a [u8],
    state: RowState,
    request: Option<&'a [u8]>,
    answer: Option<&'a [u8]>,
    expires_at: Option<i64>,
}

impl NewRow<'_> {
    /// A row that stands for no request.
    fn bare(state: RowState) -> Self {
        Self { method: "", hash: &[], state, request: None, answer: None, expires_at: None }
    }
}

fn insert(
    session: &mut dyn Session,
    module: &ModuleCode,
    sql: &str,
    key: &StepKey,
    row: &NewRow<'_>,
) -> Result<bool, Fault> {
    session.recent().written(&module.name, key);
    let now_ms = session.now_ms();
    let more = [
        Value::Text(row.method),
        Value::Bytes(row.hash),
        Value::Integer(row.state as i64),
        row.request.map_or(Value::Null, Value::Bytes),
        row.answer.map_or(Value::Null, Value::Bytes),
        Value::Integer(1),
        Value::Integer(now_ms),
        row.expires_at.map_or(Value::Null, Value::Integer),
    ];
    with_key(key, &more, |values| session.execute(sql, values)).map(|changed| changed == 1)
}

/// What a claim of a key met.
enum Claimed {
    New,
    Met(Row),
    /// The key is below the low-water mark: its saga has ended, and what stood here is gone.
    Expired,
}

/// Writes the first row of a key, before the inbox is read: on an engine with true concurrency such a read makes false
/// conflicts, and two repeats must not both run.
fn claim(
    session: &mut dyn Session,
    module: &ModuleCode,
    key: &StepKey,
    row: &NewRow<'_>,
) -> Result<Claimed, Fault> {
    let marked = key.origin == Origin::Saga && Protection::LowWater.is_on();
    if marked && !water::stored(session, module, key.src)?.lets_run(key.seq) {
        return Ok(find(session, module, key)?.map_or(Claimed::Expired, Claimed::Met));
    }
    if insert(session, module, &module.inbox.claim, key, row)? {
        return Ok(Claimed::New);
    }
    let met = find(session, module, key)?;
    met.map(Claimed::Met)
        .ok_or_else(|| Fault::new(FaultKind::Statement, "an inbox key is neither new nor there"))
}

/// Whether a saga's key certainly has no row, and its saga has not ended. Only what was never written is new, so that a
/// repeat is always claimed.
fn is_new(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<bool, Fault> {
    if key.origin != Origin::Saga {
        return Ok(false);
    }
    if let Some(is_new) = session.recent().is_new(&module.name, key) {
        return Ok(is_new);
    }
    let now_ms = session.now_ms();
    let highest = Snapshot::new(session.statements(), now_ms).row(&module.inbox.highest, (key.src,))?;
    let until = highest.and_then(|(seq,): (Option<i64>,)| seq).unwrap_or(i64::MIN);
    let water = water::stored(session, module, key.src)?;
    session.recent().learn(&module.name, key.src, until, water);
    Ok(session.recent().is_new(&module.name, key).unwrap_or(false))
}

/// How a command under a key ended.
pub enum CommandEnd {
    /// It ran now. The answer, typed and as it was stored.
    Done { answer: AnyBox, stored: Vec<u8> },
    /// It ran now and declined; its effects are taken back and the refusal is stored.
    Refused(AnyBox, RefusalRecord),
    /// It had run before.
    Stored(Outcome),
    /// The key was sealed: it never runs.
    Sealed,
    /// The key belongs to another request.
    KeyReused,
    /// The key is below the low-water mark: it never runs again, and what it answered is gone.
    Expired,
}

/// Who may know a key, which decides what is written under it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Others: unless there is certainly none, the row is claimed before the command runs.
    ToOthers,
    /// Nobody yet, since it was made in this very transaction: the row is written once, with the answer.
    ToNobodyYet,
    /// Nobody ever, since its saga begins and ends in this very transaction: no row is written.
    ToNobodyEver,
}

/// A command and the key it runs under.
pub struct Keyed<'a> {
    pub key: StepKey,
    pub request: &'a dyn Any,
    pub hash: BodyHash,
    pub known: Known,
    pub expires_at: Option<i64>,
}

/// Runs one command of `module`, once per key.
///
/// # Errors
///
/// A fault: everything is to be rolled back and nothing is stored.
pub fn command(
    session: &mut dyn Session,
    module: &ModuleCode,
    method: &ServedMethod,
    keyed: &Keyed<'_>,
) -> Result<CommandEnd, Fault> {
    let run = command_fn(module, method)?;
    let row = |state, answer| NewRow {
        method: method.name,
        hash: &keyed.hash,
        state,
        request: None,
        answer,
        expires_at: keyed.expires_at,
    };
    let claims = keyed.known == Known::ToOthers
        && Protection::ClaimFirst.is_on()
        && !is_new(session, module, &keyed.key)?;
    if claims {
        match claim(session, module, &keyed.key, &row(RowState::Started, None))? {
            Claimed::New => {}
            Claimed::Met(row) => return repeat(row, keyed),
            Claimed::Expired => return Ok(CommandEnd::Expired),
        }
    }
    match module.with_tx(session, |tx| run.run(tx, keyed.request))? {
        Ran::Done(answer) => {
            let stored = (method.codec.encode_answer)(answer.as_ref())?;
            limit(method.name, &stored)?;
            if claims {
                finish(session, module, &keyed.key, RowState::Done, &stored)?;
            } else if keyed.known != Known::ToNobodyEver {
                insert(
                    session,
                    module,
                    &module.inbox.insert,
                    &keyed.key,
                    &row(RowState::Done, Some(&stored)),
                )?;
            }
            Ok(CommandEnd::Done { answer, stored })
        }
        Ran::Refused(refusal) => {
            let record = (method.codec.record_refusal)(refusal.as_ref())?;
            if Protection::RefusalRollsBack.is_on() {
                session.rollback()?;
            } else if claims {
                forget(session, module, &keyed.key)?;
            }
            if keyed.known != Known::ToNobodyEver && Protection::StoredRefusal.is_on() {
                store_refusal(session, module, method.name, keyed, &record)?;
            }
            Ok(CommandEnd::Refused(refusal, record))
        }
    }
}

/// Runs a command whose key can never come again, because it never left the process.
pub fn command_once(
    session: &mut dyn Session,
    module: &ModuleCode,
    method: &ServedMethod,
    request: &dyn Any,
) -> Result<Ran, Fault> {
    let ran = module.with_tx(session, |tx| command_fn(module, method)?.run(tx, request))?;
    if let Ran::Refused(_) = &ran {
        session.rollback()?;
    }
    Ok(ran)
}

fn command_fn<'a>(
    module: &ModuleCode,
    method: &'a ServedMethod,
) -> Result<&'a dyn modulith_core::CommandFn, Fault> {
    match &method.handler {
        modulith_core::Handler::Command { run } => Ok(run.as_ref()),
        _ => Err(Fault::new(
            FaultKind::Encoding,
            format!("`{}` of module `{}` is no command", method.name, module.name),
        )),
    }
}

/// Keeps a refusal after what led to it was rolled back.
pub(crate) fn store_refusal(
    session: &mut dyn Session,
    module: &ModuleCode,
    method: &str,
    keyed: &Keyed<'_>,
    record: &RefusalRecord,
) -> Result<(), Fault> {
    let answer = encode(record)?;
    limit(method, &answer)?;
    let row = NewRow {
        method,
        hash: &keyed.hash,
        state: RowState::Refused,
        request: None,
        answer: Some(&answer),
        expires_at: keyed.expires_at,
    };
    insert(session, module, &module.inbox.insert, &keyed.key, &row).map(drop)
}

fn repeat(row: Row, keyed: &Keyed<'_>) -> Result<CommandEnd, Fault> {
    match row.state {
        RowState::Sealed => Ok(CommandEnd::Sealed),
        _ if row.body_hash != keyed.hash && Protection::BodyHash.is_on() => Ok(CommandEnd::KeyReused),
        RowState::Started => {
            Err(Fault::new(FaultKind::Statement, "a command's claim was committed without an answer"))
        }
        RowState::Done | RowState::Refused => row.outcome().map(CommandEnd::Stored),
    }
}

fn limit(method: &str, answer: &[u8]) -> Result<(), Fault> {
    if answer.len() <= ANSWER_BYTES_MAX {
        return Ok(());
    }
    let message =
        format!("the answer of `{method}` has {} bytes; at most {ANSWER_BYTES_MAX} are stored", answer.len());
    Err(Fault::new(FaultKind::Limit, message))
}

fn finish(
    session: &mut dyn Session,
    module: &ModuleCode,
    key: &StepKey,
    state: RowState,
    answer: &[u8],
) -> Result<(), Fault> {
    let stands = Protection::FirstOutcomeStands.is_on();
    let sql = if stands { &module.inbox.finish } else { &module.inbox.overwrite };
    let more = [Value::Integer(state as i64), Value::Bytes(answer)];
    with_key(key, &more, |values| session.execute(sql, values)).map(drop)
}

fn forget(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<(), Fault> {
    with_key(key, &[], |values| session.execute(&module.inbox.forget, values)).map(drop)
}

/// What a seal found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SealEnd {
    /// The key will never run.
    Sealed,
    /// It had run, with this answer; the abort is off.
    Done(#[serde(with = "modulith_core::byte_string")] Vec<u8>),
    Refused(RefusalRecord),
    /// An effect that may have happened: it has to be resolved first.
    Started,
    /// The key's saga has ended: nobody should ask.
    Expired,
}

/// Makes sure that a key never runs, unless it already has.
pub fn seal(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<SealEnd, Fault> {
    let row = match claim(session, module, key, &NewRow::bare(RowState::Sealed))? {
        Claimed::New => return Ok(SealEnd::Sealed),
        Claimed::Expired => return Ok(SealEnd::Expired),
        Claimed::Met(row) => row,
    };
    match row.state {
        RowState::Sealed => Ok(SealEnd::Sealed),
        RowState::Started if !Protection::StartedIsNotSealed.is_on() => Ok(SealEnd::Sealed),
        RowState::Started => Ok(SealEnd::Started),
        RowState::Done | RowState::Refused => Ok(match row.outcome()? {
            Outcome::Done(answer) => SealEnd::Done(answer),
            Outcome::Refused(record) => SealEnd::Refused(record),
        }),
    }
}

/// What an undo found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UndoEnd {
    Undone,
    /// The step never ran or refused, and now never runs: the user's undo was not called.
    NothingDone,
    /// An effect that may have happened: it has to be resolved first.
    Started,
    /// The key's saga has ended: nobody should ask.
    Expired,
}

/// Undoes a step by a command that takes the step's answer, read from this inbox. Once per key.
pub fn undo_by_answer(
    session: &mut dyn Session,
    module: &ModuleCode,
    key: &StepKey,
    undo: &ServedMethod,
) -> Result<UndoEnd, Fault> {
    let answer = match seal(session, module, key)? {
        SealEnd::Sealed | SealEnd::Refused(_) => return Ok(UndoEnd::NothingDone),
        SealEnd::Started => return Ok(UndoEnd::Started),
        SealEnd::Expired => return Ok(UndoEnd::Expired),
        SealEnd::Done(answer) => answer,
    };
    let request = (undo.codec.decode_request)(&answer)?;
    let keyed = Keyed {
        key: key.undo(),
        request: request.as_ref(),
        hash: body_hash(&answer),
        known: Known::ToOthers,
        expires_at: None,
    };
    match command(session, module, undo, &keyed)? {
        CommandEnd::Done { .. } | CommandEnd::Stored(Outcome::Done(_)) => Ok(UndoEnd::Undone),
        CommandEnd::Refused(..)
        | CommandEnd::Stored(Outcome::Refused(_))
        | CommandEnd::Sealed
        | CommandEnd::KeyReused
        | CommandEnd::Expired => Err(Fault::new(
            FaultKind::Statement,
            format!("undo `{}` did not do what an undo must", undo.name),
        )),
    }
}

/// Rows that one piece of pruning deletes, so that it never holds the writer for long: at most so many, or so many and what
/// is left of one saga.
pub const PRUNED_AT_ONCE: u64 = 1_000;

/// Deletes keys whose retention is over, at most [`PRUNED_AT_ONCE`]; returns how many.
pub fn prune_expired(session: &mut dyn Session, module: &ModuleCode) -> Result<u64, Fault> {
    let now_ms = session.now_ms();
    execute(session, &module.inbox.prune, (now_ms,))
}

/// Runs a statement with a tuple of parameters.
pub(crate) fn execute(session: &mut dyn Session, sql: &str, params: impl Params) -> Result<u64, Fault> {
    params.with(|values| session.execute(sql, values))
}
