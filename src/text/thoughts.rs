//! Separates thoughts from answers: the text in which a model reasons before it answers is split off while the text
//! arrives.
//!
//! The table of [`Form`]s lists how each family of models marks its thoughts. The end of the prompt determines whether
//! a text begins within a thought.

mod first;

use std::mem;

pub use first::{Bounds, ThoughtFirst, ThoughtTokens};

use super::seek::{Found, Seek, start_at_end};

/// The most white space before the opening tag of a thought, in bytes. After more white space, the tag is ordinary
/// text.
const MAX_SPACE: usize = 256;

/// How a family of models marks its thoughts.
#[derive(Debug, PartialEq, Eq)]
pub struct Form {
    /// A template that contains all of these texts has this form. If several forms match, the first one is used.
    signs: &'static [&'static str],
    /// The template variable that turns thinking on and off.
    pub switch: &'static str,
    /// Whether the model thinks by default, if the request does not set the switch.
    pub is_default: bool,
    /// The texts that may open a thought.
    opens: &'static [&'static str],
    /// The texts that may close a thought.
    closes: &'static [&'static str],
    /// What separates the thought from the answer. It belongs to neither.
    margin: Margin,
}

/// What surrounds an answer without being part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Margin {
    /// Nothing.
    None,
    /// Line feeds before the answer.
    Lines,
    /// White space and these two tags around the answer, each of which may be missing.
    Tags(&'static str, &'static str),
}

/// The forms. More specific ones come first.
static FORMS: [Form; 3] = [
    // Granite 3.2.
    Form {
        signs: &["Here is my thought process:"],
        switch: "thinking",
        is_default: false,
        opens: &["Here is my thought process:", "Here's my thought process:"],
        closes: &["Here is my response:", "Here's my response:"],
        margin: Margin::None,
    },
    // Granite 3.3.
    Form {
        signs: &["<think>", "<response>"],
        switch: "thinking",
        is_default: false,
        opens: &["<think>"],
        closes: &["</think>"],
        margin: Margin::Tags("<response>", "</response>"),
    },
    // Granite 4.2, Qwen 3, DeepSeek R1, Nemotron and others.
    Form {
        signs: &["<think>"],
        switch: "enable_thinking",
        is_default: true,
        opens: &["<think>"],
        closes: &["</think>"],
        margin: Margin::Lines,
    },
];

impl Form {
    /// Returns the form that the chat template `source` uses, if any.
    pub fn of(source: &str) -> Option<&'static Self> {
        let is_taught = |form: &&Self| form.signs.iter().all(|sign| source.contains(sign));
        FORMS.iter().find(is_taught)
    }

    /// The text with which the model itself opens a thought.
    pub const fn open(&self) -> &'static str {
        self.opens[0]
    }

    /// The text with which the model itself closes a thought.
    pub const fn close(&self) -> &'static str {
        self.closes[0]
    }

    /// The text that closes a thought, and what separates it from the answer.
    pub fn closing(&self) -> String {
        let margin = match self.margin {
            Margin::Lines => "\n",
            Margin::None | Margin::Tags(..) => "",
        };
        self.close().to_owned() + margin
    }

    /// Returns a splitter for the answer to `prompt`. The end of the prompt must come from the template.
    pub fn after(&'static self, prompt: &str) -> Splitter {
        let end = prompt.trim_end();
        let ends_with = |marks: &[&str]| marks.iter().any(|mark| end.ends_with(mark));
        Splitter::new(
            self,
            if ends_with(self.opens) {
                State::Opened
            } else if ends_with(self.closes) {
                State::Margin
            } else {
                State::Start
            },
        )
    }

    /// Splits `text`, an earlier answer, into the thought with which it begins and the answer after that.
    pub fn split_off<'a>(&self, text: &'a str) -> Option<Past<'a>> {
        let start = text.trim_start();
        let mut opens = self.opens.iter();
        let inside = opens.find_map(|open| start.strip_prefix(open))?;
        let closes = self.closes.iter();
        let closes = closes.filter_map(|close| Some((inside.find(close)?, close.len())));
        let (end, length) = closes.min()?;
        let (open, inside) = text.split_at(text.len() - inside.len());
        let (thought, rest) = inside.split_at(end);
        let (close, answer) = rest.split_at(length);
        Some(Past {
            thought: thought.trim_matches('\n'),
            answer: answer.trim_start_matches('\n'),
            whole: [open, thought, close, answer],
        })
    }
}

/// An earlier text of the assistant, split into its thought and its answer.
pub struct Past<'a> {
    /// The thought, without line feeds around it.
    pub thought: &'a str,
    /// The answer, without line feeds before it.
    pub answer: &'a str,
    /// The complete text in four parts: opening tag, thought, closing tag, answer.
    pub whole: [&'a str; 4],
}

/// Splits a text into its thought and its answer while it arrives.
///
/// The result depends only on the characters, not on how the text was cut into pieces. The returned parts, joined, are
/// the complete text. Each character is examined only a few times.
#[derive(Debug, Clone)]
pub struct Splitter {
    form: &'static Form,
    state: State,
    /// Text that is not assigned to a part yet.
    held: String,
    /// Searches for the end of the thought; used within a thought.
    close: Seek,
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Text of the thought.
    Thought(String),
    /// Tags around thought and answer, and white space that belongs to neither.
    Mark(String),
    /// Text of the answer.
    Answer(String),
}

/// How a thought is shown to who asked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Shown {
    /// Apart from the answer.
    #[default]
    Apart,
    /// In front of the answer, as the model wrote it, with its tags.
    InText,
    /// Not at all: neither its text nor its tokens.
    Not,
}

/// What the end of the text so far belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Unknown: the text may begin with a thought or with the answer.
    Undecided,
    /// The thought.
    Thought,
    /// The answer.
    Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// At the start: only white space has arrived.
    Start,
    /// At the start, after a prompt that has opened a thought. Some models open it again.
    Opened,
    /// After the opening tag of a thought, before its first character.
    Lead,
    /// In a thought.
    Thought,
    /// After a thought, before a tag that may open the answer.
    Margin,
    /// After the tag that opens the answer.
    Inner,
    /// In an answer that may end with a closing tag.
    Tagged,
    /// In an answer without a closing tag: everything that follows belongs to it.
    Answer,
}

impl Splitter {
    const fn new(form: &'static Form, state: State) -> Self {
        Self {
            form,
            state,
            held: String::new(),
            close: Seek::new(form.closes),
        }
    }

    /// Creates a splitter for a text that is within an answer, so that no thought can begin any more.
    pub const fn in_answer(form: &'static Form) -> Self {
        Self::new(form, State::Answer)
    }

    /// What the end of the text so far belongs to.
    pub const fn phase(&self) -> Phase {
        match self.state {
            State::Start => Phase::Undecided,
            State::Opened | State::Lead | State::Thought => Phase::Thought,
            State::Margin | State::Inner | State::Tagged | State::Answer => Phase::Answer,
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        let mut parts = Vec::new();
        self.held += text;
        while match self.state {
            State::Start | State::Opened => self.begin(&mut parts),
            State::Lead => self.skip(&mut parts, State::Thought, |text| {
                text.trim_start_matches('\n')
            }),
            State::Thought => self.think(&mut parts),
            State::Margin => self.margin(&mut parts),
            State::Inner => self.skip(&mut parts, State::Tagged, str::trim_start),
            State::Tagged => self.tagged(&mut parts),
            State::Answer => self.answer(&mut parts),
        } {}
        parts
    }

    /// Takes the end of the text.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = mem::take(&mut self.held);
        match self.state {
            State::Start | State::Answer => add(&mut parts, Part::Answer, held),
            State::Opened | State::Lead if held.trim().is_empty() => {
                add(&mut parts, Part::Mark, held);
            }
            State::Opened | State::Lead => add(&mut parts, Part::Thought, held),
            State::Thought => {
                let rest = self.close.finish();
                let (thought, space) = rest.split_at(rest.trim_end().len());
                add(&mut parts, Part::Thought, thought.to_owned());
                add(&mut parts, Part::Mark, space.to_owned());
            }
            State::Margin | State::Inner if held.trim().is_empty() => {
                add(&mut parts, Part::Mark, held);
            }
            State::Margin | State::Inner => add(&mut parts, Part::Answer, held),
            State::Tagged => {
                let is_closed = match self.form.margin {
                    Margin::Tags(_, close) => held.trim_end() == close,
                    _ => false,
                };
                let part = if is_closed { Part::Mark } else { Part::Answer };
                add(&mut parts, part, held);
            }
        }
        parts
    }

    /// At a place where a thought may be opened. Returns whether it is known what follows.
    fn begin(&mut self, parts: &mut Vec<Part>) -> bool {
        let rest = self.held.trim_start();
        let mut opens = self.form.opens.iter();
        if let Some(open) = opens.clone().find(|open| rest.starts_with(**open)) {
            let end = self.held.len() - rest.len() + open.len();
            self.take(end, Part::Mark, parts);
            self.state = State::Lead;
            return true;
        }
        if self.held.len() < MAX_SPACE && opens.any(|open| open.starts_with(rest)) {
            return false;
        }
        self.state = match self.state {
            State::Start => State::Answer,
            _ => State::Lead,
        };
        true
    }

    /// Skips the prefix that `trim` removes, which the next piece may continue. Returns whether other text follows.
    fn skip(&mut self, parts: &mut Vec<Part>, next: State, trim: impl Fn(&str) -> &str) -> bool {
        let space = self.held.len() - trim(&self.held).len();
        self.take(space, Part::Mark, parts);
        if self.held.is_empty() {
            return false;
        }
        self.state = next;
        true
    }

    /// In a thought. Returns whether it has ended.
    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        let held = mem::take(&mut self.held);
        let (thought, found) = self.close.push(&held);
        add(parts, Part::Thought, thought);
        let Some(Found {
            space,
            marker,
            rest,
        }) = found
        else {
            return false;
        };
        add(parts, Part::Mark, space + marker);
        self.held = rest;
        self.state = State::Margin;
        true
    }

    /// After a thought. Returns whether the start of the answer is known.
    fn margin(&mut self, parts: &mut Vec<Part>) -> bool {
        match self.form.margin {
            Margin::None => {
                self.state = State::Answer;
                true
            }
            Margin::Lines => self.skip(parts, State::Answer, |text| text.trim_start_matches('\n')),
            Margin::Tags(open, _) => {
                let space = self.held.len() - self.held.trim_start().len();
                self.take(space, Part::Mark, parts);
                if self.held.starts_with(open) {
                    self.take(open.len(), Part::Mark, parts);
                } else if open.starts_with(&self.held) {
                    return false;
                }
                self.state = State::Inner;
                true
            }
        }
    }

    /// In an answer that may end with a closing tag. The tag is not part of the answer if only white space follows it.
    fn tagged(&mut self, parts: &mut Vec<Part>) -> bool {
        let Margin::Tags(_, close) = self.form.margin else {
            self.state = State::Answer;
            return true;
        };
        loop {
            match self.held.find(close) {
                Some(at) => {
                    self.take(at, Part::Answer, parts);
                    let is_short = self.held.len() < MAX_SPACE;
                    if is_short && self.held[close.len()..].trim_end().is_empty() {
                        return false;
                    }
                    self.take(close.len(), Part::Answer, parts);
                }
                None => {
                    let certain = self.held.len() - start_at_end(&self.held, close);
                    self.take(certain, Part::Answer, parts);
                    return false;
                }
            }
        }
    }

    fn answer(&mut self, parts: &mut Vec<Part>) -> bool {
        self.take(self.held.len(), Part::Answer, parts);
        false
    }

    /// Moves the first `length` bytes of the held text into a part.
    fn take(&mut self, length: usize, part: fn(String) -> Part, parts: &mut Vec<Part>) {
        let rest = self.held.split_off(length);
        let text = mem::replace(&mut self.held, rest);
        add(parts, part, text);
    }
}

/// Adds a part unless its text is empty.
fn add(parts: &mut Vec<Part>, part: fn(String) -> Part, text: String) {
    if !text.is_empty() {
        parts.push(part(text));
    }
}

#[cfg(test)]
mod tests;
