//! Thoughts in answers: what a model writes for itself before it answers, told from the answer as the text arrives.
//!
//! How the families of models mark their thoughts is one table, [`Form`]. Where a text begins, in a thought or not, is
//! what the prompt says that it ends with.

mod first;

use std::mem;

pub use first::{Bounds, ThoughtFirst, ThoughtTokens};

use super::seek::{Found, Seek, start_at_end};

/// White space before what opens a thought, in bytes; a model that writes more of it does not begin one.
const MAX_SPACE: usize = 256;

/// How a family of models marks its thoughts.
#[derive(Debug, PartialEq, Eq)]
pub struct Form {
    /// What a template has in it that teaches the form; the first form of which this is so is taken.
    signs: &'static [&'static str],
    /// The variable of the template that turns thoughts on and off.
    pub switch: &'static str,
    /// Whether the model thinks when nothing is said about it, if only its template lets it.
    pub is_default: bool,
    /// What begins a thought.
    opens: &'static [&'static str],
    /// What ends it.
    closes: &'static [&'static str],
    /// What stands between a thought and its answer and belongs to neither.
    margin: Margin,
}

/// What stands around an answer and is no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Margin {
    /// Nothing.
    None,
    /// Line feeds before it.
    Lines,
    /// White space and these tags around it, each of which may be missing.
    Tags(&'static str, &'static str),
}

/// The forms, the most special first.
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
    /// The one that the chat template `source` teaches, if any.
    pub fn of(source: &str) -> Option<&'static Self> {
        let is_taught = |form: &&Self| form.signs.iter().all(|sign| source.contains(sign));
        FORMS.iter().find(is_taught)
    }

    /// What begins a thought, in the model's own words.
    pub const fn open(&self) -> &'static str {
        self.opens[0]
    }

    /// What ends it.
    pub const fn close(&self) -> &'static str {
        self.closes[0]
    }

    /// Where an answer is that follows `prompt`, the end of which the template wrote.
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

    /// The thought that `text`, an answer of the past, begins with, and the answer behind it.
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

/// A thought and an answer in a text of the past.
pub struct Past<'a> {
    /// Without line feeds around it.
    pub thought: &'a str,
    /// Without line feeds before it.
    pub answer: &'a str,
    /// All of the text: what opens the thought, the thought, what closes it, the answer.
    pub whole: [&'a str; 4],
}

/// Tells the thought and the answer in one text apart, as it arrives.
///
/// What comes out depends on the characters alone, not on how they were cut into pieces, and all that comes out, put
/// together, is the text. Each character is looked at a few times at most.
#[derive(Debug, Clone)]
pub struct Splitter {
    form: &'static Form,
    state: State,
    /// Not decided yet.
    held: String,
    /// In a thought: looks for its end.
    close: Seek,
}

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// What the model thinks.
    Thought(String),
    /// What marks thought and answer, and white space that belongs to neither.
    Mark(String),
    /// What it says.
    Answer(String),
}

/// What a text is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// A thought may begin here, or the answer.
    Undecided,
    /// A thought.
    Thought,
    /// The answer.
    Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing but white space has come.
    Start,
    /// The same, where the prompt has begun a thought: models may begin it again.
    Opened,
    /// At the beginning of a thought, before its first character.
    Lead,
    /// In a thought.
    Thought,
    /// Behind a thought, before what may open the answer.
    Margin,
    /// Behind what opens the answer.
    Inner,
    /// In an answer after which a tag may close it.
    Tagged,
    /// In an answer in which all is text.
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

    /// One for a text in the middle of an answer, in which no thought begins any more.
    pub const fn in_answer(form: &'static Form) -> Self {
        Self::new(form, State::Answer)
    }

    /// What the text is in the middle of.
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

    /// The end of the text.
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

    /// Where a thought may be opened. Returns whether that is decided.
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

    /// Passes what `trim` takes off the beginning, which may go on. Returns whether something else is there.
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

    /// Behind a thought. Returns whether it is decided where the answer begins.
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

    /// In an answer that a tag may close: the tag is no part of it if nothing but white space follows.
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

    /// Takes so much of what is held for a part.
    fn take(&mut self, length: usize, part: fn(String) -> Part, parts: &mut Vec<Part>) {
        let rest = self.held.split_off(length);
        let text = mem::replace(&mut self.held, rest);
        add(parts, part, text);
    }
}

/// Adds a part, if there is anything in it.
fn add(parts: &mut Vec<Part>, part: fn(String) -> Part, text: String) {
    if !text.is_empty() {
        parts.push(part(text));
    }
}

#[cfg(test)]
mod tests;
