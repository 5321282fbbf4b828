//! The targets of the attacks, one test for each.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::grammars;
use crate::inputs::Inputs;
use crate::requests::good_request;
use crate::server::Attacked;

/// How long each target is attacked.
pub fn duration() -> Duration {
    let seconds = std::env::var("MICROGRANITE_FUZZ_SECONDS").ok();
    let seconds = seconds.map(|text| text.parse().expect("MICROGRANITE_FUZZ_SECONDS is a number"));
    Duration::from_secs(seconds.unwrap_or(3))
}

/// A new seed each time, unless one is given.
pub fn seed() -> u64 {
    let asked = std::env::var("MICROGRANITE_FUZZ_SEED").ok();
    let asked = asked.map(|text| text.parse().expect("MICROGRANITE_FUZZ_SEED is a number"));
    asked.unwrap_or_else(rand::random)
}

/// Runs one target at a time: each measures the response times of an honest client.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends the requests that `make` returns, until the time is over or something is wrong.
fn attack(name: &str, make: impl Fn(&mut Inputs) -> (&'static str, String)) {
    let _alone = alone();
    let seed = seed();
    let mut inputs = Inputs::new(seed);
    let attacked = Attacked::start();
    let (began, mut cases) = (Instant::now(), 0);
    while began.elapsed() < duration() {
        let (path, body) = make(&mut inputs);
        cases += 1;
        let sent = Instant::now();
        let answer = attacked.post(path, body.clone());
        if let Some(problem) = attacked.problem(&answer) {
            let file = std::env::temp_dir().join(format!("microgranite-fuzz-{name}.json"));
            std::fs::write(&file, &body).expect("the request is kept");
            let took = sent.elapsed();
            panic!(
                "{problem}\nafter request {cases} of seed {seed} to {path}, answered {} after {took:?}; it is in {}",
                answer.0,
                file.display()
            );
        }
    }
    attacked.end(name, cases);
}

/// A completion under a constraint.
fn constrained(field: &str, value: Value) -> String {
    json!({"prompt": "a", "max_tokens": 4, "structured_outputs": {field: value}}).to_string()
}

#[test]
fn no_schema_ends_freezes_or_bloats_the_server() {
    attack("schemas", |inputs| {
        let schema = grammars::schema(inputs);
        match inputs.below(3) {
            0 => {
                let format =
                    json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
                let body = json!({"prompt": "a", "max_tokens": 4, "response_format": format});
                ("/v1/completions", body.to_string())
            }
            1 => {
                let tool =
                    json!({"type": "function", "function": {"name": "f", "parameters": schema}});
                let messages = json!([{"role": "user", "content": "a"}]);
                let body = json!({
                    "messages": messages, "max_tokens": 4, "tools": [tool], "tool_choice": "required",
                });
                ("/v1/chat/completions", body.to_string())
            }
            _ => ("/v1/completions", constrained("json", schema)),
        }
    });
}

/// Eight clients with grammars that were never there before. Compiling one takes some megabytes for a moment, and the
/// last 64 are kept, which comes to 13 MiB. With a new thread and so another heap for each grammar, the holes in the heaps
/// make it 24 MiB and more.
#[test]
fn many_different_grammars_leave_little_behind() {
    const MOST: u64 = 20 << 20;
    const CLIENTS: usize = 8;
    const EACH: usize = 12;
    let _alone = alone();
    let attacked = Attacked::start();
    let ask = |client: usize| {
        for number in 0..EACH {
            let words: Vec<String> = (0..5000)
                .map(|word| format!("w{client}x{number}x{}", word * 7919 % 10_007))
                .collect();
            let body = constrained("regex", json!(words.join("|")));
            // On a busy machine a grammar may not be compiled in time.
            let is_done = (0..50).any(|_| attacked.post("/v1/completions", body.clone()).0 == 200);
            assert!(is_done, "grammar {number} of client {client}");
        }
    };
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || ask(client));
        }
    });
    let held = attacked.holds();
    println!("grammars left {} MiB", held >> 20);
    assert!(held < MOST, "{held} bytes");
}

#[test]
fn no_grammar_ends_freezes_or_bloats_the_server() {
    attack("grammars", |inputs| {
        let grammar = grammars::lark(inputs);
        ("/v1/completions", constrained("grammar", json!(grammar)))
    });
}

#[test]
fn no_regular_expression_ends_freezes_or_bloats_the_server() {
    attack("regexes", |inputs| {
        let regex = grammars::regex(inputs);
        match inputs.below(3) {
            0 => (
                "/v1/completions",
                constrained("json", json!({"type": "string", "pattern": regex})),
            ),
            1 => {
                let lark = format!("start: /{}/\n", regex.replace('/', "\\/"));
                ("/v1/completions", constrained("grammar", json!(lark)))
            }
            _ => ("/v1/completions", constrained("regex", json!(regex))),
        }
    });
}

#[test]
fn no_body_ends_freezes_or_bloats_the_server() {
    attack("bodies", |inputs| {
        const WORDS: [&str; 14] = [
            "{", "}", "[", "]", "\"", ",", ":", "null", "true", "\\u0000", "\u{feff}", "1e999",
            "\"n\":", "\\ud800",
        ];
        let (path, good) = good_request(inputs);
        let mut body = inputs.spoil_value(&good);
        // Few tokens each, so that there is time for many requests.
        if let Some(fields) = body.as_object_mut()
            && fields.get("max_tokens").is_none_or(Value::is_null)
            && !inputs.once_in(20)
        {
            fields.insert("max_tokens".into(), json!(2));
        }
        let mut text = body.to_string();
        if inputs.once_in(4) {
            text = inputs.spoil(&text, &WORDS);
        }
        (path, text)
    });
}
