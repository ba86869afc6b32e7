//! One connection of a client that costs next to nothing, for tests that measure.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

/// More than any answer that is measured.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A connection that stays open and carries one request at a time, on a thread that waits for it. It knows as much of HTTP
/// as our server writes: heads with a length.
pub struct HttpConnection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

/// An answer, where it was read.
#[derive(Debug, Clone, Copy)]
pub struct HttpAnswer<'a> {
    pub status: u16,
    head: &'a str,
    pub body: &'a [u8],
}

impl HttpConnection {
    /// To a host and port.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub fn open(address: &str) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; ANSWER_BYTES_MAX] })
    }

    /// Writes a whole request and waits for its whole answer.
    ///
    /// # Errors
    ///
    /// The connection was closed, or what came is no answer.
    pub fn send(&mut self, request: &[u8]) -> io::Result<HttpAnswer<'_>> {
        self.stream.write_all(request)?;
        let mut filled = 0;
        let (head_bytes, whole) = loop {
            match self.stream.read(&mut self.buffer[filled..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => filled += read,
            }
            let ends = |bytes: &[u8]| bytes == b"\r\n\r\n";
            let Some(head_bytes) = self.buffer[..filled].windows(4).position(ends) else {
                continue;
            };
            let length = header(text(&self.buffer[..head_bytes])?, "content-length");
            let whole = head_bytes + 4 + length.and_then(|length| length.parse().ok()).unwrap_or(0_usize);
            if filled >= whole {
                break (head_bytes, whole);
            }
        };
        let head = text(&self.buffer[..head_bytes])?;
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(HttpAnswer { status, head, body: &self.buffer[head_bytes + 4..whole] })
    }
}

impl<'a> HttpAnswer<'a> {
    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        header(self.head, name)
    }
}

fn text(bytes: &[u8]) -> io::Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut pairs = head.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
