//! An answer as it comes: the events of a stream as thoughts, text and counts.

use std::fmt::Display;
use std::time::Instant;

use eventsource_stream::Eventsource;
use futures_util::{Stream, StreamExt, stream};
use serde_json::Value;

use crate::error::{Error, Result};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// More of the thought.
    Thought(String),
    /// More text.
    Text(String),
    /// Why the answer ended.
    Finish(String),
    /// The tokens of the prompt, those of them that were in the prefix cache, and those of the answer.
    Usage {
        /// Of the prompt.
        prompt: u64,
        /// Of the prompt, not computed again.
        cached: u64,
        /// Of the answer.
        answer: u64,
    },
}

/// The parts of an answer, from the bytes of its stream.
pub fn parts<B: AsRef<[u8]>, E: Display>(
    bytes: impl Stream<Item = std::result::Result<B, E>>,
) -> impl Stream<Item = Result<Part>> {
    let events = bytes.eventsource().map(|event| match event {
        Ok(event) if event.data == "[DONE]" => Vec::new(),
        Ok(event) => parts_of(&event.data),
        Err(problem) => vec![Err(cut_off(problem))],
    });
    events.flat_map(stream::iter)
}

fn cut_off(problem: impl Display) -> Error {
    Error::Unavailable(format!("the answer was cut off: {problem}"))
}

fn parts_of(data: &str) -> Vec<Result<Part>> {
    let Ok(chunk) = serde_json::from_str::<Value>(data) else {
        return vec![Err(cut_off("an event is not JSON"))];
    };
    if let Some(message) = chunk["error"]["message"].as_str() {
        return vec![Err(Error::Unavailable(message.to_owned()))];
    }
    let text = |value: &Value| {
        let text = value.as_str().filter(|text| !text.is_empty());
        text.map(str::to_owned)
    };
    let choice = &chunk["choices"][0];
    let delta = &choice["delta"];
    let thought = text(&delta["reasoning_content"]).or_else(|| text(&delta["reasoning"]));
    let said = text(&delta["content"]).or_else(|| text(&choice["text"]));
    let usage = &chunk["usage"];
    let usage = usage.is_object().then(|| Part::Usage {
        prompt: usage["prompt_tokens"].as_u64().unwrap_or(0),
        cached: usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .unwrap_or(0),
        answer: usage["completion_tokens"].as_u64().unwrap_or(0),
    });
    let parts = [
        thought.map(Part::Thought),
        said.map(Part::Text),
        text(&choice["finish_reason"]).map(Part::Finish),
        usage,
    ];
    parts.into_iter().flatten().map(Ok).collect()
}

/// What has come of an answer, and when.
#[derive(Debug)]
pub struct Answered {
    /// The thought.
    pub thought: String,
    /// The text.
    pub text: String,
    /// Whether the user stopped it.
    pub was_stopped: bool,
    finish: Option<String>,
    usage: Option<(u64, u64, u64)>,
    asked: Instant,
    first: Option<Instant>,
    last: Instant,
}

impl Default for Answered {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            thought: String::new(),
            text: String::new(),
            was_stopped: false,
            finish: None,
            usage: None,
            asked: now,
            first: None,
            last: now,
        }
    }
}

impl Answered {
    /// Adds a part that has just come.
    pub fn add(&mut self, part: Part) {
        match part {
            Part::Thought(text) => self.thought += &text,
            Part::Text(text) => self.text += &text,
            Part::Finish(reason) => {
                self.finish = Some(reason);
                return;
            }
            Part::Usage {
                prompt,
                cached,
                answer,
            } => {
                self.usage = Some((prompt, cached, answer));
                return;
            }
        }
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
    }

    /// What the user should know about how it ended.
    pub fn remark(&self) -> Option<&'static str> {
        match self.finish.as_deref() {
            _ if self.was_stopped => Some("Stopped."),
            Some("length") => Some("The answer ends here because it reached its length limit."),
            _ => None,
        }
    }

    /// Tokens and speed, in a line.
    pub fn figures(&self) -> String {
        let first = self.first.unwrap_or(self.last);
        let (until_first, rest) = (first - self.asked, self.last - first);
        let first = format!("first token after {:.2} s", until_first.as_secs_f64());
        let Some((prompt, cached, answer)) = self.usage else {
            // A stopped answer has no counts.
            return format!("{first}, stopped {:.2} s later", rest.as_secs_f64());
        };
        // The first token comes out of the prompt, at its speed.
        let seconds = rest.as_secs_f64();
        let speed = match (answer, seconds > 0.0) {
            (2.., true) => format!(", {:.1} tokens/s", (answer - 1) as f64 / seconds),
            _ => String::new(),
        };
        format!(
            "{prompt} tokens read ({cached} of them cached), {first}; {answer} tokens written in {:.2} s{speed}",
            (self.last - self.asked).as_secs_f64()
        )
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    fn read(text: &str) -> Vec<std::result::Result<Part, String>> {
        // One byte at a time: events must not depend on how they are cut.
        let bytes = text.as_bytes().chunks(1).map(Ok::<_, Infallible>);
        let parts = parts(stream::iter(bytes)).map(|part| part.map_err(|error| error.to_string()));
        futures_util::FutureExt::now_or_never(parts.collect()).unwrap()
    }

    #[test]
    fn thoughts_text_counts_and_errors_come_out_of_events() {
        let stream = concat!(
            ": waiting\n\n",
            "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n",
            "data: {\"choices\":[{\"delta\":{\"reasoning\":\"hm\",\"reasoning_content\":\"hm\"}}],\"usage\":null}\n\n",
            "data: {\"choices\":[{\"delta\":{\"content\":\"Grüße\"},\"finish_reason\":\"stop\"}]}\n\n",
            "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":3}}\n\n",
            "data: {\"choices\":[{\"text\":\"on\"}]}\n\n",
            "data: {\"error\":{\"message\":\"no memory\"}}\n\n",
            "data: [DONE]\n\n",
        );
        let usage = Part::Usage {
            prompt: 9,
            cached: 0,
            answer: 3,
        };
        let expected = [
            Ok(Part::Thought("hm".into())),
            Ok(Part::Text("Grüße".into())),
            Ok(Part::Finish("stop".into())),
            Ok(usage),
            Ok(Part::Text("on".into())),
            Err("no memory".into()),
        ];
        assert_eq!(read(stream), expected);
        let broken = "the answer was cut off: an event is not JSON";
        assert_eq!(read("data: {\n\n"), [Err(broken.into())]);
    }
}
