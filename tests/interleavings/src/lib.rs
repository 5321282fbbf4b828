//! The two places where threads of the program meet without a channel between them, run with their threads interleaved at
//! random: the pool of compute threads, and the queue in front of the engine. The files are the program's own; what they
//! see as `std` is the crate in the folder of that name. A thread that is never woken is found as a deadlock.
//!
//!     cargo test --release --manifest-path tests/interleavings/Cargo.toml
//!
//! Everything else in the engine (slots, pages, preemption, cancelled sequences) belongs to one thread, and
//! `tests/scheduler` tries it in random orders of arrivals, cancellations and ends.

#![allow(dead_code, unused_imports, unsafe_code, reason = "the files are the program's, and not all of it is used here")]

#[path = "."]
mod int8 {
    #[path = "."]
    pub mod kernels {
        /// On which cores the threads run is a matter of chance.
        mod cores {
            use shuttle::rand::Rng as _;

            pub(super) struct Cores;

            impl Cores {
                pub fn new(_threads: usize) -> Self {
                    Self
                }

                pub fn note(&self, _thread: usize) {}

                pub fn is_shared(&self, _thread: usize, _threads: usize) -> bool {
                    shuttle::rand::thread_rng().gen_bool(0.5)
                }
            }
        }
        #[path = "../../../src/int8/kernels/crew.rs"]
        mod crew;
        #[path = "../../../src/int8/kernels/parts.rs"]
        mod parts;
        #[path = "../../../src/int8/kernels/pool.rs"]
        pub mod pool;
        #[path = "../../../src/int8/kernels/shares.rs"]
        mod shares;
    }
}

/// The errors of the included files.
pub mod error {
    #[derive(Debug)]
    pub enum Error {
        Config(String),
    }

    pub type Result<T> = std::result::Result<T, Error>;
}

/// What the queue knows of the engine.
#[path = "."]
pub mod engine {
    use std::time::Duration;

    #[path = "../../../src/engine/forecast.rs"]
    pub mod forecast;
    #[path = "../../../src/engine/queue.rs"]
    pub mod queue;
    #[path = "../../../src/engine/recent_steps.rs"]
    mod recent_steps;

    pub mod request {
        /// Whose a generation is.
        #[derive(Debug, Clone, Copy, PartialEq)]
        pub struct Flow {
            pub id: u64,
            pub weight: f64,
        }

        impl Flow {
            pub const SHARED: Self = Self { id: 0, weight: 1.0 };
        }
    }

    pub mod scheduler {
        use super::request::Flow;

        pub trait Job {
            fn flow(&self) -> Flow;
        }

        /// What one flow has.
        #[derive(Debug, Clone, Copy)]
        pub struct Load {
            pub flow: Flow,
            pub waiting: usize,
            pub waiting_tokens: usize,
            pub running: usize,
            pub prefill_tokens: usize,
        }

        impl Load {
            pub const fn of(flow: Flow) -> Self {
                Self {
                    flow,
                    waiting: 0,
                    waiting_tokens: 0,
                    running: 0,
                    prefill_tokens: 0,
                }
            }

            pub const fn backlog(&self) -> usize {
                self.waiting_tokens + self.prefill_tokens
            }
        }
    }

    mod sequence {
        use std::sync::Arc;

        use super::request::Flow;
        use super::scheduler::Job;

        /// A generation; how many exist is counted by whoever holds another reference.
        #[derive(Debug)]
        pub struct Sequence(pub Arc<()>);

        impl Sequence {
            pub const fn prompt_len(&self) -> usize {
                1
            }
        }

        impl Job for Sequence {
            fn flow(&self) -> Flow {
                Flow::SHARED
            }
        }
    }

    pub use sequence::Sequence;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum QueuePart {
        Requests,
        Tokens,
        Share,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Refusal {
        QueueFull {
            part: QueuePart,
            retry_after: Duration,
        },
        Late {
            retry_after: Duration,
        },
        Draining,
        Stopped,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub enum Health {
        Running,
        Draining,
        Stopped,
        Failed,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub struct Step {
        pub number: u64,
        pub usual: Option<Duration>,
    }

    #[path = "queue_checks.rs"]
    pub mod queue_checks;
}

pub mod pool_checks;

/// Runs `check` in this many orders. Half of them prefer to switch threads at a few chosen places, which finds what needs
/// a certain order of few events.
fn in_random_orders(orders: usize, check: impl Fn() + Send + Sync + Copy + 'static) {
    shuttle::check_random(check, orders / 2);
    shuttle::check_pct(check, orders / 2, 3);
}
