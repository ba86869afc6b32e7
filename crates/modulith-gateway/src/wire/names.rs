//! Which header names travel as one byte.
//!
//! A place is a promise between versions: a later version appends names and never moves one.

use http::HeaderName;

/// In [`PLACES`]: belongs to one connection, not to the message (RFC 9110, 7.6.1).
pub(super) const STAYS: u8 = u8::MAX;

macro_rules! names {
    ($($name:literal)*) => {
        const TEXTS: &[&str] = &[$($name),*];
        static NAMES: [HeaderName; TEXTS.len()] = [$(HeaderName::from_static($name)),*];
    };
}

names! {
    "accept" "accept-encoding" "accept-language" "accept-ranges" "access-control-allow-credentials"
    "access-control-allow-headers" "access-control-allow-methods" "access-control-allow-origin"
    "access-control-expose-headers" "access-control-max-age" "access-control-request-headers"
    "access-control-request-method" "age" "allow" "authorization" "cache-control" "content-disposition"
    "content-encoding" "content-language" "content-length" "content-range" "content-security-policy"
    "content-type" "cookie" "date" "etag" "expires" "forwarded" "host" "idempotency-key" "if-match"
    "if-modified-since" "if-none-match" "if-range" "if-unmodified-since" "last-modified" "link" "location"
    "origin" "pragma" "priority" "range" "referer" "referrer-policy" "request-timeout-ms" "retry-after"
    "sec-ch-ua" "sec-ch-ua-mobile" "sec-ch-ua-platform" "sec-fetch-dest" "sec-fetch-mode" "sec-fetch-site"
    "sec-fetch-user" "server" "set-cookie" "strict-transport-security" "traceparent" "tracestate"
    "upgrade-insecure-requests" "user-agent" "vary" "via" "www-authenticate" "x-content-type-options"
    "x-forwarded-for" "x-forwarded-host" "x-forwarded-proto" "x-frame-options" "x-real-ip" "x-request-id"
}

/// `Proxy-Connection` and `Keep-Alive` are older than the rule. `Expect` was answered by the first hop.
const STAYING: [&str; 10] = [
    "connection",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

const SLOTS: usize = 512;
/// By [`slot`], and from there on the next free one: a place counted from 1, or [`STAYS`].
static PLACES: [u8; SLOTS] = places();

const fn places() -> [u8; SLOTS] {
    assert!(TEXTS.len() < STAYS as usize);
    let mut places = [0; SLOTS];
    let mut at = 0;
    while at < TEXTS.len() + STAYING.len() {
        let (name, place) =
            if at < TEXTS.len() { (TEXTS[at], at as u8 + 1) } else { (STAYING[at - TEXTS.len()], STAYS) };
        let mut slot = slot(name.as_bytes());
        while places[slot] != 0 {
            slot = (slot + 1) % SLOTS;
        }
        places[slot] = place;
        at += 1;
    }
    places
}

/// Length and three letters tell most of these names apart, and cost less than a hash of the whole name.
const fn slot(name: &[u8]) -> usize {
    let length = name.len();
    if length == 0 {
        return 0;
    }
    let letters = name[0] as usize * 3 + name[length / 2] as usize * 37 + name[length - 1] as usize * 11;
    (length * 53 + letters) % SLOTS
}

/// The place of a name, counted from 1; 0 if it has none, [`STAYS`] if it must not travel.
pub(super) fn place(name: &HeaderName) -> u8 {
    let name = name.as_str();
    let mut slot = slot(name.as_bytes());
    loop {
        let place = PLACES[slot];
        let there = match place {
            0 => return 0,
            STAYS => STAYING.contains(&name),
            _ => TEXTS[usize::from(place) - 1] == name,
        };
        if there {
            return place;
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// The name at a place.
pub(super) fn at(place: u8) -> Option<&'static HeaderName> {
    NAMES.get(usize::from(place).checked_sub(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_its_place() {
        for (index, text) in TEXTS.iter().enumerate() {
            let name = HeaderName::from_static(text);
            assert_eq!(usize::from(place(&name)), index + 1, "{text}");
            assert_eq!(at(place(&name)), Some(&name));
        }
        for text in STAYING {
            assert_eq!(place(&HeaderName::from_static(text)), STAYS, "{text}");
        }
        for text in ["x", "x-other", "accepts", "te2", "connectio"] {
            assert_eq!(place(&HeaderName::from_static(text)), 0, "{text}");
        }
        assert_eq!((at(0), at(STAYS), at(TEXTS.len() as u8 + 1)), (None, None, None));
    }

    /// Two processes of different versions must mean the same name by the same byte.
    #[test]
    fn places_never_move() {
        assert_eq!((TEXTS[0], TEXTS[28], TEXTS.last()), ("accept", "host", Some(&"x-request-id")));
        assert_eq!(TEXTS.len(), 70);
    }
}
