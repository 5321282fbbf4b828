//! What a model takes while it runs is what the plan of the start reserves for it.

use microgranite::engine::Settings;
use microgranite::memory;
use microgranite::model::{self, Forward, Mamba, MixerKind, ModelConfig, PAGE_TOKENS, Save, Span};

use crate::steps::alone;

const SNAPSHOTS: usize = 4;

/// A hybrid whose states are large and whose weights are small.
fn hybrid() -> ModelConfig {
    use MixerKind::{Attention, Mamba as Recurrent};
    ModelConfig {
        hidden_size: 128,
        mixers: vec![Recurrent, Recurrent, Attention, Recurrent, Recurrent],
        num_heads: 8,
        num_kv_heads: 8,
        head_dim: 128,
        mamba: Some(Mamba {
            heads: 48,
            head_dim: 64,
            state_size: 128,
        }),
        intermediate_size: 128,
        experts: None,
        vocab_size: 320,
        ..model::shapes::named("granite-4.0-h-1b").expect("a published shape")
    }
}

#[test]
fn resident_memory_of_a_full_batch_is_what_the_plan_has_for_states_and_pages() {
    let _alone = alone();
    let (config, slots) = (hybrid(), Settings::default().slots());
    let footprint = model::footprint(&config);
    let settings = model::Settings {
        threads: 2,
        slots,
        snapshots: SNAPSHOTS,
        // A page for each.
        kv_bytes: slots as u64 * footprint.kv_page,
        context: None,
        weights: model::Placement::default(),
    };
    let mut model = model::random(config, &settings).expect("it fits");
    assert_eq!(model.state_bytes() as u64, footprint.state);
    let tokens: Vec<u32> = (0..PAGE_TOKENS as u32).collect();
    let mut run = |slot: u32| {
        // The sequences behind the first one leave snapshots.
        let saves = slot.checked_sub(1).filter(|s| *s < SNAPSHOTS as u32);
        let saves = saves.map(|snapshot| Save {
            rows: PAGE_TOKENS,
            snapshot,
        });
        let span = Span {
            tokens: &tokens,
            start: 0,
            pages: &[slot],
            slot,
            certain: usize::MAX,
            restore: None,
            saves: saves.as_slice(),
            logit_rows: 1,
        };
        model.forward(&[span]);
    };
    let resident = || memory::resident().expect("Linux says it").anon;
    // The buffers of a step have their size after the first one.
    run(0);
    let before = resident();
    (1..slots as u32).for_each(&mut run);
    let taken = resident() - before;
    // The first sequence had its state and its page already.
    let states = (slots + SNAPSHOTS) as u64 - 1;
    let planned = states * footprint.state + (slots as u64 - 1) * footprint.kv_page;
    println!("{taken} bytes taken, {planned} planned");
    assert!(planned > 200_000_000, "{planned}");
    let ratio = taken as f64 / planned as f64;
    assert!((0.95..1.05).contains(&ratio), "{taken} of {planned}");

    // Whatever runs after that, in whichever slot, takes nothing more.
    let before = resident();
    [7, 3, 5].into_iter().for_each(run);
    assert!(resident() < before + (1 << 20), "memory grows");
}
