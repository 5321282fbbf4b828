//! The chat templates of Granite against the output of Jinja in Python, recorded by `tests/sources/chat_goldens.py`.

use std::path::Path;

use jiff::Timestamp;
use minijinja::Value as Variable;
use serde_json::Value;
use sha2::{Digest, Sha256};

use microgranite::text::Tokenizer;
use microgranite::text::chat::{ChatTemplate, Conversation, Ending, Message, Role, ToolCall};

fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn message(json: &Value) -> Message {
    let text = |name: &str| json[name].as_str().map(str::to_owned);
    let calls = json["tool_calls"].as_array().into_iter().flatten();
    Message {
        role: match json["role"].as_str().unwrap() {
            "system" => Role::System,
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" => Role::Tool,
            role => Role::Other(role.to_owned()),
        },
        content: text("content").unwrap(),
        reasoning: text("reasoning_content"),
        name: None,
        calls: calls
            .map(|call| ToolCall {
                id: call["id"].as_str().unwrap().to_owned(),
                name: call["function"]["name"].as_str().unwrap().to_owned(),
                arguments: call["function"]["arguments"].to_string(),
            })
            .collect(),
        call_id: text("tool_call_id"),
    }
}

/// A value of the recorded case, with its keys in their original order.
fn in_order(case: &Variable, name: &str) -> Option<Variable> {
    let value = case.get_attr(name).unwrap();
    (!value.is_undefined()).then_some(value)
}

#[test]
#[ignore = "needs the Granite templates: set MICROGRANITE_ASSETS"]
fn granite_templates_render_as_in_python() {
    let Some(assets) = crate::assets() else {
        return;
    };
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sources/chat_goldens.json");
    let recorded = std::fs::read_to_string(file).unwrap();
    let ordered: Variable = serde_json::from_str(&recorded).unwrap();
    let ordered: Vec<Variable> = ordered
        .get_attr("cases")
        .unwrap()
        .try_iter()
        .unwrap()
        .collect();
    let recorded: Value = serde_json::from_str(&recorded).unwrap();
    let now: Timestamp = recorded["now"].as_str().unwrap().parse().unwrap();
    let goldens = recorded["goldens"].as_array().unwrap();
    assert_eq!(goldens.len(), 38);
    for golden in goldens {
        let template = assets.join(golden["template"].as_str().unwrap());
        let tokenizer_file = template.with_file_name("tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_file(&tokenizer_file).unwrap();
        let tokenizer = Tokenizer::new(tokenizer, &tokenizer_file).unwrap();
        let source = std::fs::read_to_string(&template).unwrap();
        let template = ChatTemplate::new(&source, &tokenizer, None, None).unwrap();
        assert!(template.calls().is_some());

        let number = golden["case"].as_u64().unwrap() as usize;
        let (case, ordered) = (&recorded["cases"][number], &ordered[number]);
        // The fixture has arguments as objects; the API has them as text, in the same order.
        let mut messages: Vec<Message> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(message)
            .collect();
        for (at, message) in messages.iter_mut().enumerate() {
            for (which, call) in message.calls.iter_mut().enumerate() {
                let path = ordered.get_attr("messages").unwrap();
                let path = path.get_item_by_index(at).unwrap();
                let path = path.get_attr("tool_calls").unwrap();
                let function = path
                    .get_item_by_index(which)
                    .unwrap()
                    .get_attr("function")
                    .unwrap();
                let arguments = function.get_attr("arguments").unwrap();
                call.arguments = serde_json::to_string(&arguments).unwrap();
            }
        }
        let variables = in_order(ordered, "variables").map(|variables| {
            let names: Vec<Variable> = variables.try_iter().unwrap().collect();
            let pairs = names
                .into_iter()
                .map(|name| (name.to_string(), variables.get_item(&name).unwrap()));
            pairs.collect::<Vec<_>>()
        });
        let conversation = Conversation {
            messages,
            tools: in_order(ordered, "tools"),
            documents: in_order(ordered, "documents"),
            variables: variables.unwrap_or_default(),
            ending: match case["closed"].as_bool() {
                Some(true) => Ending::Closed,
                _ => Ending::Answer,
            },
            ..Conversation::default()
        };
        let text = template.render(&conversation, now).unwrap();
        let what = format!("{} case {number}: {text}", golden["template"]);
        assert_eq!(
            text.len() as u64,
            golden["bytes"].as_u64().unwrap(),
            "{what}"
        );
        assert_eq!(
            sha256(&text),
            golden["text_sha256"].as_str().unwrap(),
            "{what}"
        );
        let ids = template
            .encode(&tokenizer, &conversation, now, 100_000)
            .unwrap()
            .ids;
        assert_eq!(ids.len() as u64, golden["ids"].as_u64().unwrap(), "{what}");
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        let ids = sha256(&format!("[{}]", ids.join(", ")));
        assert_eq!(ids, golden["ids_sha256"].as_str().unwrap(), "{what}");
    }
}
