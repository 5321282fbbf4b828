//! Tests of tool calls, in answers and in conversations.

use serde_json::{Value, json};

use super::{answering, assembled, chat, name_and_arguments, post, serving, stream, tools};
use crate::fake::Fake;
use crate::harness::{Options, Service};

#[tokio::test]
async fn calls_come_out_of_the_text_whole_and_streamed() {
    let said = "Let me see. \n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"size\": 1}}\n</tool_call>\n<tool_call>{\"name\": \"remove\", \"arguments\": {}}</tool_call>";
    let service = serving(answering(said));
    let body = json!({"messages": [{"role": "user", "content": "u"}], "tools": tools()});
    let expected = vec![
        ("add".to_owned(), "{\"size\": 1}".to_owned()),
        ("remove".to_owned(), "{}".to_owned()),
    ];
    let answer = chat(&service, body.clone()).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["content"], "Let me see.");
    let calls = message["tool_calls"].as_array().unwrap();
    let calls: Vec<_> = calls.iter().map(name_and_arguments).collect();
    assert_eq!(calls, expected);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
    let (text, calls, reason) = assembled(&stream(&service, body.clone()).await, 0);
    assert_eq!(
        (&*text, calls, reason),
        ("Let me see.", expected, json!("tool_calls"))
    );

    let mut one = body.clone();
    one["parallel_tool_calls"] = json!(false);
    let answer = chat(&service, one).await;
    assert_eq!(
        answer["choices"][0]["message"]["tool_calls"]
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let mut none = body;
    none["tool_choice"] = json!("none");
    let answer = chat(&service, none).await;
    assert_eq!(answer["choices"][0]["message"]["content"], said);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_call_can_be_forced() {
    let service = serving(Fake::babbling());
    let body = |choice: Value| json!({"messages": [{"role": "user", "content": "u"}], "tools": tools(), "tool_choice": choice, "seed": 3});
    let named = json!({"type": "function", "function": {"name": "remove"}});
    for (choice, names) in [
        (json!("required"), &["add", "remove"][..]),
        (named, &["remove"]),
    ] {
        for _ in 0..4 {
            let answer = chat(&service, body(choice.clone())).await;
            let message = &answer["choices"][0]["message"];
            assert_eq!(message["content"], Value::Null, "{answer}");
            let (name, arguments) = name_and_arguments(&message["tool_calls"][0]);
            assert!(names.contains(&&*name), "{answer}");
            let arguments: Value = serde_json::from_str(&arguments).unwrap();
            assert!([json!({"size": 1}), json!({"size": 2})].contains(&arguments));
            assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");
            let (text, calls, _) = assembled(&stream(&service, body(choice.clone())).await, 0);
            assert_eq!((&*text, calls.len()), ("", 1));
        }
    }
}

#[tokio::test]
async fn a_conversation_with_calls_and_results_is_taken() {
    let service = serving(answering("4"));
    let call = json!({"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{\"size\": 2}"}});
    let messages = json!([
        {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "user", "content": "2+2?", "name": "ada"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "4"},
    ]);
    let ids = post(
        &service,
        "/tokenize",
        json!({"messages": messages, "tools": tools()}),
    )
    .await;
    let text = post(&service, "/detokenize", json!({"tokens": ids["tokens"]})).await;
    let text = text["prompt"].as_str().unwrap();
    for part in [
        "<|unused_1|>system\na\nb<|end_of_text|>",
        "<tool_call>{\"name\": \"add\", \"arguments\": {\"size\": 2}}</tool_call>",
        "<|unused_1|>tool\n4<|end_of_text|>",
        "{\"size\": {\"enum\": [1, 2]}}",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    let answer = chat(&service, json!({"messages": messages, "tools": tools()})).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "4");
    assert_eq!(answer["usage"]["prompt_tokens"], ids["count"]);
}

#[tokio::test]
async fn calls_of_granite_3_and_llama_3_are_read_whole_and_streamed() {
    let granite = "{% if tools %}{{ '<|unused_2|><|tool_call|>' ~ (tools | tojson) }}{% endif %}{% for m in messages %}{{ '<|unused_1|>' + m.role + '\n' + m.content }}{% endfor %}{{ '<|unused_1|>assistant\n' }}";
    let llama = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}{{ '<|unused_1|>' + m.role + '\n' + m.content }}{% endfor %}{{ '<|unused_1|>assistant\n' }}";
    let list = "[{\"name\": \"add\", \"arguments\": {\"size\": 1}}]";
    let object = "{\"name\": \"add\", \"parameters\": {\"size\": 1}}";
    // Granite 3's token, in place of a token of the fixture.
    let file = crate::harness::fixture("granite-3-tiny").join("tokenizer.json");
    let renamed = std::fs::read_to_string(&file).unwrap();
    let renamed = renamed.replace("<|unused_3|>", "<|tool_call|>");
    for (template, said, content) in [
        (granite, format!("<tool_call>{list}"), Value::Null),
        (granite, list.to_owned(), Value::Null),
        (
            granite,
            format!("So: <tool_call>{list} done"),
            json!("So: done"),
        ),
        (llama, object.to_owned(), Value::Null),
    ] {
        let inner = renamed.parse().unwrap();
        let options = Options {
            chat_template: Some(template),
            tokenizer: Some(microgranite::text::Tokenizer::new(inner, &file).unwrap()),
            ..Options::default()
        };
        let service = Service::with(answering(&said), options);
        let body = json!({"messages": [{"role": "user", "content": "u"}], "tools": tools()});
        let answer = chat(&service, body.clone()).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["message"]["content"], content, "{said}");
        assert_eq!(choice["finish_reason"], "tool_calls", "{said}");
        let expected = ("add".to_owned(), "{\"size\": 1}".to_owned());
        assert_eq!(
            name_and_arguments(&choice["message"]["tool_calls"][0]),
            expected
        );
        let (text, calls, _) = assembled(&stream(&service, body).await, 0);
        assert_eq!(text, content.as_str().unwrap_or_default());
        assert_eq!(calls, [expected]);
    }
}
