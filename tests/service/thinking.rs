//! Tests of models that think before they answer, with a checkpoint, a template and a tokenizer like Granite 4.2's.

mod budgets;
mod calls;
mod switches;
mod tokens;

use microgranite::text::Tokenizer;
use serde_json::{Value, json};

use crate::chat::send;
use crate::fake::{Fake, Next};
use crate::harness::{END_OF_TEXT, Options, Service, fixture, read_events};
use crate::process;

const TEMPLATE: &str = include_str!("../fixtures/granite-4.2-tiny/chat_template.jinja");
/// The token that begins a turn.
pub const TURN: u32 = 315;
const CHAT: &str = "/v1/chat/completions";

fn tokenizer() -> Tokenizer {
    let file = fixture("granite-4.2-tiny").join("tokenizer.json");
    let inner = tokenizers::Tokenizer::from_file(&file).unwrap();
    Tokenizer::new(inner, &file).unwrap()
}

pub fn ids(text: &str) -> Vec<u32> {
    tokenizer().encode(text, 10_000).unwrap()
}

pub fn serving(model: Fake) -> Service {
    let options = Options {
        chat_template: Some(TEMPLATE),
        tokenizer: Some(tokenizer()),
        ..Options::default()
    };
    Service::with(model, options)
}

/// A model that writes `text` after the header of its turn, and arbitrary tokens after that.
pub fn writing(text: &str) -> Fake {
    let mut said = ids(text);
    said.push(END_OF_TEXT);
    let headers = [
        "<|im_start|>assistant\n<think>\n",
        "<|im_start|>assistant\n<think></think>",
    ]
    .map(ids);
    Fake::new(move |before| {
        let turn = before.iter().rposition(|&token| token == TURN);
        let turn = &before[turn.expect("every prompt has turns")..];
        let written = headers
            .iter()
            .find_map(|header| turn.strip_prefix(&header[..]));
        let hash = before.iter().fold(7, |hash: u64, &token| {
            (hash ^ u64::from(token)).wrapping_mul(0x0100_0000_01b3)
        });
        match written {
            Some(written) if said.starts_with(written) && written.len() < said.len() => {
                Next::Token(said[written.len()])
            }
            _ => Next::Any(hash),
        }
    })
}

fn body(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "u"}], "temperature": 0, "max_tokens": 300});
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    body
}

async fn ask(service: &Service, more: Value) -> Value {
    let response = send(service, "/v1/chat/completions", &body(more)).await;
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

async fn refusal(service: &Service, more: Value) -> Value {
    let response = send(service, "/v1/chat/completions", &body(more)).await;
    assert_eq!(response.status(), 400);
    response.json::<Value>().await.unwrap()["error"].clone()
}

/// What a client joins from a stream, in the form of the first choice of a response in one body.
async fn streamed(service: &Service, mut more: Value) -> (Value, Vec<Value>) {
    more["stream"] = json!(true);
    more["stream_options"] = json!({"include_usage": true});
    let response = send(service, "/v1/chat/completions", &body(more)).await;
    assert_eq!(response.status(), 200);
    let events = read_events(response).await;
    let mut message = json!({});
    let mut calls: Vec<Value> = Vec::new();
    let mut reason = Value::Null;
    for choice in events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap())
    {
        for name in ["content", "reasoning", "reasoning_content"] {
            let Some(text) = choice["delta"][name].as_str() else {
                continue;
            };
            let before = message[name].as_str().unwrap_or_default();
            message[name] = json!(before.to_owned() + text);
        }
        for call in choice["delta"]["tool_calls"]
            .as_array()
            .into_iter()
            .flatten()
        {
            match call["id"].as_str() {
                Some(_) => calls.push(call["function"].clone()),
                None => {
                    let last = calls.last_mut().unwrap();
                    let more = call["function"]["arguments"].as_str().unwrap();
                    last["arguments"] =
                        json!(last["arguments"].as_str().unwrap().to_owned() + more);
                }
            }
        }
        reason = choice["finish_reason"].clone();
    }
    let choice = json!({"message": message, "calls": calls, "finish_reason": reason});
    (choice, events)
}

/// Asserts what a client receives, in one body and streamed.
#[track_caller]
fn assert_reads(choice: &Value, thought: Option<&str>, content: Option<&str>, reason: &str) {
    let message = &choice["message"];
    assert_eq!(message["reasoning_content"].as_str(), thought, "{choice}");
    assert_eq!(message["reasoning"].as_str(), thought, "{choice}");
    let got = message["content"].as_str().filter(|text| !text.is_empty());
    assert_eq!(got, content, "{choice}");
    assert_eq!(choice["finish_reason"], reason, "{choice}");
}

async fn check(
    service: &Service,
    more: Value,
    thought: Option<&str>,
    content: Option<&str>,
    reason: &str,
) -> Value {
    let answer = ask(service, more.clone()).await;
    assert_reads(&answer["choices"][0], thought, content, reason);
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"].is_null(), content.is_none(), "{answer}");
    let (choice, events) = streamed(service, more).await;
    assert_reads(&choice, thought, content, reason);
    let usage = events.last().unwrap()["usage"].clone();
    for name in ["completion_tokens", "completion_tokens_details"] {
        assert_eq!(usage[name], answer["usage"][name], "{usage}");
    }
    answer
}

#[tokio::test]
async fn a_thought_comes_apart_from_the_answer_whole_and_streamed() {
    let service = serving(writing("I think é.\n</think>\nThe answer."));
    let answer = check(
        &service,
        json!({}),
        Some("I think é."),
        Some("The answer."),
        "stop",
    )
    .await;
    let thought = ids("I think é.\n").len();
    let details = &answer["usage"]["completion_tokens_details"];
    assert_eq!(details["reasoning_tokens"], thought);
    let hidden = json!({"include_reasoning": false});
    let answer = check(&service, hidden, None, Some("The answer."), "stop").await;
    let details = &answer["usage"]["completion_tokens_details"];
    assert_eq!(
        details["reasoning_tokens"], thought,
        "they were made all the same"
    );
    let all = "I think é.\n</think>\nThe answer.";
    check(
        &service,
        json!({"separate_reasoning": false}),
        None,
        Some(all),
        "stop",
    )
    .await;
    let nested = json!({"reasoning": {"exclude": true}});
    check(&service, nested, None, Some("The answer."), "stop").await;
    // The tag is spelled with other tokens than its own.
    let spelled: Vec<String> = "<think>I</think>Yes".chars().map(String::from).collect();
    let spelled: Vec<u32> = spelled.iter().flat_map(|text| ids(text)).collect();
    let header = ids("<|im_start|>assistant\n<think>\n");
    let service = serving(Fake::new(move |before| {
        let turn = before.iter().rposition(|&token| token == TURN).unwrap();
        let written = before.len() - turn - header.len().min(before.len() - turn);
        Next::Token(spelled.get(written).copied().unwrap_or(END_OF_TEXT))
    }));
    check(&service, json!({}), Some("I"), Some("Yes"), "stop").await;
}

#[tokio::test]
async fn what_is_asked_of_the_answer_is_not_asked_of_the_thought() {
    let service = serving(writing("a\n\nb STOP\n</think>\nc STOP d"));
    let stopped = json!({"stop": ["STOP", "\n\n"]});
    let answer = check(&service, stopped, Some("a\n\nb STOP"), Some("c "), "stop").await;
    assert_eq!(answer["choices"][0]["stop_reason"], "STOP");
    let schema = json!({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": false});
    let format = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}});
    for more in [format, json!({"structured_outputs": {"json": schema}})] {
        let answer = ask(&service, more.clone()).await;
        let message = &answer["choices"][0]["message"];
        assert_eq!(message["reasoning"], "a\n\nb STOP");
        let content = message["content"].as_str().unwrap();
        assert!(["{\"n\": 1}", "{\"n\": 2}"].contains(&content), "{content}");
        assert_eq!(
            streamed(&service, more.clone()).await.0["message"]["content"],
            content
        );
        // Without thinking, the answer is constrained from its first token.
        let mut off = more;
        off["reasoning_effort"] = json!("none");
        let answer = ask(&service, off).await;
        let message = &answer["choices"][0]["message"];
        assert!(message.get("reasoning").is_none(), "{message}");
        assert!(message["content"].as_str().unwrap().starts_with("{\"n\": "));
    }
    // A model that ends its text within the thought is forced to continue with the constrained answer.
    let service = serving(writing("a"));
    let more = json!({"structured_outputs": {"choice": ["yes"]}, "thinking_token_budget": 20});
    let answer = ask(&service, more).await;
    assert_eq!(
        answer["choices"][0]["message"]["content"], "yes",
        "{answer}"
    );
}

#[tokio::test]
async fn an_answer_that_ends_in_its_thought_has_no_content() {
    let service = serving(writing("a b c d e f"));
    let cut = json!({"max_tokens": 3});
    let answer = check(&service, cut, Some("a b c"), None, "length").await;
    assert_eq!(
        answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
        3
    );
    check(&service, json!({}), Some("a b c d e f"), None, "stop").await;
}

/// The text of the prompt that a conversation becomes.
pub async fn tokenized(service: &Service, messages: Value, more: Value) -> String {
    let mut body = json!({"messages": messages, "return_token_strs": true});
    let fields = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(fields);
    let response = send(service, "/tokenize", &body).await;
    let answer: Value = response.json().await.unwrap();
    let tokens = answer["token_strs"].as_array().expect("tokens").iter();
    tokens.map(|token| token.as_str().unwrap()).collect()
}

fn tools() -> Value {
    let schema = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}, "days": {"$ref": "#/$defs/Days"}},
        "required": ["city", "days"],
        "$defs": {"Days": {"type": "integer", "minimum": 1, "maximum": 9}},
    });
    json!([{"type": "function", "function": {"name": "weather", "parameters": schema}}])
}

#[tokio::test]
async fn a_continued_answer_has_no_thought() {
    let service = serving(Fake::babbling());
    let messages = json!([{"role": "user", "content": "u"}, {"role": "assistant", "content": "It is <think>"}]);
    let more = json!({"messages": messages, "continue_final_message": true, "max_tokens": 5});
    let answer = ask(&service, more).await;
    let message = &answer["choices"][0]["message"];
    assert!(message.get("reasoning").is_none(), "{message}");
    assert!(message["content"].is_string(), "{message}");
}

/// The program, serving the tiny checkpoint with Granite 4.2's architecture.
pub fn checkpoint() -> (process::Running, String) {
    process::running(&fixture("granite-4.2-tiny").display().to_string())
}

pub async fn ask_program(url: &str, path: &str, body: &Value) -> Value {
    let client = reqwest::Client::new();
    let request = client.post(format!("{url}{path}")).json(body);
    let response = request.send().await.unwrap();
    let (status, text) = (response.status(), response.text().await.unwrap());
    assert_eq!(status, 200, "{body} → {text}");
    serde_json::from_str(&text).unwrap()
}

#[tokio::test]
async fn a_checkpoint_like_granite_4_2_thinks_calls_and_answers() {
    let (_process, url) = checkpoint();
    let url = url.trim_end_matches('/');
    let models = reqwest::get(format!("{url}/v1/models")).await.unwrap();
    let models: Value = models.json().await.unwrap();
    let model = &models["data"][0];
    assert_eq!(model["capabilities"]["reasoning"], true, "{model}");
    let top_p = model["default_generation"]["top_p"].as_f64().unwrap();
    assert!((top_p - 0.95).abs() < 1e-6, "{model}");

    let asked = |more: Value| {
        let mut body = body(more);
        body["temperature"] = Value::Null;
        body["thinking_budget"] = json!(12);
        body["seed"] = json!(5);
        body
    };
    // The model's defaults for temperature and top-p give the same answer as a request that sets these values.
    let plain = ask_program(url, CHAT, &asked(json!({"max_tokens": 40}))).await;
    let named = asked(json!({"max_tokens": 40, "top_p": 0.95}));
    let named = ask_program(url, CHAT, &named).await;
    assert_eq!(plain["choices"], named["choices"]);
    let thought = &plain["choices"][0]["message"]["reasoning"];
    assert!(!thought.as_str().unwrap().is_empty(), "{plain}");
    let count = &plain["usage"]["completion_tokens_details"]["reasoning_tokens"];
    assert!((11..=12).contains(&count.as_u64().unwrap()), "{plain}");

    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}});
    let answer = ask_program(url, CHAT, &asked(json!({"response_format": format}))).await;
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(
        ["{\"ok\": true}", "{\"ok\": false}"].contains(&content),
        "{answer}"
    );

    let forced = asked(json!({"tools": tools(), "tool_choice": "required"}));
    let answer = ask_program(url, CHAT, &forced).await;
    let message = &answer["choices"][0]["message"];
    let arguments = message["tool_calls"][0]["function"]["arguments"]
        .as_str()
        .unwrap();
    let read: Value = serde_json::from_str(arguments).unwrap();
    assert!(
        ["Rome", "Oslo"].contains(&read["city"].as_str().unwrap()),
        "{answer}"
    );
    assert!(
        message["content"].is_null() && message["reasoning"].is_string(),
        "{answer}"
    );
}
