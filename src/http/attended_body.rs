//! A body with a value that is dropped together with it, and that learns when it was read to its end.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};

/// A value that is dropped together with a body.
pub trait Attendant: Unpin {
    /// Called when the body has been read to its end, but not when it is dropped earlier.
    fn complete(&self) {}
}

/// A body and its attendant.
pub struct AttendedBody<A> {
    body: Body,
    attendant: A,
}

impl<A> AttendedBody<A> {
    /// Keeps `attendant` until `body` is dropped.
    pub const fn new(body: Body, attendant: A) -> Self {
        Self { body, attendant }
    }
}

impl<A: Attendant> HttpBody for AttendedBody<A> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        // A body of known length is not polled again after its last frame.
        if matches!(frame, Poll::Ready(None)) || self.body.is_end_stream() {
            self.attendant.complete();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
