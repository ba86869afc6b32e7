//! The id that follows a request through every service's log.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{HeaderMap, HeaderName, HeaderValue};
use modulith_core::random_u64;

pub(crate) struct RequestId {
    pub(crate) text: Arc<str>,
    pub(crate) header: HeaderValue,
}

impl RequestId {
    pub(crate) const HEADER: HeaderName = HeaderName::from_static("x-request-id");
    const CHARS_MAX: usize = 64;

    /// The client's, if it is sane, else a new one. Sane: nothing that could break a log line or a header.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(Self::HEADER).filter(|value| {
            let plain = |&b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
            (1..=Self::CHARS_MAX).contains(&value.len()) && value.as_bytes().iter().all(plain)
        });
        match given.and_then(|value| Some((value.to_str().ok()?, value))) {
            Some((text, value)) => Self { text: text.into(), header: value.clone() },
            None => Self::new(),
        }
    }

    fn new() -> Self {
        let mut buffer = uuid::Uuid::encode_buffer();
        let text: &str = uuid().hyphenated().encode_lower(&mut buffer);
        Self { text: text.into(), header: HeaderValue::from_str(text).expect("a UUID is a header value") }
    }
}

/// A UUIDv7 without a lock and without a system call: an id has to be unique, not secret.
fn uuid() -> uuid::Uuid {
    let bits = (u128::from(random_u64()) << 64 | u128::from(random_u64())).to_le_bytes();
    let random: &[u8; 10] = bits.first_chunk().expect("16 bytes");
    let ms = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    uuid::Builder::from_unix_timestamp_millis(ms as u64, random).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_ids_are_version_7_and_differ() {
        let ids: std::collections::HashSet<_> = (0..10_000).map(|_| uuid()).collect();
        assert_eq!(ids.len(), 10_000);
        assert!(ids.iter().all(|id| id.get_version_num() == 7));
    }
}
