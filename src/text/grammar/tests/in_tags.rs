//! Tests of the grammars of calls that are written in tags.

use super::*;

#[test]
fn a_call_in_tags_has_what_its_schema_says() {
    let tool = json!({
        "properties": {
            "city": {"enum": ["Rome", "Oslo"]}, "days": {"$ref": "#/$defs/Days"}, "note": {"type": "string"},
            "map": {"type": "object", "properties": {"a": {"$ref": "#/$defs/Days"}}, "required": ["a"]},
        },
        "required": ["city", "days"],
        "$defs": {"Days": {"type": "integer", "minimum": 1, "maximum": 9}},
    });
    let tools = [
        ("f", Some(tool.to_string())),
        ("now", Some("{\"properties\": {}}".into())),
        ("any", None),
    ];
    let both = Grammar::Calls(Calls {
        tools: tools.map(|(name, schema)| (name.to_owned(), schema)).into(),
        form: CallForm::Xml,
    });
    let call = |name: &str, arguments: &[(&str, &str)]| {
        let arguments = arguments.iter();
        let arguments =
            arguments.map(|(key, value)| format!("<parameter={key}>\n{value}\n</parameter>\n"));
        let arguments: String = arguments.collect();
        format!("<function={name}>\n{arguments}</function>\n</tool_call>")
    };
    for (name, arguments) in [
        ("f", &[("city", "Rome"), ("days", "3")][..]),
        (
            "f",
            &[
                ("city", "Oslo"),
                ("days", "9"),
                ("note", "a <b>\n\n</parameter> c"),
            ],
        ),
        (
            "f",
            &[
                ("city", "Oslo"),
                ("days", "9"),
                ("note", ""),
                ("map", "{\"a\": 1}"),
            ],
        ),
        ("now", &[]),
        ("any", &[]),
        ("any", &[("what", "ever"), ("else", "3")]),
    ] {
        let call = call(name, arguments);
        assert!(matches(&both, &call), "{call}");
    }
    for (name, arguments) in [
        ("f", &[("city", "Rome")][..]),
        ("f", &[("city", "Paris"), ("days", "3")]),
        ("f", &[("city", "Rome"), ("days", "0")]),
        (
            "f",
            &[("city", "Rome"), ("days", "3"), ("map", "{\"a\": 0}")],
        ),
        ("g", &[]),
        ("now", &[("a", "1")]),
    ] {
        let call = call(name, arguments);
        assert!(!matches(&both, &call), "{call}");
    }
}

/// A forced call of `f` in tags.
fn call_in_tags(parameters: &Value) -> Grammar {
    Grammar::Calls(Calls {
        tools: vec![("f".into(), Some(parameters.to_string()))],
        form: CallForm::Xml,
    })
}

/// A call of `f` with these arguments.
fn in_tags(arguments: &[(&str, &str)]) -> String {
    let arguments = arguments.iter();
    let arguments =
        arguments.map(|(key, value)| format!("<parameter={key}>\n{value}\n</parameter>\n"));
    let arguments: String = arguments.collect();
    format!("<function=f>\n{arguments}</function>\n</tool_call>")
}

#[test]
fn a_value_in_tags_is_of_its_schema_however_that_is_composed() {
    let definitions = json!({
        "e": {"type": "string", "enum": ["x", "y"]}, "i": {"type": "integer", "minimum": 5},
        "cycle": {"anyOf": [{"$ref": "#/$defs/cycle"}, {"$ref": "#/$defs/e"}, {"type": "null"}]},
        "list": {"type": "array", "items": {"$ref": "#/$defs/e"}},
    });
    for (property, good, bad) in [
        (
            json!({"$ref": "#/$defs/e"}),
            &["x", "y"][..],
            &["z", "\"x\"", ""][..],
        ),
        (
            json!({"allOf": [{"$ref": "#/$defs/e"}], "default": "x"}),
            &["x"],
            &["z"],
        ),
        (
            json!({"$ref": "#/$defs/cycle"}),
            &["x", "null"],
            &["z", "nul"],
        ),
        (
            json!({"anyOf": [{"type": "string", "enum": ["c", "f"]}, {"type": "null"}], "default": null}),
            &["c", "f", "null"],
            &["k", "\"c\"", "cc"],
        ),
        (
            json!({"enum": ["c", null, 3]}),
            &["c", "null", "3"],
            &["k", "4"],
        ),
        (
            json!({"type": "string", "enum": ["c", null]}),
            &["c"],
            &["null"],
        ),
        (json!({"enum": ["", "c"]}), &["", "c"], &["k"]),
        (
            json!({"oneOf": [{"const": "x", "title": "X"}, {"const": "y"}]}),
            &["x", "y"],
            &["z", "xy"],
        ),
        (
            json!({"type": "string", "oneOf": [{"const": "x"}, {"const": 3}]}),
            &["x"],
            &["3", "z"],
        ),
        (
            json!({"type": ["string", "integer"], "anyOf": [{"const": "x"}, {"enum": [3, 3.5]}]}),
            &["x", "3"],
            &["3.5", "z"],
        ),
        (
            json!({"anyOf": [{"enum": ["auto"]}, {"$ref": "#/$defs/i"}, {"$ref": "#/$defs/list"}]}),
            &["auto", "7", "[\"x\", \"y\"]"],
            &["4", "aut", "[\"z\"]", "7.5"],
        ),
        (
            json!({"type": ["string", "null"]}),
            &["any", "null", ""],
            &[],
        ),
        (
            json!({"anyOf": [{"type": "string"}, {"enum": ["x"]}, {"type": "null"}]}),
            &["any"],
            &[],
        ),
    ] {
        let grammar = call_in_tags(&json!({
            "type": "object", "properties": {"a": property}, "required": ["a"], "$defs": definitions,
        }));
        let compiled = compile(&grammar).unwrap_or_else(|problem| panic!("{property}: {problem}"));
        assert_eq!(compiled.unenforced, [""; 0], "{property}");
        for value in good {
            assert!(
                matches(&grammar, &in_tags(&[("a", value)])),
                "{property}: {value:?}"
            );
        }
        for value in bad {
            assert!(
                !matches(&grammar, &in_tags(&[("a", value)])),
                "{property}: {value:?}"
            );
        }
        assert!(!matches(&grammar, &in_tags(&[])), "{property}");
    }
}

#[test]
fn a_call_in_tags_has_no_argument_that_its_schema_forbids() {
    let nothing = json!({"type": "object", "additionalProperties": false});
    let behind = json!({"$ref": "#/$defs/A", "$defs": {"A": nothing}});
    let never = json!({"type": "object", "properties": {"b": {"type": "integer"}, "a": false}});
    for parameters in [&nothing, &behind, &never] {
        let grammar = call_in_tags(parameters);
        assert!(matches(&grammar, &in_tags(&[])), "{parameters}");
        assert!(!matches(&grammar, &in_tags(&[("a", "1")])), "{parameters}");
        assert_eq!(
            compile(&grammar).unwrap().unenforced,
            [""; 0],
            "{parameters}"
        );
    }
    assert!(matches(&call_in_tags(&never), &in_tags(&[("b", "1")])));
    // What is required behind a reference is required.
    let required = json!({"properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let required = call_in_tags(&json!({"$ref": "#/$defs/A", "$defs": {"A": required}}));
    assert!(matches(&required, &in_tags(&[("a", "1")])));
    assert!(!matches(&required, &in_tags(&[])));
    let never = json!({"properties": {"a": {"anyOf": [false]}}, "required": ["a"]});
    let problem = compile(&call_in_tags(&never)).err();
    assert_eq!(
        problem.as_deref(),
        Some("the required argument \"a\" allows no value")
    );
}

#[test]
fn what_a_call_in_tags_cannot_enforce_is_named() {
    let part = json!({"properties": {"a": {"type": "integer"}}, "required": ["a"]});
    let property = |schema: Value| json!({"properties": {"a": schema}});
    for (parameters, unenforced) in [
        (json!({"type": "object"}), &[][..]),
        (json!({"allOf": [part]}), &["allOf"]),
        (json!({"anyOf": [part, {"properties": {}}]}), &["anyOf"]),
        (json!({"oneOf": [part]}), &["oneOf"]),
        (
            json!({"$ref": "#/$defs/A", "$defs": {"A": {"allOf": [part]}}}),
            &["allOf"],
        ),
        (
            json!({"patternProperties": {"^x": {"type": "integer"}}}),
            &["patternProperties"],
        ),
        (
            json!({"additionalProperties": {"type": "integer"}}),
            &["additionalProperties"],
        ),
        (json!({"required": ["a"]}), &["required"]),
        (json!({"minProperties": 1}), &["minProperties"]),
        (
            property(json!({"type": "string", "pattern": "^a", "maxLength": 3})),
            &["maxLength", "pattern"],
        ),
        (
            property(json!({"anyOf": [{"type": "string", "minLength": 1}, {"type": "null"}]})),
            &["minLength"],
        ),
        (
            property(json!({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]})),
            &["minimum"],
        ),
        (
            property(json!({"allOf": [{"type": "string"}, {"enum": ["x"]}]})),
            &["allOf"],
        ),
        (
            property(json!({"type": "string", "enum": ["x", "yy"], "minLength": 2})),
            &["minLength"],
        ),
        // The text `1` becomes a number, which is too small.
        (
            property(json!({"anyOf": [{"const": "1"}, {"type": "integer", "minimum": 3}]})),
            &["enum"],
        ),
    ] {
        let compiled = compile(&call_in_tags(&parameters));
        let compiled = compiled.unwrap_or_else(|problem| panic!("{parameters}: {problem}"));
        assert_eq!(compiled.unenforced, unenforced, "{parameters}");
    }
}

#[test]
fn texts_that_would_end_their_value_are_refused_in_tags() {
    for property in [
        json!({"enum": ["a\n</parameter>\n<parameter=b>\nq"]}),
        json!({"const": "a\n</function>\n</tool_call>"}),
        json!({"anyOf": [{"const": "\n<parameter=b>"}, {"type": "null"}]}),
        json!({"type": "array", "items": {"$ref": "#/$defs/tag"}}),
        json!({"type": "object", "properties": {"</parameter><parameter=b>": {}}}),
    ] {
        let parameters = json!({
            "properties": {"a": property, "b": {"type": "string"}},
            "$defs": {"tag": {"enum": ["</parameter><parameter=b>"]}},
        });
        let problem = compile(&call_in_tags(&parameters))
            .err()
            .unwrap_or_default();
        assert!(
            problem.ends_with(" cannot be part of a call in tags"),
            "{property}: {problem}"
        );
        assert!(compile(&call(&parameters)).is_ok(), "{property}");
    }
    let harmless = call_in_tags(&json!({"properties": {"a": {"enum": ["a\nb < c </p>"]}}}));
    assert!(matches(&harmless, &in_tags(&[("a", "a\nb < c </p>")])));
}

#[test]
fn long_lists_behind_many_arguments_are_bounded_in_tags() {
    let words: Vec<String> = (0..5_000).map(|word| word.to_string()).collect();
    let properties = (0..20).map(|at| (format!("a{at}"), json!({"$ref": "#/$defs/words"})));
    let properties: serde_json::Map<String, Value> = properties.collect();
    let parameters = json!({"properties": properties, "$defs": {"words": {"enum": words}}});
    let problem = compile(&call_in_tags(&parameters)).err();
    assert_eq!(
        problem.as_deref(),
        Some("its schemas are too long together")
    );
}
