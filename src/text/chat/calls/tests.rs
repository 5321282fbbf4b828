use proptest::prelude::*;

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
fn calls_in_tags_have_the_values_that_their_schemas_say() {
    let call_of = |inside: &str| {
        format!("Well.\n<tool_call>\n<function=f>\n{inside}</function>\n</tool_call>\n")
    };
    for (inside, arguments) in [
        ("", "{}"),
        (
            "<parameter=city>\nParis\n</parameter>\n",
            "{\"city\": \"Paris\"}",
        ),
        ("<parameter=city>42</parameter>", "{\"city\": \"42\"}"),
        (
            "<parameter=city>\n\n a\n\n</parameter>\n<parameter=deep>\nTrue\n</parameter>\n",
            "{\"city\": \"\\n a\\n\", \"deep\": true}",
        ),
        (
            "<parameter=map>\n{\"a\": [1]}\n</parameter>\n<parameter=any>\n7\n</parameter>\n",
            "{\"map\": {\"a\": [1]}, \"any\": \"7\"}",
        ),
        (
            "<parameter=city>\nuse </parameter> and </tool_call> and <parameter=x> here\n</parameter>\n",
            "{\"city\": \"use </parameter> and </tool_call> and <parameter=x> here\"}",
        ),
        // Missing closing tags, and a repeated key.
        (
            "<parameter=city>\nRome\n<parameter=days>\n3\n<parameter=days>\n4\n</parameter>\n",
            "{\"city\": \"Rome\", \"days\": \"3\\n<parameter=days>\\n4\"}",
        ),
        (
            "<parameter=days>\n3\n</parameter>\n<parameter=days>\n4\n</parameter>\n<parameter=other\n",
            "{\"days\": 3}",
        ),
        ("<parameter=days>\n3\n", "{\"days\": 3}"),
    ] {
        let answer = call_of(inside);
        let expected = ("Well.".to_owned(), vec![call("f", arguments)]);
        assert_eq!(parse(&CallSyntax::Xml, [&*answer]), expected, "{answer}");
    }
}

#[test]
fn an_unfinished_call_in_tags_is_completed_unless_it_was_cut_off() {
    let answer = "<tool_call>\n<function=f>\n<parameter=city>\nNew Yo";
    let whole = (String::new(), vec![call("f", "{\"city\": \"New Yo\"}")]);
    assert_eq!(parse(&CallSyntax::Xml, [answer]), whole);
    let part = (String::new(), vec![call("f", "{\"city\": \"New Yo")]);
    assert_eq!(parse_cut(&CallSyntax::Xml, [answer], true), part);
    for text in [
        "<tool_call>\n<function=get_wea",
        "<tool_call>\nfn</tool_call>",
        "call <function=g>(x) of <function=",
    ] {
        let expected = (text.to_owned(), vec![]);
        assert_eq!(parse(&CallSyntax::Xml, [text]), expected, "{text}");
    }
    // A malformed call within `<tool_call>` is skipped.
    let answer =
        "a <tool_call>\n<function=f\n</tool_call> <tool_call><function=f></function></tool_call>";
    let expected = ("a".to_owned(), vec![call("f", "{}")]);
    assert_eq!(parse(&CallSyntax::Xml, [answer]), expected);
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

/// Parses `answer`, in tags, in one piece and character by character.
#[track_caller]
fn assert_parses(answer: &str, text: &str, calls: &[(String, String)]) {
    let expected = (text.to_owned(), calls.to_vec());
    assert_eq!(parse(&CallSyntax::Xml, [answer]), expected, "{answer}");
    let pieces = answer
        .char_indices()
        .map(|(at, character)| &answer[at..at + character.len_utf8()]);
    assert_eq!(parse(&CallSyntax::Xml, pieces), expected, "{answer}");
}

#[test]
fn text_that_only_mentions_a_call_in_tags_is_whole() {
    let long = format!("<tool_call><function={}f></function>", " ".repeat(300));
    let far = format!("<tool_call>{}<function=g></function>", " ".repeat(300));
    for answer in [
        // Without `<tool_call>`, a call must go on after its first tag.
        "Write <function=f> in the tag.",
        "Write <function=f>",
        "Write <function=f>\n<param",
        "Write <function=f>\n</tool_call>\n",
        "Write <function=g>\n</function>",
        "Write <function=<function=f>x</function>",
        // Names that no tool can have.
        "pre <tool_call>\n<function=f\n>\n</function></tool_call> post",
        "pre <tool_call>\n<function=>\n</function></tool_call> post",
        "pre <tool_call>\n<function= >\n</function></tool_call> post",
        "pre <tool_call>\n<function=f\n<parameter=a>\n1\n</parameter>\n</function></tool_call> post",
        "pre <tool_call>\n<function=f\n</tool_call> post",
        "pre <tool_call>\n<function=f\n</tool_call>",
        &long,
        &far,
    ] {
        assert_parses(answer, answer, &[]);
    }
    let f = [call("f", "{}")];
    assert_parses("Now <function=f>\n</function> go", "Now go", &f);
    assert_parses(
        "Use <function=f> so:\n<function=f></function>",
        "Use <function=f> so:",
        &f,
    );
    assert_parses(
        "<function=f>\n<parameter=days>\n3\n</parameter>\n</function>",
        "",
        &[call("f", "{\"days\": 3}")],
    );
}

#[test]
fn a_missing_end_of_a_function_does_not_swallow_the_next_call() {
    let f = "<tool_call>\n<function=f>\n<parameter=days>\n1\n</parameter>";
    let g = "<tool_call>\n<function=g>\n</function>\n</tool_call>";
    let days = call("f", "{\"days\": 1}");
    let both = [days.clone(), call("g", "{}")];
    for between in ["</tool_call>\n", "", "</function>\n"] {
        assert_parses(&format!("{f}\n{between}{g}"), "", &both);
    }
    for end in [
        "",
        "\n",
        "\n</tool_call>",
        "\n</tool_call>\n",
        "\n</func",
        "\n</tool",
    ] {
        assert_parses(&format!("{f}{end}"), "", std::slice::from_ref(&days));
    }
    assert_parses(&format!("{f}\n</tool_call> Done."), " Done.", &[days]);
    // The same without the end of the value.
    let open = "<tool_call>\n<function=f>\n<parameter=city>\nRome\n</function>";
    let rome = [call("f", "{\"city\": \"Rome\"}")];
    for end in ["", "\n", "\n</tool_call>"] {
        assert_parses(&format!("{open}{end}"), "", &rome);
    }
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

    #[test]
    fn pieces_do_not_matter_in_tags(
        parts in prop::collection::vec(prop_oneof![
            Just("<tool_call>"), Just("</tool_call>"), Just("<function="), Just("<function=f>"), Just("</function>"),
            Just("<parameter=city>"), Just("<parameter=days>"), Just("<parameter="), Just("</parameter>"), Just("\n"),
            Just(">"), Just("3"), Just("<think>"), Just("</think>"), Just("é\""), Just("<"), Just("</p"), Just("a"), Just(" "),
        ], 0..14),
        cuts in prop::collection::vec(any::<bool>(), 300),
        is_cut in any::<bool>(),
    ) {
        let text = parts.concat();
        let mut pieces = vec![String::new()];
        for (character, &cut) in text.chars().zip(cuts.iter().cycle()) {
            if cut {
                pieces.push(String::new());
            }
            pieces.last_mut().expect("never empty").push(character);
        }
        let whole = parse_cut(&CallSyntax::Xml, [text.as_str()], is_cut);
        for (_, arguments) in &whole.1 {
            let is_json = serde_json::from_str::<serde_json::Value>(arguments).is_ok();
            prop_assert!(is_json || is_cut, "{}", arguments);
        }
        let pieces = pieces.iter().map(String::as_str);
        prop_assert_eq!(parse_cut(&CallSyntax::Xml, pieces, is_cut), whole);
    }
}
