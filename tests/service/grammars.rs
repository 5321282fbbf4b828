//! Tests of grammars that take too much work: each is refused or compiled within the deadline, and other requests are
//! not affected.

use std::sync::Arc;
use std::time::{Duration, Instant};

use microgranite::memory;
use microgranite::telemetry::Metrics;
use microgranite::text::grammar::{Grammar, Grammars, Problem, Settings};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::fake::Fake;
use crate::harness::{END_OF_TEXT, Options, PROGRAM, Service, VOCAB, tokenizer};
use crate::process::{running, tiny};

/// The default deadline of the product.
const DEADLINE: Duration = Duration::from_secs(2);
/// The longest wait that tests accept, because other tests share the machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn service() -> Service {
    let options = Options {
        grammar_deadline: Some(DEADLINE),
        ..Options::default()
    };
    Service::with(Fake::babbling(), options)
}

/// A schema of `links` definitions; `link` makes each one from a reference to the next.
fn chain(links: usize, link: impl Fn(Value) -> Value) -> Value {
    let mut definitions = Map::new();
    for index in 0..links {
        let next = json!({"$ref": format!("#/$defs/{}", index + 1)});
        definitions.insert(index.to_string(), link(next));
    }
    definitions.insert(links.to_string(), json!({"type": "null"}));
    json!({"$ref": "#/$defs/0", "$defs": definitions})
}

/// Schemas whose references chain through every keyword that holds a schema.
fn chained_schemas(links: usize) -> Vec<Value> {
    vec![
        chain(links, |next| next),
        chain(links, |next| json!({"oneOf": [next, {"const": 1}]})),
        chain(links, |next| json!({"anyOf": [next, {"const": 1}]})),
        chain(links, |next| json!({"allOf": [next]})),
        chain(
            links,
            |next| json!({"allOf": [next, {"title": "x"}], "type": ["null", "string"]}),
        ),
        chain(links, |next| json!({"type": "array", "items": next})),
        chain(
            links,
            |next| json!({"type": "array", "prefixItems": [next], "items": false}),
        ),
        chain(
            links,
            |next| json!({"type": "object", "properties": {"a": next}}),
        ),
        chain(
            links,
            |next| json!({"type": "object", "properties": {"a": next}, "required": ["a"]}),
        ),
        chain(
            links,
            |next| json!({"type": "object", "additionalProperties": next}),
        ),
        chain(
            links,
            |next| json!({"type": "object", "patternProperties": {"^a": next}}),
        ),
        chain(
            links,
            |next| json!({"not": next, "if": next, "then": next, "else": next}),
        ),
        chain(
            links,
            |next| json!({"dependentSchemas": {"a": next}, "contains": next}),
        ),
        chain(
            links,
            |next| json!({"items": [next], "additionalItems": next}),
        ),
    ]
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(
        json!({}),
        |inner, _| json!({"type": "array", "items": inner}),
    )
}

/// A chain of rules or terminals, each of which names the next.
fn chained_lark(links: usize, name: &str) -> String {
    let mut lark = format!("start: {name}0\n");
    for index in 0..links {
        lark += &format!("{name}{index}: \"a\" {name}{} | \"b\"\n", index + 1);
    }
    lark + &format!("{name}{links}: \"c\"\n")
}

/// Values of `structured_outputs` that have crashed or blocked servers.
fn bombs() -> Vec<Value> {
    let mut bombs = Vec::new();
    for links in [300, 900, 1_500] {
        bombs.extend(
            chained_schemas(links)
                .into_iter()
                .map(|schema| json!({"json": schema})),
        );
        for name in ["r", "T"] {
            bombs.push(json!({"grammar": chained_lark(links, name)}));
        }
        let schema = chain(links, |next| json!({"oneOf": [next, {"const": 1}]}));
        bombs.push(json!({"grammar": format!("start: %json {schema}")}));
    }
    bombs.push(json!({"json": nested(120)}));
    bombs.push(
        json!({"grammar": format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000))}),
    );
    bombs.push(json!({"grammar": format!("start: {}", "\"a\"? ".repeat(20_000))}));
    bombs.push(json!({"grammar": format!("start: /{}/", "a?".repeat(30_000))}));
    bombs.push(json!({"grammar": "start: start start | \"a\"?"}));
    let doubled: String = (1..=40)
        .map(|level| format!("T{level}: T{0} T{0}\n", level - 1))
        .collect();
    bombs.push(json!({"grammar": format!("start: T40\nT0: /a?b*/\n{doubled}")}));
    for regex in [
        "a?".repeat(30_000),
        "a?b*".repeat(20_000),
        "(a|b)*".repeat(16_000),
        "((a{100}){100}){100}".to_owned(),
        "((((a{1000}){1000}){1000}){1000}){1000}".to_owned(),
        "((a?b?c?){0,999}){0,999}".to_owned(),
        r"[\w\d\pL]".repeat(10_000),
        r"(?i)\pL\pN".repeat(10_000),
        format!("(a|b)*a(a|b){{{}}}", 30_000),
        format!("{}a{}", "(".repeat(60_000), ")".repeat(60_000)),
    ] {
        bombs.push(json!({"regex": regex}));
        bombs.push(json!({"json": {"type": "string", "pattern": regex}}));
    }
    let options: Vec<Value> = (0..200)
        .map(|i| json!({"properties": {format!("p{i}"): {"const": i}}}))
        .collect();
    let product = json!({"allOf": [{"anyOf": options}, {"anyOf": options}, {"anyOf": options}]});
    bombs.push(json!({"json": product}));
    bombs.push(json!({"json": {"type": "array", "minItems": 4_000_000_000_u64, "items": {"type": "array"}}}));
    let patterns: Map<String, Value> = (0..500)
        .map(|i| (format!("^{i}.*[a-z]+$"), json!({})))
        .collect();
    bombs.push(json!({"json": {"allOf": [{"patternProperties": patterns}, {"type": "object"}]}}));
    let optional: Map<String, Value> = (0..4000).map(|i| (format!("p{i}"), json!(true))).collect();
    bombs.push(json!({"json": {"type": "object", "properties": optional}}));
    bombs
}

#[tokio::test(flavor = "multi_thread")]
async fn grammars_that_ended_or_froze_a_server_are_refused_or_done_in_time() {
    let service = service();
    let before = memory::resident().map_or(0, |resident| resident.anon);
    for bomb in bombs() {
        let started = Instant::now();
        let body = json!({"prompt": "x", "max_tokens": 3, "structured_outputs": bomb});
        let response = service.completion(&body).send().await.unwrap();
        let (status, answer) = (response.status(), response.text().await.unwrap());
        let took = started.elapsed();
        let shown: String = bomb.to_string().chars().take(160).collect();
        assert!(status == 200 || status == 400, "{shown}: {answer}");
        assert!(took < PATIENCE, "{took:?}: {shown}");
        if status == 400 {
            assert!(
                answer.contains("\"param\":\"structured_outputs\""),
                "{shown}: {answer}"
            );
        }
    }
    let after = memory::resident().map_or(0, |resident| resident.anon);
    assert!(after < before + (256 << 20), "{before} → {after}");
    let body = json!({"prompt": "x", "max_tokens": 9, "structured_outputs": {"choice": ["left", "right"]}});
    assert!(["left", "right"].contains(&&*service.text(body).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_takes_its_grammar_with_it() {
    let options = Options {
        // Longer than the test, so that slots become free only because clients disconnect.
        grammar_deadline: Some(Duration::from_secs(60)),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    // All 12,000 parts are optional, which takes the compiler minutes.
    let slow = |number: usize| {
        let lark = format!("start: {}", format!("\"a{number}\"? ").repeat(12_000));
        json!({"prompt": "x", "structured_outputs": {"grammar": lark}})
    };
    for number in 0..8 {
        let request = service
            .completion(&slow(number))
            .timeout(Duration::from_millis(300));
        assert!(request.send().await.unwrap_err().is_timeout());
    }
    let started = Instant::now();
    let body = json!({"prompt": "x", "max_tokens": 9, "structured_outputs": {"choice": ["left", "right"]}});
    assert!(["left", "right"].contains(&&*service.text(body).await));
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_grammar_is_compiled_once() {
    let service = service();
    let count = |outcome: &str| {
        service
            .metrics
            .grammars_total
            .with_label_values(&[outcome])
            .get()
    };
    let body = json!({"prompt": "x", "seed": 1, "n": 3, "max_tokens": 20, "structured_outputs": {"regex": "[ab]{3}"}});
    let first = service.complete(body.clone()).await;
    let second = service.complete(body).await;
    assert_eq!(first["choices"], second["choices"]);
    assert_eq!(
        (count("compiled"), count("hit"), count("refused")),
        (1, 1, 0)
    );
    let body = json!({"prompt": "x", "structured_outputs": {"regex": "("}});
    for hits in [1, 2] {
        assert_eq!(
            service.completion(&body).send().await.unwrap().status(),
            400
        );
        assert_eq!((count("refused"), count("hit")), (1, hits));
    }
}

#[tokio::test]
async fn without_the_process_that_tries_them_grammars_are_not_compiled() {
    let options = Options {
        grammar_program: Some("/nonexistent"),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let ask =
        |outputs: Value| json!({"prompt": "x", "max_tokens": 1, "structured_outputs": outputs});
    let response = service
        .completion(&ask(json!({"regex": "a"})))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    let error: Value = response.json().await.unwrap();
    assert_eq!(error["error"]["code"], "grammars_unavailable");
    service.complete(ask(json!({"json_object": true}))).await;
    service
        .complete(json!({"prompt": "x", "max_tokens": 1}))
        .await;
}

#[test]
fn the_program_tries_grammars_with_itself() {
    let (_process, url) = running(&tiny());
    let client = reqwest::blocking::Client::new();
    let status = |outputs: Value| {
        let body = json!({"prompt": "x", "max_tokens": 2, "structured_outputs": outputs});
        let url = format!("{url}/v1/completions");
        client.post(url).json(&body).send().unwrap().status()
    };
    assert_eq!(status(json!({"regex": "a|b"})), 200);
    assert_eq!(
        status(json!({"grammar": format!("start: /{}/", "a?".repeat(30_000))})),
        400
    );
    let bomb = chain(
        900,
        |next| json!({"type": "object", "properties": {"a": next}}),
    );
    assert!([200, 400].contains(&status(json!({"json": bomb})).as_u16()));
    assert_eq!(status(json!({"choice": ["a", "b"]})), 200);
}

/// Schemas of any shape, with references to any target.
fn hostile_schema() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(Value::Bool),
        (0..4_u8).prop_map(|to| json!({"$ref": format!("#/$defs/{to}")})),
        Just(json!({"$ref": "#"})),
        ("[a-c?*+.(){}|0-9\\[\\]\\\\w^$]{0,12}")
            .prop_map(|pattern| json!({"type": "string", "pattern": pattern})),
        (any::<f64>(), any::<i64>()).prop_map(
            |(low, high)| json!({"type": "number", "minimum": low, "exclusiveMaximum": high})
        ),
        (any::<i64>(), any::<u64>())
            .prop_map(|(low, high)| json!({"type": "integer", "minimum": low, "maximum": high})),
        any::<f64>().prop_map(|by| json!({"type": ["integer", "null"], "multipleOf": by})),
        (any::<u32>(), any::<u32>())
            .prop_map(|(low, high)| json!({"type": "string", "minLength": low, "maxLength": high})),
        prop::collection::vec(any::<Option<u8>>(), 0..4).prop_map(|values| json!({"enum": values})),
        Just(json!({"type": "string", "format": "date-time"})),
        Just(json!(null)),
    ];
    let schema = leaf.prop_recursive(5, 40, 4, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..4);
        let keyword = prop::sample::select(vec!["allOf", "anyOf", "oneOf", "prefixItems", "items", "enum"]);
        let single = prop::sample::select(vec!["items", "additionalProperties", "not", "if", "contains", "properties"]);
        prop_oneof![
            (keyword, list).prop_map(|(keyword, list)| json!({keyword: list})),
            (single, inner.clone()).prop_map(|(keyword, schema)| json!({keyword: schema})),
            (inner.clone(), inner.clone(), any::<u8>()).prop_map(|(a, b, least)| json!({
                "type": "object", "properties": {"a": a, "b": b}, "required": ["a", "c"], "minProperties": least,
            })),
            (inner.clone(), any::<u16>()).prop_map(|(items, least)| json!({"type": "array", "items": items, "minItems": least})),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| json!({"allOf": [a], "anyOf": [b], "properties": {"a": {}}})),
            (inner, "[ab.*+]{0,4}").prop_map(|(schema, pattern)| json!({"patternProperties": {pattern: schema}})),
        ]
    });
    (schema.clone(), prop::collection::vec(schema, 4)).prop_map(|(mut root, definitions)| {
        if let Some(fields) = root.as_object_mut() {
            let named = (0..4).map(|index| index.to_string()).zip(definitions);
            fields.insert("$defs".into(), Value::Object(named.collect()));
        }
        root
    })
}

fn hostile_lark() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "start: ",
        "a: ",
        "B: ",
        "\n",
        "a ",
        "B ",
        "start ",
        "\"x\" ",
        "\"\" ",
        "/y+/ ",
        "/z?/ ",
        "| ",
        "( ",
        ") ",
        "* ",
        "+ ",
        "? ",
        "{3,7} ",
        "{0,100000} ",
        "[ ",
        "] ",
        "~ ",
        "& ",
        "%json {\"type\": \"array\"} ",
        "%ignore /[ ]+/\n",
        "%llguidance {}\n",
        "<|end_of_text|> ",
        "<[3-9]> ",
        "\"a\"..\"z\" ",
        "%regex {\"substring_words\": \"a b\"} ",
        "// c\n",
        "%import common.INT\n",
        "INT ",
        "a[capture] ",
        "[stop=\"q\"]: ",
        "\\ ",
        "\u{e9}",
    ]);
    prop::collection::vec(piece, 1..40).prop_map(|pieces| format!("start: {}", pieces.concat()))
}

fn hostile_regex() -> impl Strategy<Value = String> {
    let leaf = prop::sample::select(vec![
        "a", "b?", ".", "[a-f]", r"\w", r"\pL", "", "^", "$", "é", r"\b", "(?i)k",
    ]);
    leaf.prop_map(str::to_owned)
        .prop_recursive(6, 60, 5, |inner| {
            let several = prop::collection::vec(inner.clone(), 1..5);
            prop_oneof![
                several.clone().prop_map(|parts| parts.concat()),
                several.prop_map(|parts| format!("({})", parts.join("|"))),
                inner.clone().prop_map(|part| format!("({part})*")),
                inner.clone().prop_map(|part| format!("(?:{part})?")),
                (inner.clone(), 0..200_u32, 0..200_u32).prop_map(|(part, least, more)| format!(
                    "({part}){{{least},{}}}",
                    least + more
                )),
                (inner, 1..300_usize).prop_map(|(part, times)| part.repeat(times)),
            ]
        })
}

#[test]
fn whatever_a_grammar_is_it_ends_in_time_with_an_outcome_in_one_line() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let settings = Settings {
        deadline: DEADLINE,
        program: Some(PROGRAM.into()),
    };
    let metrics = Arc::new(Metrics::new());
    let grammars = Grammars::new(
        &tokenizer(),
        &[END_OF_TEXT],
        VOCAB,
        settings,
        Arc::clone(&metrics),
    );
    let grammars = Arc::new(grammars);
    let grammar = prop_oneof![
        hostile_schema().prop_map(|schema| Grammar::JsonSchema(schema.to_string())),
        hostile_lark().prop_map(Grammar::Lark),
        hostile_regex().prop_map(Grammar::Regex),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 300,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&grammar, |grammar| {
        let started = Instant::now();
        let outcome = runtime.block_on(grammars.constraints(&grammar, 1));
        prop_assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
        match outcome {
            Ok(mut made) => {
                // As the engine does, take allowed tokens until none is allowed.
                let constraint = &mut made.constraints[0];
                for step in 0..12_u32 {
                    let asked = Instant::now();
                    let Some(words) = constraint.allowed() else {
                        break;
                    };
                    let allowed: Vec<u32> = (0..VOCAB as u32)
                        .filter(|&id| words[id as usize / 32] >> (id % 32) & 1 == 1)
                        .collect();
                    prop_assert!(
                        asked.elapsed() < Duration::from_secs(1),
                        "{:?}",
                        asked.elapsed()
                    );
                    let Some(&token) = allowed.get((step as usize * 7919) % allowed.len().max(1))
                    else {
                        break;
                    };
                    if token == END_OF_TEXT || constraint.accept(token) {
                        break;
                    }
                }
            }
            Err(Problem::Refused(problem)) => {
                prop_assert!(!problem.contains('\n') && problem.len() < 400, "{problem}");
            }
            Err(problem) => prop_assert!(false, "{problem:?}"),
        }
        Ok(())
    });
    outcome.unwrap();
    let compiled = metrics
        .grammars_total
        .with_label_values(&["compiled"])
        .get();
    assert!(compiled > 50, "too few make sense: {compiled}");
}
