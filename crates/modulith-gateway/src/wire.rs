//! HTTP requests and answers as payloads of the transport's calls.
//!
//! Owns the layout. What belongs to one connection (RFC 9110, 7.6.1) is never written: `Connection` and what it
//! names, `Transfer-Encoding`, `Upgrade`, and their like. Trailers do not travel. A reader takes any bytes: what
//! it cannot read it refuses by a name.
//!
//! ```text
//! request  method  target text  headers  body
//! answer   6 u8  status u16  headers  body
//!
//! method   u8: 1 GET, 2 HEAD, 3 POST, 4 PUT, 5 DELETE, 6 PATCH, 7 OPTIONS; 0 and its text
//! target   path and query, as the client wrote them
//! headers  number of values, then for each: name, text
//! name     u8: its place in `wire/names.rs`; 0 and its text, in lower case
//! body     u8: 0 the rest is the whole body; 1 it streams behind; 2 likewise, of this length: u64
//! text     number of bytes, bytes
//! number   LEB128 of at most 28 bits
//! ```
//!
//! The values of one name keep their order. Integers are little-endian.

mod names;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::uri::{PathAndQuery, Uri};
use http::{Method, StatusCode, Version};

/// Tells an HTTP answer from what a service says that does not know such calls.
const ANSWER: u8 = 6;
const NUMBER_BITS_MAX: u32 = 28;

/// By place, counted from 1.
const METHODS: [Method; 7] =
    [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE, Method::PATCH, Method::OPTIONS];

/// The body of a message, seen from its head.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    /// All of it.
    Whole(Bytes),
    /// It streams behind the head; its length, if that is known.
    Streamed(Option<u64>),
}

impl Content {
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Whole(body) if body.is_empty())
    }

    /// What the head has of it.
    pub(crate) fn bytes_within(&self) -> usize {
        match self {
            Self::Whole(body) => body.len(),
            Self::Streamed(_) => 0,
        }
    }
}

/// Appends a request.
pub(crate) fn put_request(
    out: &mut Vec<u8>,
    method: &Method,
    target: &str,
    headers: &HeaderMap,
    content: &Content,
) {
    match METHODS.iter().position(|known| known == method) {
        Some(place) => out.push(place as u8 + 1),
        None => {
            out.push(0);
            put_text(out, method.as_str().as_bytes());
        }
    }
    put_text(out, target.as_bytes());
    put_headers(out, headers);
    put_content(out, content);
}

/// Appends an answer.
pub(crate) fn put_answer(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap, content: &Content) {
    out.push(ANSWER);
    out.extend_from_slice(&status.as_u16().to_le_bytes());
    put_headers(out, headers);
    put_content(out, content);
}

fn put_headers(out: &mut Vec<u8>, headers: &HeaderMap) {
    let staying = Staying::of(headers);
    let travels = |name: &HeaderName| {
        let place = names::place(name);
        (place != names::STAYS && !staying.has(name)).then_some(place)
    };
    // Names are few; counting them first is cheaper than making room for the count afterwards.
    let count = headers.iter().filter(|(name, _)| travels(name).is_some()).count();
    put_number(out, count);
    for (name, value) in headers {
        let Some(place) = travels(name) else {
            continue;
        };
        out.push(place);
        if place == 0 {
            put_text(out, name.as_str().as_bytes());
        }
        put_text(out, value.as_bytes());
    }
}

/// What this message's own headers forbid to travel.
struct Staying {
    named: Vec<HeaderName>,
    length: bool,
}

impl Staying {
    fn of(headers: &HeaderMap) -> Self {
        let named = (headers.get_all(CONNECTION).iter())
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .filter(|name| !name.eq_ignore_ascii_case("close") && !name.eq_ignore_ascii_case("keep-alive"))
            .filter_map(|name| name.parse().ok())
            .collect();
        // A message with both is framed by the first alone (RFC 9112, 6.3).
        Self { named, length: headers.contains_key(TRANSFER_ENCODING) }
    }

    fn has(&self, name: &HeaderName) -> bool {
        (self.length && name == CONTENT_LENGTH) || self.named.contains(name)
    }
}

fn put_content(out: &mut Vec<u8>, content: &Content) {
    match content {
        Content::Whole(body) => {
            out.push(0);
            out.extend_from_slice(body);
        }
        Content::Streamed(None) => out.push(1),
        Content::Streamed(Some(length)) => {
            out.push(2);
            out.extend_from_slice(&length.to_le_bytes());
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_number(out, text.len());
    out.extend_from_slice(text);
}

fn put_number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Reads a request, without its body. Header values and the target share the payload's memory.
pub(crate) fn read_request(payload: &Bytes) -> Result<(http::Request<()>, Content), &'static str> {
    let mut rest = Rest { payload, bytes: payload };
    let method = match rest.byte()? {
        0 => Method::from_bytes(rest.text()?).map_err(|_| "the method is none")?,
        place => METHODS.get(usize::from(place) - 1).ok_or("the method has no place here")?.clone(),
    };
    let target = rest.shared_text()?;
    let target = PathAndQuery::from_maybe_shared(target).map_err(|_| "the target is no path")?;
    let mut request = http::Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from(target);
    *request.version_mut() = Version::HTTP_11;
    *request.headers_mut() = rest.headers()?;
    Ok((request, rest.content()?))
}

/// Reads an answer, without its body.
pub(crate) fn read_answer(payload: &Bytes) -> Result<(http::Response<()>, Content), &'static str> {
    let mut rest = Rest { payload, bytes: payload };
    if rest.byte()? != ANSWER {
        return Err("this is no HTTP answer");
    }
    let status = u16::from_le_bytes(*rest.take()?);
    let mut response = http::Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).map_err(|_| "the status is none")?;
    *response.headers_mut() = rest.headers()?;
    Ok((response, rest.content()?))
}

/// What has not been read yet.
struct Rest<'a> {
    payload: &'a Bytes,
    bytes: &'a [u8],
}

const CUT: &str = "it is cut short";

impl<'a> Rest<'a> {
    fn byte(&mut self) -> Result<u8, &'static str> {
        Ok(self.take::<1>()?[0])
    }

    fn take<const N: usize>(&mut self) -> Result<&'a [u8; N], &'static str> {
        let (taken, rest) = self.bytes.split_first_chunk().ok_or(CUT)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<usize, &'static str> {
        let (mut number, mut shift) = (0, 0);
        while shift < NUMBER_BITS_MAX {
            let byte = self.byte()?;
            number |= usize::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(number);
            }
            shift += 7;
        }
        Err("a number is too large")
    }

    fn text(&mut self) -> Result<&'a [u8], &'static str> {
        let length = self.number()?;
        let (text, rest) = self.bytes.split_at_checked(length).ok_or(CUT)?;
        self.bytes = rest;
        Ok(text)
    }

    fn shared_text(&mut self) -> Result<Bytes, &'static str> {
        let text = self.text()?;
        Ok(self.payload.slice_ref(text))
    }

    fn headers(&mut self) -> Result<HeaderMap, &'static str> {
        let count = self.number()?;
        let too_many = |_| "there are too many headers";
        // Each takes two bytes at least, so that an announced number decides nothing.
        let room = count.min(self.bytes.len() / 2);
        let mut headers = HeaderMap::try_with_capacity(room).map_err(too_many)?;
        for _ in 0..count {
            let name = match self.byte()? {
                0 => HeaderName::from_lowercase(self.text()?).map_err(|_| "a header's name is none")?,
                place => names::at(place).ok_or("a header's name has no place here")?.clone(),
            };
            let value = HeaderValue::from_maybe_shared(self.shared_text()?)
                .map_err(|_| "a header's value is none")?;
            headers.try_append(name, value).map_err(too_many)?;
        }
        Ok(headers)
    }

    fn content(&mut self) -> Result<Content, &'static str> {
        let content = match self.byte()? {
            0 => return Ok(Content::Whole(self.payload.slice_ref(self.bytes))),
            1 => Content::Streamed(None),
            2 => Content::Streamed(Some(u64::from_le_bytes(*self.take()?))),
            _ => return Err("the body is of an unknown kind"),
        };
        match self.bytes {
            [] => Ok(content),
            _ => Err("there are bytes behind its end"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static [u8])]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static [u8])| {
            (HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap())
        };
        let mut headers = HeaderMap::new();
        for (name, value) in pairs.iter().map(pair) {
            headers.append(name, value);
        }
        headers
    }

    fn request(method: &Method, target: &str, headers: &HeaderMap, content: &Content) -> Bytes {
        let mut out = Vec::new();
        put_request(&mut out, method, target, headers, content);
        out.into()
    }

    fn answer(status: u16, headers: &HeaderMap, content: &Content) -> Bytes {
        let mut out = Vec::new();
        put_answer(&mut out, StatusCode::from_u16(status).unwrap(), headers, content);
        out.into()
    }

    /// Bytes written by an older version stay readable, so the layout is pinned here byte by byte.
    #[test]
    fn the_layout_is_pinned() {
        let some = headers(&[("host", b"a"), ("x-own", b"\xff"), ("cookie", b"b=1"), ("cookie", b"")]);
        let payload = request(&Method::POST, "/a?b", &some, &Content::Whole(Bytes::from_static(b"body")));
        assert_eq!(
            &payload[..],
            b"\x03\x04/a?b\x04\x1d\x01a\0\x05x-own\x01\xff\x18\x03b=1\x18\0\0body".as_slice()
        );
        let (read, content) = read_request(&payload).unwrap();
        assert_eq!((read.method(), read.uri().to_string()), (&Method::POST, "/a?b".to_owned()));
        assert_eq!((read.headers(), content), (&some, Content::Whole(Bytes::from_static(b"body"))));

        let brew = Method::from_bytes(b"BREW").unwrap();
        let payload = request(&brew, "/", &HeaderMap::new(), &Content::Streamed(None));
        assert_eq!(&payload[..], b"\0\x04BREW\x01/\0\x01");
        assert_eq!(read_request(&payload).unwrap().0.method(), brew);

        let payload = answer(404, &headers(&[("age", b"1")]), &Content::Streamed(Some(300)));
        assert_eq!(&payload[..], b"\x06\x94\x01\x01\x0d\x011\x02\x2c\x01\0\0\0\0\0\0");
        let (read, content) = read_answer(&payload).unwrap();
        assert_eq!((read.status(), content), (StatusCode::NOT_FOUND, Content::Streamed(Some(300))));
    }

    #[test]
    fn only_the_message_travels_on() {
        let some = headers(&[
            ("connection", b"close, X-Named"),
            ("connection", b"x-also-named, keep-alive"),
            ("x-named", b"1"),
            ("x-also-named", b"1"),
            ("keep-alive", b"timeout=5"),
            ("te", b"trailers"),
            ("trailer", b"x"),
            ("transfer-encoding", b"chunked"),
            ("content-length", b"5"),
            ("upgrade", b"websocket"),
            ("proxy-authorization", b"x"),
            ("proxy-connection", b"x"),
            ("expect", b"100-continue"),
            ("accept", b"text/plain"),
        ]);
        let payload = request(&Method::GET, "/", &some, &Content::Whole(Bytes::new()));
        let (read, _) = read_request(&payload).unwrap();
        assert_eq!(read.headers(), &headers(&[("accept", b"text/plain")]));
        let plain = headers(&[("connection", b"close"), ("content-length", b"5")]);
        let payload = answer(200, &plain, &Content::Whole(Bytes::new()));
        assert_eq!(read_answer(&payload).unwrap().0.headers(), &headers(&[("content-length", b"5")]));
    }

    #[test]
    fn long_texts_and_many_values_arrive() {
        let long = vec![b'x'; 300_000];
        let mut some = HeaderMap::new();
        some.insert("x-long", HeaderValue::from_bytes(&long).unwrap());
        for n in 0..1000 {
            some.append("set-cookie", HeaderValue::from(n));
        }
        let payload = answer(200, &some, &Content::Streamed(None));
        let (read, _) = read_answer(&payload).unwrap();
        assert_eq!(read.headers(), &some);
        let order = read.headers().get_all("set-cookie").iter();
        let order = order.map(|n| n.to_str().unwrap().parse::<i32>().unwrap());
        assert!(order.eq(0..1000));
    }

    #[test]
    fn no_bytes_make_a_reader_panic() {
        let some = headers(&[("host", b"a"), ("x-own", b"\xff"), ("cookie", b"b=1")]);
        let whole = request(&Method::POST, "/a?b", &some, &Content::Streamed(Some(7)));
        for cut in 0..whole.len() {
            assert!(read_request(&whole.slice(..cut)).is_err(), "cut at {cut}");
            let _ = read_answer(&whole.slice(..cut));
        }
        // Every byte in turn, in a request and in an answer, is every value.
        for whole in [whole, answer(200, &some, &Content::Streamed(Some(7)))] {
            for at in 0..whole.len() {
                for value in 0..=u8::MAX {
                    let mut bytes = whole.to_vec();
                    bytes[at] = value;
                    let bytes = Bytes::from(bytes);
                    let (_, _) = (read_request(&bytes), read_answer(&bytes));
                }
            }
        }
        for (bytes, why) in [
            (&b"\x01\x01/\xff\xff\xff\x7f\0"[..], CUT),
            (b"\x01\x01/\xff\xff\xff\xff\x01\0", "a number is too large"),
            (b"\x01\x03a b\0\0", "the target is no path"),
            (b"\x08\x01/\0\0", "the method has no place here"),
            (b"\x01\x01/\x01\xc8\0\0", "a header's name has no place here"),
            (b"\x01\x01/\x01\0\x01A\0\0", "a header's name is none"),
            (b"\x01\x01/\x01\x01\x02\r\n\0", "a header's value is none"),
            (b"\x01\x01/\0\x03", "the body is of an unknown kind"),
            (b"\x01\x01/\0\x01x", "there are bytes behind its end"),
        ] {
            assert_eq!(read_request(&Bytes::from_static(bytes)).expect_err(why), why);
        }
        assert_eq!(read_answer(&Bytes::from_static(b"\x04x")).unwrap_err(), "this is no HTTP answer");
        assert_eq!(read_answer(&Bytes::from_static(b"\x06\x01\0\0\0")).unwrap_err(), "the status is none");
    }

    #[test]
    fn a_flood_of_headers_is_refused() {
        let mut bytes = b"\x01\x01/\xff\xff\x03".to_vec();
        (0..65535).for_each(|n: u32| {
            bytes.extend_from_slice(&[0, 5]);
            bytes.extend_from_slice(format!("{n:05}").as_bytes());
            bytes.push(0);
        });
        bytes.push(0);
        assert_eq!(read_request(&bytes.into()).unwrap_err(), "there are too many headers");
    }
}
