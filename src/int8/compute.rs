//! What every int8 computation needs: an instruction set, threads and buffers.

use super::floats::Floats;
use super::kernels::pool::Pool;
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
