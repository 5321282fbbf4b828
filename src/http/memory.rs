//! The memory that requests hold: their bodies, the values parsed from them, and answers that are collected into one
//! body. All of it comes from one budget, which is checked against the machine's memory at start-up.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::error_body::ApiError;

/// Bytes that every request may hold outside the budget; they are counted with its connection. Thus requests of
/// ordinary length never wait for long ones.
pub const FREE_BYTES: usize = 16 << 10;
/// The budget is counted in units of this size, because a semaphore hands out at most 2³² permits at once.
const UNIT_BYTES: usize = 1 << 10;
/// How long a request waits for memory before it is refused with a 503.
const MAX_WAIT: Duration = Duration::from_secs(1);
/// How often a request that waits for memory notifies those that are still receiving their bodies.
const REMIND_EVERY: Duration = Duration::from_millis(100);

/// The most memory that an object or list of a JSON document takes beside its text. With one entry it already has room
/// for four, of about 100 bytes each with their keys, and a hash table.
const BYTES_PER_NEST: usize = 512;
/// The most memory that an entry takes, in a list that has just doubled its capacity.
const BYTES_PER_ENTRY: usize = 160;

/// Longer bodies are parsed and tokenized one at a time. Four bodies of this length at once, one for each thread that
/// tokenizes, take about 80 MiB.
const LONG_BODY_BYTES: usize = 64 << 10;
/// Memory per byte of text while it is tokenized: measured with alternating letters and punctuation.
const TOKENIZING_BYTES: usize = 320;
/// How long a long body waits for its turn. A body of 1 MiB takes some seconds on a busy machine.
const MAX_WAIT_TO_READ: Duration = Duration::from_secs(10);

/// The memory budget of all requests; clones share it.
#[derive(Debug, Clone)]
pub struct RequestMemory(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    total: usize,
    units: Arc<Semaphore>,
    /// Has one permit, for the long body whose turn it is.
    long_body: Arc<Semaphore>,
    /// Notified repeatedly while a request waits for memory.
    shortage: Notify,
}

/// The turn to parse and tokenize a body. It moves to the thread that does the work and ends with the work, even if the
/// client disconnects earlier.
#[derive(Debug)]
pub struct ReadingTurn(
    #[expect(dead_code, reason = "held, not looked at")] Option<OwnedSemaphorePermit>,
);

impl ReadingTurn {
    /// Runs `work` on a thread that may block, and holds the turn until it is done: a long text takes a while, and the
    /// runtime's threads also write the tokens of all other requests.
    ///
    /// # Errors
    /// The error of `work`, or [`ApiError::Internal`] if it panics.
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let work = move || {
            let _turn = self;
            work()
        };
        spawn_blocking(work)
            .await
            .map_err(|_panicked| ApiError::Internal)?
    }
}

/// The most memory that parsing and tokenizing takes beside the budget, if the longest body has `body_bytes`.
pub const fn reading_bytes(body_bytes: usize) -> usize {
    if body_bytes <= LONG_BODY_BYTES {
        return 0;
    }
    body_bytes.saturating_mul(TOKENIZING_BYTES)
}

/// A part of the budget, given back when this is dropped.
#[derive(Debug)]
pub struct Held {
    memory: RequestMemory,
    /// `None` while no more than [`FREE_BYTES`] are held.
    permit: Option<OwnedSemaphorePermit>,
}

impl RequestMemory {
    /// A budget of this many bytes.
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self(Arc::new(Budget {
            total: units.saturating_mul(UNIT_BYTES),
            units: Arc::new(Semaphore::new(units)),
            long_body: Arc::new(Semaphore::new(1)),
            shortage: Notify::new(),
        }))
    }

    /// A part of the budget that holds nothing yet.
    pub fn hold(&self) -> Held {
        Held {
            memory: self.clone(),
            permit: None,
        }
    }

    /// Waits until a body of this length may be parsed.
    ///
    /// # Errors
    /// [`ApiError::OutOfMemory`] if that takes too long.
    pub async fn turn(&self, body_bytes: usize) -> Result<ReadingTurn, ApiError> {
        if body_bytes <= LONG_BODY_BYTES {
            return Ok(ReadingTurn(None));
        }
        let turn = Arc::clone(&self.0.long_body).acquire_owned();
        match timeout(MAX_WAIT_TO_READ, turn).await {
            Ok(Ok(turn)) => Ok(ReadingTurn(Some(turn))),
            _ => Err(ApiError::OutOfMemory),
        }
    }

    /// Resolves when a request waits for memory.
    pub async fn shortage(&self) {
        self.0.shortage.notified().await;
    }

    /// Waits for `units` of the budget; `None` after [`MAX_WAIT`].
    async fn acquire(&self, units: u32) -> Option<OwnedSemaphorePermit> {
        let semaphore = Arc::clone(&self.0.units);
        let mut turn = pin!(semaphore.acquire_many_owned(units));
        let mut end = pin!(sleep_until(Instant::now() + MAX_WAIT));
        let mut remind = interval(REMIND_EVERY);
        loop {
            tokio::select! {
                biased;
                permit = &mut turn => return permit.ok(),
                () = &mut end => return None,
                _ = remind.tick() => self.0.shortage.notify_waiters(),
            }
        }
    }
}

impl Held {
    /// Holds `bytes` from now on, in place of what it held before. Waits for up to a second if too little is free.
    ///
    /// # Errors
    /// [`ApiError::RequestTooLarge`] if the whole budget is too small, [`ApiError::OutOfMemory`] if too little becomes
    /// free in time.
    pub async fn resize(&mut self, bytes: usize) -> Result<(), ApiError> {
        let missing = self.shrink(bytes)?;
        if missing > 0 {
            let more = self.memory.acquire(missing).await;
            self.add(more.ok_or(ApiError::OutOfMemory)?);
        }
        Ok(())
    }

    /// As [`Self::resize`], without waiting.
    ///
    /// # Errors
    /// The same.
    pub fn try_resize(&mut self, bytes: usize) -> Result<(), ApiError> {
        let missing = self.shrink(bytes)?;
        if missing > 0 {
            let semaphore = Arc::clone(&self.memory.0.units);
            let more = semaphore.try_acquire_many_owned(missing);
            self.add(more.map_err(|_none_left| ApiError::OutOfMemory)?);
        }
        Ok(())
    }

    /// Gives back what exceeds `bytes`, or returns how many units are missing.
    fn shrink(&mut self, bytes: usize) -> Result<u32, ApiError> {
        if bytes <= FREE_BYTES {
            self.permit = None;
            return Ok(0);
        }
        let total = self.memory.0.total;
        if bytes > total {
            return Err(ApiError::RequestTooLarge { bytes, total });
        }
        let units = bytes.div_ceil(UNIT_BYTES);
        let held = self
            .permit
            .as_ref()
            .map_or(0, OwnedSemaphorePermit::num_permits);
        if let Some(permit) = &mut self.permit {
            drop(permit.split(held.saturating_sub(units)));
        }
        let missing = units.saturating_sub(held);
        u32::try_from(missing).map_err(|_| ApiError::RequestTooLarge { bytes, total })
    }

    fn add(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
    }
}

/// The most memory that a parsed JSON document takes, including its text, estimated by counting the characters that can
/// begin a value.
pub fn parsed_bytes(json: &[u8]) -> usize {
    let cost = |&byte: &u8| match byte {
        b'[' | b'{' => BYTES_PER_NEST,
        b',' => BYTES_PER_ENTRY,
        _ => 0,
    };
    // Characters inside strings count too: telling them apart would be more work, and ordinary text has few of them.
    let values: usize = json.iter().map(cost).sum();
    2 * json.len() + values
}

/// A copy of `ids` with capacity for `more`.
///
/// # Errors
/// [`ApiError::OutOfMemory`].
pub fn copied(ids: &[u32], more: usize) -> Result<Vec<u32>, ApiError> {
    let mut copy = Vec::new();
    reserve(&mut copy, ids.len().saturating_add(more))?;
    copy.extend_from_slice(ids);
    Ok(copy)
}

/// Reserves capacity for `more` items. If the allocation fails, only this request fails, not the process.
///
/// # Errors
/// [`ApiError::OutOfMemory`].
pub fn reserve<T>(items: &mut Vec<T>, more: usize) -> Result<(), ApiError> {
    items.try_reserve_exact(more).map_err(|error| {
        tracing::warn!(%error, more, "no memory for a request");
        ApiError::OutOfMemory
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(memory: &RequestMemory) -> usize {
        memory.0.units.available_permits() * UNIT_BYTES
    }

    #[tokio::test]
    async fn what_is_held_comes_back_and_small_requests_need_none() {
        let memory = RequestMemory::new(100 << 10);
        let mut held = memory.hold();
        held.resize(60 << 10).await.unwrap();
        assert_eq!(left(&memory), 40 << 10);
        held.resize(80 << 10).await.unwrap();
        assert_eq!(left(&memory), 20 << 10);

        let mut other = memory.hold();
        assert!(matches!(
            other.try_resize(30 << 10),
            Err(ApiError::OutOfMemory)
        ));
        other.try_resize(FREE_BYTES).unwrap();
        assert_eq!(left(&memory), 20 << 10);

        held.try_resize(20 << 10).unwrap();
        assert_eq!(left(&memory), 80 << 10);
        held.try_resize(10).unwrap();
        assert_eq!(left(&memory), 100 << 10);
        let too_much = held.resize((100 << 10) + 1).await;
        assert!(matches!(too_much, Err(ApiError::RequestTooLarge { .. })));
        held.resize(100 << 10).await.unwrap();
        drop(held);
        assert_eq!(left(&memory), 100 << 10);
    }

    #[tokio::test]
    async fn whoever_waits_is_heard_gets_its_turn_or_is_told_to_come_back() {
        let memory = RequestMemory::new(100 << 10);
        let mut slow = memory.hold();
        slow.resize(100 << 10).await.unwrap();
        let mut second = memory.hold();
        let waiting = second.resize(50 << 10);
        assert!(matches!(waiting.await, Err(ApiError::OutOfMemory)));

        let heard = memory.clone();
        let gives_way = async move {
            heard.shortage().await;
            drop(slow);
        };
        let (waited, ()) = tokio::join!(second.resize(50 << 10), gives_way);
        waited.unwrap();
        assert_eq!(left(&memory), 50 << 10);
    }

    #[tokio::test]
    async fn long_bodies_are_read_one_after_the_other_and_short_ones_beside_them() {
        let memory = RequestMemory::new(1 << 20);
        let first = memory.turn(LONG_BODY_BYTES + 1).await.unwrap();
        let second = memory.turn(LONG_BODY_BYTES + 1);
        let waited = timeout(Duration::from_millis(50), second).await;
        assert!(waited.is_err(), "the first is still being read");
        memory.turn(LONG_BODY_BYTES).await.unwrap();
        drop(first);
        memory.turn(LONG_BODY_BYTES + 1).await.unwrap();
    }

    #[test]
    fn an_allocation_that_fails_is_a_refusal() {
        let refused = reserve(&mut Vec::<u64>::new(), usize::MAX / 16);
        assert!(matches!(refused, Err(ApiError::OutOfMemory)));
        assert!(matches!(
            copied(&[1], usize::MAX / 8),
            Err(ApiError::OutOfMemory)
        ));
        assert_eq!(copied(&[1, 2], 3).unwrap(), [1, 2]);
    }

    #[test]
    fn documents_of_many_small_values_are_counted_as_such() {
        // The memory per byte that a document of each kind takes, as counted by the allocator.
        let of = |piece: &str| {
            let json = format!("[{}0]", piece.repeat(1000));
            parsed_bytes(json.as_bytes()) / json.len()
        };
        assert!(of("0,") >= 72);
        assert!(of("[0],") >= 90);
        assert!(of("{\"a\":0},") >= 60);
        assert!(of("some text, as people write it. ") < 10);
    }
}
