//! What clients send: bodies, keys and grammars.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use microgranite::http::access::ApiKeys;
use microgranite::http::auth;
use microgranite::http::chat::request::ChatRequest;
use microgranite::http::completions::request::CompletionRequest;
use microgranite::http::limits::Limits;
use microgranite::http::messages::request::{Purpose, parse as parse_messages};
use microgranite::http::responses::request::ResponsesRequest;
use microgranite::text::Grammar;
use microgranite::text::grammar::{CallForm, Calls, MAX_BYTES, trial};

/// The body of a request, for every API that has bodies.
pub fn parse(body: &[u8]) {
    for strict in [false, true] {
        let limits = Limits {
            strict,
            ..Limits::default()
        };
        // The error's text goes to the client, so it is made here too.
        let mut refusals = Vec::new();
        refusals.extend(CompletionRequest::parse(body, &limits).err());
        refusals.extend(ChatRequest::parse(body, &limits).err());
        refusals.extend(ResponsesRequest::parse(body, &limits).err());
        refusals.extend(parse_messages(body, &limits, Purpose::Answer).err());
        refusals.extend(parse_messages(body, &limits, Purpose::Count).err());
        for refusal in refusals {
            assert!(
                refusal.to_string().len() < 2000,
                "a refusal echoes the request"
            );
        }
    }
}

/// A file of keys before the first empty line, and headers after it: only lines of the file open.
pub fn access(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (keys, headers) = text.split_once("\n\n").unwrap_or(("key", &text));
    let file = crate::files::file("keys");
    std::fs::write(&file, keys).expect("it is written");
    let Ok(known) = ApiKeys::read(&file) else {
        return;
    };
    let mut map = HeaderMap::new();
    for line in headers.lines() {
        let (name, value) = line.split_once(": ").unwrap_or(("authorization", line));
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            map.append(name, value);
        }
    }
    if auth::has_key(&map, &known) {
        let is_given = |key: &str| !key.is_empty() && headers.contains(key);
        assert!(keys.lines().any(|line| is_given(
            line.trim_matches(['\u{feff}', ' ', '\t', '\r', '\n'])
        ) || is_given(line.trim())));
    }
}

/// A grammar, as the process that tries grammars compiles it. The first byte chooses the kind.
pub fn grammars(bytes: &[u8]) {
    let Some((kind, text)) = bytes.split_first() else {
        return;
    };
    // The limits of the child process, which has a stack and a heap of its own, are not the parsers'.
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_BYTES / 64)]).into_owned();
    let grammar = match kind % 6 {
        0 => Grammar::JsonSchema(text),
        1 => Grammar::Regex(text),
        2 => Grammar::Lark(text),
        3 => Grammar::Choice(
            text.lines()
                .filter(|line| !line.is_empty())
                .map(str::to_owned)
                .collect(),
        ),
        form => Grammar::Calls(Calls {
            tools: vec![("f".to_owned(), Some(text))],
            form: if form == 4 {
                CallForm::Xml
            } else {
                CallForm::Object
            },
        }),
    };
    let _compiles = trial::try_here(grammar);
}
