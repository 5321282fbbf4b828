//! What a model writes, cut into pieces at any place: the result may not depend on the cuts.

use std::sync::{Arc, OnceLock};

use microgranite::http::generate::streaming;
use microgranite::text::chat::calls::{CallParser, CallSyntax, Part};
use microgranite::text::stop::Scan;
use microgranite::text::thoughts::{self, Form};
use microgranite::text::values::Tools;
use microgranite::text::{Decoder, StopStrings, Tokenizer};

fn tokenizer() -> Arc<Tokenizer> {
    static TOKENIZER: OnceLock<Arc<Tokenizer>> = OnceLock::new();
    let made = TOKENIZER.get_or_init(|| {
        let file = std::path::Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../tests/fixtures/granite-3-tiny/tokenizer.json"
        ));
        let inner = tokenizers::Tokenizer::from_file(file).expect("the fixture's tokenizer");
        Arc::new(Tokenizer::new(inner, file).expect("it has all bytes"))
    });
    Arc::clone(made)
}

/// Bytes as tokens, two for each: ids → text → stop strings → events.
pub fn decode_and_stop(bytes: &[u8]) {
    let Some((&count, rest)) = bytes.split_first() else {
        return;
    };
    let (stops, ids) = rest.split_at(rest.len().min(usize::from(count % 32)));
    let stops = String::from_utf8_lossy(stops);
    let stops: Vec<String> = stops
        .split('\n')
        .filter(|stop| !stop.is_empty())
        .map(str::to_owned)
        .collect();
    let mut decoder = Decoder::new(tokenizer());
    let (mut whole, mut pieces) = (Vec::new(), Vec::new());
    for two in ids.chunks_exact(2) {
        let id = u32::from(u16::from_le_bytes([two[0], two[1]])) % 320;
        if !tokenizer().is_special(id) {
            whole.extend_from_slice(tokenizer().bytes(id));
        }
        pieces.push(decoder.push(id));
    }
    pieces.push(decoder.finish());
    let text = pieces.concat();
    assert_eq!(text, String::from_utf8_lossy(&whole));
    let cut = stop(&stops, pieces.iter().map(String::as_str));
    assert_eq!(cut, stop(&stops, [&*text]), "{stops:?} {pieces:?}");
    if let Some(event) = text.get(..).map(|text| streaming::event(&text)) {
        let body = event
            .strip_prefix(b"data: ")
            .and_then(|event| event.strip_suffix(b"\n\n"));
        let body = body.expect("an event");
        assert!(!body.contains(&b'\n'));
        assert_eq!(serde_json::from_slice::<String>(body).expect("JSON"), text);
    }
}

fn stop<'a>(
    stops: &[String],
    pieces: impl IntoIterator<Item = &'a str>,
) -> (String, Option<String>) {
    let mut scan = StopStrings::new(stops);
    let mut text = String::new();
    for piece in pieces {
        match scan.push(piece) {
            Scan::Continue(more) => text += &more,
            Scan::Stop(rest, stop) => return (text + &rest, Some(stop)),
        }
    }
    (text + &scan.finish(), None)
}

/// Text with calls and thoughts, in every syntax.
pub fn calls_and_thoughts(bytes: &[u8]) {
    let Some((&seed, text)) = bytes.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(text);
    let pieces = cut(&text, seed);
    let schema = serde_json::json!({"properties": {"a": {"type": "string"}, "b": {"type": "integer"}, "c": {}}});
    let tools = Arc::new(Tools::new([("f", Some(&schema)), ("g", None)]));
    for syntax in [
        CallSyntax::Tags,
        CallSyntax::Xml,
        CallSyntax::List { token: 3 },
        CallSyntax::Json { token: None },
        CallSyntax::Json { token: Some(3) },
    ] {
        for is_inside in [false, true] {
            let read = |pieces: &[&str]| {
                let mut parser =
                    CallParser::new(syntax.clone(), &tools, is_inside).with_thoughts(seed % 2 == 0);
                let mut parts: Vec<Part> =
                    pieces.iter().flat_map(|piece| parser.push(piece)).collect();
                parts.extend(parser.finish(seed % 3 == 0));
                joined(parts)
            };
            assert_eq!(read(&pieces), read(&[&text]), "{syntax:?}");
        }
    }
    for sign in [
        "<think></think><response>",
        "<think>",
        "Here is my thought process:Here is my response:",
    ] {
        if let Some(form) = Form::of(sign) {
            for prompt in ["", "<think>", "</think>"] {
                let read = |pieces: &[&str]| {
                    let mut splitter = form.after(prompt);
                    let mut parts: Vec<thoughts::Part> = pieces
                        .iter()
                        .flat_map(|piece| splitter.push(piece))
                        .collect();
                    parts.extend(splitter.finish());
                    split(parts)
                };
                assert_eq!(read(&pieces), read(&[&text]), "{sign}");
            }
        }
    }
}

/// Cuts a text between some of its characters.
fn cut(text: &str, seed: u8) -> Vec<&str> {
    let (mut pieces, mut rest, mut at) = (Vec::new(), text, usize::from(seed));
    while !rest.is_empty() {
        at = (at * 31 + 7) % 13;
        let end = rest
            .char_indices()
            .nth(at + 1)
            .map_or(rest.len(), |(end, _)| end);
        let (piece, more) = rest.split_at(end);
        pieces.push(piece);
        rest = more;
    }
    pieces
}

/// Neighbouring texts, and neighbouring pieces of arguments, put together.
fn joined(parts: Vec<Part>) -> Vec<Part> {
    let mut all: Vec<Part> = Vec::new();
    for part in parts {
        match (all.last_mut(), part) {
            (Some(Part::Text(text)), Part::Text(more))
            | (Some(Part::Arguments(text)), Part::Arguments(more)) => *text += &more,
            (_, part) => all.push(part),
        }
    }
    all.retain(|part| !matches!(part, Part::Text(text) | Part::Arguments(text) if text.is_empty()));
    all
}

/// The thought and the answer.
fn split(parts: Vec<thoughts::Part>) -> (String, String) {
    let mut both = (String::new(), String::new());
    for part in parts {
        match part {
            thoughts::Part::Thought(text) => both.0 += &text,
            thoughts::Part::Answer(text) => both.1 += &text,
            _ => {}
        }
    }
    both
}
