use proptest::prelude::*;

use super::*;

fn parse<'a>(
    syntax: &CallSyntax,
    pieces: impl IntoIterator<Item = &'a str>,
) -> (String, Vec<(String, String)>) {
    let mut parser = CallParser::new(syntax.clone(), false);
    let mut parts: Vec<Part> = pieces
        .into_iter()
        .flat_map(|piece| parser.push(piece))
        .collect();
    parts.extend(parser.finish());
    let (mut text, mut calls) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(more) => text += &more,
            Part::Call { name, arguments } => calls.push((name, arguments)),
        }
    }
    (text, calls)
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[test]
fn calls_are_taken_out_of_the_text() {
    let answer = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": [1]}}\n</tool_call>\n<tool_call>{\"name\":\"b\"}</tool_call>\n";
    assert_eq!(
        parse(&CallSyntax::Tags, [answer]),
        (
            "Let me see.".into(),
            vec![call("a", "{\"x\": [1]}"), call("b", "{}")]
        )
    );
    let list = CallSyntax::List { token: 7 };
    let answer = "<|tool_call|>[{\"name\": \"a\", \"arguments\": {}}, {\"name\": \"b\", \"arguments\": \"{\\\"y\\\": 2}\"}]";
    assert_eq!(
        parse(&list, [answer]),
        (
            String::new(),
            vec![call("a", "{}"), call("b", "{\"y\": 2}")]
        )
    );
}

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

#[test]
fn behind_the_opener_of_the_prompt_all_is_a_call() {
    let mut parser = CallParser::new(CallSyntax::Tags, true);
    assert_eq!(parser.push("{\"name\": \"a\", "), []);
    let expected = Part::Call {
        name: "a".into(),
        arguments: "{}".into(),
    };
    assert_eq!(parser.push("\"arguments\": {}}"), [expected]);
    assert_eq!(parser.finish(), []);
    assert!(parser.has_calls());
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        parts in prop::collection::vec(prop_oneof![
            Just("<tool_call>"), Just("</tool_call>"), Just("{\"name\": \"é\", \"arguments\": {}}"),
            Just("[{\"name\": \"f\", \"parameters\": {\"x\": \"}\\\"\"}}]"), Just("<|python_tag|>"), Just("; "),
            Just("\n"), Just("<tool"), Just("é "), Just("<|tool_call|>"), Just("[]"), Just("{\""), Just("[{"), Just("\\"),
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
        let mut pieces = vec![String::new()];
        for (character, &cut) in text.chars().zip(cuts.iter().cycle()) {
            if cut {
                pieces.push(String::new());
            }
            pieces.last_mut().expect("never empty").push(character);
        }
        let whole = parse(&syntax, [text.as_str()]);
        prop_assert_eq!(parse(&syntax, pieces.iter().map(String::as_str)), whole);
    }
}
