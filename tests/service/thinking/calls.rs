//! Tests of calls beside and in thoughts.

use serde_json::{Value, json};

use super::{ask, check, refusal, serving, streamed, tools, writing};
use crate::fake::Fake;

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
