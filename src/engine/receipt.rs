//! What a generation has taken: the record from which metrics, log lines and responses take their numbers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What one generation, or several of one request together, have taken so far.
#[derive(Debug, Clone, Copy)]
pub struct Receipt {
    /// When it was submitted.
    pub arrived: Instant,
    /// When the first step with its rows began.
    pub began: Option<Instant>,
    /// When its first token came, or its end if it generates none.
    pub answered: Option<Instant>,
    /// When its last token came, or its end.
    pub ended: Option<Instant>,
    /// Its share of the processor time of all threads: the time of each step is divided by rows.
    pub cpu_seconds: f64,
    /// Tokens of the prompt that were found in the prefix cache.
    pub cached_tokens: usize,
}

impl Receipt {
    const fn new(arrived: Instant) -> Self {
        Self {
            arrived,
            began: None,
            answered: None,
            ended: None,
            cpu_seconds: 0.0,
            cached_tokens: 0,
        }
    }

    /// From its arrival to the first step with its rows.
    pub fn queue(&self) -> Option<Duration> {
        Some(self.began?.saturating_duration_since(self.arrived))
    }

    /// From the first step with its rows to its first token.
    pub fn prefill(&self) -> Option<Duration> {
        Some(self.answered?.saturating_duration_since(self.began?))
    }

    /// From its first token to its last.
    pub fn decode(&self) -> Option<Duration> {
        Some(self.ended?.saturating_duration_since(self.answered?))
    }

    /// From its arrival to its first token.
    pub fn first_token(&self) -> Option<Duration> {
        Some(self.answered?.saturating_duration_since(self.arrived))
    }

    /// Of two generations of one request together: each phase begins when it begins for the first of them, and the last
    /// one ends with the last token of both.
    #[must_use]
    pub fn together(self, other: Self) -> Self {
        let earliest = |a: Option<Instant>, b: Option<Instant>| a.into_iter().chain(b).min();
        Self {
            arrived: self.arrived.min(other.arrived),
            began: earliest(self.began, other.began),
            answered: earliest(self.answered, other.answered),
            ended: self.ended.max(other.ended),
            cpu_seconds: self.cpu_seconds + other.cpu_seconds,
            cached_tokens: self.cached_tokens + other.cached_tokens,
        }
    }
}

/// A receipt that the engine still writes; clones share it.
#[derive(Debug, Clone)]
pub struct OpenReceipt(Arc<Mutex<Receipt>>);

impl OpenReceipt {
    pub(super) fn new(arrived: Instant) -> Self {
        Self(Arc::new(Mutex::new(Receipt::new(arrived))))
    }

    /// The receipt so far. What a step took is in it before the events of the step are sent.
    pub fn so_far(&self) -> Receipt {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the receipt, and returns it as it is then. Nothing blocks while it holds the lock.
    pub(super) fn update(&self, change: impl FnOnce(&mut Receipt)) -> Receipt {
        let mut receipt = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut receipt);
        *receipt
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generations_of_one_request_share_its_phases_and_add_up_what_they_cost() {
        let start = Instant::now();
        let at = |seconds| Some(start + Duration::from_secs(seconds));
        let of = |began, answered, ended| Receipt {
            began: at(began),
            answered: at(answered),
            ended: at(ended),
            cpu_seconds: 1.5,
            cached_tokens: 64,
            ..Receipt::new(start)
        };
        let both = of(2, 5, 9).together(of(1, 6, 20));
        let seconds = |phase: Option<Duration>| phase.map(|phase| phase.as_secs());
        assert_eq!(seconds(both.queue()), Some(1));
        assert_eq!(seconds(both.prefill()), Some(4));
        assert_eq!(seconds(both.decode()), Some(15));
        assert_eq!(seconds(both.first_token()), Some(5));
        assert_eq!((both.cpu_seconds, both.cached_tokens), (3.0, 128));

        let waiting = Receipt::new(start);
        assert_eq!((waiting.queue(), waiting.prefill()), (None, None));
        let one_waits = of(2, 5, 9).together(waiting);
        assert_eq!(seconds(one_waits.queue()), Some(2));
        assert_eq!(seconds(one_waits.decode()), Some(4));
    }
}
