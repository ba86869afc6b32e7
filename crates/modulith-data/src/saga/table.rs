//! What a coordinator records: the saga table of the module that begins it.

use modulith_core::{
    ClientKey, Fault, NotRun, NotRunReason, PlanModel, Protection, SagaEnd, Snapshot, decode, encode,
};
use ring::hmac;
use uuid::Uuid;

use super::attention::Attention;
use super::run::SagaId;
use super::seen::SeenSql;
use crate::inbox::{PRUNED_AT_ONCE, execute};
use crate::session::Session;
use crate::sqlite::Identity;

/// The statements of one module's saga table, and the secret that keys what clients sent.
pub struct SagaTable {
    begin: String,
    find_client: String,
    turn: String,
    end: String,
    answer: String,
    attempt: String,
    survived: String,
    clear: String,
    attention: String,
    ended: String,
    open: String,
    open_one: String,
    counts: String,
    prune: String,
    next_source: String,
    seen: SeenSql,
    incarnation: i64,
    secret: hmac::Key,
}

/// Ended sagas, and with them their clients' keys, are kept for 7 days.
pub const SAGAS_KEPT_MS: i64 = 7 * 24 * 60 * 60 * 1000;

pub(super) const RUNNING: i64 = 0;
pub(super) const ABORTING: i64 = 1;
pub(super) const DONE: i64 = 2;
pub(super) const ABORTED: i64 = 3;

/// A client's key as it is stored: keyed with the database's secret, so that what was digested cannot be guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredKey {
    name: [u8; 16],
    body: [u8; 16],
}

/// A saga that begins.
pub struct NewSaga<'a> {
    pub id: SagaId,
    pub plan: &'a PlanModel,
    pub input: &'a [u8],
    pub key: Option<&'a StoredKey>,
}

fn ended_state(end: &SagaEnd) -> i64 {
    match end {
        SagaEnd::Done(_) => DONE,
        SagaEnd::Refused(_) | SagaEnd::Aborted(_) => ABORTED,
    }
}

/// Whether a saga was begun.
#[derive(Debug)]
pub enum Begun {
    New,
    /// The client's key was used before.
    Before(Stored),
}

/// What stands under a client's key.
#[derive(Debug)]
pub enum Stored {
    KeyReused,
    Running,
    Ended(SagaEnd),
}

impl Stored {
    /// As the end of a start that met it.
    pub fn into_end(self) -> Result<SagaEnd, NotRun> {
        match self {
            Stored::KeyReused => {
                Err(NotRun::new(NotRunReason::KeyReused, "the idempotency key was used with another request"))
            }
            Stored::Running => Err(NotRun::new(NotRunReason::Running, "a saga with this key is running")),
            Stored::Ended(end) => Ok(end),
        }
    }
}

/// A saga that has not ended, as the sweep finds it.
#[derive(Debug)]
pub struct OpenSaga {
    pub id: SagaId,
    pub plan: String,
    pub version: i64,
    pub fingerprint: i64,
    pub input: Vec<u8>,
    /// Where it turned back, if it did.
    pub frontier: Option<usize>,
    /// A [`SagaEnd`], encoded, if its end is decided.
    pub answer: Option<Vec<u8>>,
    pub attempts: i64,
}

type FoundRow = (i64, Vec<u8>, Option<Vec<u8>>);
type OpenRow = (uuid::Uuid, i64, String, i64, i64, Vec<u8>, i64, Option<i64>, Option<Vec<u8>>, i64);

impl SagaTable {
    pub fn new(module: &str, identity: &Identity) -> Self {
        let key = "WHERE src = $1 AND seq = $2";
        let open = format!(
            "SELECT src, seq, plan, version, fingerprint, input, state, frontier, answer, attempts
             FROM {module}__saga"
        );
        Self {
            begin: format!(
                "INSERT INTO {module}__saga
                 (src, seq, client_hash, body_hash, plan, version, fingerprint, input, state, answer, begun, ended, attempts)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, 1)
                 ON CONFLICT (client_hash) DO NOTHING"
            ),
            find_client: format!("SELECT state, body_hash, answer FROM {module}__saga WHERE client_hash = $1"),
            turn: format!("UPDATE {module}__saga SET state = {ABORTING}, frontier = $3, answer = $4 {key} AND state = {RUNNING}"),
            end: format!("UPDATE {module}__saga SET state = $3, answer = $4, ended = $5, attention = NULL {key} AND state < {DONE}"),
            answer: format!("UPDATE {module}__saga SET answer = $3 {key} AND state < {DONE}"),
            attempt: format!("UPDATE {module}__saga SET attempts = attempts + 1 {key}"),
            survived: format!("UPDATE {module}__saga SET attempts = 0 {key}"),
            attention: format!("UPDATE {module}__saga SET attention = $3 {key} AND state < {DONE}"),
            clear: format!("UPDATE {module}__saga SET attempts = 0, attention = NULL {key}"),
            ended: format!("SELECT answer FROM {module}__saga {key} AND state >= {DONE}"),
            open_one: format!("{open} {key} AND state < {DONE}"),
            open: format!("{open} WHERE state < {DONE} ORDER BY src, seq"),
            counts: format!(
                "SELECT count(*), coalesce(sum(CASE WHEN attention IS NULL THEN 0 ELSE 1 END), 0)
                 FROM {module}__saga WHERE state < {DONE}"
            ),
            // The oldest numbers are looked at, which are those that ended first, but for a few; so no index on
            // the end has to be kept up by every saga.
            prune: format!(
                "DELETE FROM {module}__saga WHERE (src, seq) IN
                 (SELECT src, seq FROM (SELECT src, seq, state, ended FROM {module}__saga WHERE src = $2
                                        ORDER BY seq LIMIT {PRUNED_AT_ONCE}) AS oldest
                  WHERE state >= {DONE} AND ended < $1)"
            ),
            next_source: format!("SELECT src FROM {module}__saga WHERE src > $1 ORDER BY src LIMIT 1"),
            seen: SeenSql::new(module),
            incarnation: identity.incarnation,
            secret: hmac::Key::new(hmac::HMAC_SHA256, &identity.secret),
        }
    }

    /// Costs two HMACs, so it is done before the work that goes to the one writer.
    pub fn keyed(&self, key: &ClientKey) -> StoredKey {
        let keyed = |digest: &[u8; 32]| {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(&hmac::sign(&self.secret, digest).as_ref()[..16]);
            bytes
        };
        StoredKey { name: keyed(&key.name), body: keyed(&key.body) }
    }

    /// Records that a saga begins. Its version and its plan's structure are pinned.
    pub fn begin(&self, session: &mut dyn Session, saga: &NewSaga<'_>) -> Result<Begun, Fault> {
        self.insert(session, saga, RUNNING, None)
    }

    /// Records a saga whose first run has answered its caller already, in the transaction of that run: one row,
    /// written once. `is_over` tells whether nothing is left to do.
    ///
    /// After [`Begun::Before`] the run has to be rolled back: the client's key stands for another saga.
    pub fn begin_answered(
        &self,
        session: &mut dyn Session,
        saga: &NewSaga<'_>,
        end: &SagaEnd,
        is_over: bool,
    ) -> Result<Begun, Fault> {
        let state = if is_over { ended_state(end) } else { RUNNING };
        self.insert(session, saga, state, Some(end))
    }

    fn insert(
        &self,
        session: &mut dyn Session,
        saga: &NewSaga<'_>,
        state: i64,
        end: Option<&SagaEnd>,
    ) -> Result<Begun, Fault> {
        let NewSaga { id, plan, input, key } = saga;
        let now_ms = session.now_ms();
        let (client, body) = (key.map(|key| &key.name[..]), key.map(|key| &key.body[..]));
        let (answer, ended) = (end.map(encode).transpose()?, (state >= DONE).then_some(now_ms));
        let row = (
            id.src,
            id.seq,
            client,
            body,
            plan.name,
            plan.version,
            plan.fingerprint,
            *input,
            state,
            &answer,
            now_ms,
            ended,
        );
        if self.is_in_charge(session)? && execute(session, &self.begin, row)? == 1 {
            return Ok(Begun::New);
        }
        let found: Option<FoundRow> =
            Snapshot::new(session.statements(), now_ms).row(&self.find_client, (client,))?;
        match (found, body) {
            (Some(found), Some(body)) => stored(found, body).map(Begun::Before),
            // Its successor has looked for unfinished sagas already, and would count this one as ended.
            _ => Err(Fault::new(
                modulith_core::FaultKind::Denied,
                "another process has taken this database over, and begins its sagas",
            )),
        }
    }

    /// Whether no other process has taken the database over since this one started.
    fn is_in_charge(&self, session: &mut dyn Session) -> Result<bool, Fault> {
        let known = session.recent().incarnation;
        let newest = match known {
            Some(_) => known,
            None => {
                let (sql, now_ms) = ("SELECT incarnation FROM modulith__identity", session.now_ms());
                let newest = Snapshot::new(session.statements(), now_ms).row(sql, ())?;
                newest.map(|(incarnation,)| incarnation)
            }
        };
        session.recent().incarnation = newest;
        Ok(newest == Some(self.incarnation) || !Protection::Fence.is_on())
    }

    /// What stands under a client's key.
    pub fn find(&self, db: &Snapshot<'_>, key: &StoredKey) -> Result<Option<Stored>, Fault> {
        let found: Option<FoundRow> = db.row(&self.find_client, (&key.name[..],))?;
        found.map(|found| stored(found, &key.body)).transpose()
    }

    /// Records that the saga turned back at `frontier`. From here the abort is final.
    pub fn turn(
        &self,
        session: &mut dyn Session,
        id: SagaId,
        frontier: usize,
        end: &SagaEnd,
    ) -> Result<(), Fault> {
        execute(session, &self.turn, (id.src, id.seq, frontier as i64, encode(end)?)).map(drop)
    }

    /// Records how the saga ended.
    pub fn end(&self, session: &mut dyn Session, id: SagaId, end: &SagaEnd) -> Result<(), Fault> {
        let now_ms = session.now_ms();
        execute(session, &self.end, (id.src, id.seq, ended_state(end), encode(end)?, now_ms)).map(drop)
    }

    /// How a saga ended, if it has.
    pub fn ended(&self, db: &Snapshot<'_>, id: SagaId) -> Result<Option<SagaEnd>, Fault> {
        let found: Option<(Vec<u8>,)> = db.row(&self.ended, (id.src, id.seq))?;
        found.map(|(answer,)| decode(&answer)).transpose()
    }

    /// Records the pivot's answer while the steps behind it are still to do.
    pub fn answer(&self, session: &mut dyn Session, id: SagaId, end: &SagaEnd) -> Result<(), Fault> {
        execute(session, &self.answer, (id.src, id.seq, encode(end)?)).map(drop)
    }

    /// Counts a walk before it begins, so that a saga which kills its process does not kill it for ever.
    pub fn attempt(&self, session: &mut dyn Session, id: SagaId) -> Result<(), Fault> {
        execute(session, &self.attempt, (id.src, id.seq)).map(drop)
    }

    /// Begins the count anew: the process has survived what the walk does.
    pub fn survived(&self, session: &mut dyn Session, id: SagaId) -> Result<(), Fault> {
        execute(session, &self.survived, (id.src, id.seq)).map(drop)
    }

    /// Marks a saga for a person to look at, with the reason. It goes on being tried.
    pub fn attention(
        &self,
        session: &mut dyn Session,
        id: SagaId,
        attention: &Attention,
    ) -> Result<(), Fault> {
        execute(session, &self.attention, (id.src, id.seq, attention.to_string())).map(drop)
    }

    /// Takes the mark away, and begins the count of walks anew.
    pub fn clear(&self, session: &mut dyn Session, id: SagaId) -> Result<(), Fault> {
        execute(session, &self.clear, (id.src, id.seq)).map(drop)
    }

    pub(super) fn seen(&self) -> &SeenSql {
        &self.seen
    }

    /// Sagas that have not ended.
    pub fn open(&self, db: &Snapshot<'_>) -> Result<Vec<OpenSaga>, Fault> {
        let rows: Vec<OpenRow> = db.rows(&self.open, ())?;
        Ok(rows.into_iter().map(open_saga).collect())
    }

    /// One of them.
    pub fn open_one(&self, db: &Snapshot<'_>, id: SagaId) -> Result<Option<OpenSaga>, Fault> {
        Ok(db.row(&self.open_one, (id.src, id.seq))?.map(open_saga))
    }

    /// How many sagas have not ended, and how many of these need attention.
    pub fn counts(&self, db: &Snapshot<'_>) -> Result<(i64, i64), Fault> {
        Ok(db.row(&self.counts, ())?.unwrap_or_default())
    }

    /// Deletes sagas that ended before the retention, of every source at most [`PRUNED_AT_ONCE`]; returns how many.
    pub fn prune(&self, session: &mut dyn Session) -> Result<u64, Fault> {
        let now_ms = session.now_ms();
        let (mut source, mut pruned) = (Uuid::nil(), 0);
        loop {
            let next = Snapshot::new(session.statements(), now_ms).row(&self.next_source, (source,))?;
            let Some((next,)) = next else {
                return Ok(pruned);
            };
            source = next;
            pruned += execute(session, &self.prune, (now_ms - SAGAS_KEPT_MS, source))?;
        }
    }
}

fn open_saga(row: OpenRow) -> OpenSaga {
    let (src, seq, plan, version, fingerprint, input, state, frontier, answer, attempts) = row;
    let frontier = frontier.filter(|_| state == ABORTING).and_then(|step| usize::try_from(step).ok());
    OpenSaga { id: SagaId { src, seq }, plan, version, fingerprint, input, frontier, answer, attempts }
}

fn stored((state, body, answer): FoundRow, wanted: &[u8]) -> Result<Stored, Fault> {
    if body != wanted {
        return Ok(Stored::KeyReused);
    }
    match answer {
        Some(answer) => decode(&answer).map(Stored::Ended),
        None if state < DONE => Ok(Stored::Running),
        None => Err(Fault::new(modulith_core::FaultKind::Type, "an ended saga has no answer")),
    }
}
