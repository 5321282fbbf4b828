//! Tests of the texts that grammars allow. Grammars that are too large are tested over HTTP, with the child process
//! that tries them.

mod in_tags;

use std::path::Path;

use serde_json::{Value, json};

use super::compile::{Compiled, Compiler, Vocabulary};
use super::*;
use crate::engine::Constraint;
use crate::text::Tokenizer;

const VOCAB: usize = 320;

fn tokenizer() -> Tokenizer {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let file = fixtures.join("granite-3-tiny/tokenizer.json");
    Tokenizer::new(tokenizers::Tokenizer::from_file(&file).unwrap(), &file).unwrap()
}

fn compile(grammar: &Grammar) -> Result<Compiled, String> {
    let vocabulary = Vocabulary::of(&tokenizer(), &[0], VOCAB);
    Compiler::new(&vocabulary).unwrap().compile(grammar)
}

/// Whether the grammar allows `text`, token by token, and then the end.
fn matches(grammar: &Grammar, text: &str) -> bool {
    let tokenizer = tokenizer();
    let mut constraint = compile(grammar).unwrap().constraint;
    let has = |words: &[u32], id: u32| words[id as usize / 32] >> (id % 32) & 1 == 1;
    for id in tokenizer.encode(text, 1000).unwrap() {
        if !has(constraint.allowed().unwrap(), id) {
            return false;
        }
        constraint.accept(id);
    }
    has(constraint.allowed().unwrap(), 0)
}

fn schema(value: &Value) -> Grammar {
    Grammar::JsonSchema(value.to_string())
}

fn call(parameters: &Value) -> Grammar {
    Grammar::Calls(Calls {
        tools: vec![("f".into(), Some(parameters.to_string()))],
        form: CallForm::Object,
    })
}

#[test]
fn every_kind_of_grammar_allows_what_it_describes() {
    let closed = schema(&json!({
        "type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false,
    }));
    for (grammar, good, bad) in [
        (Grammar::JsonObject, r#"{"b": [1, {"c": "é"}]}"#, "[1]"),
        (closed, r#"{"a": -12}"#, r#"{"a": "x"}"#),
        (Grammar::Regex("[a-c]{2}|é".into()), "ab", "ad"),
        (
            Grammar::Choice(vec!["y\"es\n".into(), "no".into()]),
            "y\"es\n",
            "yes",
        ),
        (
            Grammar::Lark("start: \"a\" start | \"b\"".into()),
            "aaab",
            "ba",
        ),
        (
            call(&json!({"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]})),
            r#"{"name": "f", "arguments": {"a": 1}}"#,
            r#"{"name": "f", "arguments": {}}"#,
        ),
    ] {
        assert!(matches(&grammar, good), "{grammar:?}");
        assert!(!matches(&grammar, bad), "{grammar:?}");
    }
    let half = Grammar::Choice(vec!["whole".into()]);
    assert!(!matches(&half, "who"), "the text may not end in the middle");
}

#[test]
fn grammars_that_make_no_sense_or_too_much_work_are_refused() {
    for grammar in [
        Grammar::Regex("(".into()),
        Grammar::Regex("a?".repeat(30_000)),
        Grammar::Lark("start: nothing".into()),
        Grammar::Lark("x".repeat(MAX_BYTES + 1)),
        Grammar::JsonSchema("{".into()),
        Grammar::JsonSchema("3".into()),
        schema(&json!({"type": "nonsense"})),
        schema(&json!({"pattern": "a?b*".repeat(20_000)})),
        schema(&json!({"$ref": "#/$defs/absent"})),
        schema(&json!({"properties": 3})),
        Grammar::JsonSchema(format!("{}1{}", "[".repeat(500), "]".repeat(500))),
        schema(&json!({"$ref": "http://example.com/schema"})),
        call(&json!({"type": "string"})),
    ] {
        let refused = compile(&grammar).err();
        let problem = refused.unwrap_or_else(|| panic!("accepted: {grammar:?}"));
        assert!(!problem.contains('\n') && problem.len() < 300, "{problem}");
    }
}

#[test]
fn terminals_that_multiply_by_reference_are_refused() {
    let mut lark = "start: T12\nT0: /a?/\n".to_owned();
    for level in 1..=12 {
        lark += &format!("T{level}: T{0} T{0}\n", level - 1);
    }
    let problem = compile(&Grammar::Lark(lark))
        .err()
        .expect("4,096 parts that may be left out");
    assert!(problem.contains("left out"), "{problem}");
}

#[test]
fn long_lists_of_words_and_names_are_taken() {
    let words: Vec<String> = (0..9000)
        .map(|i| format!("word{}", i * 7919 % 10_007))
        .collect();
    let grammar = Grammar::Regex(words.join("|"));
    assert!(matches(&grammar, &words[5000]));
    let properties: serde_json::Map<String, Value> = (0..500)
        .map(|i| {
            (
                format!("property_{i}"),
                json!({"type": ["string", "number"]}),
            )
        })
        .collect();
    let grammar = schema(&json!({"type": "object", "properties": properties}));
    assert!(matches(
        &grammar,
        r#"{"property_7": 1, "property_499": "x"}"#
    ));
    let labels: Vec<String> = (0..1000).map(|i| format!("label number {i}")).collect();
    assert!(matches(&Grammar::Choice(labels), "label number 999"));
}

#[test]
fn references_are_followed_however_they_are_written() {
    let document = json!({
        "$id": "https://example.com/root",
        "$defs": {"a/b": {"const": 1}, "<T>": {"const": 2}, "n": {"$anchor": "here", "const": 3}},
        "definitions": {"old": {"const": 4}},
        "properties": {"x": {"const": 5}, "ref": null},
        "required": ["ref"],
    });
    for (reference, value) in [
        ("#/$defs/a~1b", 1),
        ("#/$defs/%3CT%3E", 2),
        ("#/$defs/<T>", 2),
        ("#here", 3),
        ("https://example.com/root#/$defs/n", 3),
        ("#/definitions/old", 4),
        ("#/properties/x", 5),
    ] {
        let mut document = document.clone();
        document["properties"]["ref"] = json!({"$ref": reference});
        let grammar = schema(&document);
        assert!(
            matches(&grammar, &format!(r#"{{"ref": {value}}}"#)),
            "{reference}"
        );
        assert!(!matches(&grammar, r#"{"ref": 9}"#), "{reference}");
    }
}

#[test]
fn references_of_a_tool_mean_its_own_schema() {
    let recursive = call(&json!({
        "type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}}, "required": ["next"],
    }));
    assert!(matches(
        &recursive,
        r#"{"name": "f", "arguments": {"next": {"next": null}}}"#
    ));
    assert!(!matches(
        &recursive,
        r#"{"name": "f", "arguments": {"next": {"name": "f", "arguments": {}}}}"#
    ));
    let by_property = call(&json!({
        "type": "object", "properties": {"name": {"enum": ["x"]}, "other": {"$ref": "#/properties/name"}},
        "required": ["other"],
    }));
    assert!(matches(
        &by_property,
        r#"{"name": "f", "arguments": {"other": "x"}}"#
    ));
    assert!(!matches(
        &by_property,
        r#"{"name": "f", "arguments": {"other": "f"}}"#
    ));
    // Two tools whose definitions have the same name.
    let tool = |value: u32| json!({"$defs": {"T": {"const": value}}, "properties": {"a": {"$ref": "#/$defs/T"}}, "required": ["a"]});
    let both = Grammar::Calls(Calls {
        tools: vec![
            ("f".into(), Some(tool(1).to_string())),
            ("g".into(), Some(tool(2).to_string())),
        ],
        form: CallForm::List,
    });
    assert!(matches(&both, r#"[{"name": "g", "arguments": {"a": 2}}]"#));
    assert!(!matches(&both, r#"[{"name": "g", "arguments": {"a": 1}}]"#));
}

#[test]
fn arguments_are_an_object_whatever_the_schema_leaves_out() {
    for parameters in [
        json!({}),
        json!(true),
        json!({"title": "T"}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#"}),
        json!({"type": ["object", "null"]}),
        json!({"$ref": "#/$defs/A", "$defs": {"A": {"properties": {"a": {}}}}}),
        json!({"anyOf": [{"required": ["a"]}, {"type": "string"}], "properties": {"a": {}}}),
    ] {
        let grammar = call(&parameters);
        assert!(
            matches(&grammar, r#"{"name": "f", "arguments": {"a": 1}}"#),
            "{parameters}"
        );
        for bad in ["[]", "\"x\"", "null", "1"] {
            let text = format!(r#"{{"name": "f", "arguments": {bad}}}"#);
            assert!(!matches(&grammar, &text), "{parameters}: {bad}");
        }
    }
}

#[test]
fn objects_that_list_their_properties_have_no_others() {
    let a = json!({"properties": {"a": {"const": 1}}});
    for (value, good, bad) in [
        (a.clone(), r#"{"a": 1}"#, r#"{"b": 1}"#),
        (
            json!({"anyOf": [a, {"type": "null"}]}),
            r#"{"a": 1}"#,
            r#"{"b": 1}"#,
        ),
        (json!({"allOf": [a]}), r#"{"a": 1}"#, r#"{"b": 1}"#),
        (
            json!({"properties": {"o": a}}),
            r#"{"o": {"a": 1}}"#,
            r#"{"o": {"b": 1}}"#,
        ),
        (
            json!({"properties": {"a": {}}, "required": ["z"]}),
            r#"{"a": 1, "z": 2}"#,
            r#"{"b": 1, "z": 1}"#,
        ),
        (
            json!({"type": "object", "properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            r#"{"b": 1}"#,
            r#"{"b": 1, "c": 1}"#,
        ),
    ] {
        assert!(matches(&schema(&value), good), "{value}");
        assert!(!matches(&schema(&value), bad), "{value}");
    }
    let b = json!({"properties": {"b": {"const": 2}}});
    for (value, good) in [
        (json!({"type": "object"}), r#"{"x": 1}"#),
        (
            json!({"properties": {"a": {}}, "additionalProperties": true}),
            r#"{"x": 1}"#,
        ),
        // A schema composed of several must allow the properties of all of them.
        (
            json!({"type": "object", "allOf": [a, b], "required": ["a", "b"]}),
            r#"{"a": 1, "b": 2}"#,
        ),
        (
            json!({"$ref": "#/$defs/b", "$defs": {"b": b}, "properties": {"a": {}}}),
            r#"{"b": 2, "a": 1}"#,
        ),
    ] {
        assert!(matches(&schema(&value), good), "{value}");
    }
}

#[test]
fn what_cannot_be_enforced_is_named_and_not_refused() {
    let formats = "uri-reference iri idn-email idn-hostname url regex json-pointer password binary byte base64 base64url \
        path file-path directory-path json-string phone color int32 decimal ulid cuid multi-host-uri postgres-dsn";
    for format in formats.split_whitespace() {
        let compiled = compile(&schema(&json!({"type": "string", "format": format})));
        assert_eq!(compiled.unwrap().unenforced, ["format"], "{format}");
    }
    let object = |name: &str| json!({"type": "object", "properties": {"a": {}, name: {}}});
    for (value, unenforced) in [
        (json!({"type": "string", "format": "date"}), &[][..]),
        (json!({"type": "array", "uniqueItems": false}), &[]),
        (
            json!({"type": "array", "uniqueItems": true}),
            &["uniqueItems"],
        ),
        (json!({"oneOf": [object("b"), object("c")]}), &["oneOf"]),
        (
            json!({"oneOf": [{"type": "string"}, {"type": "null"}]}),
            &[],
        ),
        (
            json!({"type": "object", "not": {"required": ["a"]}}),
            &["not"],
        ),
        (
            json!({"type": "object", "if": {}, "then": {}, "else": {}}),
            &["if"],
        ),
        (
            json!({"properties": {"a": {"contains": {}}}}),
            &["contains"],
        ),
        (
            json!({"properties": {"not": {}}, "unevaluatedProperties": false}),
            &[],
        ),
        (
            json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX}),
            &["maximum", "minimum"],
        ),
        (
            json!({"type": "integer", "minimum": -9007199254740991_i64, "maximum": 9007199254740991_i64}),
            &[],
        ),
        (
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-7}),
            &[],
        ),
        (
            json!({"type": "number", "minimum": 1e-7, "exclusiveMaximum": 1e300}),
            &["exclusiveMaximum"],
        ),
        (
            json!({"type": "number", "minimum": -1e-7, "maximum": 1e-7}),
            &[],
        ),
        (json!({"type": "number", "multipleOf": 0.01}), &[]),
        (
            json!({"type": "number", "multipleOf": 1e-9}),
            &["multipleOf"],
        ),
        // The nearest 64-bit floats are different numbers.
        (
            json!({"type": "integer", "maximum": 9_007_199_254_740_993_i64}),
            &["maximum"],
        ),
        (json!({"const": 9_007_199_254_740_993_i64}), &["const"]),
        (json!({"enum": ["a", {"b": [u64::MAX]}]}), &["enum"]),
        (json!({"const": 9_007_199_254_740_992_i64}), &[]),
        (
            json!({"type": "object", "minProperties": 2, "properties": {"a": {}, "b": {}, "c": {}}}),
            &["minProperties"],
        ),
        (
            json!({"type": "object", "minProperties": 1, "properties": {"a": {}, "b": {}}}),
            &[],
        ),
    ] {
        let compiled =
            compile(&schema(&value)).unwrap_or_else(|problem| panic!("{value}: {problem}"));
        assert_eq!(compiled.unenforced, unenforced, "{value}");
    }
}

#[test]
fn schemas_in_lark_are_taken_like_all_others() {
    let lark = |schema: Value| Grammar::Lark(format!("start: \"x\" %json {schema}\n"));
    let closed = lark(json!({
        "properties": {"a": {"$ref": "#here"}}, "$defs": {"n": {"$anchor": "here", "const": 1}}, "type": "object",
    }));
    assert!(matches(&closed, r#"x{"a": 1}"#));
    for bad in [r#"x{"b": 1}"#, r#"x{"a":1}"#, r#"x{"a": 2}"#] {
        assert!(!matches(&closed, bad), "{bad}");
    }
    let unique = lark(json!({"type": "array", "uniqueItems": true}));
    assert_eq!(compile(&unique).unwrap().unenforced, ["uniqueItems"]);
    let dense = lark(json!({
        "type": "array", "items": {"const": 1}, "x-guidance": {"whitespace_flexible": false, "item_separator": ","},
    }));
    assert!(matches(&dense, "x[1,1]"));
}

#[test]
fn numbers_mean_the_same_however_they_are_written() {
    for (value, good, bad) in [
        (
            json!({"type": "string", "minLength": 3.0, "maxLength": 4.0}),
            "\"abc\"",
            "\"ab\"",
        ),
        (
            json!({"type": "array", "minItems": 1.0, "items": {"const": 1}}),
            "[1]",
            "[]",
        ),
        (json!({"type": "number", "multipleOf": 0.07}), "0.21", "0.2"),
        (json!({"type": "number", "multipleOf": 0.29}), "0.58", "0.5"),
        (
            json!({"type": "number", "multipleOf": 0.005}),
            "1.015",
            "1.013",
        ),
        (json!({"type": "integer", "multipleOf": 7.0}), "21", "20"),
        (
            json!({"const": 90_071_992_547_409_920_i64}),
            "90071992547409920",
            "90071992547409921",
        ),
    ] {
        assert!(matches(&schema(&value), good), "{value}");
        assert!(!matches(&schema(&value), bad), "{value}");
    }
}

#[test]
fn what_is_refused_is_refused_in_words_of_the_schema() {
    for (value, part) in [
        (json!({"$ref": "#"}), "nothing matches it"),
        (
            json!({"patternProperties": {"^a": {}, "b$": {}}, "type": "object"}),
            "'patternProperties'",
        ),
    ] {
        let problem = compile(&schema(&value)).err().expect("it is refused");
        assert!(problem.contains(part), "{value}: {problem}");
    }
}

#[test]
fn a_grammar_in_another_form_is_told_which_one_to_use() {
    let gbnf = Grammar::Lark("root ::= \"yes\" | \"no\"\n".into());
    let problem = compile(&gbnf).err().unwrap();
    assert!(problem.contains("Lark"), "{problem}");
    let about_bnf = Grammar::Lark("start: \"x ::= y\"".into());
    assert!(matches(&about_bnf, "x ::= y"));
}

#[test]
fn a_grammar_whose_work_grows_with_the_answer_is_stopped() {
    let grammar = Grammar::Lark("start: s\ns: s s | \"a\"\n".into());
    let mut constraint = compile(&grammar).unwrap().constraint;
    let token = tokenizer().encode("a", 1).unwrap()[0];
    let mut other = constraint.boxed_clone();
    let mut slowest = std::time::Duration::ZERO;
    let ended = (0..1900).any(|_| {
        let started = std::time::Instant::now();
        let is_undecided = constraint.allowed().is_none();
        if !is_undecided {
            constraint.accept(token);
        }
        slowest = slowest.max(started.elapsed());
        is_undecided
    });
    assert!(ended, "it went on for ever");
    assert!(slowest.as_secs() < 5, "{slowest:?}");
    // A copy has a state of its own.
    assert!(other.allowed().is_some());
}
