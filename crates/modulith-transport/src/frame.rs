//! The bytes on the wire: the preface and the frames.
//!
//! Owns the layout, and nothing of what it means. All integers are little-endian.
//!
//! ```text
//! preface, once from each side:   "MDLT"  version u8 (1)
//!
//! frame:  length u32      of all that follows it; at least 10
//!         kind   u8
//!         flags  u8       1 reserved priority (call), 2 parts (call, answer), 4 streamed (call, answer),
//!                         8 last (data); other bits must be zero
//!         id     u64      of the call; 0 where there is none
//!         body            length - 10 bytes, at most 65,540
//!
//! kind           from     id  body
//!  1 challenge   served   -   nonce[32]
//!  2 hello       both     -   nonce[32] (zero from the served side)  proof[32]  hello
//!  3 refused     both     -   text, UTF-8
//!  4 call        caller   id  remaining_ms u32 (at least 1)  payload; with `parts`, its size u32 instead
//!  5 answer      served   id  payload; with `parts`, its size u32 instead
//!  6 rejected    served   id  retry_after_ms u32 (0xFFFFFFFF: none)  text; the call did not run
//!  7 no answer   served   id  text; the call ran and there is no answer
//!  8 cancel      caller   id  nothing; the caller no longer waits
//!  9 ping        both     -   nothing
//! 10 pong        both     -   nothing
//! 11 goaway      served   -   text; no new calls: those that arrive are rejected
//! 12 void        caller   id  anything; a call that was withdrawn before it was sent
//! 13 part        both     id  the next 1 to 65,536 bytes of a payload whose size was announced
//! 14 data        both     id  the next 1 to 65,536 bytes of a streamed body; the `last` may be empty
//! 15 window      both     id  u32, at least 1: so many more bytes of the body may be sent
//! 16 reset       both     id  text; whoever sends a payload or a body breaks it off
//! 17 stop        both     id  nothing; whoever receives a body takes no more of it
//! ```
//!
//! A payload above 64 KiB is announced by its size and follows in parts, so that other frames pass between
//! them. A call or an answer that is `streamed` has a body behind its payload. Its sender may send 256 KiB, and
//! then as much as `window` frames allow: the windows of HTTP/2 (RFC 9113, 5.2) for each body, without HTTP/2's
//! second window for the connection, through which one consumer that does not read would hold up the others.
//! The two directions of a call end separately, as in QUIC (RFC 9000, 3.5): the sender's last word is a whole
//! payload, `last`, or `reset`; a receiver that wants no more says `stop` and passes over what comes before
//! that last word. `cancel` is also the last word of the caller's direction, and `rejected` a stop for it.
//!
//! A handshake is: preface; preface and challenge; hello; hello or refused. The preface, and *refused* in
//! answer to it, keep this layout in every version, so that two versions can always tell each other why they
//! part. A proof is HMAC-SHA-256, keyed by the token, over a label naming the side, the client's nonce, the served
//! side's nonce, and the hello that follows it.
//!
//! Refused: a length below 10 or above what the limits allow, an unknown kind, an unknown flag, a body of the
//! wrong size. Each closes the connection; there is no resynchronising in a stream of bytes that proved wrong.

use bytes::{Buf, Bytes, BytesMut};

use crate::{ConnectionError, Rejection};

/// The first bytes of a connection that carries frames.
pub const MAGIC: [u8; 4] = *b"MDLT";
/// The version of the preface's fifth byte.
pub const PROTOCOL_VERSION: u8 = 1;
pub(crate) const PREFACE: [u8; 5] = [MAGIC[0], MAGIC[1], MAGIC[2], MAGIC[3], PROTOCOL_VERSION];

/// Bytes after the length and before the body.
const FIXED: usize = 10;
/// Bytes before the body.
pub(crate) const HEADER: usize = 4 + FIXED;
/// Where in a frame its kind stands.
pub(crate) const KIND_AT: usize = 4;
/// How much of a text travels.
const TEXT_BYTES_MAX: usize = 1024;
const RESERVED: u8 = 1;
/// The payload is announced and follows in parts.
pub(crate) const PARTS: u8 = 2;
/// A body follows behind the payload.
pub(crate) const STREAMED: u8 = 4;
/// The body ends here.
pub(crate) const LAST: u8 = 8;
/// The largest piece of a payload or a body in one frame.
pub(crate) const CHUNK: usize = 64 << 10;
/// What may be on its way of one streamed body: a consumer that does not read holds no more than this.
pub const BODY_WINDOW_BYTES: usize = 256 << 10;
/// The largest body of a frame: a call's deadline, and its payload.
pub(crate) const BODY_MAX: usize = 4 + CHUNK;
const NO_RETRY: u32 = u32::MAX;
/// Payloads up to this size are copied out of the read buffer; a shared slice of it would keep the whole buffer
/// in memory for as long as its call runs.
const COPIED_MAX: usize = 8 << 10;
/// How much is made room for before each read.
const READ: usize = 64 << 10;
/// A buffer that grew for one large frame is not kept.
pub(crate) const KEPT_MAX: usize = 1 << 20;

/// The text of a goaway that is followed by a successor rather than by the end for a reason.
pub(crate) const DRAINING: &str = "draining";

/// Which share of the places in flight a call may use.
///
/// Undo, seal and health checks are reserved: when ordinary calls have filled their share, these must still
/// get through, since they are what frees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    Ordinary,
    Reserved,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    Challenge = 1,
    Hello = 2,
    Refused = 3,
    Call = 4,
    Answer = 5,
    Rejected = 6,
    NoAnswer = 7,
    Cancel = 8,
    Ping = 9,
    Pong = 10,
    Goaway = 11,
    Void = 12,
    Part = 13,
    Data = 14,
    Window = 15,
    Reset = 16,
    Stop = 17,
}

impl Kind {
    const ALL: [Self; 17] = [
        Self::Challenge,
        Self::Hello,
        Self::Refused,
        Self::Call,
        Self::Answer,
        Self::Rejected,
        Self::NoAnswer,
        Self::Cancel,
        Self::Ping,
        Self::Pong,
        Self::Goaway,
        Self::Void,
        Self::Part,
        Self::Data,
        Self::Window,
        Self::Reset,
        Self::Stop,
    ];

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte).checked_sub(1)?).copied()
    }

    /// The flags that a frame of this kind may have.
    fn flags(self) -> u8 {
        match self {
            Self::Call => RESERVED | PARTS | STREAMED,
            Self::Answer => PARTS | STREAMED,
            Self::Data => LAST,
            // It was a call, or what follows one.
            Self::Void => RESERVED | PARTS | STREAMED | LAST,
            _ => 0,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    flags: u8,
    pub(crate) id: u64,
    pub(crate) body: Bytes,
}

fn put_header(out: &mut Vec<u8>, kind: Kind, flags: u8, id: u64, body_bytes: usize) {
    let mut header = [0; HEADER];
    // Every sender checks its bodies against limits far below 4 GiB.
    header[..4].copy_from_slice(&((FIXED + body_bytes) as u32).to_le_bytes());
    header[KIND_AT] = kind as u8;
    header[5] = flags;
    header[6..].copy_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&header);
}

pub(crate) fn put(out: &mut Vec<u8>, kind: Kind, id: u64, body: &[u8]) {
    put_flagged(out, kind, 0, id, body);
}

pub(crate) fn put_flagged(out: &mut Vec<u8>, kind: Kind, flags: u8, id: u64, body: &[u8]) {
    put_header(out, kind, flags, id, body.len());
    out.extend_from_slice(body);
}

pub(crate) fn put_text(out: &mut Vec<u8>, kind: Kind, id: u64, text: &str) {
    put(out, kind, id, &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]);
}

/// A call, whose `payload` may be its announcement.
pub(crate) fn put_call(
    out: &mut Vec<u8>,
    id: u64,
    priority: Priority,
    flags: u8,
    remaining_ms: u32,
    payload: &[u8],
) {
    let flags = flags | if priority == Priority::Reserved { RESERVED } else { 0 };
    out.reserve(HEADER + 4 + payload.len());
    put_header(out, Kind::Call, flags, id, 4 + payload.len());
    out.extend_from_slice(&remaining_ms.to_le_bytes());
    out.extend_from_slice(payload);
}

pub(crate) fn put_rejected(out: &mut Vec<u8>, id: u64, rejection: &Rejection) {
    let text = &rejection.reason.as_bytes()[..rejection.reason.floor_char_boundary(TEXT_BYTES_MAX)];
    put_header(out, Kind::Rejected, 0, id, 4 + text.len());
    out.extend_from_slice(&rejection.retry_after_ms.unwrap_or(NO_RETRY).to_le_bytes());
    out.extend_from_slice(text);
}

/// How long the first of these whole frames is, and whose.
pub(crate) fn length_and_id(frames: &[u8]) -> Option<(usize, u64)> {
    let header = frames.first_chunk::<HEADER>()?;
    let (mut length, mut id) = ([0; 4], [0; 8]);
    length.copy_from_slice(&header[..4]);
    id.copy_from_slice(&header[6..]);
    Some((4 + u32::from_le_bytes(length) as usize, u64::from_le_bytes(id)))
}

/// A call's frame takes this much of the write buffer.
pub(crate) fn call_bytes(payload: usize) -> usize {
    HEADER + 4 + payload
}

impl Frame {
    /// Takes the next whole frame from the front of the buffer, or `None` when more bytes are needed.
    pub(crate) fn take(
        buffer: &mut BytesMut,
        body_bytes_max: usize,
    ) -> Result<Option<Self>, ConnectionError> {
        let Some(length) = buffer.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        let Some(body_bytes) = length.checked_sub(FIXED) else {
            return Err(ConnectionError::Malformed("a frame is shorter than its header"));
        };
        // Checked before the body arrives: the announced length must never decide how much is held.
        if body_bytes > body_bytes_max {
            return Err(ConnectionError::FrameTooLarge { bytes: body_bytes, max: body_bytes_max });
        }
        let Some(header) = buffer.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let Some(kind) = Kind::from_byte(header[KIND_AT]) else {
            return Err(ConnectionError::Malformed("unknown kind of frame"));
        };
        let flags = header[5];
        if flags & !kind.flags() != 0 {
            return Err(ConnectionError::Malformed("unknown flags"));
        }
        let mut id = [0; 8];
        id.copy_from_slice(&header[6..]);
        if buffer.len() < 4 + length {
            return Ok(None);
        }
        let body = if body_bytes <= COPIED_MAX {
            let body = Bytes::copy_from_slice(&buffer[HEADER..HEADER + body_bytes]);
            buffer.advance(4 + length);
            body
        } else {
            buffer.advance(HEADER);
            buffer.split_to(body_bytes).freeze()
        };
        Ok(Some(Self { kind, flags, id: u64::from_le_bytes(id), body }))
    }

    pub(crate) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Neither announced nor streamed: all of it is in this frame.
    pub(crate) fn is_whole(&self) -> bool {
        self.flags & (PARTS | STREAMED) == 0
    }

    pub(crate) fn priority(&self) -> Priority {
        if self.is(RESERVED) { Priority::Reserved } else { Priority::Ordinary }
    }

    /// The body as the text that a person wrote; what is not UTF-8 is replaced, since it is only shown.
    pub(crate) fn text(&self) -> String {
        let shown = &self.body[..self.body.len().min(TEXT_BYTES_MAX)];
        String::from_utf8_lossy(shown).into_owned()
    }

    /// The u32 in front of a body, and the rest.
    fn number_and_rest(mut self) -> Result<(u32, Bytes), ConnectionError> {
        let Some(number) = self.body.first_chunk::<4>().copied() else {
            return Err(ConnectionError::Malformed("a body is too short for its kind"));
        };
        // Not a slice of it, which would make it a shared one, by an allocation.
        self.body.advance(4);
        Ok((u32::from_le_bytes(number), self.body))
    }

    /// The remaining milliseconds and the payload of a call.
    pub(crate) fn into_call(self) -> Result<(u32, Bytes), ConnectionError> {
        match self.number_and_rest()? {
            (0, _) => Err(ConnectionError::Malformed("a call without remaining time")),
            call => Ok(call),
        }
    }

    /// A body that is one number above zero: a window's, or the size of an announced payload.
    pub(crate) fn number(body: &[u8]) -> Result<usize, ConnectionError> {
        match <[u8; 4]>::try_from(body).map(u32::from_le_bytes) {
            Ok(number @ 1..) => Ok(number as usize),
            _ => Err(ConnectionError::Malformed("a size or window that is not a number above zero")),
        }
    }

    pub(crate) fn into_rejection(self) -> Result<Rejection, ConnectionError> {
        let text_at = 4.min(self.body.len());
        let reason = String::from_utf8_lossy(&self.body[text_at..]).into_owned();
        let (retry, _) = self.number_and_rest()?;
        Ok(Rejection { reason, retry_after_ms: (retry != NO_RETRY).then_some(retry) })
    }

    /// Refuses a body where the kind has none.
    pub(crate) fn expect_empty(&self) -> Result<(), ConnectionError> {
        if self.body.is_empty() {
            Ok(())
        } else {
            Err(ConnectionError::Malformed("a body on a frame that has none"))
        }
    }
}

/// Makes room for one read. The buffer grows by doubling with what has arrived, never by what was announced.
pub(crate) fn make_room(buffer: &mut BytesMut) {
    if buffer.is_empty() && buffer.capacity() > KEPT_MAX {
        *buffer = BytesMut::new();
    }
    if buffer.capacity() - buffer.len() < READ / 4 {
        buffer.reserve(READ);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes written by an older version stay readable, so the layout is pinned here byte by byte.
    #[test]
    fn the_layout_is_pinned() {
        let mut out = Vec::new();
        put_call(&mut out, 0x0102, Priority::Reserved, 0, 1500, b"hi");
        put_rejected(&mut out, 3, &Rejection::retry_after("full", 7));
        put(&mut out, Kind::Ping, 0, b"");
        put_call(&mut out, 5, Priority::Reserved, PARTS | STREAMED, 2, &70_000u32.to_le_bytes());
        put_flagged(&mut out, Kind::Answer, STREAMED, 5, b"a");
        put(&mut out, Kind::Part, 5, b"p");
        put_flagged(&mut out, Kind::Data, LAST, 5, b"d");
        put(&mut out, Kind::Window, 5, &(1u32 << 17).to_le_bytes());
        put_text(&mut out, Kind::Reset, 5, "r");
        put(&mut out, Kind::Stop, 5, b"");
        assert_eq!(
            out,
            [
                &[16, 0, 0, 0, 4, 1, 2, 1, 0, 0, 0, 0, 0, 0, 0xdc, 5, 0, 0, b'h', b'i'][..],
                &[18, 0, 0, 0, 6, 0, 3, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, b'f', b'u', b'l', b'l'],
                &[10, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                &[18, 0, 0, 0, 4, 7, 5, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x70, 0x11, 1, 0],
                &[11, 0, 0, 0, 5, 4, 5, 0, 0, 0, 0, 0, 0, 0, b'a'],
                &[11, 0, 0, 0, 13, 0, 5, 0, 0, 0, 0, 0, 0, 0, b'p'],
                &[11, 0, 0, 0, 14, 8, 5, 0, 0, 0, 0, 0, 0, 0, b'd'],
                &[14, 0, 0, 0, 15, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0],
                &[11, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, b'r'],
                &[10, 0, 0, 0, 17, 0, 5, 0, 0, 0, 0, 0, 0, 0],
            ]
            .concat()
        );
        assert_eq!(PREFACE, *b"MDLT\x01");
        let mut buffer = BytesMut::from(&out[..]);
        let mut next = || Frame::take(&mut buffer, 100).expect("well formed");
        let call = next().expect("whole");
        assert_eq!((call.kind, call.priority(), call.id), (Kind::Call, Priority::Reserved, 0x0102));
        assert_eq!(call.into_call().expect("a call"), (1500, Bytes::from_static(b"hi")));
        let rejection = next().expect("whole").into_rejection().expect("a rejection");
        assert_eq!(rejection, Rejection::retry_after("full", 7));
        assert_eq!(next().expect("whole").kind, Kind::Ping);
        let announced = next().expect("whole");
        assert!(announced.is(PARTS) && announced.is(STREAMED) && !announced.is_whole());
        let (_, size) = announced.into_call().expect("a call");
        assert_eq!(Frame::number(&size).expect("a size"), 70_000);
        assert!(next().expect("whole").is(STREAMED));
        assert_eq!(next().expect("whole").kind, Kind::Part);
        assert!(next().expect("whole").is(LAST));
        for kind in [Kind::Window, Kind::Reset, Kind::Stop] {
            assert_eq!(next().expect("whole").kind, kind);
        }
        assert!(next().is_none());
    }

    #[test]
    fn a_frame_cut_anywhere_waits_for_the_rest() {
        let mut out = Vec::new();
        put_call(&mut out, 9, Priority::Ordinary, 0, 1, &[5; 9000]);
        for cut in [0, 3, 4, 13, 14, 17, 18, 9000, out.len() - 1] {
            let mut buffer = BytesMut::from(&out[..cut]);
            assert!(Frame::take(&mut buffer, 10_000).expect("no error yet").is_none(), "cut at {cut}");
            buffer.extend_from_slice(&out[cut..]);
            assert!(Frame::take(&mut buffer, 10_000).expect("whole").is_some(), "cut at {cut}");
            assert!(buffer.is_empty());
        }
    }
}
