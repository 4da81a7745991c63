//! The bounds of what calls send, before any of it is decoded: so many bytes in so much time, and so many of one
//! user at once, over however many calls and connections.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Bytes, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::Status;
use tonic::body::Body;

use super::error::status;
use crate::types::Error;

/// How long a call may take to send what it has.
const WHOLE: Duration = Duration::from_secs(30);
/// What stands before a message: whether it is compressed, and its length in four bytes.
const HEAD: usize = 5;
/// As many of the longest messages may a user have on their way at once.
const LONGEST_AT_ONCE: usize = 8;

/// Bytes of messages that are not whole yet, by user. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Incoming(Arc<Mutex<HashMap<String, usize>>>);

impl Incoming {
    /// A call of this user, which has sent nothing yet. `longest` is the longest message that anyone may send.
    pub(super) fn share(&self, account: String, longest: usize) -> Share {
        Share { incoming: self.clone(), account, most: LONGEST_AT_ONCE * longest, bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One call's part of them, until it is dropped.
pub(super) struct Share {
    incoming: Incoming,
    account: String,
    /// Of all calls of the user.
    most: usize,
    bytes: usize,
}

impl Share {
    fn grow(&mut self, bytes: usize) -> Result<(), Error> {
        let mut incoming = self.incoming.lock();
        let all = incoming.entry(self.account.clone()).or_default();
        if all.saturating_add(bytes) > self.most {
            let why = format!("{} bytes of this user's calls are on their way", self.most);
            return Err(Error::Busy { why, retry_after_ms: 1000 });
        }
        *all += bytes;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut incoming = self.incoming.lock();
        if let Some(all) = incoming.get_mut(&self.account) {
            *all -= self.bytes;
            if *all == 0 {
                incoming.remove(&self.account);
            }
        }
    }
}

/// A call's body. One that goes beyond its bounds ends with an error of the table.
pub(super) struct Bounded {
    inner: Body,
    most: usize,
    taken: usize,
    head: Vec<u8>,
    share: Share,
    until: Pin<Box<Sleep>>,
}

impl Bounded {
    /// So many bytes at most.
    pub(super) fn new(inner: Body, most: usize, share: Share) -> Self {
        let until = Box::pin(sleep(WHOLE));
        Self { inner, most, taken: 0, head: Vec::new(), share, until }
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Error> {
        self.taken += data.len();
        let missing = HEAD.saturating_sub(self.head.len());
        self.head.extend(data.iter().take(missing));
        let said = match self.head.as_slice() {
            &[_, a, b, c, d] => u32::from_be_bytes([a, b, c, d]) as usize,
            _ => 0,
        };
        let bytes = said.max(self.taken.saturating_sub(HEAD));
        if bytes > self.most {
            let problem = format!("{bytes} bytes, and at most {} are taken", self.most);
            return Err(Error::invalid("message", problem));
        }
        self.share.grow(data.len())
    }
}

impl hyper::body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.until.as_mut().poll(context).is_ready() {
            let problem = format!("it did not come within {} s", WHOLE.as_secs());
            return Poll::Ready(Some(Err(status(&Error::invalid("message", problem)))));
        }
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && let Err(error) = self.take(data)
        {
            return Poll::Ready(Some(Err(status(&error))));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_message_is_as_long_as_it_says_and_as_it_is() {
        let incoming = Incoming::default();
        let body = || Bounded::new(Body::empty(), 300, incoming.share("uid 1".into(), 300));
        let head = |length: u32| [&[0][..], &length.to_be_bytes()].concat();
        let mut said = body();
        assert!(said.take(&head(300)).is_ok() && said.take(&[0; 300]).is_ok());
        assert!(said.take(&[0]).is_err(), "more than it may");
        assert!(body().take(&head(301)).is_err());
        // It comes in pieces of any length.
        let mut pieces = body();
        let (last, first) = head(u32::MAX).split_last().map(|(a, b)| (*a, b.to_vec())).unwrap();
        assert!(first.iter().all(|byte| pieces.take(&[*byte]).is_ok()));
        assert!(pieces.take(&[last]).is_err());
    }

    #[tokio::test]
    async fn many_calls_have_no_more_on_their_way_than_a_few() {
        let incoming = Incoming::default();
        let body = |account: &str| {
            let mut body = Bounded::new(Body::empty(), 300, incoming.share(account.into(), 300));
            body.take(&[&[0, 0, 0, 1, 44][..], &[0; 295]].concat()).map(|()| body)
        };
        let mut bodies: Vec<_> = (0..LONGEST_AT_ONCE).map(|_| body("uid 1").unwrap()).collect();
        let more = incoming.share("uid 1".into(), 300).grow(1);
        assert!(matches!(more, Err(Error::Busy { .. })), "{more:?}");
        assert!(body("uid 2").is_ok(), "another user's");
        bodies.pop();
        bodies.push(body("uid 1").unwrap());
        drop(bodies);
        assert!(incoming.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_never_says_what_it_wants_is_ended() {
        let waits = http_body_util::StreamBody::new(futures::stream::pending::<
            Result<Frame<Bytes>, Status>,
        >());
        let share = Incoming::default().share("uid 1".into(), 300);
        let mut body = Bounded::new(Body::new(waits), 300, share);
        let frame = http_body_util::BodyExt::frame(&mut body).await.unwrap();
        assert_eq!(frame.unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
