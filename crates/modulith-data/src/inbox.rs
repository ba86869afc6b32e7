//! The participant: commands, effects, seals and undos under their keys, in the inbox of each module.
//!
//! A key's answer stands in the transaction of its effects, so a repeat is answered from here. A sealed key
//! never runs. Done, refused and sealed never change.

use std::any::Any;

use modulith_core::{
    AnyBox, Columns, Fault, FaultKind, FromRow, Outcome, Params, Ran, RefusalRecord, ServedMethod, StepKey,
    Value, decode, encode,
};
use ring::digest;
use serde::{Deserialize, Serialize};

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
    find: String,
    attempt: String,
    forget: String,
    prune: String,
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
            find: format!(
                "SELECT state, body_hash, request, answer, attempts, first_at FROM {module}__inbox WHERE {key}"
            ),
            attempt: format!("UPDATE {module}__inbox SET attempts = attempts + 1 WHERE {key}"),
            forget: format!("DELETE FROM {module}__inbox WHERE {key} AND state = 0 AND attempts = 1"),
            prune: format!(
                "DELETE FROM {module}__inbox WHERE (src, seq, step, dir, origin) IN
                 (SELECT src, seq, step, dir, origin FROM {module}__inbox WHERE expires_at < $1 LIMIT {PRUNED_AT_ONCE})"
            ),
        }
    }
}

/// What an inbox row says. The numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowState {
    /// An effect was begun; it may have happened outside.
    Started = 0,
    Done = 1,
    Refused = 2,
    Sealed = 3,
}

struct Row {
    state: RowState,
    body_hash: Vec<u8>,
    request: Option<Vec<u8>>,
    answer: Option<Vec<u8>>,
    attempts: i64,
    first_at: i64,
}

impl FromRow for Row {
    fn from_row(row: &dyn Columns) -> Result<Self, Fault> {
        let (state, body_hash, request, answer, attempts, first_at) = FromRow::from_row(row)?;
        let state = match state {
            0_i64 => RowState::Started,
            1 => RowState::Done,
            2 => RowState::Refused,
            3 => RowState::Sealed,
            other => {
                return Err(Fault::new(
                    FaultKind::Type,
                    format!("an inbox row has the unknown state {other}"),
                ));
            }
        };
        Ok(Self { state, body_hash, request, answer, attempts, first_at })
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

fn insert(session: &mut dyn Session, sql: &str, key: &StepKey, row: &NewRow<'_>) -> Result<bool, Fault> {
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
}

/// A command and the key it runs under.
pub struct Keyed<'a> {
    pub key: StepKey,
    pub request: &'a dyn Any,
    pub hash: BodyHash,
    /// Nobody else can know the key yet: it was made in this very transaction.
    pub fresh: bool,
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
    // The claim comes before any read: on an engine with true concurrency a read of the inbox makes false
    // conflicts, and two repeats must not both run.
    if !keyed.fresh && !insert(session, &module.inbox.claim, &keyed.key, &row(RowState::Started, None))? {
        return repeat(session, module, keyed);
    }
    match module.with_tx(session, |tx| run.run(tx, keyed.request))? {
        Ran::Done(answer) => {
            let stored = (method.codec.encode_answer)(answer.as_ref())?;
            limit(method.name, &stored)?;
            if keyed.fresh {
                insert(session, &module.inbox.insert, &keyed.key, &row(RowState::Done, Some(&stored)))?;
            } else {
                finish(session, module, &keyed.key, RowState::Done, &stored)?;
            }
            Ok(CommandEnd::Done { answer, stored })
        }
        Ran::Refused(refusal) => {
            let record = (method.codec.record_refusal)(refusal.as_ref())?;
            session.rollback()?;
            store_refusal(session, module, method.name, keyed, &record)?;
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
    insert(session, &module.inbox.insert, &keyed.key, &row).map(drop)
}

fn repeat(session: &mut dyn Session, module: &ModuleCode, keyed: &Keyed<'_>) -> Result<CommandEnd, Fault> {
    let row = find(session, module, &keyed.key)?
        .ok_or_else(|| Fault::new(FaultKind::Statement, "a claim was refused and the row it met is gone"))?;
    match row.state {
        RowState::Sealed => Ok(CommandEnd::Sealed),
        _ if row.body_hash != keyed.hash => Ok(CommandEnd::KeyReused),
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
    let more = [Value::Integer(state as i64), Value::Bytes(answer)];
    with_key(key, &more, |values| session.execute(&module.inbox.finish, values)).map(drop)
}

/// What a seal found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SealEnd {
    /// The key will never run.
    Sealed,
    /// It had run; the abort is off.
    Done,
    Refused(RefusalRecord),
    /// An effect that may have happened: it has to be resolved first.
    Started,
}

/// Makes sure that a key never runs, unless it already has.
pub fn seal(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<SealEnd, Fault> {
    let row = NewRow {
        method: "",
        hash: &[],
        state: RowState::Sealed,
        request: None,
        answer: None,
        expires_at: None,
    };
    if insert(session, &module.inbox.claim, key, &row)? {
        return Ok(SealEnd::Sealed);
    }
    let row = find(session, module, key)?
        .ok_or_else(|| Fault::new(FaultKind::Statement, "a seal was refused and the row it met is gone"))?;
    match row.state {
        RowState::Sealed => Ok(SealEnd::Sealed),
        RowState::Started => Ok(SealEnd::Started),
        RowState::Done => Ok(SealEnd::Done),
        RowState::Refused => match row.outcome()? {
            Outcome::Refused(record) => Ok(SealEnd::Refused(record)),
            Outcome::Done(_) => Ok(SealEnd::Done),
        },
    }
}

/// What an undo found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UndoEnd {
    Undone,
    /// The step never ran or refused, and now never runs: the user's undo was not called.
    NothingDone,
    /// An effect that may have happened: it has to be resolved first.
    Started,
}

/// Undoes a step by a command that takes the step's answer, read from this inbox. Once per key.
pub fn undo_by_answer(
    session: &mut dyn Session,
    module: &ModuleCode,
    key: &StepKey,
    undo: &ServedMethod,
) -> Result<UndoEnd, Fault> {
    match seal(session, module, key)? {
        SealEnd::Sealed | SealEnd::Refused(_) => return Ok(UndoEnd::NothingDone),
        SealEnd::Started => return Ok(UndoEnd::Started),
        SealEnd::Done => {}
    }
    let answer = find(session, module, key)?.and_then(|row| row.answer).unwrap_or_default();
    let request = (undo.codec.decode_request)(&answer)?;
    let keyed = Keyed {
        key: key.undo(),
        request: request.as_ref(),
        hash: body_hash(&answer),
        fresh: false,
        expires_at: None,
    };
    match command(session, module, undo, &keyed)? {
        CommandEnd::Done { .. } | CommandEnd::Stored(Outcome::Done(_)) => Ok(UndoEnd::Undone),
        CommandEnd::Refused(..)
        | CommandEnd::Stored(Outcome::Refused(_))
        | CommandEnd::Sealed
        | CommandEnd::KeyReused => Err(Fault::new(
            FaultKind::Statement,
            format!("undo `{}` did not do what an undo must", undo.name),
        )),
    }
}

/// Whether an effect may be attempted.
pub enum EffectStart {
    /// Attempt it with exactly these bytes. `attempts` counts this one.
    Attempt {
        request: Vec<u8>,
        attempts: i64,
        first_at: i64,
    },
    Stored(Outcome),
    Sealed,
    KeyReused,
}

/// Commits the intent of an effect before it leaves: its row, with the exact bytes that every attempt sends.
pub fn begin_effect(
    session: &mut dyn Session,
    module: &ModuleCode,
    method: &str,
    key: &StepKey,
    request: &[u8],
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
    if insert(session, &module.inbox.claim, key, &row)? {
        let first_at = session.now_ms();
        return Ok(EffectStart::Attempt { request: request.to_owned(), attempts: 1, first_at });
    }
    let row = find(session, module, key)?.ok_or_else(|| {
        Fault::new(FaultKind::Statement, "an intent was refused and the row it met is gone")
    })?;
    match row.state {
        RowState::Sealed => Ok(EffectStart::Sealed),
        _ if row.body_hash != hash => Ok(EffectStart::KeyReused),
        RowState::Done | RowState::Refused => row.outcome().map(EffectStart::Stored),
        RowState::Started => {
            with_key(key, &[], |values| session.execute(&module.inbox.attempt, values))?;
            Ok(EffectStart::Attempt {
                request: row.request.unwrap_or_default(),
                attempts: row.attempts + 1,
                first_at: row.first_at,
            })
        }
    }
}

/// Stores what an attempt at an effect came to, and returns what stands: an attempt that ends late finds what
/// another one has stored before it, and changes nothing.
pub fn end_effect(
    session: &mut dyn Session,
    module: &ModuleCode,
    key: &StepKey,
    outcome: &Outcome,
) -> Result<Outcome, Fault> {
    match outcome {
        Outcome::Done(answer) => finish(session, module, key, RowState::Done, answer)?,
        Outcome::Refused(record) => finish(session, module, key, RowState::Refused, &encode(record)?)?,
    }
    let row = find(session, module, key)?;
    row.ok_or_else(|| Fault::new(FaultKind::Statement, "the intent of an effect is gone"))?.outcome()
}

/// Takes back the intent of an effect whose only attempt certainly never left.
pub fn forget_effect(session: &mut dyn Session, module: &ModuleCode, key: &StepKey) -> Result<(), Fault> {
    with_key(key, &[], |values| session.execute(&module.inbox.forget, values)).map(drop)
}

/// Rows that one piece of pruning deletes at most, so that it never holds the writer for long.
pub const PRUNED_AT_ONCE: u64 = 1_000;

/// Deletes keys whose retention is over, at most [`PRUNED_AT_ONCE`]; returns how many.
pub fn prune_expired(session: &mut dyn Session, module: &ModuleCode) -> Result<u64, Fault> {
    let now_ms = session.now_ms();
    execute(session, &module.inbox.prune, (now_ms,))
}

/// For `Params` in sibling modules.
pub(crate) fn execute(session: &mut dyn Session, sql: &str, params: impl Params) -> Result<u64, Fault> {
    params.with(|values| session.execute(sql, values))
}
