//! The pool: every phase runs once on every thread that takes part, whatever order they run in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::in_random_orders;
use crate::int8::kernels::pool::{PerUnit, Pool};

/// Orders that each check tries.
const ORDERS: usize = 2_000;

pub fn every_unit_is_computed_once_in_every_phase() {
    in_random_orders(ORDERS, || {
        let mut pool = Pool::new(3).expect("three threads");
        let mut data = vec![0_u32; 6];
        for phase in 1..=3 {
            pool.run(6, PerUnit::new(&mut data, 1), |_, _, share| {
                share.iter_mut().for_each(|value| *value += 1);
            });
            assert!(data.iter().all(|&value| value == phase), "{data:?}");
        }
    });
}

pub fn nothing_of_a_phase_runs_after_it() {
    in_random_orders(ORDERS, || {
        let mut pool = Pool::new(2).expect("two threads");
        for _ in 0..3 {
            let running = Arc::new(AtomicUsize::new(0));
            pool.run(2, (), |_, _, ()| {
                running.fetch_add(1, Ordering::SeqCst);
                running.fetch_sub(1, Ordering::SeqCst);
            });
            assert_eq!(running.load(Ordering::SeqCst), 0);
            assert_eq!(Arc::strong_count(&running), 1);
        }
    });
}

pub fn a_panic_reaches_the_caller_and_the_next_phase_runs() {
    in_random_orders(ORDERS, || {
        let mut pool = Pool::new(2).expect("two threads");
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(2, (), |thread, _, ()| {
                if thread == 1 {
                    // Without the hook, which would print every one.
                    std::panic::resume_unwind(Box::new("a panic"));
                }
            });
        }));
        assert!(caught.is_err());
        let mut data = [0_u8; 2];
        pool.run(2, PerUnit::new(&mut data, 1), |_, _, share| share[0] = 1);
        assert_eq!(data, [1, 1]);
    });
}

pub fn a_pool_that_is_dropped_ends_its_threads_wherever_they_are() {
    in_random_orders(ORDERS, || {
        let mut pool = Pool::new(3).expect("three threads");
        pool.run(3, (), |_, _, ()| ());
        drop(pool);
        drop(Pool::new(2).expect("two threads"));
    });
}
