//! Texts to evaluate or calibrate a model on.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The first chapter and most of the second of *Alice's Adventures in Wonderland* by Lewis Carroll (1865, public domain):
/// 4,000 to 5,000 tokens of ordinary English prose.
///
/// Cut from `tests/testdata/alice29.txt` (the Canterbury corpus's copy) in the source distribution of PyPI's `brotli`
/// 1.2.1: paragraphs joined to one line each; doubled spaces, chapter headings and rows of asterisks removed.
pub const ALICE: &str = include_str!("alice.txt");

/// The first act and some of the second of *As You Like It* by William Shakespeare (1623, public domain): 8,000 to
/// 9,000 tokens to calibrate on, by a different author and in a different form than the text to evaluate on.
///
/// Cut from `tests/testdata/asyoulik.txt` (the Canterbury corpus's copy) in the source distribution of PyPI's `brotli`
/// 1.2.0: each speech joined to one line behind its speaker's name; headings and empty lines removed.
pub const AS_YOU_LIKE_IT: &str = include_str!("as_you_like_it.txt");

/// One text of a file.
#[derive(Debug, Clone, PartialEq)]
pub enum Sample {
    /// Plain text.
    Text(String),
    /// A conversation, to be rendered by the model's chat template.
    Chat {
        /// The line of the file, from 1.
        line: usize,
        /// A JSON object with `messages` and possibly other fields of a chat request.
        request: Value,
    },
}

/// The possible contents of a line of a `.jsonl` file.
const LINE_FORMS: &str =
    "a JSON string, or an object with a text, messages, or a prompt and a completion";

/// Reads the texts of a file. Each line of a `.jsonl` file is one: a string, or an object with a `text`, with the
/// `messages` of a conversation, or with a `prompt` and a `completion`, which are texts or messages. Any other file is one
/// text.
///
/// # Errors
/// [`Error::NotFound`] if the file cannot be read, [`Error::Usage`] naming the line if it is malformed.
pub fn read(file: &Path) -> Result<Vec<Sample>> {
    let bytes = std::fs::read(file).map_err(|e| Error::not_found(file, e))?;
    let bad = |problem: String| Error::Usage(format!("{}: {problem}", file.display()));
    let whole = String::from_utf8(bytes).map_err(|e| bad(format!("not a text: {e}")))?;
    let is_lines = file.extension().is_some_and(|extension| {
        extension.eq_ignore_ascii_case("jsonl") || extension.eq_ignore_ascii_case("ndjson")
    });
    if !is_lines {
        return Ok(vec![Sample::Text(whole)]);
    }
    let lines = (1..).zip(whole.lines());
    let filled = lines.filter(|(_, line)| !line.trim().is_empty());
    filled
        .map(|(number, line)| {
            let value: Value =
                serde_json::from_str(line).map_err(|e| bad(format!("line {number}: {e}")))?;
            sample(number, value).ok_or_else(|| bad(format!("line {number}: must be {LINE_FORMS}")))
        })
        .collect()
}

/// The sample on a line, if it has one of [`LINE_FORMS`].
fn sample(line: usize, mut value: Value) -> Option<Sample> {
    if let Some(text) = value.as_str().or_else(|| value.get("text")?.as_str()) {
        return Some(Sample::Text(text.to_owned()));
    }
    if value.get("messages").is_some_and(Value::is_array) {
        return Some(Sample::Chat {
            line,
            request: value,
        });
    }
    match (value.get("prompt")?, value.get("completion")?) {
        (Value::String(prompt), Value::String(completion)) => {
            Some(Sample::Text(format!("{prompt}{completion}")))
        }
        (Value::Array(prompt), Value::Array(completion)) => {
            let messages = json!([prompt.as_slice(), completion.as_slice()].concat());
            value["messages"] = messages;
            Some(Sample::Chat {
                line,
                request: value,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_as(name: &str, content: &[u8]) -> Result<Vec<Sample>> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(name);
        std::fs::write(&file, content).unwrap();
        read(&file)
    }

    fn text(text: &str) -> Sample {
        Sample::Text(text.into())
    }

    #[test]
    fn json_lines_hold_a_text_each_and_other_files_are_one() {
        let lines = b"\"one\"\n\n{\"text\": \"two\", \"id\": 2}\n{\"prompt\": \"thr\", \"completion\": \"ee\"}\n";
        let expected = [text("one"), text("two"), text("three")];
        assert_eq!(read_as("a.jsonl", lines).unwrap(), expected);
        assert_eq!(
            read_as("a.txt", b"one\ntwo\n").unwrap(),
            [text("one\ntwo\n")]
        );
    }

    #[test]
    fn conversations_are_kept_for_the_template_whole_or_as_prompt_and_completion() {
        let ask = json!({"role": "user", "content": "?"});
        let answer = json!({"role": "assistant", "content": "!"});
        let whole = json!({"messages": [ask, answer], "tools": []});
        let parts = json!({"prompt": [ask], "completion": [answer]});
        let found = read_as("a.jsonl", format!("{whole}\n{parts}").as_bytes()).unwrap();
        for (line, sample) in (1..).zip(found) {
            let Sample::Chat { line: at, request } = sample else {
                panic!("{sample:?}");
            };
            assert_eq!(at, line);
            assert_eq!(request["messages"], json!([ask, answer]));
        }
    }

    #[test]
    fn what_is_not_text_is_refused_with_its_line() {
        for (name, content, part) in [
            ("a.jsonl", &b"\"one\"\n{"[..], "a.jsonl: line 2: "),
            (
                "a.jsonl",
                b"\"one\"\n{\"content\": \"x\"}",
                "line 2: must be",
            ),
            ("a.jsonl", b"{\"prompt\": \"x\"}", "line 1: must be"),
            ("a.jsonl", b"{\"messages\": \"x\"}", "line 1: must be"),
            ("a.txt", b"\xff\xfe", "a.txt: not a text"),
        ] {
            let error = read_as(name, content).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(part), "{error}");
        }
        assert_eq!(read("nowhere.txt".as_ref()).unwrap_err().exit_code(), 66);
    }
}
