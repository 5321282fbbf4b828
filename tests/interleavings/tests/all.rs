//! Each check as a test. The checks are in the library, because the unit tests of the included files must not run here.

use microgranite_interleavings::{engine::queue_checks, pool_checks};

#[test]
fn every_unit_is_computed_once_in_every_phase() {
    pool_checks::every_unit_is_computed_once_in_every_phase();
}

#[test]
fn nothing_of_a_phase_runs_after_it() {
    pool_checks::nothing_of_a_phase_runs_after_it();
}

#[test]
fn a_panic_reaches_the_caller_and_the_next_phase_runs() {
    pool_checks::a_panic_reaches_the_caller_and_the_next_phase_runs();
}

#[test]
fn a_pool_that_is_dropped_ends_its_threads_wherever_they_are() {
    pool_checks::a_pool_that_is_dropped_ends_its_threads_wherever_they_are();
}

#[test]
fn what_is_accepted_is_taken_also_when_the_queue_is_drained_meanwhile() {
    queue_checks::what_is_accepted_is_taken_also_when_the_queue_is_drained_meanwhile();
}

#[test]
fn an_engine_that_dies_leaves_no_sequence_behind() {
    queue_checks::an_engine_that_dies_leaves_no_sequence_behind();
}

#[test]
fn no_more_wait_than_there_is_room_for() {
    queue_checks::no_more_wait_than_there_is_room_for();
}

#[test]
fn what_runs_in_the_background_is_taken_or_refused_and_wakes_the_engine() {
    queue_checks::what_runs_in_the_background_is_taken_or_refused_and_wakes_the_engine();
}
