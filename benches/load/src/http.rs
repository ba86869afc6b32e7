//! An HTTP/1.1 client that does one thing at a time: write a request, read its answer.
//!
//! A request leaves in one write and its answer usually arrives in one read, so that the generator
//! takes as little as possible of the cores that it shares with what it measures.

use std::io::Write;
use std::net::SocketAddr;

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const HEADERS_MAX: usize = 64;
const READ_BYTES: usize = 16 * 1024;

/// A kept-alive connection.
pub(crate) struct Connection {
    stream: TcpStream,
    host: String,
    request: Vec<u8>,
    received: Vec<u8>,
}

/// What came back; the body is valid until the next call.
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

/// How an answer's body ends.
enum Length {
    Bytes(usize),
    Chunks,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream,
            host: address.to_string(),
            request: Vec::with_capacity(1_024),
            received: Vec::new(),
        })
    }

    /// Sends a request and waits for all of its answer. After an error the connection is of no use.
    ///
    /// `headers` are whole lines, each ending in a carriage return and a line feed.
    pub(crate) async fn call(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &[u8],
    ) -> anyhow::Result<Answer<'_>> {
        self.request.clear();
        write!(
            self.request,
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n{headers}\r\n",
            self.host,
            body.len(),
        )?;
        self.request.extend_from_slice(body);
        self.stream.write_all(&self.request).await?;
        self.received.clear();
        let (status, head_bytes, length) = loop {
            self.read().await?;
            if let Some(head) = read_head(&self.received)? {
                break head;
            }
        };
        match length {
            Length::Bytes(body_bytes) => {
                while self.received.len() < head_bytes + body_bytes {
                    self.read().await?;
                }
                ensure!(
                    self.received.len() == head_bytes + body_bytes,
                    "an answer that was not asked for"
                );
            }
            Length::Chunks => self.read_chunks(head_bytes).await?,
        }
        Ok(Answer {
            status,
            body: &self.received[head_bytes..],
        })
    }

    /// Leaves the joined chunks where the body began.
    async fn read_chunks(&mut self, start: usize) -> anyhow::Result<()> {
        let mut end = start;
        let mut next = start;
        loop {
            let found = httparse::parse_chunk_size(&self.received[next..]);
            let found = found.map_err(|_| anyhow::anyhow!("a chunk without a size"))?;
            let httparse::Status::Complete((size_bytes, chunk_bytes)) = found else {
                self.read().await?;
                continue;
            };
            let chunk = next + size_bytes;
            next = chunk + usize::try_from(chunk_bytes)? + 2;
            while self.received.len() < next {
                self.read().await?;
            }
            self.received.copy_within(chunk..next - 2, end);
            end += next - 2 - chunk;
            if chunk_bytes == 0 {
                self.received.truncate(end);
                return Ok(());
            }
        }
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        self.received.reserve(READ_BYTES);
        ensure!(
            self.stream.read_buf(&mut self.received).await? > 0,
            "the server hung up"
        );
        Ok(())
    }
}

fn read_head(received: &[u8]) -> anyhow::Result<Option<(u16, usize, Length)>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head_bytes) = head.parse(received)? else {
        return Ok(None);
    };
    let status = head.code.context("an answer without a status")?;
    for header in head.headers.iter() {
        if header.name.eq_ignore_ascii_case("content-length") {
            let bytes = std::str::from_utf8(header.value)?.trim().parse()?;
            return Ok(Some((status, head_bytes, Length::Bytes(bytes))));
        }
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Ok(Some((status, head_bytes, Length::Chunks)));
        }
    }
    if matches!(status, 204 | 304) {
        return Ok(Some((status, head_bytes, Length::Bytes(0))));
    }
    bail!("an answer whose body ends only with its connection")
}
