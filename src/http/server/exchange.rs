//! From a request to the last byte of its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::http::answer_body::Attendant;

/// Counts the exchanges of one connection: odd while a request is being answered, even between requests.
#[derive(Debug, Clone, Default)]
pub struct Exchanges(Arc<AtomicUsize>);

/// A request that is being answered, until this is dropped.
#[derive(Debug)]
pub struct Exchange(Exchanges);

impl Exchanges {
    /// Begins to answer a request.
    pub fn begin(&self) -> Exchange {
        self.0.fetch_add(1, Ordering::Relaxed);
        Exchange(self.clone())
    }

    /// How many have begun and ended so far.
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// An answer ends when its body is dropped.
impl Attendant for Exchange {}
