//! Random damage, the same in every run: each seed is one change to one file of one format.

use rand::{Rng, RngExt, SeedableRng};
use rand_pcg::Pcg64;

use crate::model::{ALL, Format, Model};

/// Changes in a quick run: enough to notice that something broke.
const QUICK: u64 = 300;
/// Changes in a thorough run.
const THOROUGH: u64 = 3_000;

/// Numbers that a careless parser mishandles.
const NUMBERS: [&str; 12] = [
    "0",
    "-1",
    "1",
    "255",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e999",
    "0.5",
    "null",
];

/// Damages a random file and returns its name, its original content, and the kind of damage.
fn mutate(model: &Model, random: &mut Pcg64) -> (String, Vec<u8>, &'static str) {
    let entries = std::fs::read_dir(model.folder.path()).unwrap();
    let mut files: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    let file = files[random.random_range(0..files.len())].clone();
    let whole = model.read(&file);
    let mut bytes = whole.clone();
    let len = bytes.len();
    // Changes in headers matter more than in the numbers behind them. All of a JSON file counts as header.
    let is_json = file.ends_with(".json");
    let header = match is_json {
        true => len,
        false if random.random_bool(0.8) => (8 << 10).min(len),
        false => len,
    };
    let at = random.random_range(0..header);
    let run = random.random_range(1..64).min(len - at);
    let what = match random.random_range(0..8) {
        0 => {
            for _ in 0..random.random_range(1..9) {
                bytes[random.random_range(0..header)] ^= 1 << random.random_range(0..8);
            }
            "bits flipped"
        }
        1 => {
            bytes.truncate(random.random_range(0..len));
            "cut off"
        }
        2 => {
            bytes.drain(at..at + run);
            "bytes removed"
        }
        3 => {
            let from = random.random_range(0..=len - run);
            let piece = whole[from..from + run].to_vec();
            bytes.splice(at..at, piece);
            "bytes inserted"
        }
        4 => {
            let from = random.random_range(0..=len - run);
            bytes.copy_within(from..from + run, at);
            "bytes moved"
        }
        5 => {
            let fill = [0, 0xff, b'9'][random.random_range(0..3)];
            bytes[at..at + run].fill(fill);
            "bytes filled"
        }
        6 => {
            random.fill_bytes(&mut bytes[at..at + run.min(8)]);
            "a number replaced"
        }
        _ => {
            replace_digits(
                &mut bytes,
                at,
                NUMBERS[random.random_range(0..NUMBERS.len())],
                is_json,
            );
            "digits replaced"
        }
    };
    model.write(&file, bytes);
    (file, whole, what)
}

/// Replaces the first run of digits from `at` on; in a binary file the length is kept.
fn replace_digits(bytes: &mut Vec<u8>, at: usize, number: &str, resize: bool) {
    let Some(start) = bytes[at..].iter().position(u8::is_ascii_digit) else {
        return;
    };
    let start = at + start;
    let count = bytes[start..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    if resize {
        bytes.splice(start..start + count, number.bytes());
    } else {
        let digits = bytes[start..start + count].iter_mut();
        digits
            .zip(number.bytes().cycle())
            .for_each(|(digit, new)| *digit = new);
    }
}

fn run(mutations: u64) {
    let models: Vec<(Format, Model)> = ALL
        .iter()
        .map(|format| (*format, Model::new(*format)))
        .collect();
    let mut refused = 0;
    for seed in 0..mutations {
        let (format, model) = &models[seed as usize % models.len()];
        let (file, whole, what) = mutate(model, &mut Pcg64::seed_from_u64(seed));
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.attempt()));
        model.write(&file, whole);
        match outcome {
            Ok(result) => refused += u64::from(result.is_err()),
            Err(_) => panic!("seed {seed}: {format:?}, {file}, {what}: see above"),
        }
    }
    println!("{refused} of {mutations} were refused");
    // Most changes must affect something relevant, or this test would prove little.
    assert!(
        refused > mutations / 3,
        "only {refused} of {mutations} were refused"
    );
}

#[test]
fn random_damage_is_refused_in_one_line_or_harmless() {
    run(QUICK);
}

#[test]
#[ignore = "needs minutes"]
fn random_damage_is_refused_in_one_line_or_harmless_three_thousand_times() {
    run(THOROUGH);
}
