//! Random schemas, grammars and regular expressions.

use serde_json::{Map, Value, json};

use crate::inputs::Inputs;

/// Keywords whose value is a schema.
const HOLDERS: [&str; 13] = [
    "items",
    "additionalProperties",
    "not",
    "if",
    "then",
    "else",
    "contains",
    "propertyNames",
    "unevaluatedProperties",
    "unevaluatedItems",
    "additionalItems",
    "contentSchema",
    "anyOf",
];
/// Keywords whose value is a list of schemas, or an object of them.
const LISTS: [&str; 4] = ["anyOf", "allOf", "oneOf", "prefixItems"];
const NAMED: [&str; 5] = [
    "properties",
    "$defs",
    "definitions",
    "patternProperties",
    "dependentSchemas",
];
const TYPES: [&str; 8] = [
    "object", "array", "string", "integer", "number", "boolean", "null", "nonsense",
];
const FORMATS: [&str; 9] = [
    "date-time",
    "email",
    "uuid",
    "ipv6",
    "uri",
    "regex",
    "hostname",
    "duration",
    "nonsense",
];

/// A schema: of many kinds of parts, or one part repeated many thousand times.
pub fn schema(inputs: &mut Inputs) -> Value {
    if inputs.once_in(3) {
        chain(inputs)
    } else {
        any_schema(inputs, 0)
    }
}

/// A chain of definitions that refer to each other through one keyword.
fn chain(inputs: &mut Inputs) -> Value {
    let links = inputs.repeats().min(3000);
    let keyword = match inputs.below(4) {
        0 => "$ref",
        1 => inputs.pick(&HOLDERS),
        2 => inputs.pick(&LISTS),
        _ => inputs.pick(&NAMED),
    };
    let is_closed = inputs.once_in(3);
    let mut definitions = Map::new();
    for link in 0..links {
        let next = if is_closed {
            (link + 1) % links
        } else {
            link + 1
        };
        let target = json!({"$ref": format!("#/$defs/d{next}")});
        let schema = match keyword {
            "$ref" => target,
            keyword if LISTS.contains(&keyword) => json!({keyword: [target, {"type": "null"}]}),
            keyword if NAMED.contains(&keyword) => {
                json!({keyword: {"a": target}, "required": ["a"]})
            }
            keyword => json!({keyword: target}),
        };
        definitions.insert(format!("d{link}"), schema);
    }
    definitions.insert(format!("d{links}"), json!({"type": "integer"}));
    json!({"$ref": "#/$defs/d0", "$defs": definitions})
}

fn any_schema(inputs: &mut Inputs, depth: usize) -> Value {
    let mut schema = Map::new();
    for _ in 0..1 + inputs.below(4) {
        let is_leaf = depth > 6;
        let (keyword, value) = match inputs.below(if is_leaf { 8 } else { 12 }) {
            0 => ("type", json!(inputs.pick(&TYPES))),
            1 => ("enum", json!(strings(inputs))),
            2 => ("required", json!(strings(inputs))),
            3 => ("format", json!(inputs.pick(&FORMATS))),
            4 => ("pattern", json!(regex(inputs))),
            5 => {
                let bounds = ["minimum", "maximum", "multipleOf", "exclusiveMinimum"];
                (inputs.pick(&bounds), bound(inputs))
            }
            6 => {
                let bounds = [
                    "minItems",
                    "maxItems",
                    "minLength",
                    "maxLength",
                    "minProperties",
                    "maxProperties",
                    "uniqueItems",
                ];
                (inputs.pick(&bounds), bound(inputs))
            }
            7 => {
                let targets = [
                    "#",
                    "#/$defs/a",
                    "#/properties/a",
                    "#/nowhere",
                    "http://x/y",
                ];
                ("$ref", json!(inputs.pick(&targets)))
            }
            8 => (inputs.pick(&HOLDERS), any_schema(inputs, depth + 1)),
            9 => {
                let count = inputs.below(4);
                let all = (0..count).map(|_| any_schema(inputs, depth + 1));
                (LISTS[count % LISTS.len()], all.collect())
            }
            10 => {
                let keyword = inputs.pick(&NAMED);
                let names = ["a", "b", "", "é\"\\", "^a+$"];
                let named = (0..1 + inputs.below(4)).map(|_| {
                    (
                        inputs.pick(&names).to_owned(),
                        any_schema(inputs, depth + 1),
                    )
                });
                (keyword, Value::Object(named.collect()))
            }
            _ => {
                // The same thing under many names.
                let part = any_schema(inputs, depth + 3);
                let most = 100_000 / part.to_string().len().max(1);
                let many =
                    (0..inputs.repeats().min(most)).map(|at| (format!("p{at}"), part.clone()));
                ("properties", Value::Object(many.collect()))
            }
        };
        schema.insert(keyword.to_owned(), value);
    }
    Value::Object(schema)
}

fn bound(inputs: &mut Inputs) -> Value {
    serde_json::from_str(&inputs.number()).unwrap_or(Value::Null)
}

fn strings(inputs: &mut Inputs) -> Vec<String> {
    let count = inputs.repeats().min(5000);
    (0..count).map(|at| format!("word{at}")).collect()
}

/// A regular expression: a sequence of pieces, a group of them, or one piece repeated many thousand times.
pub fn regex(inputs: &mut Inputs) -> String {
    const PIECES: [&str; 24] = [
        "a",
        "b?",
        "[a-z]",
        "[^\"]",
        ".",
        "\\d",
        "\\w",
        "\\s",
        "(a|b)",
        "(?:ab)",
        "^",
        "$",
        "é",
        "a*",
        "a+",
        "a??",
        "(?=a)",
        "(?!b)",
        "\\b",
        "\\p{L}",
        "[[:alpha:]]",
        "(a?){3}",
        "\\u00e9",
        "(?P<n>a)",
    ];
    const COUNTS: [&str; 8] = [
        "{0,9}",
        "{99}",
        "{1000}",
        "{1,65536}",
        "*",
        "+",
        "?",
        "{4294967295}",
    ];
    let mut regex = String::new();
    for _ in 0..1 + inputs.below(5) {
        let mut piece = inputs.pick(&PIECES).to_owned();
        if inputs.once_in(3) {
            piece = format!("{piece}{}", inputs.pick(&PIECES));
        }
        match inputs.below(5) {
            0 => piece = piece.repeat(inputs.repeats().min(100_000 / piece.len())),
            1 => {
                for _ in 0..inputs.repeats().min(500) {
                    piece = format!("({piece}){}", inputs.pick(&COUNTS));
                }
            }
            2 => {
                let all = vec![piece; inputs.repeats().min(20_000)];
                piece = format!("({})", all.join("|"));
            }
            _ => {}
        }
        regex += &piece;
    }
    regex
}

/// A grammar in llguidance's dialect of Lark: a sequence of rules, or a damaged valid one.
pub fn lark(inputs: &mut Inputs) -> String {
    const GOOD: [&str; 7] = [
        "start: \"a\" start | \"b\"\n",
        "start: expr\nexpr: expr \"+\" term | term\nterm: term \"*\" NUMBER | NUMBER | \"(\" expr \")\"\nNUMBER: /[0-9]+/\n%ignore /[ \\t]+/\n",
        "start: %json {\"type\": \"object\", \"properties\": {\"a\": {\"$ref\": \"#/$defs/b\"}}, \"$defs\": {\"b\": {\"type\": \"integer\"}}}\n",
        "start: WORD (\",\" WORD)*\nWORD: /[a-z]+/ | \"x\"{2,5}\n",
        "%llguidance {\"no_forcing\": true}\nstart: a | b\na[capture, max_tokens=5]: /.*/\nb: <[1-10]> \"end\"\n",
        "start: TEXT & ~/b+/\nTEXT: /(a|b)*/\n",
        "start: %regex {\"substring_words\": \"one two three four five\"}\n",
    ];
    const WORDS: [&str; 28] = [
        "start",
        ":",
        "|",
        "\n",
        "\"a\"",
        "/a*/",
        "(",
        ")",
        "*",
        "+",
        "?",
        "~",
        "&",
        "%json",
        "{",
        "}",
        "[",
        "]",
        "rule",
        "TERM",
        "%ignore",
        "%import common.INT",
        "%lark { start: \"a\" }",
        "{1,1000}",
        "<|end_of_text|>",
        "@g",
        "%regex",
        "$",
    ];
    if inputs.once_in(3) {
        let links = inputs.repeats().min(8000);
        let (name, last) = if inputs.once_in(2) {
            ("r", "\"x\"")
        } else {
            ("T", "/x/")
        };
        let (open, close) = inputs.pick(&[
            &("", ""),
            &("(", ")?"),
            &("\"a\" ", ""),
            &("", " | \"b\""),
            &("(", "){2}"),
        ]);
        let rules = (0..links).map(|at| format!("{name}{at}: {open}{name}{}{close}\n", at + 1));
        return format!(
            "start: {name}0\n{}{name}{links}: {last}\n",
            rules.collect::<String>()
        );
    }
    let good = inputs.pick(&GOOD);
    inputs.spoil(good, &WORDS)
}
