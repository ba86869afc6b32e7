//! The children's logs: lines of a bounded length, with the service's name in front, on one standard error.
//!
//! A thread of its own writes them, so that a terminal that was halted (Ctrl-S) halts the children's logs and
//! not the supervisor.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::sync::{mpsc, oneshot};

/// Longer lines are cut.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;
/// Lines that wait to be written; children wait when there are more.
const LINES_WAITING_MAX: usize = 256;
/// How long a stop waits for the last lines to be written.
const WRITE_TIME_MAX: Duration = Duration::from_secs(1);

/// Colours that can be read on dark and on light ground: cyan, yellow, green, magenta, blue, and these bright.
const COLOURS: [u8; 10] = [36, 33, 32, 35, 34, 96, 93, 92, 95, 94];

/// How the children's logs are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// As they are: each says already whose it is.
    Unchanged,
    Plain,
    Coloured,
}

impl Lines {
    /// With the service's name in front, in colour on a terminal unless `NO_COLOR` is set (no-color.org).
    pub(crate) fn prefixed() -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        if io::stderr().is_terminal() && !no_colour { Self::Coloured } else { Self::Plain }
    }

    /// What stands in front of each child's lines. A service's colour is that of its place in the topology.
    pub(super) fn prefixes<'a>(self, names: impl Iterator<Item = &'a str> + Clone) -> Vec<Arc<[u8]>> {
        let width = names.clone().map(str::len).max().unwrap_or(0);
        let prefix = |(place, name): (usize, &str)| match self {
            Self::Unchanged => String::new(),
            Self::Plain => format!("{name:width$} | "),
            Self::Coloured => format!("\x1b[{}m{name:width$} |\x1b[0m ", COLOURS[place % COLOURS.len()]),
        };
        names.enumerate().map(|named| Arc::from(prefix(named).into_bytes())).collect()
    }
}

/// Lines of at most [`LINE_BYTES_MAX`]; the rest of a longer one is dropped, and said to be.
pub(super) struct BoundedLines<R> {
    from: BufReader<R>,
    line: Vec<u8>,
}

impl<R: AsyncRead + Unpin> BoundedLines<R> {
    pub(super) fn new(from: R) -> Self {
        Self { from: BufReader::new(from), line: Vec::new() }
    }

    /// The next line without its end, or `None` when there are no more. What comes before an error of the pipe
    /// counts as a line.
    pub(super) async fn next(&mut self) -> Option<&[u8]> {
        self.line.clear();
        let mut dropped = 0;
        let mut has_begun = false;
        loop {
            let bytes = self.from.fill_buf().await.unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            has_begun = true;
            let end = bytes.iter().position(|byte| *byte == b'\n');
            let part = &bytes[..end.unwrap_or(bytes.len())];
            let room = LINE_BYTES_MAX - self.line.len();
            let (kept, over) = part.split_at(part.len().min(room));
            self.line.extend_from_slice(kept);
            dropped += over.len();
            let used = part.len() + usize::from(end.is_some());
            self.from.consume(used);
            if end.is_some() {
                break;
            }
        }
        if dropped > 0 {
            self.line.extend_from_slice(format!(" [cut: {dropped} bytes more]").as_bytes());
        }
        has_begun.then_some(&*self.line)
    }
}

/// The way to standard error.
#[derive(Clone)]
pub(super) struct Sink {
    to: mpsc::Sender<Vec<u8>>,
}

/// Tells when the last line is written.
pub(super) struct Written {
    done: oneshot::Receiver<()>,
}

impl Sink {
    pub(super) fn start() -> io::Result<(Self, Written)> {
        let (to, mut lines) = mpsc::channel::<Vec<u8>>(LINES_WAITING_MAX);
        let (end, done) = oneshot::channel();
        std::thread::Builder::new().name("modulith-log".into()).spawn(move || {
            while let Some(line) = lines.blocking_recv() {
                // Without a standard error there is nobody to tell.
                let _ = io::stderr().lock().write_all(&line);
            }
            let _ = end.send(());
        })?;
        Ok((Self { to }, Written { done }))
    }

    pub(super) async fn write(&self, prefix: &[u8], line: &[u8]) {
        // The thread ends after the last sender.
        let _ = self.to.send([prefix, line, b"\n"].concat()).await;
    }
}

impl Written {
    /// After the last [`Sink`] is dropped.
    pub(super) async fn wait(self) {
        let _ = tokio::time::timeout(WRITE_TIME_MAX, self.done).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_bounded_and_none_is_lost() {
        let long = "x".repeat(LINE_BYTES_MAX + 5);
        let exact = "y".repeat(LINE_BYTES_MAX);
        let text = format!("one\n\n{long}\n{exact}\nlast");
        let mut lines = BoundedLines::new(text.as_bytes());
        let mut found = Vec::new();
        while let Some(line) = lines.next().await {
            found.push(String::from_utf8(line.to_vec()).unwrap());
        }
        let cut = format!("{} [cut: 5 bytes more]", &long[..LINE_BYTES_MAX]);
        assert_eq!(found, ["one", "", &*cut, &*exact, "last"]);
    }

    #[test]
    fn names_are_aligned_and_coloured_by_place() {
        let text = |lines: Lines| {
            let prefixes = lines.prefixes(["cart", "products"].into_iter());
            prefixes.iter().map(|prefix| String::from_utf8(prefix.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(text(Lines::Plain), ["cart     | ", "products | "]);
        assert_eq!(text(Lines::Coloured), ["\x1b[36mcart     |\x1b[0m ", "\x1b[33mproducts |\x1b[0m "]);
        assert_eq!(text(Lines::Unchanged), ["", ""]);
    }
}
