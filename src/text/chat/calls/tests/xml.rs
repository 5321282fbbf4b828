//! Calls in tags.

use proptest::prelude::*;

use super::*;

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

proptest! {
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
        let pieces = pieces(&text, &cuts);
        let whole = parse_cut(&CallSyntax::Xml, [text.as_str()], is_cut);
        for (_, arguments) in &whole.1 {
            let is_json = serde_json::from_str::<serde_json::Value>(arguments).is_ok();
            prop_assert!(is_json || is_cut, "{}", arguments);
        }
        let pieces = pieces.iter().map(String::as_str);
        prop_assert_eq!(parse_cut(&CallSyntax::Xml, pieces, is_cut), whole);
    }
}
