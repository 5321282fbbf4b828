//! Parses calls that models write as JSON: `{"name": …, "arguments": …}`, one by one or in lists.

mod partial;

use std::mem;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{CLOSE, CallSyntax, END_THINK, MAX_CALLS, Part, THINK, pass_thought};
use crate::text::seek::{Found, Seek};
use partial::{Head, JsonEnd, head, may_be_call};

/// The most white space before a call, in bytes. Whatever follows more white space is text.
const MAX_SPACE: usize = 256;

/// Finds the calls in one answer. Text that may be the start of a call is held back until that is known.
///
/// The result depends only on the characters, not on how the text was cut into pieces. Each character is examined only
/// a few times, however long a call is.
pub struct JsonCalls {
    syntax: CallSyntax,
    /// Whether text in the tags of a thought has no calls.
    pub thinks: bool,
    state: State,
    seek: Seek,
    /// Searches for the end of a thought.
    thought: Seek,
    /// Text that is not parsed yet.
    held: String,
    /// Text before the JSON in `held`, kept in case the JSON is not a call: white space, the opener, the start of a
    /// list.
    opened: String,
    calls: usize,
}

/// The position of the parser within an answer.
enum State {
    /// At the start, after white space at most: a call may begin without an opener.
    Start,
    /// In text, where an opener may follow.
    Text,
    /// In a thought within the text.
    Thought,
    /// Where the JSON of a call must begin. The search for its end continues from the last position.
    Call(Place, JsonEnd),
    /// In the arguments of a call, which are passed on.
    Arguments(JsonEnd, Place),
    /// After the arguments of a call, before its end.
    Tail(JsonEnd, Place),
    /// After a call in a list.
    Listed(Place),
    /// After a call or a list. A closing tag may follow, or another call without an opener.
    After,
}

/// The place of a call.
#[derive(Clone, Copy)]
struct Place {
    /// Whether the call has an opener.
    is_opened: bool,
    in_list: bool,
}

/// A call in the JSON that models write.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

impl JsonCalls {
    /// Creates a parser for the start of an answer, or for text after the opener if the prompt ended with it.
    pub fn new(syntax: CallSyntax, is_inside: bool) -> Self {
        let opened = Place {
            is_opened: true,
            in_list: false,
        };
        Self {
            thinks: false,
            seek: Seek::new(syntax.openers()),
            thought: Seek::new(&END_THINK),
            state: match is_inside {
                true => State::Call(opened, JsonEnd::default()),
                false => State::Start,
            },
            syntax,
            held: String::new(),
            opened: String::new(),
            calls: 0,
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<Part> {
        self.held += text;
        let mut parts = Vec::new();
        while match self.state {
            State::Start | State::After => self.begin(),
            State::Text => self.search(&mut parts),
            State::Thought => self.think(&mut parts),
            State::Call(..) => self.call(&mut parts),
            State::Arguments(..) => self.arguments(&mut parts),
            State::Tail(..) => self.tail(),
            State::Listed(_) => self.listed(),
        } {}
        parts
    }

    /// Takes the end of the answer. Incomplete arguments of a call are not completed.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = mem::take(&mut self.held);
        let text = match self.state {
            State::Tail(..) | State::Arguments(..) => String::new(),
            State::Thought => self.thought.finish(),
            _ => mem::take(&mut self.opened) + &self.seek.finish() + &held,
        };
        self.text(&text, &mut parts);
        self.state = State::Text;
        parts
    }

    /// Number of calls that have been found.
    pub const fn calls(&self) -> usize {
        self.calls
    }

    /// Whether the arguments of the last call have begun but not ended.
    pub const fn in_arguments(&self) -> bool {
        matches!(self.state, State::Arguments(..))
    }

    /// Where a call may begin without an opener. Returns whether it is known what follows.
    fn begin(&mut self) -> bool {
        let is_after = matches!(self.state, State::After);
        let rest = self.held.trim_start();
        let is_short = self.held.len() < MAX_SPACE;
        if is_after && let Some(rest) = rest.strip_prefix(CLOSE) {
            self.held = rest.to_owned();
            return true;
        }
        if is_short && (rest.is_empty() || is_after && CLOSE.starts_with(rest)) {
            return false;
        }
        let rest = match rest.strip_prefix(';') {
            Some(next) if is_after => next.trim_start(),
            _ => rest,
        };
        if is_short && rest.is_empty() {
            return false;
        }
        self.state = State::Text;
        if self.syntax.has_bare_calls() && rest.starts_with(['{', '[']) {
            let place = Place {
                is_opened: false,
                in_list: false,
            };
            self.state = State::Call(place, JsonEnd::default());
            let json = self.held.split_off(self.held.len() - rest.len());
            self.opened = mem::replace(&mut self.held, json);
        }
        true
    }

    /// In text: passes on the text that certainly precedes an opener. Returns whether an opener was found.
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
        let place = Place {
            is_opened: true,
            in_list: false,
        };
        self.state = State::Call(place, JsonEnd::default());
        true
    }

    /// In a thought. Returns whether it has ended.
    fn think(&mut self, parts: &mut Vec<Part>) -> bool {
        let held = mem::take(&mut self.held);
        let Some(rest) = pass_thought(&mut self.thought, &held, parts) else {
            return false;
        };
        self.held = rest;
        // After a thought, as at the start, a call may begin without an opener.
        self.state = State::Start;
        true
    }

    /// Where a call must begin. Returns whether it is known what follows.
    fn call(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Call(place, _) = &mut self.state else {
            return false;
        };
        let space = self.held.len() - self.held.trim_start().len();
        self.opened.extend(self.held.drain(..space));
        if !place.in_list && self.held.starts_with('[') {
            self.opened.extend(self.held.drain(..1));
            place.in_list = true;
            return true;
        }
        let place = *place;
        match head(&self.held) {
            Head::Open => return false,
            Head::Call(name, at) if self.calls < MAX_CALLS => {
                self.opened.clear();
                self.held.drain(..at);
                self.calls += 1;
                parts.push(Part::Begin(name));
                self.state = State::Arguments(JsonEnd::default(), place);
                return true;
            }
            Head::Call(..) | Head::Other => {}
        }
        self.whole(parts)
    }

    /// Handles JSON that can be passed on as a call only when it is complete.
    fn whole(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Call(place, json_end) = &mut self.state else {
            return false;
        };
        let place = *place;
        let end = match may_be_call(&self.held) {
            None => return false,
            Some(false) => 0,
            Some(true) => match json_end.find(&self.held) {
                Some(end) => end,
                None => return false,
            },
        };
        let rest = self.held.split_off(end);
        let json = mem::replace(&mut self.held, rest);
        let opened = mem::take(&mut self.opened);
        let call = serde_json::from_str::<Written<'_>>(&json).ok();
        let is_call = |call: &Written<'_>| call.arguments.is_some() || place.is_opened;
        match call.filter(is_call) {
            Some(call) if self.calls < MAX_CALLS => {
                self.calls += 1;
                call.add(parts);
                self.state = place.after();
            }
            _ => {
                self.state = State::Text;
                self.text(&(opened + &json), parts);
            }
        }
        true
    }

    /// In the arguments of a call: passes them on. Returns whether they have ended.
    fn arguments(&mut self, parts: &mut Vec<Part>) -> bool {
        let State::Arguments(json_end, place) = &mut self.state else {
            return false;
        };
        let end = json_end.find_next(&self.held);
        let rest = match end {
            Some(end) => self.held.split_off(end),
            None => String::new(),
        };
        let arguments = mem::replace(&mut self.held, rest);
        if !arguments.is_empty() {
            parts.push(Part::Arguments(arguments));
        }
        if end.is_some() {
            self.state = State::Tail(JsonEnd::inside(), *place);
        }
        end.is_some()
    }

    /// After the arguments of a call: skips its other fields. Returns whether the call has ended.
    fn tail(&mut self) -> bool {
        let State::Tail(json_end, place) = &mut self.state else {
            return false;
        };
        let end = json_end.find_next(&self.held);
        self.held.drain(..end.unwrap_or(self.held.len()));
        if end.is_some() {
            self.state = place.after();
        }
        end.is_some()
    }

    /// After a call in a list: another call or the end of the list follows. Returns whether it is known which.
    fn listed(&mut self) -> bool {
        let State::Listed(place) = self.state else {
            return false;
        };
        let space = self.held.len() - self.held.trim_start().len();
        self.opened.extend(self.held.drain(..space));
        self.state = match self.held.chars().next() {
            None => return false,
            Some(',') => State::Call(place, JsonEnd::default()),
            Some(']') => State::After,
            Some(_) => State::Text,
        };
        match self.state {
            State::Call(..) => self.opened.extend(self.held.drain(..1)),
            State::After => {
                self.opened.clear();
                self.held.drain(..1);
            }
            _ => self.held.insert_str(0, &mem::take(&mut self.opened)),
        }
        true
    }

    fn text(&mut self, text: &str, parts: &mut Vec<Part>) {
        // White space between calls is not part of the text.
        if !(text.is_empty() || self.calls > 0 && text.trim().is_empty()) {
            parts.push(Part::Text(text.to_owned()));
        }
    }
}

impl Place {
    /// The state of the parser after the end of the call.
    const fn after(self) -> State {
        match self.in_list {
            true => State::Listed(self),
            false => State::After,
        }
    }
}

impl Written<'_> {
    fn add(self, parts: &mut Vec<Part>) {
        let arguments = match self.arguments.map(RawValue::get) {
            None | Some("null") => "{}".to_owned(),
            // Some models write the object as a JSON string.
            Some(json) => serde_json::from_str(json).unwrap_or_else(|_no_text| json.to_owned()),
        };
        parts.push(Part::Begin(self.name));
        parts.push(Part::Arguments(arguments));
    }
}
