//! Exchanges of a connection: each lasts from a request to the last byte of its response.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::http::answer_body::Attendant;

/// Counts the exchanges of one connection: odd while a request is being answered, even between requests.
#[derive(Debug, Clone, Default)]
pub struct Exchanges(Arc<AtomicUsize>);

/// A request that is being answered. Dropping it ends the exchange.
#[derive(Debug)]
pub struct Exchange(Exchanges);

impl Exchanges {
    /// Begins the exchange of a request.
    pub fn begin(&self) -> Exchange {
        self.0.fetch_add(1, Ordering::Relaxed);
        Exchange(self.clone())
    }

    /// The number of begins and ends so far.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An exchange ends when the body of its response is dropped.
impl Attendant for Exchange {}
