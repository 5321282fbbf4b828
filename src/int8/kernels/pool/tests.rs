use super::*;

#[test]
fn every_unit_is_visited_once_whatever_the_number_of_threads() {
    for threads in [1, 2, 3, 5] {
        let mut pool = Pool::new(threads).unwrap();
        for units in [0, 1, 2, 7, 64] {
            let mut data = vec![0u32; units * 3];
            for _ in 0..50 {
                pool.run(units, PerUnit::new(&mut data, 3), |_, range, share| {
                    assert_eq!(share.len(), 3 * range.len());
                    share.iter_mut().for_each(|value| *value += 1);
                });
            }
            assert!(data.iter().all(|&value| value == 50));
        }
    }
}

#[test]
fn balanced_units_are_visited_once_whatever_the_number_of_threads() {
    for threads in [1, 2, 3, 5] {
        let mut pool = Pool::new(threads).unwrap();
        for [first, second] in [[0, 0], [1, 0], [0, 7], [7, 64]] {
            let (mut of_first, mut of_second) = (vec![0u32; first * 3], vec![0u32; second]);
            let mut visits = vec![0; threads];
            for _ in 0..50 {
                let visit = |range: Range<usize>, share: &mut [u32], each: usize| {
                    assert_eq!(share.len(), each * range.len());
                    // Uneven work, so that threads take units of others.
                    if range.contains(&0) {
                        std::thread::yield_now();
                    }
                    share.iter_mut().for_each(|value| *value += 1);
                    range.len()
                };
                pool.balance_both(
                    PerThread::new(&mut visits),
                    (
                        first,
                        PerUnit::new(&mut of_first, 3),
                        |range, share, own| {
                            **own += visit(range, share, 3);
                        },
                    ),
                    (
                        second,
                        PerUnit::new(&mut of_second, 1),
                        |range, share, own| {
                            **own += visit(range, share, 1);
                        },
                    ),
                );
            }
            assert!(of_first.iter().chain(&of_second).all(|value| *value == 50));
            assert_eq!(visits.iter().sum::<usize>(), 50 * (first + second));
        }
    }
}

#[test]
fn a_parked_pool_wakes_up() {
    let mut pool = Pool::new(2).unwrap();
    let mut counts = [0u32; 2];
    for _ in 0..3 {
        std::thread::sleep(10 * SPIN);
        pool.run(2, PerUnit::new(&mut counts, 1), |_, _, share| share[0] += 1);
    }
    assert_eq!(counts, [3, 3]);
}

#[test]
fn a_panic_in_a_worker_reaches_the_caller_and_the_pool_lives_on() {
    let mut pool = Pool::new(3).unwrap();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        pool.run(3, (), |thread, _, ()| {
            assert_ne!(thread, 2, "worker two fails")
        });
    }));
    assert!(caught.is_err());
    let mut data = [0u8; 3];
    pool.run(3, PerUnit::new(&mut data, 1), |_, _, share| share[0] = 1);
    assert_eq!(data, [1, 1, 1]);
}

#[test]
#[should_panic(expected = "units of")]
fn parts_shorter_than_the_units_are_refused() {
    Pool::new(2)
        .unwrap()
        .run(4, PerUnit::new(&mut [0u8; 3], 1), |_, _, _| ());
}
