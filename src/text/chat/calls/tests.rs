mod json;
mod xml;

use super::*;

fn parse<'a>(
    syntax: &CallSyntax,
    pieces: impl IntoIterator<Item = &'a str>,
) -> (String, Vec<(String, String)>) {
    parse_cut(syntax, pieces, false)
}

fn parse_cut<'a>(
    syntax: &CallSyntax,
    pieces: impl IntoIterator<Item = &'a str>,
    is_cut: bool,
) -> (String, Vec<(String, String)>) {
    let parser = CallParser::new(syntax.clone(), &tools(), false);
    parse_with(parser.with_thoughts(true), pieces, is_cut)
}

fn parse_with<'a>(
    mut parser: CallParser,
    pieces: impl IntoIterator<Item = &'a str>,
    is_cut: bool,
) -> (String, Vec<(String, String)>) {
    let mut parts: Vec<Part> = pieces
        .into_iter()
        .flat_map(|piece| parser.push(piece))
        .collect();
    parts.extend(parser.finish(is_cut));
    put_together(parts)
}

fn put_together(parts: Vec<Part>) -> (String, Vec<(String, String)>) {
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for part in parts {
        match part {
            Part::Text(more) => text += &more,
            Part::Begin(name) => calls.push((name, String::new())),
            Part::Arguments(more) => calls.last_mut().expect("one has begun").1 += &more,
        }
    }
    (text, calls)
}

/// A tool `f` with arguments of all types.
fn tools() -> Arc<Tools> {
    let schema = json!({
        "properties": {
            "city": {"type": "string"}, "days": {"type": "integer"}, "map": {"$ref": "#/$defs/Map"},
            "deep": {"type": "boolean"}, "any": {},
        },
        "$defs": {"Map": {"type": "object"}},
    });
    Arc::new(Tools::new([("f", Some(&schema))]))
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

/// `text` in pieces: a new one begins before each character for which `cuts`, over and over, has true.
fn pieces(text: &str, cuts: &[bool]) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for (character, &cut) in text.chars().zip(cuts.iter().cycle()) {
        if cut {
            pieces.push(String::new());
        }
        pieces.last_mut().expect("never empty").push(character);
    }
    pieces
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
fn a_thought_within_an_answer_has_no_calls() {
    let in_tags = "<tool_call>\n<function=f>\n<parameter=city>\n<think>\n</parameter>\n</function>\n</tool_call>";
    let json = "<tool_call>{\"name\": \"f\", \"arguments\": {\"city\": \"<think>\"}}</tool_call>";
    let bare = "{\"name\": \"f\", \"arguments\": {\"city\": \"<think>\"}}";
    for (syntax, written) in [
        (CallSyntax::Xml, in_tags),
        (CallSyntax::Tags, json),
        (CallSyntax::Json { token: None }, bare),
    ] {
        let made = call("f", "{\"city\": \"<think>\"}");
        let thought = format!("<think>I could {written}\n</think>");
        for (answer, text, calls) in [
            (
                format!("{thought}{written}"),
                thought.clone(),
                vec![made.clone()],
            ),
            (
                format!("Well. {thought} {written}{thought}\n{written}"),
                format!("Well. {thought}{thought}"),
                vec![made.clone(), made.clone()],
            ),
            // A thought that does not end.
            (
                format!("<think>{written}"),
                format!("<think>{written}"),
                vec![],
            ),
        ] {
            if matches!(syntax, CallSyntax::Json { .. }) && calls.len() > 1 {
                continue;
            }
            let pieces: Vec<String> = answer.chars().map(String::from).collect();
            for pieces in [
                vec![&*answer],
                pieces.iter().map(|piece| &**piece).collect(),
            ] {
                let expected = (text.clone(), calls.clone());
                assert_eq!(parse(&syntax, pieces), expected, "{syntax:?} {answer}");
            }
        }
        // A model without thoughts only mentions the tag.
        let parser = CallParser::new(syntax.clone(), &tools(), false);
        let answer = match syntax {
            CallSyntax::Json { .. } => continue,
            _ => format!("The <think> tag. {written}"),
        };
        let expected = ("The <think> tag.".to_owned(), vec![made]);
        assert_eq!(parse_with(parser, [&*answer], false), expected);
    }
}

#[test]
fn behind_the_opener_of_the_prompt_all_is_a_call() {
    let mut parser = CallParser::new(CallSyntax::Tags, &tools(), true);
    assert_eq!(parser.push("{\"name\": \"a\", "), []);
    let parts = parser.push("\"arguments\": {}}");
    assert_eq!(put_together(parts).1, [call("a", "{}")]);
    assert_eq!(parser.finish(false), []);
    assert!(parser.has_calls());
    let mut parser = CallParser::new(CallSyntax::Xml, &tools(), true);
    let parts = parser.push("<function=f>\n<parameter=days>\n3\n</parameter>\n</function>\n");
    assert_eq!(put_together(parts).1, [call("f", "{\"days\": 3}")]);
}

#[test]
fn arguments_come_as_they_are_written() {
    let mut parser = CallParser::new(CallSyntax::Tags, &tools(), false);
    assert_eq!(
        parser.push("<tool_call>\n{\"name\": \"f\", \"arguments\": "),
        []
    );
    let begun = parser.push("{\"city\": \"Pa");
    let expected = [
        Part::Begin("f".into()),
        Part::Arguments("{\"city\": \"Pa".into()),
    ];
    assert_eq!(begun, expected);
    assert_eq!(parser.push("ris\"}}"), [Part::Arguments("ris\"}".into())]);
    let mut parser = CallParser::new(CallSyntax::Xml, &tools(), false);
    let begun = parser.push("<tool_call>\n<function=f>\n<parameter=city>\nPa\"");
    let pieces = ["{", "\"city\": \"", "Pa\\\""].map(|piece| Part::Arguments(piece.into()));
    assert_eq!(begun[0], Part::Begin("f".into()));
    assert_eq!(begun[1..], pieces);
    assert_eq!(parser.push("ris\n"), [Part::Arguments("ris".into())]);
    assert_eq!(parser.push("</parameter>\n"), []);
    let end = parser.push("<parameter=days>\n3\n</parameter>\n</function>");
    let pieces = ["\"", ", \"days\": ", "3", "}"].map(|piece| Part::Arguments(piece.into()));
    assert_eq!(end, pieces);
}

#[test]
fn a_call_that_is_cut_off_is_unfinished() {
    let in_tags =
        "<tool_call>\n<function=f>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
    let json = "<tool_call>{\"name\": \"f\", \"arguments\": {\"days\": 3}}</tool_call>";
    for (syntax, answer, begin, end) in [
        (CallSyntax::Xml, in_tags, "<function=f>", "</function>"),
        (CallSyntax::Tags, json, "\"arguments\": {", "3}"),
    ] {
        let begin = answer.find(begin).unwrap() + begin.len();
        let end = answer.find(end).unwrap() + end.len();
        for at in 0..=answer.len() {
            let mut parser = CallParser::new(syntax.clone(), &tools(), false);
            let mut parts = parser.push(&answer[..at]);
            parts.extend(parser.finish(true));
            assert_eq!(
                parser.is_unfinished(),
                (begin..end).contains(&at),
                "{}",
                &answer[..at]
            );
            let arguments = put_together(parts).1;
            let is_json = |(_, json): &(String, String)| {
                serde_json::from_str::<serde_json::Value>(json).is_ok()
            };
            assert_eq!(
                parser.is_unfinished(),
                !arguments.iter().all(is_json),
                "{arguments:?}"
            );
        }
    }
    // The parser completes calls in tags that the model itself ends early.
    let mut parser = CallParser::new(CallSyntax::Xml, &tools(), false);
    parser.push("<tool_call>\n<function=f>\n<parameter=days>\n3");
    parser.finish(false);
    assert!(!parser.is_unfinished());
}

#[test]
fn long_answers_take_little_time_however_they_are_cut() {
    let nested = "[".repeat(200_000);
    let spaces = " ".repeat(200_000);
    let tags = "<parameter=".repeat(20_000);
    for syntax in [
        CallSyntax::Tags,
        CallSyntax::Xml,
        CallSyntax::List { token: 7 },
        CallSyntax::Json { token: None },
    ] {
        for start in [
            "",
            "<tool_call>",
            "<tool_call><function=f><parameter=city>\n",
            "<tool_call><function=f></function>",
            "{\"name\": \"",
            "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": ",
            "<tool_call>{\"arguments\": {\"a\": ",
            "[{\"name\": \"f\", \"arguments\": {}}",
        ] {
            for rest in [&nested, &spaces, &tags] {
                let begin = std::time::Instant::now();
                let mut parser = CallParser::new(syntax.clone(), &tools(), false);
                parser.push(start);
                for piece in rest.as_bytes().chunks(2) {
                    parser.push(std::str::from_utf8(piece).unwrap());
                }
                parser.finish(false);
                // Linear time is milliseconds; quadratic time would be minutes.
                assert!(begin.elapsed().as_secs() < 20, "{syntax:?} {start:?}");
            }
        }
    }
}
