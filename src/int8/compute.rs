//! What every int8 computation needs: an instruction set, threads and buffers.

use std::time::Instant;

use super::floats::Floats;
use super::kernels::pool::{PerThread, Pool};
use super::kernels::{self, Kernel};
use crate::error::Result;

/// An instruction set, the compute threads, and a buffer for each thread. Every phase of a step takes all three and
/// borrows the fields that it needs.
pub struct Compute {
    /// The instruction set.
    pub kernel: Kernel,
    /// The compute threads, including the caller's own.
    pub pool: Pool,
    /// One buffer per thread, for values that are needed only within one phase.
    pub scratch: Vec<Floats>,
}

impl Compute {
    /// Uses the fastest kernel of this CPU on `threads` threads.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] if the system cannot start a thread.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_kernel(kernels::best(), threads)
    }

    /// Bytes of the buffers.
    pub fn buffer_bytes(&self) -> usize {
        self.scratch.iter().map(Floats::bytes).sum()
    }

    /// Uses `kernel` on `threads` threads.
    ///
    /// # Errors
    /// As [`Compute::new`].
    pub fn with_kernel(kernel: Kernel, threads: usize) -> Result<Self> {
        let pool = Pool::new(threads)?;
        let scratch = vec![Floats::default(); pool.threads()];
        Ok(Self {
            kernel,
            pool,
            scratch,
        })
    }
}

/// Runs `work` on all threads at once, each with its index; returns the sum of what they did, per second.
pub fn rate(pool: &mut Pool, work: impl Fn(usize) -> u64 + Sync) -> f64 {
    let threads = pool.threads();
    let mut done = vec![0u64; threads];
    let start = Instant::now();
    pool.run(threads, PerThread::new(&mut done), |thread, _, done| {
        *done = work(thread)
    });
    done.iter().sum::<u64>() as f64 / start.elapsed().as_secs_f64()
}
