//! Bodies that travel with their head, because they are short and there is no need to wait for more.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use hyper::body::Body as _;

/// The longest body that travels with its head: 64 KiB. A longer one, or one of unknown length, streams.
pub(crate) const WHOLE_BYTES_MAX: u64 = 64 << 10;

/// A short body of known length, as it is gathered.
pub(crate) struct Gather {
    pub(crate) body: Body,
    first: Bytes,
    rest: BytesMut,
}

impl Gather {
    /// The body itself, if it is not short or its length is not known.
    pub(crate) fn of(body: Body) -> Result<Self, Body> {
        match body.size_hint().exact() {
            Some(..=WHOLE_BYTES_MAX) => Ok(Self { body, first: Bytes::new(), rest: BytesMut::new() }),
            _ => Err(body),
        }
    }

    /// All of it, when it is there.
    pub(crate) async fn whole(mut self) -> Result<Bytes, axum::Error> {
        poll_fn(|cx| self.poll_whole(cx)).await?;
        Ok(self.gathered())
    }

    pub(crate) fn poll_whole(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), axum::Error>> {
        while !self.body.is_end_stream() {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)?) else {
                break;
            };
            // Trailers do not travel.
            let Ok(piece) = frame.into_data() else {
                continue;
            };
            if self.first.is_empty() {
                self.first = piece;
            } else {
                if self.rest.is_empty() {
                    self.rest.extend_from_slice(&self.first);
                }
                self.rest.extend_from_slice(&piece);
            }
        }
        Poll::Ready(Ok(()))
    }

    /// What has been gathered so far. One piece, the usual case, is not copied.
    pub(crate) fn gathered(&mut self) -> Bytes {
        let first = std::mem::take(&mut self.first);
        if self.rest.is_empty() { first } else { self.rest.split().freeze() }
    }
}
