//! Tests of constraints on tokens, and of tokens that they force.

use microgranite::engine::{
    Constraint, FinishReason, Generation, PromptRows, Sampling, Settings, TokenEvent, Turn,
};

use super::crowd;
use crate::harness::{LENGTH, collect, events, generation, small, start, submit};

/// Allows even ids, and is undecided after `tokens_left` tokens.
#[derive(Debug, Clone)]
struct Even {
    tokens_left: usize,
    mask: [u32; 3],
}

impl Constraint for Even {
    fn allowed(&mut self) -> Option<&[u32]> {
        (self.tokens_left > 0).then_some(&self.mask)
    }

    fn accept(&mut self, _token: u32) -> bool {
        self.tokens_left -= 1;
        false
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

#[tokio::test]
async fn a_constraint_is_kept_and_one_that_cannot_go_on_ends_its_generation_alone() {
    let (engine, _) = start(small(), 20);
    let even = Even {
        tokens_left: 7,
        mask: [0x5555_5555; 3],
    };
    let constrained = Generation {
        constraint: Some(Box::new(even)),
        ..generation(1, 10, 50)
    };
    let other = submit(&engine, generation(2, 10, 50));
    let (tokens, end) = collect(submit(&engine, constrained)).await;
    assert_eq!((tokens.len(), end), (7, TokenEvent::Undecided));
    assert!(tokens.iter().all(|token| token % 2 == 0));
    assert_eq!(collect(other).await.1, LENGTH);
}

#[tokio::test]
async fn a_constraint_that_other_settings_contradict_fails_and_one_that_is_met_ends() {
    let (engine, _) = start(small(), 20);
    // Ids 0 and 2 are allowed, and 1 as well where the text may end.
    let contradicted = |mask: u32| Generation {
        constraint: Some(Box::new(Even {
            tokens_left: 7,
            mask: [mask, 0, 0],
        })),
        stop_ids: vec![1],
        sampling: Sampling {
            allowed_ids: vec![3],
            ..Sampling::default()
        },
        ..generation(1, 10, 50)
    };
    let must_go_on = collect(submit(&engine, contradicted(0b101))).await;
    assert_eq!(must_go_on, (Vec::new(), TokenEvent::Contradicted));
    let may_end = collect(submit(&engine, contradicted(0b111))).await;
    let complete = TokenEvent::Finished(FinishReason::Complete);
    assert_eq!(may_end, (Vec::new(), complete));
}

/// Lets the model go on as it likes, but for every seventh token, which is `token`, and no end before the tenth.
#[derive(Debug, Clone)]
struct Forcing {
    token: u32,
    count: usize,
}

impl Constraint for Forcing {
    fn turn(&self) -> Turn {
        match self.count % 7 {
            6 => Turn::Forced(self.token),
            _ => Turn::Free {
                may_end: self.count >= 10,
            },
        }
    }

    fn allowed(&mut self) -> Option<&[u32]> {
        None
    }

    fn accept(&mut self, _token: u32) -> bool {
        self.count += 1;
        false
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// The crowd, every token of whose answers that a [`Forcing`] asks for is forced.
fn forced_crowd() -> Vec<Generation> {
    let force = |(at, generation): (usize, Generation)| Generation {
        constraint: Some(Box::new(Forcing {
            token: at as u32 % 5,
            count: 0,
        })),
        stop_ids: vec![9],
        ..generation
    };
    crowd().into_iter().enumerate().map(force).collect()
}

#[tokio::test]
async fn forced_tokens_come_in_their_places_whatever_runs_beside_or_is_guessed() {
    let (engine, _) = start(small(), 20);
    let mut alone = Vec::new();
    for (at, generation) in forced_crowd().into_iter().enumerate() {
        let most = generation.max_tokens;
        let (tokens, end) = collect(submit(&engine, generation)).await;
        let forced = tokens.iter().skip(6).step_by(7);
        assert!(forced.copied().all(|token| token == at as u32 % 5));
        assert!(tokens.len() >= most.min(10) && !tokens.contains(&9));
        alone.push((tokens, end));
    }
    assert!(alone.iter().any(|(tokens, _)| tokens.len() > 30));
    let guessing = Settings {
        max_batch: 8,
        max_queue: 32,
        speculation: 8,
        prefix_cache: true,
        ..Settings::default()
    };
    let narrow = Settings {
        max_queue: 28,
        step_tokens: 5,
        prompt_rows: PromptRows::Fixed(3),
        speculation: 4,
        ..small()
    };
    // The second has pages for few of them at a time, so some are preempted.
    for (settings, pages) in [(guessing, 200), (narrow, 8)] {
        let (engine, _) = start(settings, pages);
        let streams = engine.submit(forced_crowd()).unwrap();
        for (stream, alone) in streams.into_iter().zip(&alone) {
            assert_eq!(&collect(stream).await, alone);
        }
    }
}

#[tokio::test]
async fn a_forced_token_needs_no_leave_of_other_settings() {
    let (engine, _) = start(small(), 20);
    let against = Generation {
        constraint: Some(Box::new(Forcing { token: 3, count: 6 })),
        sampling: Sampling {
            allowed_ids: vec![4, 5],
            banned_sequences: vec![vec![3]],
            ..Sampling::default()
        },
        scores: Some(0),
        ..generation(1, 10, 1)
    };
    let events = events(submit(&engine, against)).await;
    assert!(matches!(&events[0], TokenEvent::Score(score) if score.token.0 == 3));
    assert_eq!(events[1..], [TokenEvent::Token(3), LENGTH]);
}
