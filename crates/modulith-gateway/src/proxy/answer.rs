//! The body of a forwarded answer: read from the upstream as fast as the client takes it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as _, Frame, Incoming, SizeHint};

use super::link::{Link, Pool};

/// The body of an answer on `link`, which returns to its pool when the body has been read to its end. Dropped
/// earlier, it closes the connection: the client is gone, and the upstream learns it.
pub(super) fn body(incoming: Incoming, link: Link, pool: Arc<Pool>) -> Body {
    if incoming.is_end_stream() {
        pool.keep(link);
        return Body::empty();
    }
    Body::new(Answer { incoming, link: Some(link), pool })
}

struct Answer {
    incoming: Incoming,
    link: Option<Link>,
    pool: Arc<Pool>,
}

impl hyper::body::Body for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let this = self.get_mut();
        let mut frame = Pin::new(&mut this.incoming).poll_frame(cx);
        if frame.is_pending()
            && let Some(link) = &mut this.link
        {
            // What it reads goes to `incoming`, its error too.
            let _ = link.drive(cx);
            frame = Pin::new(&mut this.incoming).poll_frame(cx);
        }
        match &frame {
            Poll::Ready(Some(Ok(_))) if this.incoming.is_end_stream() => this.keep(),
            Poll::Ready(None) => this.keep(),
            Poll::Ready(Some(Err(_))) => this.link = None,
            _ => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

impl Answer {
    fn keep(&mut self) {
        if let Some(link) = self.link.take() {
            self.pool.keep(link);
        }
    }
}
