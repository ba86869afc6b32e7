//! The trace that a request belongs to: W3C Trace Context, Level 2 (<https://www.w3.org/TR/trace-context-2/>).
//!
//! Owns what stands in `traceparent` and `tracestate` and how much of it is kept. Who decides on sampling is the edge;
//! here a trace is only carried. What cannot be read is no trace, and a new one is begun: a stranger's mistake is never
//! passed on.

use std::fmt;
use std::sync::Arc;

use crate::random::random_u64;

/// Follows one request through every service, and through others that speak W3C Trace Context. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The same on every hop; never all zero.
    pub id: [u8; 16],
    /// The work that is under way, or that asked; never all zero.
    pub span: [u8; 8],
    pub flags: TraceFlags,
    /// What other tracing systems along the way have noted: a `tracestate` of at most [`Trace::STATE_BYTES_MAX`]
    /// bytes, passed on as it came.
    pub state: Option<Arc<str>>,
}

/// The flags that Level 2 knows. The others are dropped, as it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TraceFlags(u8);

impl TraceFlags {
    const SAMPLED: u8 = 1;
    const RANDOM: u8 = 2;

    /// Of a trace whose id is random in its last seven bytes.
    pub fn random(sampled: bool) -> Self {
        Self(Self::RANDOM).with_sampled(sampled)
    }

    /// Bits that are not known are dropped.
    pub fn from_bits(bits: u8) -> Self {
        Self(bits & (Self::SAMPLED | Self::RANDOM))
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    /// Spans are made for this trace, and may be recorded.
    pub fn is_sampled(self) -> bool {
        self.0 & Self::SAMPLED != 0
    }

    pub fn with_sampled(self, sampled: bool) -> Self {
        Self(self.0 & !Self::SAMPLED | u8::from(sampled))
    }
}

impl Trace {
    /// The names of the two headers.
    pub const PARENT: &'static str = "traceparent";
    pub const STATE: &'static str = "tracestate";
    /// Members of a `tracestate`; one that has more is dropped whole.
    pub const STATE_MEMBERS_MAX: usize = 32;
    /// What is kept of a `tracestate`. Of a longer one, members over 128 bytes go first, then those at its end.
    pub const STATE_BYTES_MAX: usize = 512;

    /// A new trace with a random id.
    pub fn start(sampled: bool) -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&random_u64().to_be_bytes());
        id[8..].copy_from_slice(&span_id());
        Self { id, span: span_id(), flags: TraceFlags::random(sampled), state: None }
    }

    /// The trace of a message that has these headers. `None` if there is no `traceparent`, more than one, or one that
    /// is not valid; a `tracestate` that is not valid is dropped alone.
    ///
    /// Versions above 00 are read as far as 00 goes, as Level 2 asks for.
    pub fn parse<'a>(
        traceparent: impl IntoIterator<Item = &'a [u8]>,
        tracestate: impl IntoIterator<Item = &'a [u8]>,
    ) -> Option<Self> {
        let mut parents = traceparent.into_iter();
        let (Some(parent), None) = (parents.next(), parents.next()) else {
            return None;
        };
        let (head, rest) = parent.split_at_checked(PARENT_BYTES)?;
        let [version] = hex(&head[..2])?;
        let is_whole = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.first().is_none_or(|next| *next == b'-'),
        };
        if !is_whole || [head[2], head[35], head[52]] != *b"---" {
            return None;
        }
        let (id, span, [bits]) = (hex(&head[3..35])?, hex(&head[36..52])?, hex(&head[53..55])?);
        let trace = Self { id, span, flags: TraceFlags::from_bits(bits), state: state(tracestate) };
        trace.is_valid().then_some(trace)
    }

    /// Neither id is all zero.
    pub fn is_valid(&self) -> bool {
        self.id != [0; 16] && self.span != [0; 8]
    }

    pub fn is_sampled(&self) -> bool {
        self.flags.is_sampled()
    }

    /// The same trace, for work that this one asks for.
    pub fn child(&self) -> Self {
        Self { span: span_id(), ..self.clone() }
    }

    /// The trace as the next piece of work has it: with a span of its own if it is sampled, else as it is, since nobody
    /// records what would refer to it.
    pub fn next(self) -> Self {
        if self.is_sampled() { Self { span: span_id(), ..self } } else { self }
    }

    /// The value of `traceparent`, version 00.
    pub fn traceparent(&self) -> String {
        format!("00-{}-{}-{:02x}", self.trace_id(), self.span_id(), self.flags.0)
    }

    /// The id as 32 hexadecimal digits, when it is printed.
    pub fn trace_id(&self) -> impl fmt::Display + fmt::Debug + use<> {
        Hex(self.id)
    }

    /// The span's id as 16 hexadecimal digits, when it is printed.
    pub fn span_id(&self) -> impl fmt::Display + fmt::Debug + use<> {
        Hex(self.span)
    }
}

const PARENT_BYTES: usize = 55;

struct Hex<const N: usize>([u8; N]);

impl<const N: usize> fmt::Display for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Lower-case digits only: capitals are not valid in any of the fields.
fn hex<const N: usize>(digits: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Never zero, which is no id; that is one chance in 2^64.
fn span_id() -> [u8; 8] {
    random_u64().max(1).to_be_bytes()
}

/// All headers of that name, as one; `None` if nothing is left of them.
fn state<'a>(headers: impl IntoIterator<Item = &'a [u8]>) -> Option<Arc<str>> {
    /// What Level 2 lets go first.
    const MEMBER_LONG_BYTES: usize = 128;
    let mut members = Vec::new();
    for header in headers {
        let header = std::str::from_utf8(header).ok()?;
        for member in header.split(',').map(|member| member.trim_matches([' ', '\t'])) {
            // Empty members are allowed, and say nothing.
            if member.is_empty() {
                continue;
            }
            if !is_member(member) || members.len() == Trace::STATE_MEMBERS_MAX {
                return None;
            }
            members.push(member);
        }
    }
    let bytes = |members: &[&str]| members.iter().map(|member| member.len() + 1).sum::<usize>();
    while bytes(&members) > Trace::STATE_BYTES_MAX + 1 {
        let long = members.iter().rposition(|member| member.len() > MEMBER_LONG_BYTES);
        members.remove(long.unwrap_or(members.len() - 1));
    }
    (!members.is_empty()).then(|| members.join(",").into())
}

/// `key=value` (Level 2, 3.3.1.3).
fn is_member(member: &str) -> bool {
    let Some((key, value)) = member.split_once('=') else {
        return false;
    };
    let is_key = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/@".contains(&byte);
    let key_begins =
        key.bytes().next().is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    let is_value = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'=';
    key_begins
        && key.len() <= 256
        && key.bytes().all(is_key)
        && (1..=256).contains(&value.len())
        && value.bytes().all(is_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    fn parsed(parent: &str) -> Option<Trace> {
        Trace::parse([parent.as_bytes()], [])
    }

    fn kept(states: &[&str]) -> Option<String> {
        let parent = format!("00-{ID}-{SPAN}-01");
        let trace = Trace::parse([parent.as_bytes()], states.iter().map(|state| state.as_bytes()));
        trace.expect("a bad tracestate is dropped alone").state.map(|state| state.to_string())
    }

    #[test]
    fn what_is_valid_is_printed_as_it_came() {
        for flags in ["00", "01", "02", "03"] {
            let parent = format!("00-{ID}-{SPAN}-{flags}");
            let trace = parsed(&parent).expect(&parent);
            assert_eq!(
                (trace.traceparent(), trace.is_sampled()),
                (parent.clone(), flags.ends_with(['1', '3']))
            );
        }
        // The specification's own example, and one whose unknown flags are dropped.
        let example = parsed("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01").expect("valid");
        assert_eq!(example.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(parsed(&format!("00-{ID}-{SPAN}-ff")).expect("valid").flags.bits(), 3);
    }

    /// The cases of the W3C's own test suite (github.com/w3c/trace-context, test/test.py).
    #[test]
    fn what_is_not_valid_begins_a_new_trace() {
        for parent in [
            "",
            "00",
            &format!("00-{ID}-{SPAN}"),
            &format!("00-{ID}-{SPAN}-"),
            &format!("00-{ID}-{SPAN}-1"),
            &format!("00-{ID}-{SPAN}-011"),
            &format!("00-{ID}-{SPAN}-01."),
            &format!("00-{ID}-{SPAN}-01-what-the-future-will-be-like"),
            &format!("00-{ID}-{SPAN}-0x"),
            &format!("00-{ID}-{SPAN}-.0"),
            &format!("00_{ID}-{SPAN}-01"),
            &format!("00-{ID}_{SPAN}-01"),
            &format!("00-{ID}-{SPAN}_01"),
            &format!("00-{}-{SPAN}-01", "0".repeat(32)),
            &format!("00-{ID}-{}-01", "0".repeat(16)),
            &format!("00-{}-{SPAN}-01", ID.to_uppercase()),
            &format!("00-{ID}-{}-01", SPAN.to_uppercase()),
            &format!("00-.{}-{SPAN}-01", &ID[1..]),
            &format!("00-{}-{SPAN}-01", &ID[1..]),
            &format!("00-0{ID}-{SPAN}-01"),
            &format!("ff-{ID}-{SPAN}-01"),
            &format!("0-{ID}-{SPAN}-01"),
            &format!(".0-{ID}-{SPAN}-01"),
            &format!("cc-{ID}-{SPAN}-01.what-the-future-will-be-like"),
            &format!("00-{ID}-{SPAN}-01, 00-{ID}-{SPAN}-01"),
        ] {
            assert_eq!(parsed(parent), None, "{parent}");
        }
        for parent in ["cc", "01", "fe"].map(|version| format!("{version}-{ID}-{SPAN}-01")) {
            assert!(parsed(&parent).is_some() && parsed(&format!("{parent}-more")).is_some(), "{parent}");
        }
        let one = format!("00-{ID}-{SPAN}-01");
        assert_eq!(Trace::parse([one.as_bytes(), one.as_bytes()], []), None, "two headers");
        assert_eq!(Trace::parse([], [&b"foo=1"[..]]), None, "no traceparent");
    }

    #[test]
    fn a_state_travels_as_far_as_it_is_valid_and_short() {
        for (states, expected) in [
            (&["foo=1,bar=2"][..], Some("foo=1,bar=2")),
            (&["foo=1", "bar=2"], Some("foo=1,bar=2")),
            (&["foo=1 \t , \t bar=2, \t"], Some("foo=1,bar=2")),
            (&["foo=1,"], Some("foo=1")),
            (&["foo=1", ""], Some("foo=1")),
            (&["foo"], None),
            (&["foo=1,bar"], None),
            (&["foo@=1,bar=2"], Some("foo@=1,bar=2")),
            (&["@foo=1"], None),
            (&["tenant@vendor=a b"], Some("tenant@vendor=a b")),
            (&["FOO=1"], None),
            (&["foo bar=1"], None),
            (&["foo="], None),
            (&["foo=bar=baz"], None),
            (&["foo=bär"], None),
            (&["foo=\u{1}"], None),
            (&[""], None),
            (&[], None),
        ] {
            assert_eq!(kept(states).as_deref(), expected, "{states:?}");
        }
        let many = |count: usize| (0..count).map(|at| format!("k{at}=1")).collect::<Vec<_>>().join(",");
        assert_eq!(kept(&[&many(32)]), Some(many(32)));
        assert_eq!(kept(&[&many(33)]), None, "33 members");
        let (key, value) = ("k".repeat(256), "v".repeat(256));
        assert_eq!(kept(&[&format!("{}=1", key.clone() + "k")]), None, "a key of 257 bytes");
        assert_eq!(kept(&[&format!("k={}", value.clone() + "v")]), None, "a value of 257 bytes");
        // The long one goes first, although it is the first; then the last ones.
        let (long, short) = (format!("a={value}"), "v".repeat(118));
        let members: Vec<_> = (1..=5).map(|at| format!("{at}={short}")).collect();
        let whole = format!("{long},{}", members.join(","));
        assert_eq!(kept(&[&whole]), Some(members[..4].join(",")));
        assert_eq!(kept(&[&"x=1,".repeat(100_000)]), None, "however long");
    }

    #[test]
    fn new_traces_are_random_and_children_stay_in_theirs() {
        let mut ids = std::collections::HashSet::new();
        for sampled in [true, false].into_iter().cycle().take(10_000) {
            let trace = Trace::start(sampled);
            assert_eq!((trace.is_valid(), trace.is_sampled()), (true, sampled));
            assert_eq!(parsed(&trace.traceparent()).as_ref(), Some(&trace));
            let child = trace.child();
            assert_eq!((child.id, child.flags), (trace.id, trace.flags));
            assert!(
                child.span != trace.span
                    && ids.insert(trace.id)
                    && ids.insert([trace.span; 2].concat().try_into().expect("16 bytes"))
            );
        }
    }
}
