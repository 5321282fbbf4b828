//! A client of the API: what its key allows, and what it has used of it.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::Flow;
use crate::http::error_body::ApiError;

/// Seconds of the period of the limits.
const MINUTE: f64 = 60.0;
/// `Retry-After` of a client that has as many requests as it may have at once: nobody knows when one ends.
const RETRY_CONCURRENT: Duration = Duration::from_secs(1);
/// The name in metrics of all keys without a name.
pub const UNNAMED: &str = "unnamed";

/// What the key file says about a client.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// Its share of the engine, relative to that of others.
    pub weight: u32,
    /// Requests in a minute; a minute's worth may come at once.
    pub requests_per_minute: Option<u32>,
    /// Tokens of prompts and answers in a minute.
    pub tokens_per_minute: Option<u32>,
    /// Requests that are answered at the same time.
    pub concurrent_requests: Option<u32>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            weight: 1,
            requests_per_minute: None,
            tokens_per_minute: None,
            concurrent_requests: None,
        }
    }
}

/// A client: whoever has one of the keys with its name, or one key without a name.
#[derive(Debug)]
pub struct Client {
    name: Option<String>,
    terms: Terms,
    /// Tells its generations from those of others; the id of [`Flow::SHARED`] if it is the only client.
    id: u64,
    used: Arc<Used>,
}

/// What a client has used. It outlives a change of the key file.
#[derive(Debug, Default)]
pub(super) struct Used {
    running: AtomicUsize,
    minute: Mutex<Minute>,
}

#[derive(Debug, Default)]
struct Minute {
    requests: Bucket,
    tokens: Bucket,
}

/// What is left of an allowance that is filled up evenly.
#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    /// What was taken and not filled up again; may exceed a minute's worth.
    taken: f64,
    filled: Option<Instant>,
}

impl Bucket {
    /// Fills up what the time since the last call allows, and returns how long it takes until `amount` can be taken.
    fn wait(&mut self, per_minute: u32, amount: f64, now: Instant) -> Option<Duration> {
        let rate = f64::from(per_minute) / MINUTE;
        let since = self.filled.replace(now).unwrap_or(now);
        let elapsed = now.saturating_duration_since(since).as_secs_f64();
        self.taken = (self.taken - elapsed * rate).max(0.0);
        let missing = self.taken + amount - f64::from(per_minute);
        (missing > 0.0).then(|| Duration::from_secs_f64(missing / rate))
    }
}

/// A request of a client that is being answered. Dropping it ends the request.
#[derive(Debug)]
pub struct Running(Arc<Client>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.used.running.fetch_sub(1, Relaxed);
    }
}

impl Client {
    pub(super) const fn new(name: Option<String>, terms: Terms, id: u64, used: Arc<Used>) -> Self {
        Self {
            name,
            terms,
            id,
            used,
        }
    }

    /// Its name in metrics and messages.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or(UNNAMED)
    }

    /// Whether the key file gives it a name.
    pub(super) const fn is_named(&self) -> bool {
        self.name.is_some()
    }

    /// How messages call it. They never contain the key.
    fn called(&self) -> String {
        match &self.name {
            Some(name) => format!("the key '{name}'"),
            None => "this key".to_owned(),
        }
    }

    /// Whose its generations are.
    pub fn flow(&self) -> Flow {
        Flow {
            id: self.id,
            weight: f64::from(self.terms.weight),
        }
    }

    pub(super) const fn used(&self) -> &Arc<Used> {
        &self.used
    }

    /// Begins a request, if the limits allow another one.
    ///
    /// # Errors
    /// [`ApiError::LimitReached`], which names the limit.
    pub fn begin(self: &Arc<Self>) -> Result<Running, ApiError> {
        self.begin_at(Instant::now())
    }

    fn begin_at(self: &Arc<Self>, now: Instant) -> Result<Running, ApiError> {
        let refused = |setting: &str, most: u32, retry_after| ApiError::LimitReached {
            message: format!("{} has reached its limit, {setting}={most}", self.called()),
            retry_after,
        };
        let most = self.terms.concurrent_requests.unwrap_or(u32::MAX);
        let begun = self.used.running.fetch_update(Relaxed, Relaxed, |running| {
            (running < most as usize).then_some(running + 1)
        });
        if begun.is_err() {
            return Err(refused("concurrent_requests", most, RETRY_CONCURRENT));
        }
        // From here on it ends when it is dropped.
        let running = Running(Arc::clone(self));
        let mut minute = self.minute();
        if let Some(most) = self.terms.tokens_per_minute
            // The number of tokens is known only later: a request may take more than is left, and the next ones wait.
            && let Some(wait) = minute.tokens.wait(most, 1.0, now)
        {
            return Err(refused("tokens_per_minute", most, wait));
        }
        if let Some(most) = self.terms.requests_per_minute {
            if let Some(wait) = minute.requests.wait(most, 1.0, now) {
                return Err(refused("requests_per_minute", most, wait));
            }
            minute.requests.taken += 1.0;
        }
        drop(minute);
        Ok(running)
    }

    /// Charges `tokens` of a prompt or an answer.
    pub fn charge(&self, tokens: usize) {
        if self.terms.tokens_per_minute.is_some() {
            self.minute().tokens.taken += tokens as f64;
        }
    }

    /// The error for a request that would exceed the client's share of the queue.
    pub fn share_is_taken(&self, retry_after: Duration) -> ApiError {
        ApiError::LimitReached {
            message: format!(
                "{} has as much of the queue as one client may have",
                self.called()
            ),
            retry_after,
        }
    }

    fn minute(&self) -> std::sync::MutexGuard<'_, Minute> {
        let minute = self.used.minute.lock();
        minute.unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(terms: Terms) -> Arc<Client> {
        let name = Some("alice".to_owned());
        Arc::new(Client::new(name, terms, 1, Arc::default()))
    }

    fn refusal(begun: Result<Running, ApiError>) -> (String, Duration) {
        match begun {
            Err(ApiError::LimitReached {
                message,
                retry_after,
            }) => (message, retry_after),
            other => panic!("not refused for a limit: {other:?}"),
        }
    }

    #[test]
    fn a_minutes_worth_of_requests_may_come_at_once_and_then_one_at_a_time() {
        let client = client(Terms {
            requests_per_minute: Some(30),
            ..Terms::default()
        });
        let start = Instant::now();
        for _ in 0..30 {
            drop(client.begin_at(start).unwrap());
        }
        let (message, wait) = refusal(client.begin_at(start));
        assert_eq!(
            message,
            "the key 'alice' has reached its limit, requests_per_minute=30"
        );
        assert_eq!(wait, Duration::from_secs(2), "as true as it can be");
        let later = start + wait;
        drop(client.begin_at(later).unwrap());
        assert_eq!(refusal(client.begin_at(later)).1, wait);
        // More than a minute saves up nothing.
        let much_later = start + Duration::from_secs(3600);
        for _ in 0..30 {
            drop(client.begin_at(much_later).unwrap());
        }
        assert!(client.begin_at(much_later).is_err());
    }

    #[test]
    fn tokens_that_were_taken_too_many_are_waited_for() {
        let client = client(Terms {
            tokens_per_minute: Some(600),
            ..Terms::default()
        });
        let start = Instant::now();
        let running = client.begin_at(start).unwrap();
        client.charge(1000);
        let (message, wait) = refusal(client.begin_at(start));
        assert_eq!(
            message,
            "the key 'alice' has reached its limit, tokens_per_minute=600"
        );
        assert_eq!(wait.as_secs_f64().ceil(), 41.0);
        assert!(client.begin_at(start + Duration::from_secs(40)).is_err());
        assert!(client.begin_at(start + Duration::from_secs(42)).is_ok());
        drop(running);
    }

    #[test]
    fn a_place_is_free_when_the_request_has_ended_however_it_ends() {
        let client = client(Terms {
            concurrent_requests: Some(2),
            requests_per_minute: Some(3),
            ..Terms::default()
        });
        let start = Instant::now();
        let first = client.begin_at(start).unwrap();
        let second = client.begin_at(start).unwrap();
        let (message, wait) = refusal(client.begin_at(start));
        assert_eq!(
            message,
            "the key 'alice' has reached its limit, concurrent_requests=2"
        );
        assert_eq!(wait, RETRY_CONCURRENT);
        drop(first);
        let third = client.begin_at(start).expect("refusals take nothing");
        drop((second, third));
        // A refusal for another limit takes no place either.
        for _ in 0..5 {
            let (message, _) = refusal(client.begin_at(start));
            assert!(message.contains("requests_per_minute=3"), "{message}");
        }
        assert_eq!(client.used.running.load(Relaxed), 0);
    }
}
