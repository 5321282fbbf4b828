//! Exchanges of a connection: each lasts from a request to the last byte of its response.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::http::attended_body::Attendant;

/// The exchanges of one connection.
#[derive(Debug, Clone, Default)]
pub struct Exchanges {
    /// Odd while a request is being answered, even between requests.
    count: Arc<AtomicUsize>,
    /// Whether the last request has a body that was not read to its end.
    is_unread: Arc<AtomicBool>,
}

/// A request that is being answered. Dropping it ends the exchange.
#[derive(Debug)]
pub struct Exchange(Exchanges);

impl Exchanges {
    /// Begins the exchange of a request; `has_body` says whether bytes follow its head.
    pub fn begin(&self, has_body: bool) -> Exchange {
        self.is_unread.store(has_body, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        Exchange(self.clone())
    }

    /// Whether the client may still be sending the body of the last request.
    pub fn is_unread(&self) -> bool {
        self.is_unread.load(Ordering::Relaxed)
    }

    /// The number of begins and ends so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// An exchange ends when the body of its response is dropped.
impl Attendant for Exchange {}

/// The body of a request that is being read.
#[derive(Debug)]
pub struct Reading(Exchanges);

impl Exchange {
    /// Attends to the body of the request.
    pub fn reading(&self) -> Reading {
        Reading(self.0.clone())
    }
}

impl Attendant for Reading {
    fn complete(&self) {
        self.0.is_unread.store(false, Ordering::Relaxed);
    }
}
