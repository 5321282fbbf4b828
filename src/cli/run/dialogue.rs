//! What was said so far, and the request that continues it.

use serde_json::{Value, json};

use super::peer::Model;
use crate::cli::serve::generation::Thinking;

/// The length of a continuation by a model without a chat template, which seldom ends by itself: a paragraph.
const CONTINUATION_TOKENS: usize = 128;

/// Fields of all requests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Whether the model thinks.
    pub thinking: Option<Thinking>,
    /// The most tokens of an answer.
    pub max_tokens: Option<usize>,
    /// The temperature.
    pub temperature: Option<f64>,
    /// The seed.
    pub seed: Option<i64>,
}

/// A conversation.
pub struct Dialogue {
    model: Model,
    system: Option<String>,
    messages: Vec<Value>,
    options: Options,
}

impl Dialogue {
    /// A conversation in which nothing was said.
    pub const fn new(model: Model, system: Option<String>, options: Options) -> Self {
        Self {
            model,
            system,
            messages: Vec::new(),
            options,
        }
    }

    /// The model.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// What the model is told beforehand.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Sets what the model is told beforehand.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text;
    }

    /// Sets whether the model thinks; `None` leaves it to its template.
    pub fn set_thinking(&mut self, thinking: Option<Thinking>) {
        self.options.thinking = thinking;
    }

    /// Forgets all that was said.
    pub fn clear(&mut self) {
        self.messages.clear();
    }

    /// The request for an answer to `text`.
    pub fn ask(&mut self, text: String) -> Value {
        let mut request = json!({
            "model": self.model.name,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let options = &self.options;
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                request[name] = value;
            }
        };
        set("temperature", options.temperature.map(Value::from));
        set("seed", options.seed.map(Value::from));
        if !self.model.chats {
            let most = options.max_tokens.unwrap_or(CONTINUATION_TOKENS);
            set("max_tokens", Some(most.into()));
            set("prompt", Some(text.into()));
            return request;
        }
        set("max_tokens", options.max_tokens.map(Value::from));
        match options.thinking.filter(|_| self.model.thinks) {
            Some(Thinking::On) => set("reasoning", Some(json!({"enabled": true}))),
            Some(Thinking::Off) => set("reasoning_effort", Some("none".into())),
            Some(Thinking::Low) => set("reasoning_effort", Some("low".into())),
            None => {}
        }
        self.messages.push(json!({"role": "user", "content": text}));
        let system = self.system.iter();
        let system = system.map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.chain(self.messages.iter().cloned()).collect();
        set("messages", Some(messages.into()));
        request
    }

    /// Adds the answer. One without any text, such as an answer that was stopped while the model thought, is taken back
    /// together with its question.
    pub fn heard(&mut self, text: String, thought: String) {
        if text.is_empty() {
            self.take_back();
            return;
        }
        if self.model.chats {
            let mut message = json!({"role": "assistant", "content": text});
            if !thought.is_empty() {
                message["reasoning_content"] = thought.into();
            }
            self.messages.push(message);
        }
    }

    /// Takes the last question back.
    pub fn take_back(&mut self) {
        self.messages.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialogue(chats: bool) -> Dialogue {
        let model = Model {
            name: "m".to_owned(),
            chats,
            thinks: true,
        };
        Dialogue::new(model, Some("Be brief.".to_owned()), Options::default())
    }

    #[test]
    fn a_request_has_all_that_was_said_and_what_failed_is_not_repeated() {
        let mut dialogue = dialogue(true);
        dialogue.ask("one".to_owned());
        dialogue.heard("1".to_owned(), "hm".to_owned());
        dialogue.ask("two".to_owned());
        dialogue.take_back();
        dialogue.ask("three".to_owned());
        dialogue.heard(String::new(), "hm".to_owned());
        dialogue.set_thinking(Some(Thinking::Off));
        let request = dialogue.ask("four".to_owned());
        let messages = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "1", "reasoning_content": "hm"},
            {"role": "user", "content": "four"},
        ]);
        assert_eq!(request["messages"], messages);
        assert_eq!(request["reasoning_effort"], "none");
        dialogue.clear();
        dialogue.set_system(None);
        let request = dialogue.ask("five".to_owned());
        assert_eq!(request["messages"].as_array().unwrap().len(), 1);
    }

    #[test]
    fn a_model_without_a_template_continues_each_text_by_itself() {
        let mut dialogue = dialogue(false);
        dialogue.ask("one".to_owned());
        dialogue.heard("1".to_owned(), String::new());
        let request = dialogue.ask("two".to_owned());
        assert_eq!(request["prompt"], "two");
        assert_eq!(request["max_tokens"], CONTINUATION_TOKENS);
        assert_eq!(request["messages"], Value::Null);
    }
}
