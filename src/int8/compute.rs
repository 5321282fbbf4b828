//! What everything at eight bits is computed with.

use super::floats::Floats;
use super::kernels::pool::Pool;
use super::kernels::{self, Kernel};
use crate::error::Result;

/// An instruction set, the compute threads, and a buffer for each thread. The three go together through every phase of a
/// step; a phase borrows the fields that it needs.
pub struct Compute {
    /// The instruction set.
    pub kernel: Kernel,
    /// The compute threads, the caller's own included.
    pub pool: Pool,
    /// One buffer per thread, for what a thread needs within one phase.
    pub scratch: Vec<Floats>,
}

impl Compute {
    /// The fastest kernel of this CPU on `threads` threads.
    ///
    /// # Errors
    /// [`crate::error::Error::Config`] if the system refuses a thread.
    pub fn new(threads: usize) -> Result<Self> {
        Self::with_kernel(kernels::best(), threads)
    }

    /// This kernel on `threads` threads.
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
