//! The queue: whatever is pushed is taken or refused, and nobody waits for ever.

use std::sync::Arc;
use std::thread;

use prometheus::IntGauge;

use super::forecast::Bounds;
use super::queue::{Gauges, Queue};
use super::request::Flow;
use super::scheduler::Load;
use super::{Health, Refusal, Sequence};
use crate::in_random_orders;

const ORDERS: usize = 4_000;

fn queue(max_queue: usize) -> Arc<Queue> {
    let bounds = Bounds {
        requests: max_queue,
        tokens: usize::MAX,
        first_token: None,
    };
    let gauge = |name| IntGauge::new(name, "-").expect("a name");
    let gauges = Gauges {
        requests: gauge("waiting"),
        tokens: gauge("tokens"),
    };
    Arc::new(Queue::new(bounds, 2, gauges))
}

/// Clients that push three each, until they are refused for another reason than want of room.
fn clients(queue: &Arc<Queue>, alive: &Arc<()>) -> Vec<thread::JoinHandle<usize>> {
    let client = |_| {
        let (queue, alive) = (Arc::clone(queue), Arc::clone(alive));
        thread::spawn(move || {
            let mut accepted = 0;
            for _ in 0..3 {
                match queue.push(vec![Sequence(Arc::clone(&alive))]) {
                    Ok(()) => accepted += 1,
                    Err(Refusal::QueueFull { .. } | Refusal::Late { .. }) => thread::yield_now(),
                    Err(Refusal::Draining | Refusal::Stopped) => break,
                }
            }
            accepted
        })
    };
    (0..2).map(client).collect()
}

/// An engine that takes what arrives and holds nothing back. Returns how many it took.
fn engine(queue: &Arc<Queue>) -> thread::JoinHandle<usize> {
    let queue = Arc::clone(queue);
    thread::spawn(move || {
        let (mut taken, mut waiting) = (0, 0);
        while let Some((arrivals, background)) = queue.take(waiting == 0) {
            drop(background);
            taken += arrivals.len();
            waiting += arrivals.len();
            // Two places: what is in them ends in the same step.
            let admitted = waiting.min(2);
            queue.run_rows(admitted);
            waiting -= admitted;
            let mut loads = vec![Load {
                waiting,
                waiting_tokens: waiting,
                ..Load::of(Flow::SHARED)
            }];
            queue.report(&mut loads, 2, admitted, None);
        }
        queue.close(Health::Stopped);
        taken
    })
}

pub fn what_is_accepted_is_taken_also_when_the_queue_is_drained_meanwhile() {
    in_random_orders(ORDERS, || {
        let (queue, alive) = (queue(2), Arc::new(()));
        let engine = engine(&queue);
        let clients = clients(&queue, &alive);
        let drains = Arc::clone(&queue);
        let drain = thread::spawn(move || drains.drain());
        let accepted: usize = clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .sum();
        drain.join().expect("the drain");
        assert_eq!(engine.join().expect("the engine"), accepted);
        assert_eq!(queue.health(), Health::Stopped);
        assert_eq!(Arc::strong_count(&alive), 1, "every sequence is gone");
        assert_eq!(queue.has_room(Flow::SHARED, 1), Err(Refusal::Stopped));
    });
}

pub fn an_engine_that_dies_leaves_no_sequence_behind() {
    in_random_orders(ORDERS, || {
        let (queue, alive) = (queue(2), Arc::new(()));
        let clients = clients(&queue, &alive);
        let dies = Arc::clone(&queue);
        let engine = thread::spawn(move || {
            drop(dies.take(true));
            dies.close(Health::Failed);
        });
        for client in clients {
            client.join().expect("a client");
        }
        engine.join().expect("the engine");
        assert_eq!(Arc::strong_count(&alive), 1, "every sequence is gone");
        assert_eq!(queue.step(), None);
    });
}

pub fn no_more_wait_than_there_is_room_for() {
    in_random_orders(ORDERS, || {
        let (queue, alive) = (queue(1), Arc::new(()));
        // Nobody takes them: two places and one that waits.
        let clients = clients(&queue, &alive);
        let accepted: usize = clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .sum();
        assert_eq!(accepted, 3);
        queue.drain();
    });
}

pub fn what_runs_in_the_background_is_taken_or_refused_and_wakes_the_engine() {
    in_random_orders(ORDERS, || {
        let (queue, alive) = (queue(2), Arc::new(()));
        let engine = engine(&queue);
        let background = {
            let (queue, alive) = (Arc::clone(&queue), Arc::clone(&alive));
            thread::spawn(move || queue.push_background(Sequence(Arc::clone(&alive))))
        };
        let clients = clients(&queue, &alive);
        let accepted: usize = clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .sum();
        background.join().expect("the background");
        // If the engine were not woken, it would never take it, and nobody else comes.
        while Arc::strong_count(&alive) > 1 {
            thread::yield_now();
        }
        assert!(!queue.displaces_background());
        queue.drain();
        assert!(queue.displaces_background());
        assert!(!queue.push_background(Sequence(Arc::clone(&alive))));
        assert_eq!(engine.join().expect("the engine"), accepted);
        assert_eq!(Arc::strong_count(&alive), 1, "every sequence is gone");
    });
}
