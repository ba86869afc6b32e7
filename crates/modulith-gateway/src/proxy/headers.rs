//! What is added to a forwarded message, and what stays behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use http::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use modulith_core::{Context, Principal, Trace};

use crate::sampling;

/// The token that opens a service to its gateway.
pub(crate) const INTERNAL: HeaderName = HeaderName::from_static("modulith-internal");
/// Who asks: `admin`, or `user:` or `caller:` and the id in base64url. Absent for a guest.
const PRINCIPAL: HeaderName = HeaderName::from_static("modulith-principal");
/// How long the caller still waits: a span and no time, because clocks of hosts differ.
const DEADLINE_MS: HeaderName = HeaderName::from_static("modulith-deadline-ms");
const REQUEST_ID: HeaderName = HeaderName::from_static("modulith-request-id");

/// Of one connection, not of the message (RFC 9110, 7.6.1). `Proxy-Connection` and `Keep-Alive` are older.
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes what belongs to the connection the message came by.
pub(super) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = (headers.get_all(CONNECTION).iter())
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| name.trim().parse().ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    if headers.contains_key(TRANSFER_ENCODING) {
        // A message with both is framed by the first alone (RFC 9112, 6.3); the next hop must not see the other.
        headers.remove(CONTENT_LENGTH);
    }
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}

/// What the service is told about the request. Replaces whatever has these names.
pub(super) fn tell(headers: &mut HeaderMap, token: &HeaderValue, context: &Context) {
    // The first hop has answered it already.
    headers.remove(EXPECT);
    headers.insert(INTERNAL, token.clone());
    match &context.principal {
        None => headers.remove(PRINCIPAL),
        Some(principal) => headers.insert(PRINCIPAL, principal_value(principal)),
    };
    let left = context.deadline_or_default().saturating_duration_since(Instant::now());
    headers.insert(DEADLINE_MS, HeaderValue::from(left.as_millis() as u64));
    match HeaderValue::from_str(&context.request_id) {
        Ok(id) => headers.insert(REQUEST_ID, id),
        Err(_) => headers.remove(REQUEST_ID),
    };
    for (name, value) in context.trace_headers() {
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    }
}

fn principal_value(principal: &Principal) -> HeaderValue {
    match principal {
        Principal::Admin => HeaderValue::from_static("admin"),
        Principal::User(id) => named("user:", id),
        Principal::Caller(name) => named("caller:", name),
    }
}

fn named(kind: &str, id: &str) -> HeaderValue {
    let mut text = String::with_capacity(kind.len() + id.len().div_ceil(3) * 4);
    text.push_str(kind);
    BASE64URL.encode_string(id.as_bytes(), &mut text);
    HeaderValue::try_from(text).expect("base64 is a header value")
}

/// The context that [`tell`] wrote. `None` if it is not whole, which only a peer of another make would send.
pub(crate) fn told(headers: &mut HeaderMap) -> Option<Context> {
    let principal = match headers.remove(PRINCIPAL) {
        None => None,
        Some(value) => Some(match value.to_str().ok()?.split_once(':') {
            None if value == "admin" => Principal::Admin,
            Some((kind, id)) => {
                let id = Arc::from(std::str::from_utf8(&BASE64URL.decode(id).ok()?).ok()?);
                match kind {
                    "user" => Principal::User(id),
                    "caller" => Principal::Caller(id),
                    _ => return None,
                }
            }
            None => return None,
        }),
    };
    let left: u64 = headers.remove(DEADLINE_MS)?.to_str().ok()?.parse().ok()?;
    let request_id = headers.remove(REQUEST_ID)?;
    Some(Context {
        principal,
        deadline: Some(Instant::now().checked_add(Duration::from_millis(left))?),
        trace: sampling::take(headers).map(Trace::next),
        ..Context::background(request_id.to_str().ok()?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_arrives_as_it_was_told() {
        let named = [Principal::User("zoë\u{1}: x".into()), Principal::Caller("recommendations".into())];
        for principal in [None, Some(Principal::Admin)].into_iter().chain(named.map(Some)) {
            let mut headers = HeaderMap::new();
            headers.insert(PRINCIPAL, HeaderValue::from_static("user:ZXZl"));
            let deadline = Instant::now() + Duration::from_secs(5);
            let trace = Some(Trace { state: Some("a=1".into()), ..Trace::start(true) });
            let deadline_at = Some(deadline);
            let context = Context { principal, deadline: deadline_at, trace, ..Context::background("r-1") };
            tell(&mut headers, &HeaderValue::from_static("t"), &context);
            let told = told(&mut headers).unwrap();
            assert_eq!((&told.principal, &*told.request_id), (&context.principal, "r-1"));
            let (there, here) = (told.trace.unwrap(), context.trace.unwrap());
            assert_eq!((there.id, there.flags, &there.state), (here.id, here.flags, &here.state));
            assert_ne!(there.span, here.span, "the service's own");
            assert!(deadline - told.deadline.unwrap() < Duration::from_millis(100));
            assert_eq!(headers.keys().collect::<Vec<_>>(), [INTERNAL]);
        }
    }

    #[test]
    fn only_the_message_travels_on() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Named"),
            ("connection", "x-also-named"),
            ("x-named", "1"),
            ("x-also-named", "1"),
            ("keep-alive", "timeout=5"),
            ("te", "trailers"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("content-length", "5"),
            ("upgrade", "websocket"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "x"),
            ("accept", "text/plain"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["accept"]);
    }
}
