//! The log: text for people, JSON for machines, on standard error.

use std::io::Write;
use std::sync::Arc;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Text,
    Json,
}

impl Format {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Json => "json",
        }
    }
}

/// Starts the log of this process. `MODULITH_LOG` sets the level: error, warn, info (default), debug, trace.
pub(crate) fn start(format: Format, service: &str, is_child: bool) {
    let level = std::env::var("MODULITH_LOG").ok().and_then(|level| level.parse::<LevelFilter>().ok());
    let builder =
        tracing_subscriber::fmt().with_max_level(level.unwrap_or(LevelFilter::INFO)).with_target(false);
    // A second start, by a program that has a log of its own, keeps the first.
    let _ = match format {
        Format::Text => {
            let colour = !is_child && std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(colour).with_writer(std::io::stderr).try_init()
        }
        Format::Json => builder
            .json()
            .flatten_event(true)
            // The innermost span alone: each has the ids.
            .with_span_list(false)
            .with_writer(Named(service.into()))
            .try_init(),
    };
}

/// Puts the service's name into each line, since lines of several processes end in one place.
struct Named(Arc<str>);

impl<'a> MakeWriter<'a> for Named {
    type Writer = NamedLine;

    fn make_writer(&'a self) -> NamedLine {
        NamedLine(self.0.clone())
    }
}

struct NamedLine(Arc<str>);

impl Write for NamedLine {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let mut whole = Vec::with_capacity(line.len() + 32);
        match line.strip_prefix(b"{") {
            Some(rest) => {
                whole.extend_from_slice(format!("{{\"service\":{:?},", self.0).as_bytes());
                whole.extend_from_slice(rest);
            }
            None => whole.extend_from_slice(line),
        }
        std::io::stderr().lock().write_all(&whole)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
