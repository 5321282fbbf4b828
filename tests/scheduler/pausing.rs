//! Tests of clients that read more slowly than tokens come.

use microgranite::engine::{Sampling, Settings, TokenEvent};

use crate::checked_model::greedy;
use crate::harness::{
    LENGTH, collect, events, eventually, generation, kv_bytes, small, start, start_recurrent,
    start_recurrent_with_snapshots, submit, within,
};

/// Tokens of an answer, and how many of them may be unread: 16 bytes each.
const TOKENS: usize = 900;
const UNREAD: usize = 200;

fn one_place(prefix_cache: bool, speculation: usize) -> Settings {
    Settings {
        max_batch: 1,
        prefix_cache,
        speculation,
        max_unread_bytes: 16 * UNREAD,
        ..small()
    }
}

#[tokio::test]
async fn an_answer_that_nobody_reads_gives_up_its_place_and_goes_on_with_the_same_tokens() {
    let start_free: fn(_, _) -> _ = start;
    for (prefix_cache, speculation, start) in [
        (false, 0, start_free),
        (true, 0, start_free),
        (true, 6, start_free),
        (true, 6, start_recurrent),
        (true, 6, start_recurrent_with_snapshots),
    ] {
        let (engine, metrics) = start(one_place(prefix_cache, speculation), 80);
        let unread = generation(1, 10, TOKENS);
        let prompt = unread.prompt.clone();
        let mut stream = submit(&engine, unread);
        eventually(|| metrics.requests_paused.get() == 1);
        assert_eq!(metrics.requests_running.get(), 0);
        assert_eq!(kv_bytes(&metrics, "used"), 0);
        let made = metrics.generation_tokens_total.get();
        // A step may make several, if drafts are right.
        assert!(made <= UNREAD as u64 + 8, "{made} tokens that nobody reads");

        // The only place is free.
        let other = generation(2, 30, 20);
        let expected = greedy(&other.prompt, 20);
        let answer = collect(submit(&engine, other)).await;
        assert_eq!(answer, (expected, LENGTH));
        assert_eq!(metrics.requests_paused.get(), 1);

        // A few tokens are not worth coming back for.
        let mut tokens = Vec::new();
        for _ in 0..10 {
            match within(stream.next()).await {
                Some(TokenEvent::Token(token)) => tokens.push(token),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(metrics.requests_paused.get(), 1);
        let (rest, end) = collect(stream).await;
        tokens.extend(rest);
        assert_eq!((tokens, end), (greedy(&prompt, TOKENS), LENGTH));
        engine.drain();
        within(engine.stopped()).await;
        assert_eq!(metrics.requests_paused.get(), 0);
        assert_eq!(metrics.preemptions_total.get(), 0, "it was not their turn");
    }
}

#[tokio::test]
async fn scores_count_and_those_of_a_prompt_pause_nobody() {
    let scored = || {
        let mut scored = generation(1, 500, 300);
        scored.scores = Some(20);
        scored.score_prompt = true;
        scored.sampling = Sampling {
            temperature: 0.8,
            seed: 1,
            ..Sampling::default()
        };
        scored
    };
    let roomy = Settings {
        max_unread_bytes: usize::MAX,
        ..one_place(true, 0)
    };
    let (engine, _) = start(roomy, 80);
    let read = events(submit(&engine, scored())).await;

    let (engine, metrics) = start(one_place(true, 0), 80);
    let stream = submit(&engine, scored());
    eventually(|| metrics.requests_paused.get() == 1);
    let made = metrics.generation_tokens_total.get();
    // 32 events in any case, and each token has a score: much fewer than without.
    assert!((16..40).contains(&made), "{made} tokens with 20 scores");
    assert_eq!(events(stream).await, read);
}

#[tokio::test]
async fn a_paused_answer_whose_client_leaves_is_gone_and_a_drain_waits_for_one_that_stays() {
    let (engine, metrics) = start(one_place(true, 0), 80);
    let leaving = submit(&engine, generation(1, 10, TOKENS));
    let staying = submit(&engine, generation(2, 10, TOKENS));
    eventually(|| metrics.requests_paused.get() == 2);
    engine.drain();
    drop(leaving);
    eventually(|| metrics.requests_paused.get() == 1);
    let prompt = generation(2, 10, 0).prompt;
    assert_eq!(collect(staying).await, (greedy(&prompt, TOKENS), LENGTH));
    within(engine.stopped()).await;
    assert_eq!(metrics.requests_paused.get(), 0);
}
