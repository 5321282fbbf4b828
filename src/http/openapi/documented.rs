//! Tests that the numbers in docs/ are those that requests are checked against.

use crate::config::ByteSize;
use crate::engine;
use crate::http::completions::request::DEFAULT_MAX_TOKENS;
use crate::http::generate::output::{MAX_LOGPROBS, MAX_SCORED_IDS, MAX_SCORES};
use crate::http::generate::request::{MAX_STOP_BYTES, STOP_IDS_PER_STOP};
use crate::http::generate::sampling::{
    LOGIT_BIAS, MAX_ENTRIES, MIN_P, PENALTY, REPETITION_PENALTY, TEMPERATURE, TOP_P,
};
use crate::http::generate::structured::MAX_CHOICES;
use crate::http::limits::Limits;
use crate::http::responses::request::{MAX_METADATA, MAX_METADATA_NAME, MAX_METADATA_VALUE};
use crate::http::server;
use crate::http::values::Range;

const API: &str = include_str!("../../../docs/api.md");
const CHAT: &str = include_str!("../../../docs/chat.md");
const OTHERS: &str = include_str!("../../../docs/other-apis.md");

/// The second cell of the row whose first cell has `name`.
fn cell(name: &str) -> &'static str {
    let rows = API.lines().map(|line| line.split('|').map(str::trim));
    let mut rows = rows.filter_map(|mut row| Some((row.nth(1)?, row.next()?)));
    let row = rows.find(|(first, _)| *first == name || first.contains(&format!("`{name}`")));
    row.unwrap_or_else(|| panic!("docs/api.md has no row for {name}"))
        .1
}

/// A number as the tables write it.
fn number(value: f64) -> String {
    value.to_string().replace('-', "−")
}

fn ends(range: Range) -> String {
    let (least, most) = (number(range.least), number(range.most));
    match range.excludes_least {
        true => format!("({least}, {most}]"),
        false => format!("{least}…{most}"),
    }
}

#[test]
fn the_values_of_fields_are_those_of_their_checks() {
    let limits = Limits::default();
    let ranges = [
        ("temperature", TEMPERATURE),
        ("top_p", TOP_P),
        ("min_p", MIN_P),
        ("presence_penalty", PENALTY),
        ("frequency_penalty", PENALTY),
        ("repetition_penalty", REPETITION_PENALTY),
    ];
    let with_default = |range: Range| format!("{} ({})", ends(range), number(range.default));
    let ranges = ranges.map(|(name, range)| (name, with_default(range)));
    let stop_ids = limits.stops * STOP_IDS_PER_STOP;
    let others = [
        ("prompt", format!("at most {}", limits.prompts)),
        ("max_tokens", format!("({DEFAULT_MAX_TOKENS})")),
        ("n", format!("1…{} (1)", limits.choices)),
        ("best_of", format!("`n`…{} (`n`)", limits.choices)),
        ("logprobs", format!("0…{MAX_LOGPROBS},")),
        ("prompt_logprobs", format!("0…{MAX_LOGPROBS}")),
        ("logprob_token_ids", format!("at most {MAX_SCORED_IDS}")),
        (
            "stop",
            format!("at most {}, of {MAX_STOP_BYTES} bytes", limits.stops),
        ),
        ("stop_token_ids", format!("at most {stop_ids}")),
        (
            "logit_bias",
            format!("{}}}; at most {MAX_ENTRIES}", ends(LOGIT_BIAS)),
        ),
        ("allowed_token_ids", format!("1…{MAX_ENTRIES} ids")),
        ("bad_words", format!("at most {MAX_ENTRIES}")),
    ];
    for (name, values) in ranges.into_iter().chain(others) {
        let documented = cell(name);
        assert!(documented.contains(&values), "{name}: {documented}");
    }
    assert!(CHAT.contains(&format!("`top_logprobs` (0–{MAX_LOGPROBS})")));
}

#[test]
fn the_limits_of_metadata_are_those_of_its_check() {
    let limits = format!(
        "at most {MAX_METADATA} texts of at most {MAX_METADATA_VALUE} characters, with names of at most {MAX_METADATA_NAME}"
    );
    assert!(OTHERS.contains(&limits), "{limits}");
}

#[test]
fn the_table_of_limits_has_the_limits() {
    let (limits, server) = (Limits::default(), server::Settings::default());
    let tokens = engine::Settings::default().max_queue_tokens;
    // The tables write `1.00 MiB` as 1 MiB.
    let size = |bytes: usize| {
        let size = ByteSize(bytes as u64).to_string();
        let (number, unit) = size.split_once(' ').unwrap();
        format!("{} {unit}", number.parse::<f64>().unwrap())
    };
    assert_eq!(MAX_ENTRIES, MAX_CHOICES, "they share a row");
    for (name, most) in [
        ("bytes of a body", size(limits.body_bytes)),
        ("memory of all requests", size(limits.memory_bytes)),
        ("prompts in a request", limits.prompts.to_string()),
        ("answers to each prompt", limits.choices.to_string()),
        (
            "stop strings; stop ids",
            format!("{}; {STOP_IDS_PER_STOP} for each stop string", limits.stops),
        ),
        ("bytes of all stop strings", MAX_STOP_BYTES.to_string()),
        (
            "log-probabilities per token",
            format!("{MAX_LOGPROBS}, or {MAX_SCORED_IDS} chosen ids"),
        ),
        (
            "log-probabilities of a request's prompts",
            format!("{},{:03}", MAX_SCORES / 1000, MAX_SCORES % 1000),
        ),
        (
            "entries of `logit_bias`, `allowed_token_ids`, `bad_words`, `choice`",
            MAX_ENTRIES.to_string(),
        ),
        ("headers", server::MAX_HEADERS.to_string()),
        ("bytes of all headers", size(server.header_bytes)),
        (
            "requests that wait",
            engine::Settings::default().max_queue.to_string(),
        ),
        (
            "tokens of their prompts",
            format!(
                "{},{:03}; a prompt that waits alone may have more",
                tokens / 1000,
                tokens % 1000
            ),
        ),
        (
            "connections",
            format!(
                "{}, or what file descriptors there are for",
                server.max_connections
            ),
        ),
    ] {
        // The mark ¹ stands for limits that are lower if the machine has little memory.
        assert_eq!(cell(name).replace('¹', ""), most, "{name}");
    }
}
