//! Parses calls that models write in tags: Granite 4.2, Qwen 3 Coder and Nemotron.
//!
//! ```text
//! <tool_call>
//! <function=NAME>
//! <parameter=KEY>
//! VALUE
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//!
//! This is not XML: nothing is escaped, and a value may contain any text, including these tags. Therefore a tag ends a
//! value only if another part of the call follows it. The line feeds after `<parameter=KEY>` and before `</parameter>`
//! are not part of the value.

mod call;
mod tags;

use std::mem;
use std::sync::Arc;

use super::{CLOSE, END_THINK, MAX_CALLS, OPEN, Part, THINK, pass_thought};
use crate::text::seek::{Found, Seek, start_at_end};
use crate::text::values::Tools;
use call::Call;
use tags::{END_FUNCTION, END_PARAMETER, MAX_NAME, Tag, follows, is_retried};
pub use tags::{FUNCTION, OPENERS, PARAMETER, write};

/// Finds the calls in one answer. Text that may be the start of a call is held back until that is known.
///
/// The result depends only on the characters, not on how the text was cut into pieces.
pub struct XmlCalls {
    tools: Arc<Tools>,
    /// Whether text in the tags of a thought has no calls.
    pub thinks: bool,
    state: State,
    seek: Seek,
    /// Searches for the end of a thought.
    thought: Seek,
    /// Text that is not parsed yet.
    held: String,
    /// Text before `held`, kept in case it is not a call.
    opened: String,
    calls: usize,
    call: Call,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// In text.
    Text,
    /// In a thought within the text.
    Thought,
    /// After the tag that opens a call.
    Opened,
    /// In the name of the tool. The flag says whether `<tool_call>` precedes it.
    Name(bool),
    /// Between arguments.
    Between,
    /// In the key of an argument.
    Key,
    /// Before the first character of a value.
    Lead,
    /// In a value. This number of bytes in `held` certainly belongs to it.
    Value(usize),
    /// After a call.
    After,
}

impl XmlCalls {
    /// Creates a parser for the start of an answer, or for text after the opener if the prompt ended with it.
    pub fn new(tools: Arc<Tools>, is_inside: bool) -> Self {
        Self {
            tools,
            state: match is_inside {
                true => State::Opened,
                false => State::Text,
            },
            thinks: false,
            seek: Seek::new(&OPENERS),
            thought: Seek::new(&END_THINK),
            held: String::new(),
            opened: String::new(),
            calls: 0,
            call: Call::default(),
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held += text;
        let mut parts = Vec::new();
        while match self.state {
            State::Text => self.search(&mut parts),
            State::Thought => self.think(&mut parts),
            State::Opened => self.opened(&mut parts),
            State::Name(in_tag) => self.name(in_tag, &mut parts),
            State::Between => self.between(&mut parts),
            State::Key => self.key(&mut parts),
            State::Lead => self.lead(),
            State::Value(certain) => self.value(certain, &mut parts),
            State::After => self.after(),
        } {}
        parts
    }

    /// Takes the end of the answer. If it is within a call, the call is completed, unless the answer was cut off: a
    /// client should not run a call that lacks a part.
    pub fn finish(&mut self, is_cut: bool) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = mem::take(&mut self.held);
        match mem::replace(&mut self.state, State::Text) {
            State::Text | State::Opened | State::Name(_) => {
                let text = mem::take(&mut self.opened) + &self.seek.finish() + &held;
                self.text(&text, &mut parts);
            }
            State::Thought => {
                let text = self.thought.finish();
                self.text(&text, &mut parts);
            }
            State::After => self.text(&held, &mut parts),
            state @ (State::Value(_) | State::Lead) => {
                // At the end of the answer, a closing tag ends the value although nothing follows it.
                let certain = match state {
                    State::Value(certain) => certain,
                    _ => 0,
                };
                let (value, tag) = held.split_at(certain);
                let is_end = tag.starts_with(END_PARAMETER)
                    || value.ends_with('\n') && tag.starts_with(END_FUNCTION);
                let value = if is_end { value } else { &held };
                self.more(value, is_end || !is_cut, &mut parts);
                if !is_cut {
                    parts.push(Part::Arguments("}".to_owned()));
                }
            }
            State::Between | State::Key if is_cut => {}
            State::Between | State::Key => parts.push(Part::Arguments("}".to_owned())),
        }
        parts
    }

    /// Number of calls that have been found.
    pub const fn calls(&self) -> usize {
        self.calls
    }

    /// Whether the last call has begun but not ended.
    pub const fn in_call(&self) -> bool {
        match self.state {
            State::Text | State::Thought | State::Opened | State::Name(_) | State::After => false,
            State::Between | State::Key | State::Lead | State::Value(_) => true,
        }
    }

    /// In text: passes on the text that certainly precedes the tag of a call. Returns whether a tag was found.
    fn search(&mut self, parts: &mut Vec<Part>) -> bool {
        let held = mem::take(&mut self.held);
        let (text, found) = self.seek.push(&held);
        self.text(&text, parts);
        let Some(Found {
            space,
            marker,
            rest,
        }) = found
        else {
            return false;
        };
        self.held = rest;
        if marker == THINK {
            self.text(&(space + marker), parts);
            if self.thinks {
                self.state = State::Thought;
            }
            return true;
        }
        self.opened = space + marker;
        self.state = match marker {
            FUNCTION => State::Name(false),
            _ => State::Opened,
        };
        true
    }

    /// In a thought. Returns whether it has ended.
    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        let held = mem::take(&mut self.held);
        let Some(rest) = pass_thought(&mut self.thought, &held, parts) else {
            return false;
        };
        self.held = rest;
        self.state = State::Text;
        true
    }

    /// After `<tool_call>`. Returns whether it is known what follows.
    fn opened(&mut self, parts: &mut Vec<Part>) -> bool {
        match follows(&self.held, &[FUNCTION]) {
            None => return false,
            Some(true) => {
                let space = self.held.len() - self.held.trim_start().len();
                let tag = self.held.drain(..space + FUNCTION.len());
                self.opened.extend(tag);
                self.state = State::Name(true);
            }
            Some(false) => self.give_up(parts),
        }
        true
    }

    /// Treats what looked like a call as text.
    fn give_up(&mut self, parts: &mut Vec<Part>) {
        let opened = mem::take(&mut self.opened);
        self.text(&opened, parts);
        self.state = State::Text;
    }

    /// In the name of a tool. Returns whether it is known to belong to a call.
    fn name(&mut self, in_tag: bool, parts: &mut Vec<Part>) -> bool {
        let end = self.held.find(['>', '\n', '<']);
        if end.is_none() && self.held.len() < MAX_NAME {
            return false;
        }
        let end = end.filter(|&end| end < MAX_NAME && self.calls < MAX_CALLS);
        let (name, rest) = self.held.split_at(end.unwrap_or(0));
        let name = name.trim();
        let is_call = match rest.strip_prefix('>') {
            _ if name.is_empty() => Some(false),
            Some(_) if in_tag => Some(true),
            // Ordinary text may mention `<function=…>`, so the tool must exist, and the call must go on.
            Some(after) if self.tools.has(name) => follows(after, &[PARAMETER, END_FUNCTION]),
            None if in_tag => match is_retried(rest) {
                Some(true) => {
                    self.skip_to_retry();
                    return true;
                }
                not_yet => not_yet,
            },
            _ => Some(false),
        };
        match is_call {
            None => return false,
            Some(true) => self.begin(end.unwrap_or(0), parts),
            Some(false) => self.give_up(parts),
        }
        true
    }

    /// Begins a call. The name of its tool ends at `end`.
    fn begin(&mut self, end: usize, parts: &mut Vec<Part>) {
        let name = self.held[..end].trim().to_owned();
        self.held.drain(..=end);
        self.opened.clear();
        self.calls += 1;
        parts.push(Part::Begin(name.clone()));
        parts.push(Part::Arguments("{".to_owned()));
        self.call = Call::new(name);
        self.state = State::Between;
    }

    /// Skips a call that the model gave up within the first tag, as vLLM does.
    fn skip_to_retry(&mut self) {
        let next = self.held.find(OPEN).unwrap_or(0);
        self.held.drain(..next);
        self.opened.clear();
        self.state = State::Text;
    }

    /// Between arguments: skips everything except tags. Returns whether a tag was found.
    fn between(&mut self, parts: &mut Vec<Part>) -> bool {
        let tags = [PARAMETER, END_FUNCTION, CLOSE, OPEN];
        let found = tags
            .into_iter()
            .filter_map(|tag| Some((self.held.find(tag)?, tag)));
        let Some((at, tag)) = found.min() else {
            let keeps = tags.iter().map(|tag| start_at_end(&self.held, tag));
            let passed = self.held.len() - keeps.max().unwrap_or(0);
            self.held.drain(..passed);
            return false;
        };
        if tag == PARAMETER {
            self.held.drain(..at + tag.len());
            self.state = State::Key;
            return true;
        }
        // `</tool_call>` or the `<tool_call>` of another call may end a call too.
        let behind = if tag == END_FUNCTION { tag.len() } else { 0 };
        self.held.drain(..at + behind);
        parts.push(Part::Arguments("}".to_owned()));
        self.state = State::After;
        true
    }

    /// In the key of an argument. Returns whether it is complete.
    fn key(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(end) = self.held.find(['>', '\n', '<']) else {
            if self.held.len() < MAX_NAME {
                return false;
            }
            self.state = State::Between;
            return true;
        };
        let key = self.held[..end].trim().to_owned();
        let is_key = self.held[end..].starts_with('>') && !key.is_empty() && end < MAX_NAME;
        if !is_key {
            self.state = State::Between;
            return true;
        }
        self.held.drain(..=end);
        let start = self.call.begin_value(key, &self.tools);
        parts.extend(start.map(Part::Arguments));
        self.state = State::Lead;
        true
    }

    /// Before a value: skips the line feed that is not part of it.
    fn lead(&mut self) -> bool {
        if self.held.is_empty() {
            return false;
        }
        if self.held.starts_with('\n') {
            self.held.drain(..1);
        }
        self.state = State::Value(0);
        true
    }

    /// In a value: passes on the text that certainly belongs to it. Returns whether the value has ended.
    fn value(&mut self, mut certain: usize, parts: &mut Vec<Part>) -> bool {
        while let Some(at) = self.held[certain..].find('<') {
            certain += at;
            let may_be_key = |key: &str| self.call.may_have(key, &self.tools);
            match tags::meaning(&self.held, certain, may_be_key) {
                Tag::Text => certain += 1,
                Tag::Open => {
                    self.pass(certain, parts);
                    return false;
                }
                Tag::End(done) => {
                    let rest = self.held.split_off(certain);
                    let value = mem::replace(&mut self.held, rest);
                    self.held.drain(..done);
                    self.more(&value, true, parts);
                    self.state = State::Between;
                    return true;
                }
            }
        }
        self.pass(self.held.len(), parts);
        false
    }

    /// Passes on the first `certain` bytes of the held text, which do not contain a tag. A line feed at their end is
    /// held back, because it may precede the closing tag and then is not part of the value.
    fn pass(&mut self, certain: usize, parts: &mut Vec<Part>) {
        let is_line = self.held[..certain].ends_with('\n');
        let passed = certain - usize::from(is_line);
        let rest = self.held.split_off(passed);
        let value = mem::replace(&mut self.held, rest);
        self.more(&value, false, parts);
        self.state = State::Value(certain - passed);
    }

    /// Adds text to the value of an argument; `is_end` says whether it is the last text.
    fn more(&mut self, text: &str, is_end: bool, parts: &mut Vec<Part>) {
        let written = self.call.more(text, is_end);
        if !written.is_empty() {
            parts.push(Part::Arguments(written));
        }
    }

    /// After a call: its closing tag may follow. Returns whether it is known what follows.
    fn after(&mut self) -> bool {
        match follows(&self.held, &[CLOSE]) {
            None => return false,
            Some(true) => self.held = self.held.trim_start()[CLOSE.len()..].to_owned(),
            Some(false) => {}
        }
        self.state = State::Text;
        true
    }

    fn text(&mut self, text: &str, parts: &mut Vec<Part>) {
        // White space between calls is not part of the text.
        if !(text.is_empty() || self.calls > 0 && text.trim().is_empty()) {
            parts.push(Part::Text(text.to_owned()));
        }
    }
}
