//! The schemas in a Lark grammar, which follow the keyword `%json`.

use serde_json::{Deserializer, Value};

/// The keyword before a schema.
const KEYWORD: &str = "%json";

/// The grammar with each of its schemas converted by `convert`. If no JSON follows a keyword, the compiler reports the
/// error.
///
/// # Errors
/// Those of `convert`.
pub fn convert_schemas(
    lark: &str,
    mut convert: impl FnMut(&Value) -> Result<Value, String>,
) -> Result<String, String> {
    let mut converted = String::with_capacity(lark.len());
    let mut rest = lark;
    while let Some(first) = rest.chars().next() {
        if let Some(behind) = rest.strip_prefix(KEYWORD) {
            let mut values = Deserializer::from_str(behind).into_iter::<Value>();
            if let Some(Ok(schema)) = values.next() {
                let (text, after) = behind.split_at(values.byte_offset());
                converted.push_str(KEYWORD);
                // Keeps the line numbers of the rest of the grammar.
                converted.extend(text.chars().filter(|&letter| letter == '\n'));
                converted.push_str(&convert(&schema)?.to_string());
                rest = after;
                continue;
            }
        }
        // The keyword may also occur in a string, a pattern, a comment or the name of a token, where it does not count.
        let length = match first {
            '"' => delimited(rest, '"'),
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' => delimited(rest, '/'),
            '<' => special_token(rest),
            other => other.len_utf8(),
        };
        let (same, after) = rest.split_at(length);
        converted.push_str(same);
        rest = after;
    }
    Ok(converted)
}

/// The length in bytes of text that begins with a delimiter, up to the next one that no backslash escapes.
fn delimited(text: &str, delimiter: char) -> usize {
    let mut is_escaped = false;
    for (at, letter) in text.char_indices().skip(1) {
        match letter {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            letter if letter == delimiter => return at + letter.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// The length in bytes of a token's name such as `<|end_of_text|>`, or 1, for the `<`, if it is not such a name.
fn special_token(text: &str) -> usize {
    let inner = &text[1..];
    let end = inner.find(|letter: char| letter.is_whitespace() || "<>".contains(letter));
    match end {
        Some(end) if inner[end..].starts_with('>') => end + 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn converted(lark: &str) -> String {
        convert_schemas(lark, |_| Ok(json!("S"))).unwrap()
    }

    #[test]
    fn schemas_are_converted_wherever_they_stand() {
        let lark = "start: a %json {\"a\": \"%json {}\"} \"x\" | %json\n{\n} b\na: %lark { start: %json true }\n";
        let expected =
            "start: a %json\"S\" \"x\" | %json\n\n\"S\" b\na: %lark { start: %json\"S\" }\n";
        assert_eq!(converted(lark), expected);
        let refused = convert_schemas(lark, |_| Err("no".to_owned()));
        assert_eq!(refused, Err("no".to_owned()));
    }

    #[test]
    fn what_only_looks_like_a_schema_stays() {
        for lark in [
            "start: \"%json {}\" \"\\\"%json {}\"",
            "start: /%json {}/ /\\/%json {}/",
            "start: a // %json {}\n# %json {}",
            "start: <|%json{}|> < \"%json {}\"",
            "start: %json",
            "start: %json {",
            "start: \"é%json {}",
            "/",
            "<",
            "",
        ] {
            assert_eq!(converted(lark), lark);
        }
    }
}
