//! Calls in JSON.

use proptest::prelude::*;

use super::*;

#[test]
fn granite_3_calls_are_found_in_every_form_with_the_text_around_them() {
    let list = CallSyntax::List { token: 7 };
    let both = vec![call("a", "{}"), call("b", "{\"x\": \"]}\\\"\"}")];
    let json = "[{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": {\"x\": \"]}\\\"\"}}]";
    for (answer, text) in [
        (json.to_owned(), ""),
        (format!(" \n{json}\n"), ""),
        (format!("<|tool_call|>{json}"), ""),
        (format!("<tool_call> {json}"), ""),
        (format!("<tool_call>{json}</tool_call>"), ""),
        (format!("<|tool_call|>{json} Done."), " Done."),
        (format!("{json}\nDone."), "\nDone."),
        (
            format!("Let me see.\n<tool_call>{json}\n\nDone."),
            "Let me see.\n\nDone.",
        ),
        (format!("One <|tool_call|>{json}"), "One"),
    ] {
        let expected = (text.to_owned(), both.clone());
        assert_eq!(parse(&list, [&*answer]), expected, "{answer}");
    }
    for answer in [
        "[1] says so, and [2] too",
        "[{\"name\": \"a\"}]",
        "[{\"name\": 1, \"arguments\": {}}]",
        "See [{\"name\": \"a\", \"arguments\": {}}]",
        "[]",
        "{\"x\": 1} and more",
        "<|tool_call|>none",
        "<|tool_call|>[{\"name\": \"a\", ",
        "[",
        " [ {",
    ] {
        let expected = (answer.to_owned(), vec![]);
        assert_eq!(parse(&list, [answer]), expected, "{answer}");
    }
}

#[test]
fn llamas_calls_are_json_with_parameters() {
    let json = CallSyntax::Json { token: Some(7) };
    let a = "{\"name\": \"a\", \"parameters\": {\"x\": 1}}";
    let one = call("a", "{\"x\": 1}");
    for (answer, count, text) in [
        (a.to_owned(), 1, ""),
        (format!("<|python_tag|>{a}"), 1, ""),
        (format!("{a}; {a}\n;{a}"), 3, ""),
        (format!("{a}\n{a}"), 2, ""),
        (format!("<|python_tag|>{a}; {a}"), 2, ""),
        (format!("{a}; then"), 1, "; then"),
        (format!("Sure: <|python_tag|>{a}."), 1, "Sure:."),
        (format!("[{a}, {a}]"), 2, ""),
        (
            "{\"name\": \"Bob\", \"age\": 3}".into(),
            0,
            "{\"name\": \"Bob\", \"age\": 3}",
        ),
        ("{ no }".into(), 0, "{ no }"),
        ("<|python_tag|>f.call()".into(), 0, "<|python_tag|>f.call()"),
    ] {
        let expected = (text.to_owned(), vec![one.clone(); count]);
        assert_eq!(parse(&json, [&*answer]), expected, "{answer}");
    }
}

#[test]
fn an_opener_in_an_argument_is_a_part_of_it() {
    let answer = "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"</tool_call><tool_call>\"}}</tool_call>";
    let expected = call("a", "{\"x\": \"</tool_call><tool_call>\"}");
    assert_eq!(
        parse(&CallSyntax::Tags, [answer]),
        (String::new(), vec![expected])
    );
}

#[test]
fn what_is_no_call_is_text() {
    for answer in [
        "a <tool_ca b",
        "trailing \n",
        "a \n<tool_call>\nnot json\n</tool_call> more",
        "<tool_call>\n{\"name\": \"cut off",
        "</tool_call>",
    ] {
        let expected = (answer.to_owned(), vec![]);
        assert_eq!(parse(&CallSyntax::Tags, [answer]), expected, "{answer}");
    }
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        parts in prop::collection::vec(prop_oneof![
            Just("{\"name\": \"f\", \"arguments\": {"), Just("}"), Just("]"), Just(","),
            Just("<tool_call>"), Just("</tool_call>"), Just("{\"name\": \"é\", \"arguments\": {}}"),
            Just("[{\"name\": \"f\", \"parameters\": {\"x\": \"}\\\"\"}}]"), Just("<|python_tag|>"), Just("; "),
            Just("\n"), Just("<tool"), Just("é "), Just("<think>"), Just("</think>"), Just("<thi"), Just("<|tool_call|>"), Just("[]"), Just("{\""), Just("[{"), Just("\\"),
        ], 0..8),
        cuts in prop::collection::vec(any::<bool>(), 200),
        which in 0..3,
    ) {
        let syntax = match which {
            0 => CallSyntax::Tags,
            1 => CallSyntax::List { token: 7 },
            _ => CallSyntax::Json { token: None },
        };
        let text = parts.concat();
        let pieces = pieces(&text, &cuts);
        let whole = parse(&syntax, [text.as_str()]);
        prop_assert_eq!(parse(&syntax, pieces.iter().map(String::as_str)), whole);
    }
}
