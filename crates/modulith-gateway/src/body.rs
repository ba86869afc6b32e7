//! Bodies on their way between HTTP and frames.
//!
//! A short one of known length travels with its head, since one frame costs less than three. Every other one
//! streams behind it, as fast as its reader reads. Trailers do not travel.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use hyper::body::{Body as _, Frame, SizeHint};
use modulith_transport::{BodyError, BodyReader};

use crate::wire::Content;

/// The longest body that travels with its head: 64 KiB.
pub(crate) const WHOLE_BYTES_MAX: u64 = 64 << 10;

/// A body to be sent, of which some may have been read already.
pub(crate) struct Gathered {
    body: Body,
    read: Pieces,
}

/// One piece, the usual case, is not copied.
#[derive(Default)]
struct Pieces {
    first: Bytes,
    all: BytesMut,
}

impl Pieces {
    fn push(&mut self, piece: Bytes) {
        if self.first.is_empty() {
            self.first = piece;
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(&piece);
    }

    fn take(&mut self) -> Bytes {
        let first = std::mem::take(&mut self.first);
        if self.all.is_empty() { first } else { self.all.split().freeze() }
    }
}

impl Gathered {
    pub(crate) fn new(body: Body) -> Self {
        Self { body, read: Pieces::default() }
    }

    /// Whether it is short enough to travel with its head. Short or not, its length has to be known.
    pub(crate) fn is_short(&self) -> bool {
        self.body.size_hint().exact().is_some_and(|bytes| bytes <= WHOLE_BYTES_MAX)
    }

    /// Reads it to its end. What was read before an error or a pause is kept.
    pub(crate) fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        while !self.body.is_end_stream() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)?) {
                Some(frame) => frame.into_data().into_iter().for_each(|piece| self.read.push(piece)),
                None => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What the head says of it, if it was read to its end.
    pub(crate) fn into_whole(mut self) -> Content {
        Content::Whole(self.read.take())
    }

    /// What the head says of it, and the rest.
    pub(crate) fn into_stream(mut self) -> (Content, modulith_transport::Body) {
        let read = self.read.take();
        let length = self.body.size_hint().exact().map(|rest| rest + read.len() as u64);
        (Content::Streamed(length), modulith_transport::Body::new(Outgoing { read, body: self.body }))
    }
}

struct Outgoing {
    read: Bytes,
    body: Body,
}

impl Stream for Outgoing {
    type Item = Result<Bytes, BodyError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.read.is_empty() {
            return Poll::Ready(Some(Ok(std::mem::take(&mut self.read))));
        }
        loop {
            return Poll::Ready(match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => None,
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(piece) => Some(Ok(piece)),
                    Err(_trailers) => continue,
                },
                // What went wrong is for the log of the side where it did.
                Some(Err(error)) => {
                    tracing::debug!(%error, "a body broke");
                    Some(Err(BodyError::Reset("the body broke off".to_owned())))
                }
            });
        }
    }
}

/// The body of a message that has arrived.
pub(crate) fn arrived(content: Content, reader: Option<BodyReader>) -> Result<Body, &'static str> {
    match (content, reader) {
        (Content::Whole(body), None) if body.is_empty() => Ok(Body::empty()),
        (Content::Whole(body), None) => Ok(Body::from(body)),
        (Content::Streamed(left), Some(reader)) => Ok(Body::new(Arriving { left, reader })),
        _ => Err("its head and its body do not agree"),
    }
}

struct Arriving {
    /// Of a body of known length.
    left: Option<u64>,
    reader: BodyReader,
}

impl hyper::body::Body for Arriving {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let piece = match ready!(Pin::new(&mut self.reader).poll_next(cx)) {
            Some(Ok(piece)) => piece,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None if self.left.is_some_and(|left| left > 0) => {
                return Poll::Ready(Some(Err(self.disagrees())));
            }
            None => return Poll::Ready(None),
        };
        if let Some(left) = &mut self.left {
            match left.checked_sub(piece.len() as u64) {
                Some(rest) => *left = rest,
                None => return Poll::Ready(Some(Err(self.disagrees()))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Arriving {
    /// Never a clean end of what is not whole.
    fn disagrees(&mut self) -> BodyError {
        self.left = Some(0);
        BodyError::Reset("the body has another length than was said".to_owned())
    }
}
