//! What processes of one application say to each other: the payloads of the transport's calls.
//!
//! Owns the layout, byte by byte; what a field means is its user's business. All integers are little-endian.
//!
//! ```text
//! call    kind u8   fields   0   body
//! field   tag u8 (not 0)   length u16   bytes
//!
//! kind  1 query, 2 command, 3 effect (one attempt)  body: the request, as modulith_core::encode writes it
//!       4 of a saga                                 body: Asked, likewise
//!       5 HTTP, from the gateway                    body and answer: modulith-gateway/src/wire.rs
//!
//! tag   1 contract, UTF-8           4 principal: `a` for an administrator, `u` and the subject for a user,
//!                                     `c` and the name for a program that is none of ours
//!       2 method, UTF-8             5 key of a command: origin, direction, step u16, seq i64, src[16],
//!       3 request id, UTF-8           hash of the body [16], how long the key is kept i64 (ms)
//!       6 trace: id [16], span [8], flags u8 (W3C Trace Context, 2)
//!       7 tracestate, at most 512 bytes; only behind a trace
//!
//! answer  kind u8   body
//! kind  1 done: the answer         3 of a saga: Told       5 unknown: Unknown
//!       2 refused: RefusalRecord   4 not run: NotRun
//! ```
//!
//! A reader skips fields whose tag it does not know and which are below 128; from 128 on it has to understand
//! them, and refuses the call by the tag's number. So a later version adds what may be ignored and what may not. The bodies are
//! MessagePack with field names, where a field added with a default is read by old and new.

use bytes::{Buf, Bytes};
use modulith_core::{
    Context, Direction, Fault, FaultKind, NotRun, Origin, Outcome, Principal, RefusalRecord, StepKey, Trace,
    TraceFlags, Unknown, decode, encode,
};
use modulith_data::inbox::BodyHash;
use modulith_data::saga::Told as SagaTold;
use uuid::Uuid;

use crate::metrics::Ended;

/// What a call is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Ask {
    Query = 1,
    /// Outside of a saga, under a client's or an automatic key.
    Command = 2,
    /// Outside of a saga: one attempt.
    Effect = 3,
    /// Under a saga's keys.
    Saga = 4,
    /// A request from outside.
    Http = 5,
}

/// What stands before a call's body.
#[derive(Debug)]
pub(crate) struct Head<'a> {
    pub(crate) ask: Ask,
    /// Empty in what a saga or a client asks, whose body says it.
    pub(crate) contract: &'a str,
    pub(crate) method: &'a str,
    pub(crate) request_id: &'a str,
    pub(crate) principal: Option<Asker<'a>>,
    /// Of a command.
    pub(crate) keyed: Option<Keyed>,
    pub(crate) trace: Option<Trace>,
}

/// Who asks, by a name that is somebody else's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker<'a> {
    Admin,
    User(&'a str),
    Caller(&'a str),
}

impl<'a> From<&'a Principal> for Asker<'a> {
    fn from(principal: &'a Principal) -> Self {
        match principal {
            Principal::Admin => Self::Admin,
            Principal::User(subject) => Self::User(subject),
            Principal::Caller(name) => Self::Caller(name),
        }
    }
}

impl From<Asker<'_>> for Principal {
    fn from(asker: Asker<'_>) -> Self {
        match asker {
            Asker::Admin => Self::Admin,
            Asker::User(subject) => Self::User(subject.into()),
            Asker::Caller(name) => Self::Caller(name.into()),
        }
    }
}

/// Under which key a command runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keyed {
    pub(crate) key: StepKey,
    pub(crate) hash: BodyHash,
    pub(crate) kept_ms: i64,
}

const CONTRACT: u8 = 1;
const METHOD: u8 = 2;
const REQUEST_ID: u8 = 3;
const PRINCIPAL: u8 = 4;
const KEYED: u8 = 5;
const TRACE: u8 = 6;
const TRACE_STATE: u8 = 7;
/// Tags from here on have to be understood.
const MANDATORY: u8 = 128;
const KEYED_BYTES: usize = 1 + 1 + 2 + 8 + 16 + 16 + 8;

impl Head<'_> {
    /// The head and the body as one payload.
    pub(crate) fn with_body(&self, body: &[u8]) -> Result<Vec<u8>, Fault> {
        let mut out = Vec::with_capacity(256 + body.len());
        self.put(&mut out)?;
        out.extend_from_slice(body);
        Ok(out)
    }

    fn put(&self, out: &mut Vec<u8>) -> Result<(), Fault> {
        out.push(self.ask as u8);
        put_names(out, self.contract, self.method)?;
        put(out, REQUEST_ID, &[self.request_id.as_bytes()])?;
        match self.principal {
            None => {}
            Some(Asker::Admin) => put(out, PRINCIPAL, &[b"a"])?,
            Some(Asker::User(subject)) => put(out, PRINCIPAL, &[b"u", subject.as_bytes()])?,
            Some(Asker::Caller(name)) => put(out, PRINCIPAL, &[b"c", name.as_bytes()])?,
        }
        if let Some(keyed) = &self.keyed {
            put(out, KEYED, &[&keyed.encode()])?;
        }
        if let Some(trace) = &self.trace {
            put(out, TRACE, &[&trace.id, &trace.span, &[trace.flags.bits()]])?;
            put(out, TRACE_STATE, &[trace.state.as_deref().unwrap_or_default().as_bytes()])?;
        }
        out.push(0);
        Ok(())
    }
}

/// The head of a request from outside, for [`modulith_gateway::Upstream`].
pub(crate) fn put_http(context: &Context, out: &mut Vec<u8>) -> Result<(), Fault> {
    let head = Head {
        ask: Ask::Http,
        contract: "",
        method: "",
        request_id: &context.request_id,
        principal: context.principal.as_ref().map(Asker::from),
        keyed: None,
        trace: context.trace.clone(),
    };
    head.put(out)
}

/// How the fields of a call to this method begin.
pub(crate) fn names_of(contract: &str, method: &str) -> Result<Vec<u8>, Fault> {
    let mut names = Vec::new();
    put_names(&mut names, contract, method)?;
    Ok(names)
}

fn put_names(out: &mut Vec<u8>, contract: &str, method: &str) -> Result<(), Fault> {
    put(out, CONTRACT, &[contract.as_bytes()])?;
    put(out, METHOD, &[method.as_bytes()])
}

/// The fields that name contract and method, if a call begins with both, as ours do; see [`names_of`].
pub(crate) fn names(payload: &[u8]) -> Option<&[u8]> {
    let fields = payload.get(1..)?;
    let behind = |tag: u8, from: usize| match fields.get(from..)? {
        [first, low, high, ..] if *first == tag => {
            Some(from + 3 + usize::from(u16::from_le_bytes([*low, *high])))
        }
        _ => None,
    };
    fields.get(..behind(METHOD, behind(CONTRACT, 0)?)?)
}

/// A field; an empty one is left out.
fn put(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) -> Result<(), Fault> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    if bytes == 0 {
        return Ok(());
    }
    let length = u16::try_from(bytes).map_err(|_| {
        let message = format!("field {tag} of a call has {bytes} bytes, {} are allowed", u16::MAX);
        Fault::new(FaultKind::Limit, message)
    })?;
    out.push(tag);
    out.extend_from_slice(&length.to_le_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(())
}

/// Reads a call's payload; the text of an `Err` says what is wrong with it.
pub(crate) fn read(payload: &[u8]) -> Result<(Head<'_>, &[u8]), String> {
    read_behind(payload, &[], "", "")
}

/// The same of a call that begins with these [`names`], which are known to mean this contract and method.
pub(crate) fn read_behind<'a>(
    payload: &'a [u8],
    names: &[u8],
    contract: &'a str,
    method: &'a str,
) -> Result<(Head<'a>, &'a [u8]), String> {
    let cut = || "the call's head is cut short".to_owned();
    let (kind, rest) = payload.split_first().ok_or_else(cut)?;
    let mut rest = rest.get(names.len()..).ok_or_else(cut)?;
    let ask = match kind {
        1 => Ask::Query,
        2 => Ask::Command,
        3 => Ask::Effect,
        4 => Ask::Saga,
        5 => Ask::Http,
        other => return Err(format!("a call of kind {other} is not understood here")),
    };
    let mut head = Head { ask, contract, method, request_id: "", principal: None, keyed: None, trace: None };
    loop {
        let (tag, after) = rest.split_first().ok_or_else(cut)?;
        rest = after;
        if *tag == 0 {
            break;
        }
        let (length, after) = rest.split_first_chunk().ok_or_else(cut)?;
        let (field, after) =
            after.split_at_checked(usize::from(u16::from_le_bytes(*length))).ok_or_else(cut)?;
        rest = after;
        match *tag {
            CONTRACT => head.contract = text(field, "contract")?,
            METHOD => head.method = text(field, "method")?,
            REQUEST_ID => head.request_id = text(field, "request id")?,
            PRINCIPAL => head.principal = Some(asker(field)?),
            KEYED => head.keyed = Some(Keyed::decode(field)?),
            TRACE => head.trace = trace(field),
            TRACE_STATE => {
                let state = text(field, "tracestate")?;
                if let Some(trace) = &mut head.trace
                    && state.len() <= Trace::STATE_BYTES_MAX
                {
                    trace.state = Some(state.into());
                }
            }
            unknown @ MANDATORY.. => return Err(format!("field {unknown} of a call is not understood here")),
            _ => {}
        }
    }
    Ok((head, rest))
}

fn text<'a>(field: &'a [u8], name: &str) -> Result<&'a str, String> {
    std::str::from_utf8(field).map_err(|_| format!("the call's {name} is not UTF-8"))
}

fn asker(field: &[u8]) -> Result<Asker<'_>, String> {
    match field.split_first() {
        Some((b'a', [])) => Ok(Asker::Admin),
        Some((b'u', subject)) => Ok(Asker::User(text(subject, "principal")?)),
        Some((b'c', name)) => Ok(Asker::Caller(text(name, "principal")?)),
        // Never a guest by mistake: who is not understood is refused.
        _ => Err("the call's principal is not understood here".to_owned()),
    }
}

/// One that is not understood is none: a call is not refused for what only its observers need.
fn trace(field: &[u8]) -> Option<Trace> {
    let (id, rest) = field.split_first_chunk()?;
    let (span, rest) = rest.split_first_chunk()?;
    let flags = TraceFlags::from_bits(*rest.first()?);
    Some(Trace { id: *id, span: *span, flags, state: None }).filter(Trace::is_valid)
}

impl Keyed {
    fn encode(&self) -> [u8; KEYED_BYTES] {
        let mut out = [0; KEYED_BYTES];
        out[0] = self.key.origin as u8;
        out[1] = self.key.direction as u8;
        out[2..4].copy_from_slice(&self.key.step.to_le_bytes());
        out[4..12].copy_from_slice(&self.key.seq.to_le_bytes());
        out[12..28].copy_from_slice(self.key.src.as_bytes());
        out[28..44].copy_from_slice(&self.hash);
        out[44..].copy_from_slice(&self.kept_ms.to_le_bytes());
        out
    }

    fn decode(field: &[u8]) -> Result<Self, String> {
        let wrong = || "the call's key is not understood here".to_owned();
        let field: &[u8; KEYED_BYTES] = field.try_into().map_err(|_| wrong())?;
        let part = |from: usize| -> [u8; 8] { std::array::from_fn(|at| field[from + at]) };
        let half = |from: usize| -> [u8; 16] { std::array::from_fn(|at| field[from + at]) };
        let key = StepKey {
            origin: match field[0] {
                0 => Origin::Client,
                1 => Origin::Process,
                2 => Origin::Saga,
                _ => return Err(wrong()),
            },
            direction: match field[1] {
                0 => Direction::Do,
                1 => Direction::Undo,
                _ => return Err(wrong()),
            },
            step: u16::from_le_bytes([field[2], field[3]]),
            seq: i64::from_le_bytes(part(4)),
            src: Uuid::from_bytes(half(12)),
        };
        Ok(Self { key, hash: half(28), kept_ms: i64::from_le_bytes(part(44)) })
    }
}

/// What a caller is told.
#[derive(Debug)]
pub(crate) enum Told {
    Outcome(Outcome),
    /// It is done, and these bytes say so: [`Told::DONE`] and the answer.
    Written(Vec<u8>),
    Saga(SagaTold),
    NotRun(NotRun),
    Unknown(Unknown),
}

impl Told {
    pub(crate) fn ended(&self) -> Ended {
        match self {
            Self::Outcome(Outcome::Refused(_)) | Self::Saga(SagaTold::Refused { .. }) => Ended::Refused,
            Self::Outcome(Outcome::Done(_)) | Self::Written(_) | Self::Saga(_) => Ended::Done,
            Self::NotRun(_) => Ended::NotRun,
            Self::Unknown(_) => Ended::Unknown,
        }
    }

    /// What stands in front of an answer.
    pub(crate) const DONE: u8 = 1;

    pub(crate) fn encode(self) -> Result<Vec<u8>, Fault> {
        let (kind, mut out) = match self {
            Self::Written(out) => return Ok(out),
            Self::Outcome(Outcome::Done(answer)) => (Self::DONE, answer),
            Self::Outcome(Outcome::Refused(record)) => (2, encode(&record)?),
            Self::Saga(told) => (3, encode(&told)?),
            Self::NotRun(not_run) => (4, encode(&not_run)?),
            Self::Unknown(unknown) => (5, encode(&unknown)?),
        };
        // Moving the bytes within their buffer costs less than another buffer.
        out.insert(0, kind);
        Ok(out)
    }

    pub(crate) fn decode(mut answer: Bytes) -> Result<Self, Fault> {
        if answer.first() == Some(&Self::DONE) {
            answer.advance(1);
            // The same buffer: nobody else has it.
            return Ok(Self::Outcome(Outcome::Done(answer.into())));
        }
        match answer.split_first() {
            Some((2, body)) => Ok(Self::Outcome(Outcome::Refused(decode::<RefusalRecord>(body)?))),
            Some((3, body)) => decode(body).map(Self::Saga),
            Some((4, body)) => decode(body).map(Self::NotRun),
            Some((5, body)) => decode(body).map(Self::Unknown),
            Some((kind, _)) => Err(Fault::new(
                FaultKind::Encoding,
                format!("an answer of kind {kind} is not understood here"),
            )),
            None => Err(Fault::new(FaultKind::Encoding, "an empty answer")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head<'static> {
        let key = StepKey {
            origin: Origin::Process,
            src: Uuid::from_bytes([7; 16]),
            seq: 0x0102,
            step: 3,
            direction: Direction::Do,
        };
        Head {
            ask: Ask::Command,
            contract: "products",
            method: "hold",
            request_id: "r-1",
            principal: Some(Asker::User("ann")),
            keyed: Some(Keyed { key, hash: [9; 16], kept_ms: 600_000 }),
            trace: Some(Trace {
                id: [11; 16],
                span: [12; 8],
                flags: TraceFlags::random(true),
                state: Some("a=1".into()),
            }),
        }
    }

    /// Bytes written by an older version stay readable, so the layout is pinned here byte by byte.
    #[test]
    fn the_layout_is_pinned() {
        let payload = head().with_body(b"body").expect("short");
        let pinned = [
            &b"\x02\x01\x08\0products\x02\x04\0hold\x03\x03\0r-1\x04\x04\0uann\x05\x34\0\x01\0\x03\0\x02\x01\0\0\0\0\0\0"[..],
            &[7; 16],
            &[9; 16],
            b"\xc0\x27\x09\0\0\0\0\0\x06\x19\0",
            &[11; 16],
            &[12; 8],
            b"\x03\x07\x03\0a=1\0body",
        ]
        .concat();
        assert_eq!(payload, pinned);
        let (read, body) = read(&payload).expect("well formed");
        let wrote = head();
        assert_eq!((read.ask, read.contract, read.method), (wrote.ask, wrote.contract, wrote.method));
        assert_eq!((read.request_id, read.principal), (wrote.request_id, wrote.principal));
        assert_eq!((read.keyed, body), (wrote.keyed, &b"body"[..]));
        assert_eq!(read.trace, wrote.trace);
        assert_eq!(&Told::Outcome(Outcome::Done(b"x".to_vec())).encode().expect("short")[..], b"\x01x");
    }

    #[test]
    fn what_a_later_version_adds_is_skipped_or_refused_by_name() {
        let later = |tag| {
            let mut payload = vec![1, tag, 2, 0, b'h', b'i'];
            payload.extend_from_slice(b"\x01\x01\0c\0body");
            Bytes::from(payload)
        };
        let payload = later(127);
        let (head, body) = read(&payload).expect("a field that may be skipped");
        assert_eq!((head.contract, body), ("c", &b"body"[..]));
        assert_eq!(read(&later(128)).expect_err("mandatory"), "field 128 of a call is not understood here");
    }

    #[test]
    fn a_trace_that_is_not_understood_is_none_and_the_call_goes_on() {
        let with = |field: &[u8], state: &[u8]| {
            let mut payload = vec![1];
            put(&mut payload, TRACE, &[field]).expect("short");
            put(&mut payload, TRACE_STATE, &[state]).expect("short");
            payload.push(0);
            read(&payload).expect("the call goes on").0.trace
        };
        assert_eq!(with(&[1; 24], b"a=1"), None);
        assert_eq!(with(&[0; 25], b"a=1"), None);
        // What a later version appends is skipped, and a state that is too long is dropped alone.
        let state = |bytes: usize| with(&[1; 26], &vec![b'a'; bytes]).expect("valid").state.map(|s| s.len());
        assert_eq!((state(512), state(513)), (Some(512), None));
    }

    #[test]
    fn a_head_cut_anywhere_is_refused() {
        let payload = head().with_body(b"").expect("short");
        for cut in 0..payload.len() {
            assert!(read(&payload[..cut]).is_err(), "cut at {cut}");
        }
    }
}
