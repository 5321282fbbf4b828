//! Tests of the sampling settings, and that draws follow the probabilities.

use microgranite::engine::Sampling;
use microgranite::engine::sampler::{Sampler, generator};

/// Draws `count` tokens and returns how often each id came up.
fn draw(logits: &[f32], sampling: &Sampling, count: usize) -> Vec<usize> {
    let mut sampler = Sampler::default();
    let mut generator = generator(sampling.seed);
    let mut counts = vec![0; logits.len()];
    for _ in 0..count {
        let token = sampler.sample(logits, sampling, &mut generator).unwrap();
        counts[token as usize] += 1;
    }
    counts
}

fn ids_drawn(logits: &[f32], sampling: &Sampling) -> Vec<usize> {
    let counts = draw(logits, sampling, 4000);
    (0..counts.len()).filter(|&id| counts[id] > 0).collect()
}

/// Logits whose softmax is `probabilities`.
fn logits_of(probabilities: &[f64]) -> Vec<f32> {
    probabilities.iter().map(|p| p.ln() as f32).collect()
}

fn warm() -> Sampling {
    Sampling {
        temperature: 1.0,
        seed: 11,
        ..Sampling::default()
    }
}

/// The chi-square statistic over its degrees of freedom, which is near one if the counts follow the probabilities.
fn chi_square(counts: &[usize], probabilities: &[f64]) -> f64 {
    let total: usize = counts.iter().sum();
    let cells = counts.iter().zip(probabilities);
    let sum: f64 = cells
        .map(|(&count, p)| {
            let expected = p * total as f64;
            (count as f64 - expected).powi(2) / expected
        })
        .sum();
    sum / (counts.len() - 1) as f64
}

/// A hundred different probabilities, in no order.
fn uneven() -> Vec<f64> {
    let shares: Vec<f64> = (0..100).map(|id| 1.0 + ((id * 37) % 100) as f64).collect();
    let total: f64 = shares.iter().sum();
    shares.into_iter().map(|share| share / total).collect()
}

#[test]
fn draws_follow_the_probabilities() {
    let probabilities = uneven();
    let logits = logits_of(&probabilities);
    for seed in 0..3 {
        let sampling = Sampling { seed, ..warm() };
        // With 99 degrees of freedom one in a thousand is above 1.49, and one in a thousand below 0.61.
        let all = chi_square(&draw(&logits, &sampling, 30_000), &probabilities);
        assert!((0.61..1.49).contains(&all), "seed {seed}: {all}");
        // The same through the other path: a nucleus of everything.
        let top_p = 0.999_999;
        let nucleus = Sampling { top_p, ..sampling };
        let all = chi_square(&draw(&logits, &nucleus, 30_000), &probabilities);
        assert!((0.61..1.49).contains(&all), "seed {seed}: {all}");
    }
}

#[test]
fn temperature_raises_probabilities_to_its_inverse() {
    let probabilities = uneven();
    let logits = logits_of(&probabilities);
    for temperature in [0.5_f64, 2.0] {
        let powers: Vec<f64> = probabilities
            .iter()
            .map(|p| p.powf(1.0 / temperature))
            .collect();
        let total: f64 = powers.iter().sum();
        let expected: Vec<f64> = powers.into_iter().map(|power| power / total).collect();
        let sampling = Sampling {
            temperature: temperature as f32,
            ..warm()
        };
        let statistic = chi_square(&draw(&logits, &sampling, 100_000), &expected);
        assert!((0.61..1.49).contains(&statistic), "{statistic}");
    }
}

#[test]
fn a_tiny_temperature_is_greedy_and_overflows_nothing() {
    let logits = [1.0, f32::MAX, 3.0, f32::MAX, f32::MIN];
    for temperature in [1e-3, f32::MIN_POSITIVE, 1e-45] {
        let sampling = Sampling {
            temperature,
            ..warm()
        };
        assert_eq!(ids_drawn(&logits, &sampling), [1, 3]);
    }
}

#[test]
fn top_k_keeps_the_k_most_likely_and_of_equals_the_lower_ids() {
    let logits = logits_of(&[0.1, 0.3, 0.1, 0.1, 0.4]);
    for (top_k, kept) in [
        (1, vec![4]),
        (2, vec![1, 4]),
        (3, vec![0, 1, 4]),
        (4, vec![0, 1, 2, 4]),
        (5, vec![0, 1, 2, 3, 4]),
        (0, vec![0, 1, 2, 3, 4]),
        (usize::MAX, vec![0, 1, 2, 3, 4]),
    ] {
        let sampling = Sampling { top_k, ..warm() };
        assert_eq!(ids_drawn(&logits, &sampling), kept, "top_k {top_k}");
    }
    let sampling = Sampling { top_k: 2, ..warm() };
    let counts = draw(&logits, &sampling, 100_000);
    let share = counts[4] as f64 / 100_000.0;
    assert!((share - 4.0 / 7.0).abs() < 0.006, "{share}");
}

#[test]
fn top_p_keeps_the_smallest_set_that_reaches_it() {
    let logits = logits_of(&[0.15, 0.5, 0.05, 0.3]);
    for (top_p, kept) in [
        (0.0, vec![1]),
        (0.4, vec![1]),
        (0.6, vec![1, 3]),
        (0.79, vec![1, 3]),
        (0.9, vec![0, 1, 3]),
        (0.97, vec![0, 1, 2, 3]),
        (1.0, vec![0, 1, 2, 3]),
    ] {
        let sampling = Sampling { top_p, ..warm() };
        assert_eq!(ids_drawn(&logits, &sampling), kept, "top_p {top_p}");
    }
}

#[test]
fn a_nucleus_may_be_most_of_a_large_vocabulary() {
    let logits = vec![0.25; 1500];
    let sampling = Sampling {
        top_p: 0.9,
        ..warm()
    };
    let counts = draw(&logits, &sampling, 15_000);
    // All are equally likely, so the nucleus is the lowest 1350 ids; each of them is drawn about eleven times.
    assert!(counts[1350..].iter().all(|&count| count == 0));
    let drawn = counts[..1350].iter().filter(|&&count| count > 0).count();
    assert!(drawn > 1340, "{drawn}");
}

#[test]
fn min_p_drops_what_is_less_likely_than_its_share_of_the_best() {
    let logits = logits_of(&[0.1, 0.5, 0.26, 0.04, 0.1]);
    for (min_p, kept) in [
        (0.0, vec![0, 1, 2, 3, 4]),
        (0.1, vec![0, 1, 2, 4]),
        (0.5, vec![1, 2]),
        (0.6, vec![1]),
        (1.0, vec![1]),
    ] {
        for (top_k, top_p) in [(0, 1.0), (4, 1.0), (0, 0.999)] {
            let mut kept = kept.clone();
            if top_k == 4 {
                kept.retain(|&id| id != 3);
            }
            let sampling = Sampling {
                min_p,
                top_k,
                top_p,
                ..warm()
            };
            assert_eq!(ids_drawn(&logits, &sampling), kept, "{sampling:?}");
        }
    }
}

#[test]
fn top_p_counts_only_the_mass_that_min_p_and_top_k_left() {
    let logits = logits_of(&[0.4, 0.2, 0.2, 0.1, 0.1]);
    // Of all tokens, two reach 0.45; of the best three, which weigh 0.8, 0.4 is one half.
    let sampling = Sampling {
        top_p: 0.45,
        ..warm()
    };
    assert_eq!(ids_drawn(&logits, &sampling), [0, 1]);
    let top_k = 3;
    let of_three = Sampling {
        top_k,
        ..sampling.clone()
    };
    assert_eq!(ids_drawn(&logits, &of_three), [0]);
    let min_p = 0.4;
    let of_likely = Sampling { min_p, ..sampling };
    assert_eq!(ids_drawn(&logits, &of_likely), [0]);
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_another_seed_others() {
    let logits = logits_of(&uneven());
    let tokens = |seed| {
        let sampling = Sampling { seed, ..warm() };
        let mut sampler = Sampler::default();
        let mut generator = generator(seed);
        let mut next = || sampler.sample(&logits, &sampling, &mut generator).unwrap();
        (0..32).map(|_| next()).collect::<Vec<u32>>()
    };
    assert_eq!(tokens(7), tokens(7));
    assert_ne!(tokens(7), tokens(8));
    // The tokens of a seed must stay the same, so they must not change with a dependency.
    assert_eq!(tokens(7)[..6], [1, 24, 89, 83, 50, 59]);
}

#[test]
fn every_token_takes_one_draw_whatever_the_settings() {
    let logits = logits_of(&uneven());
    let mut sampler = Sampler::default();
    let plain = warm();
    let mut expected = generator(5);
    for _ in 0..3 {
        sampler.sample(&logits, &plain, &mut expected);
    }
    let fourth = sampler.sample(&logits, &plain, &mut expected);

    let mut mixed = generator(5);
    let top_k = Sampling { top_k: 1, ..warm() };
    let top_p = Sampling {
        top_p: 0.1,
        ..warm()
    };
    let min_p = Sampling {
        min_p: 1.0,
        ..warm()
    };
    for sampling in [top_k, top_p, min_p] {
        sampler.sample(&logits, &sampling, &mut mixed);
    }
    assert_eq!(sampler.sample(&logits, &plain, &mut mixed), fourth);
}

#[test]
fn logits_that_are_not_finite_give_no_token_however_one_samples() {
    let mut logits = logits_of(&uneven());
    logits[99] = f32::NAN;
    let mut sampler = Sampler::default();
    let greedy = Sampling::default();
    for sampling in [greedy, warm(), Sampling { top_k: 3, ..warm() }] {
        assert_eq!(
            sampler.sample(&logits, &sampling, &mut generator(0)),
            None,
            "{sampling:?}"
        );
    }
}
