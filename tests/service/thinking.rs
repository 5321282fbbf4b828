//! Tests of models that think before they answer, with a checkpoint, a template and a tokenizer like Granite 4.2's.

use serde_json::{Value, json};

use crate::chat::send;
use crate::fake::{Fake, Next};
use crate::harness::{END_OF_TEXT, Options, Service, fixture, read_events};
use crate::process;
use microgranite::http::app::Defaults;
use microgranite::http::chat::thinking::{Mode, ThinkingDefaults};
use microgranite::text::Tokenizer;

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

#[tokio::test]
async fn thinking_is_turned_off_by_each_of_its_switches() {
    let service = serving(writing("\nHello <think>"));
    for off in [
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"reasoning_effort": "none"}),
        json!({"reasoning": {"effort": "none"}}),
        json!({"reasoning": {"enabled": false}}),
        json!({"thinking_token_budget": 0}),
        json!({"thinking_budget": 0}),
        json!({"chat_template_kwargs": {"enable_thinking": false}, "reasoning_effort": "high"}),
    ] {
        let answer = check(&service, off, None, Some("Hello <think>"), "stop").await;
        assert_eq!(
            answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
            0
        );
    }
    // The template's own variable takes precedence over the effort.
    let on = json!({"chat_template_kwargs": {"enable_thinking": true}, "reasoning_effort": "none"});
    let answer = ask(&service, on).await;
    assert_eq!(
        answer["choices"][0]["message"]["reasoning"],
        "Hello <think>"
    );
    for (bad, field) in [
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (
            json!({"thinking_token_budget": -1}),
            "thinking_token_budget",
        ),
        (json!({"thinking_budget": "few"}), "thinking_budget"),
        (json!({"reasoning": 3}), "reasoning"),
        (
            json!({"reasoning": {"max_tokens": 1.5}}),
            "reasoning.max_tokens",
        ),
        (json!({"reasoning": {"effort": "much"}}), "reasoning.effort"),
        (json!({"reasoning": {"enabled": 1}}), "reasoning.enabled"),
        (json!({"reasoning": {"exclude": "x"}}), "reasoning.exclude"),
        (
            json!({"thinking_budget": 3, "thinking_token_budget": 4}),
            "thinking_budget",
        ),
        (json!({"answer_share": 1}), "answer_share"),
        (json!({"include_reasoning": 3}), "include_reasoning"),
    ] {
        let error = refusal(&service, bad).await;
        assert_eq!(error["param"], field, "{error}");
    }
}

#[tokio::test]
async fn fields_about_thinking_that_contradict_each_other_are_refused_by_name() {
    let service = serving(writing("a\n</think>\nb"));
    for (fields, param) in [
        (
            json!({"reasoning": {"max_tokens": 5}, "thinking_token_budget": 6}),
            "reasoning.max_tokens",
        ),
        (
            json!({"reasoning": {"max_tokens": 5}, "reasoning_budget": 6}),
            "reasoning.max_tokens",
        ),
        (
            json!({"reasoning": {"effort": "low"}, "reasoning_effort": "high"}),
            "reasoning.effort",
        ),
        (
            json!({"reasoning": {"exclude": true}, "include_reasoning": true}),
            "reasoning.exclude",
        ),
        (
            json!({"reasoning": {"exclude": false}, "include_reasoning": false}),
            "reasoning.exclude",
        ),
        (
            json!({"reasoning": {"enabled": true}, "chat_template_kwargs": {"enable_thinking": false}}),
            "reasoning.enabled",
        ),
        (
            json!({"reasoning": {"enabled": false}, "chat_template_kwargs": {"enable_thinking": true}}),
            "reasoning.enabled",
        ),
        (
            json!({"reasoning": {"enabled": true}, "reasoning_effort": "none"}),
            "reasoning.enabled",
        ),
        (
            json!({"reasoning": {"enabled": true, "max_tokens": 0}}),
            "reasoning.enabled",
        ),
    ] {
        let error = refusal(&service, fields).await;
        assert_eq!(error["param"], param, "{error}");
        assert_eq!(error["code"], "invalid_value", "{error}");
    }
    let agreeing = json!({
        "reasoning": {"max_tokens": 50, "effort": "high", "exclude": false, "enabled": true},
        "thinking_budget": 50, "reasoning_effort": "high", "include_reasoning": true,
        "chat_template_kwargs": {"enable_thinking": true},
    });
    check(&service, agreeing, Some("a"), Some("b"), "stop").await;
    let hidden = json!({"reasoning": {"exclude": true}, "include_reasoning": false});
    check(&service, hidden, None, Some("b"), "stop").await;
}

#[tokio::test]
async fn a_thought_that_is_not_shown_is_not_in_ids_and_scores_either() {
    let service = serving(writing("I think.\n</think>\nYes."));
    let more = |fields: Value| {
        let mut all = json!({"logprobs": true, "return_token_ids": true});
        all.as_object_mut()
            .unwrap()
            .extend(fields.as_object().unwrap().clone());
        all
    };
    let all = ask(&service, more(json!({}))).await;
    let whole = ids("I think.\n</think>\nYes.");
    let of_thought = ids("I think.\n</think>").len();
    let choice = &all["choices"][0];
    assert_eq!(
        choice["token_ids"].as_array().unwrap().len(),
        whole.len() + 1
    );
    let mut answer = whole[of_thought..].to_vec();
    for fields in [
        json!({"include_reasoning": false}),
        json!({"reasoning": {"exclude": true}}),
        json!({"include_reasoning": false, "separate_reasoning": false}),
    ] {
        let hidden = check(&service, more(fields.clone()), None, Some("Yes."), "stop").await;
        assert_eq!(hidden["usage"], all["usage"]);
        let choice = &hidden["choices"][0];
        let scored = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!(scored.len(), answer.len(), "{choice}");
        answer.push(END_OF_TEXT);
        assert_eq!(choice["token_ids"], json!(answer));
        answer.pop();
        assert!(!hidden.to_string().contains("think"), "{hidden}");
        let (_, events) = streamed(&service, more(fields)).await;
        let events = json!(events).to_string();
        assert!(!events.contains("think"), "{events}");
    }
}

#[tokio::test]
async fn arguments_that_are_no_object_are_refused_where_the_template_cannot_write_them() {
    let service = serving(writing("a\n</think>\nb"));
    let call = |arguments: &str| json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let with = |arguments: &str| {
        json!({"messages": [
            {"role": "user", "content": "u"},
            {"role": "assistant", "tool_calls": [call("{\"x\": 1}"), call(arguments)]},
            {"role": "user", "content": "u"},
        ]})
    };
    let nested = "{\"a\": ".repeat(200) + "1" + &"}".repeat(200);
    for arguments in ["{\"city\": \"Ro", "[1]", "\"x\"", "3", "no JSON", &nested] {
        let error = refusal(&service, with(arguments)).await;
        assert_eq!(error["param"], "messages", "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("'tool_calls' of message 1"), "{error}");
    }
    for arguments in ["", "{}", " {\"x\": 2} "] {
        ask(&service, with(arguments)).await;
    }
    // A template that writes the arguments as they are takes any.
    let other = crate::chat::serving(Fake::babbling());
    let mut body = with("{\"city\": \"Ro");
    body["max_tokens"] = json!(3);
    ask(&other, body).await;
}

#[tokio::test]
async fn stop_ids_end_the_answer_and_not_the_thought() {
    let service = serving(writing("a b a\n</think>\nc b d"));
    let id = ids(" b")[0];
    let close = ids("</think>")[0];
    for more in [json!({}), json!({"thinking_token_budget": 100})] {
        let mut stopped = more;
        stopped["stop_token_ids"] = json!([id, close]);
        let answer = check(&service, stopped, Some("a b a"), Some("c"), "stop").await;
        assert_eq!(answer["choices"][0]["stop_reason"], id, "{answer}");
    }
    // Also where the answer is constrained, before which no text may end.
    let more = json!({"stop_token_ids": [id], "structured_outputs": {"choice": ["yes"]}});
    let answer = check(&service, more, Some("a b a"), Some("yes"), "stop").await;
    assert!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"].as_u64() > Some(0));
    // The model's own end of text still ends a thought.
    let service = serving(writing("a b"));
    let more = json!({"stop_token_ids": [END_OF_TEXT, id]});
    check(&service, more, Some("a b"), None, "stop").await;
}

#[tokio::test]
async fn an_answer_that_takes_all_tokens_leaves_the_thought_out() {
    let service = serving(writing("Hello there, this is an answer"));
    for (share, max_tokens) in [(0.9, 1), (0.9, 10), (0.5, 4), (0.1, 2)] {
        let more =
            json!({"answer_share": share, "max_tokens": max_tokens, "return_token_ids": true});
        let answer = ask(&service, more).await;
        let usage = &answer["usage"];
        assert_eq!(usage["completion_tokens"], max_tokens, "{answer}");
        assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], 0);
        let said = &answer["choices"][0]["token_ids"];
        assert_eq!(
            *said,
            json!(ids("Hello there, this is an answer")[..max_tokens])
        );
    }
    // Where there is room, the answer has its share: the closing tag is not taken from it.
    let service = serving(writing(
        "a b c d e f g h i j k l m n o p q r s t u v w x y z",
    ));
    for (share, max_tokens, kept) in [(0.1, 4, 1), (0.5, 10, 5), (0.25, 16, 4)] {
        let more =
            json!({"answer_share": share, "max_tokens": max_tokens, "return_token_ids": true});
        let answer = ask(&service, more).await;
        let said = answer["choices"][0]["token_ids"].as_array().unwrap();
        let close = ids("</think>")[0];
        let end = said.iter().position(|id| *id == json!(close)).unwrap();
        assert!(said.len() - end > kept, "{answer}");
    }
    // If the thought is turned on all the same, or has no switch, the prompt closes it.
    let on = json!({"chat_template_kwargs": {"enable_thinking": true}, "answer_share": 0.9, "max_tokens": 3});
    let answer = ask(&service, on).await;
    assert_eq!(
        answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
        0
    );
    assert!(
        answer["choices"][0]["message"]["content"].is_string(),
        "{answer}"
    );
    let always = TEMPLATE.replace(
        "'<think>\n' if thinks else '<think></think>'",
        "'<think>\n'",
    );
    let options = Options {
        chat_template: Some(always.leak()),
        tokenizer: Some(tokenizer()),
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    for more in [
        json!({"answer_share": 0.9, "max_tokens": 3}),
        json!({"thinking_budget": 0, "max_tokens": 3}),
    ] {
        let answer = ask(&service, more).await;
        assert_eq!(answer["usage"]["completion_tokens"], 3, "{answer}");
        assert_eq!(
            answer["usage"]["completion_tokens_details"]["reasoning_tokens"],
            0
        );
        let message = &answer["choices"][0]["message"];
        assert!(message.get("reasoning").is_none(), "{answer}");
    }
    // A forced call then follows directly.
    let forced = json!({"tools": tools(), "tool_choice": "required", "thinking_budget": 0, "max_tokens": 600});
    let answer = ask(&service, forced).await;
    assert_eq!(
        answer["choices"][0]["finish_reason"], "tool_calls",
        "{answer}"
    );
}

#[tokio::test]
async fn a_call_in_a_thought_that_was_not_asked_for_is_none() {
    let call = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
    let thought = format!("<think>\nI could {call}\n</think>");
    let service = serving(writing(&format!("{thought}\nNo.")));
    let off = json!({"tools": tools(), "reasoning_effort": "none"});
    let text = format!("{thought}\nNo.");
    check(&service, off.clone(), None, Some(&text), "stop").await;
    let service = serving(writing(&format!("{thought}\n{call}")));
    let answer = check(&service, off, None, Some(&thought), "tool_calls").await;
    let calls = &answer["choices"][0]["message"]["tool_calls"];
    assert_eq!(calls.as_array().unwrap().len(), 1, "{answer}");
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

#[tokio::test]
async fn effort_and_past_thoughts_reach_the_template() {
    let service = serving(writing("a"));
    let tokenize = async |messages: Value, more: Value| tokenized(&service, messages, more).await;
    let user = json!({"role": "user", "content": "u"});
    let low = tokenize(json!([user]), json!({"reasoning_effort": "low"})).await;
    assert!(
        low.contains("u\n\n{reasoning effort: low}<|im_end|>"),
        "{low}"
    );
    let off = tokenize(json!([user]), json!({"reasoning_effort": "none"})).await;
    assert!(off.ends_with("<think></think>"), "{off}");
    let call = json!([{"id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]);
    let result = json!({"role": "tool", "content": "r"});
    let thought = "<|im_start|>assistant\n<think>\nfirst\n</think>\nsaid";
    for (assistant, expected) in [
        (
            json!({"content": "said", "reasoning_content": "first", "reasoning": "second"}),
            thought,
        ),
        (json!({"content": "said", "reasoning": "first"}), thought),
        (
            json!({"content": "<think>\nfirst\n</think>\n\nsaid"}),
            thought,
        ),
        (
            json!({"content": "said"}),
            "<|im_start|>assistant\n<think></think>said",
        ),
        (
            json!({"content": "said", "reasoning": " "}),
            "<|im_start|>assistant\n<think></think>said",
        ),
    ] {
        let mut assistant = assistant;
        assistant["role"] = json!("assistant");
        assistant["tool_calls"] = call.clone();
        let prompt = tokenize(json!([user, assistant, result]), json!({})).await;
        assert!(prompt.contains(expected), "{prompt}");
    }
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
async fn calls_in_tags_come_out_of_the_answer_and_not_out_of_the_thought() {
    let call = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>";
    let said = format!("I could {call} here.\n</think>\nWell.\n{call}\n{call}");
    let service = serving(writing(&said));
    let more = json!({"tools": tools()});
    let thought = format!("I could {call} here.");
    let answer = check(
        &service,
        more.clone(),
        Some(&thought),
        Some("Well."),
        "tool_calls",
    )
    .await;
    let calls = answer["choices"][0]["message"]["tool_calls"]
        .as_array()
        .unwrap();
    let expected = json!({"name": "weather", "arguments": "{\"city\": \"Rome\", \"days\": 3}"});
    assert_eq!(calls.len(), 2);
    assert_eq!(calls[1]["function"], expected);
    let (choice, _) = streamed(&service, more).await;
    assert_eq!(choice["calls"], json!([expected, expected]));
    // Also where the thought stands in the text.
    let more = json!({"tools": tools(), "separate_reasoning": false});
    let text = format!("{thought}\n</think>\nWell.");
    let answer = check(&service, more, None, Some(&text), "tool_calls").await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["tool_calls"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_stop_string_within_a_call_does_not_ask_to_run_it() {
    let call = "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>";
    let service = serving(writing(&format!("So.\n</think>\nWell.\n{call}")));
    for (stop, arguments, reason) in [
        ("=weather", None, "stop"),
        ("city", Some("{"), "stop"),
        ("ome", Some("{\"city\": \"R"), "stop"),
        ("</parameter>", Some("{\"city\": \"Rome"), "stop"),
        ("</function>", Some("{\"city\": \"Rome"), "stop"),
        ("</tool_call>", Some("{\"city\": \"Rome\"}"), "tool_calls"),
    ] {
        let more = json!({"tools": tools(), "stop": [stop]});
        let answer = ask(&service, more.clone()).await;
        let choice = &answer["choices"][0];
        let written = choice["message"]["tool_calls"][0]["function"]["arguments"].as_str();
        assert_eq!(choice["finish_reason"], reason, "{stop}: {answer}");
        let starts = |text: &str| arguments.is_some_and(|start| text.starts_with(start));
        assert!(written.is_none_or(starts), "{stop}: {answer}");
        assert_eq!(written.is_some(), arguments.is_some(), "{stop}: {answer}");
        let (streamed, _) = streamed(&service, more).await;
        assert_eq!(streamed["finish_reason"], reason, "{stop}");
        assert_eq!(streamed["calls"][0]["arguments"].as_str(), written);
    }
    let forced = json!({"tools": tools(), "tool_choice": "required", "stop": ["\n"], "reasoning_effort": "none"});
    let answer = ask(&service, forced).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{answer}");
}

#[tokio::test]
async fn a_forced_call_comes_behind_the_thought() {
    let service = serving(writing("Weather.\n</think>\n"));
    let named = json!({"type": "function", "function": {"name": "weather"}});
    for choice in [json!("required"), named] {
        for effort in ["medium", "none"] {
            let more = json!({"tools": tools(), "tool_choice": choice, "reasoning_effort": effort, "max_tokens": 600});
            let thought = (effort == "medium").then_some("Weather.");
            let answer = check(&service, more.clone(), thought, None, "tool_calls").await;
            let calls = answer["choices"][0]["message"]["tool_calls"]
                .as_array()
                .unwrap();
            let arguments = calls[0]["function"]["arguments"].as_str().unwrap();
            let read: Value = serde_json::from_str(arguments).unwrap();
            assert!(
                ["Rome", "Oslo"].contains(&read["city"].as_str().unwrap()),
                "{read}"
            );
            assert!((1..10).contains(&read["days"].as_i64().unwrap()), "{read}");
            let (choice, _) = streamed(&service, more).await;
            assert_eq!(choice["calls"][0]["arguments"], arguments);
        }
    }
}

#[tokio::test]
async fn a_budget_ends_a_thought_and_leaves_the_answer_alone() {
    let service = serving(writing("one two three four five six seven eight nine ten"));
    for name in [
        "thinking_token_budget",
        "thinking_budget",
        "thinking_budget_tokens",
        "reasoning_budget_tokens",
        "reasoning_budget",
    ] {
        let answer = ask(&service, json!({name: 6, "max_tokens": 40})).await;
        let details = &answer["usage"]["completion_tokens_details"];
        let count = details["reasoning_tokens"].as_u64().unwrap();
        assert!((5..=6).contains(&count), "{answer}");
        assert!(
            answer["choices"][0]["message"]["content"].is_string(),
            "{answer}"
        );
        assert_eq!(answer["usage"]["completion_tokens"], 40);
    }
    let nested = json!({"reasoning": {"max_tokens": 6}, "max_tokens": 40});
    assert!(ask(&service, nested).await["choices"][0]["message"]["content"].is_string());
    // A quarter of the tokens is reserved for the answer.
    let shared = json!({"answer_share": 0.25, "max_tokens": 16});
    let answer = ask(&service, shared).await;
    let details = &answer["usage"]["completion_tokens_details"];
    let count = details["reasoning_tokens"].as_u64().unwrap();
    assert!((10..=12).contains(&count), "{answer}");
    assert!(answer["choices"][0]["message"]["content"].is_string());
}

#[tokio::test]
async fn a_model_without_thoughts_says_nothing_of_them() {
    let service = crate::chat::serving(Fake::babbling());
    let more = json!({"reasoning_effort": "low", "thinking_token_budget": 3, "max_tokens": 8});
    let response = send(&service, "/v1/chat/completions", &body(more.clone())).await;
    let ignored = response.headers()["x-ignored-params"].to_str().unwrap();
    assert_eq!(ignored, "reasoning_effort, thinking_token_budget");
    let answer = ask(&service, more).await;
    let text = answer.to_string();
    assert!(
        !text.contains("reasoning") && !text.contains("details\":{\"reasoning"),
        "{text}"
    );
}

#[tokio::test]
async fn the_servers_defaults_hold_where_a_request_says_nothing() {
    let with = |mode: Option<Mode>, budget: Option<usize>, answer_share: Option<f64>| {
        let options = Options {
            chat_template: Some(TEMPLATE),
            tokenizer: Some(tokenizer()),
            defaults: Defaults {
                thinking: ThinkingDefaults {
                    mode,
                    budget,
                    answer_share,
                },
                ..Defaults::default()
            },
            ..Options::default()
        };
        Service::with(writing("a b c d e f g h i j k l m n o p"), options)
    };
    let reasoning = |answer: &Value| {
        let details = &answer["usage"]["completion_tokens_details"];
        details["reasoning_tokens"].as_u64().unwrap()
    };
    let service = with(Some(Mode::Off), None, None);
    assert_eq!(reasoning(&ask(&service, json!({})).await), 0);
    for on in [
        json!({"reasoning_effort": "high"}),
        json!({"chat_template_kwargs": {"enable_thinking": true}}),
        json!({"reasoning": {"enabled": true}}),
    ] {
        assert!(reasoning(&ask(&service, on).await) > 0);
    }
    let service = with(Some(Mode::Low), Some(6), None);
    let low = tokenized(
        &service,
        json!([{"role": "user", "content": "u"}]),
        json!({}),
    )
    .await;
    assert!(low.contains("{reasoning effort: low}"), "{low}");
    assert!((5..=6).contains(&reasoning(&ask(&service, json!({})).await)));
    let more = json!({"thinking_token_budget": 9});
    assert!((8..=9).contains(&reasoning(&ask(&service, more).await)));
    let service = with(None, None, Some(0.5));
    let half = ask(&service, json!({"max_tokens": 10})).await;
    assert!((4..=5).contains(&reasoning(&half)), "{half}");
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

#[tokio::test]
async fn granite_3_3_thinks_when_it_is_told_to() {
    const TEMPLATE: &str = "{% if thinking %}{{ 'Write between <think></think> and <response></response>.' }}{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% endfor %}{{ '<|im_start|>assistant\n' }}";
    let said = "<think>Well.\n</think>\n<response> Yes. </response>";
    let mut script = ids(said);
    script.push(END_OF_TEXT);
    let header = ids("<|im_start|>assistant\n").len();
    let model = Fake::new(move |before| {
        let turn = before.iter().rposition(|&token| token == TURN).unwrap();
        let written = (before.len() - turn).saturating_sub(header);
        Next::Token(script.get(written).copied().unwrap_or(END_OF_TEXT))
    });
    let options = Options {
        chat_template: Some(TEMPLATE),
        tokenizer: Some(tokenizer()),
        ..Options::default()
    };
    let service = Service::with(model, options);
    check(&service, json!({}), None, Some(said), "stop").await;
    for on in [
        json!({"chat_template_kwargs": {"thinking": true}}),
        json!({"reasoning_effort": "medium"}),
    ] {
        check(&service, on, Some("Well."), Some("Yes. "), "stop").await;
    }
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

#[tokio::test]
async fn flags_set_the_defaults() {
    let model = fixture("granite-4.2-tiny").display().to_string();
    let flags = ["--generation-config", "none", "--thinking", "off"];
    let (_process, url) = process::running_with(&model, &flags);
    let url = url.trim_end_matches('/');
    let models = reqwest::get(format!("{url}/v1/models")).await.unwrap();
    let models: Value = models.json().await.unwrap();
    assert_eq!(models["data"][0]["default_generation"], json!({}));
    let answer = ask_program(url, CHAT, &body(json!({"max_tokens": 5}))).await;
    let details = &answer["usage"]["completion_tokens_details"];
    assert_eq!(details["reasoning_tokens"], 0, "{answer}");
    let more = json!({"max_tokens": 5, "reasoning_effort": "high"});
    let answer = ask_program(url, CHAT, &body(more)).await;
    let details = &answer["usage"]["completion_tokens_details"];
    assert!(details["reasoning_tokens"].as_u64() > Some(0), "{answer}");
}

/// Sampled requests of several kinds, each under a budget of 64 tokens.
fn crowd(count: u64) -> Vec<Value> {
    let each = |seed: u64| {
        let mut body = json!({
            "messages": [{"role": "user", "content": format!("question {}", seed % 7)}],
            "seed": seed,
            "temperature": 0.4 + (seed % 5) as f64 * 0.3,
            "max_tokens": 20 + seed % 90,
            "thinking_token_budget": 64,
        });
        match seed % 4 {
            1 => body["response_format"] = json!({"type": "json_object"}),
            2 => body["tools"] = tools(),
            3 => {
                body["tools"] = tools();
                body["tool_choice"] = json!("required");
            }
            _ => {}
        }
        body
    };
    (0..count).map(each).collect()
}

async fn check_budgets(count: u64, alone: usize) {
    let (_process, url) = checkpoint();
    let url = url.trim_end_matches('/');
    let requests = crowd(count);
    let mut together = Vec::new();
    // As many concurrent requests as the batch has slots.
    for some in requests.chunks(16) {
        let answers = some.iter().map(|body| ask_program(url, CHAT, body));
        together.extend(futures_util::future::join_all(answers).await);
    }
    let mut longest = 0;
    for answer in &together {
        let details = &answer["usage"]["completion_tokens_details"];
        let tokens = details["reasoning_tokens"].as_u64().unwrap();
        assert!(tokens <= 64, "{answer}");
        longest = longest.max(tokens);
    }
    assert!(longest >= 63, "no thought was long enough to be ended");
    // The ids of calls are random each time.
    let said = |answer: &Value| {
        let mut message = answer["choices"][0]["message"].clone();
        for call in message["tool_calls"].as_array_mut().into_iter().flatten() {
            call["id"] = Value::Null;
        }
        (message, answer["choices"][0]["finish_reason"].clone())
    };
    for (body, answer) in requests.iter().zip(&together).take(alone) {
        assert_eq!(
            said(&ask_program(url, CHAT, body).await),
            said(answer),
            "{body}"
        );
    }
}

#[tokio::test]
async fn no_thought_is_longer_than_its_budget_and_company_changes_nothing() {
    check_budgets(48, 12).await;
}

#[tokio::test]
#[ignore = "takes minutes"]
async fn no_thought_of_a_thousand_is_longer_than_its_budget() {
    check_budgets(1000, 200).await;
}
