//! Calls that models write as JSON: `{"name": …, "arguments": …}`, one by one or in lists.

use std::mem;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::{CLOSE, CallSyntax, MAX_CALLS, Part};
use crate::text::seek::{Found, Seek};

/// Bytes before the arguments of a call, within which they are passed on as they come. Names have at most 64 characters.
const MAX_HEAD: usize = 1024;
/// White space before a call, in bytes; what comes after more of it is text.
const MAX_SPACE: usize = 256;

/// Finds the calls in one answer. Text that may be the start of a call is held back until it is known.
///
/// What comes depends on the characters alone, not on how they were cut into pieces. Each is looked at a few times at
/// most, however long a call is.
pub struct JsonCalls {
    syntax: CallSyntax,
    state: State,
    seek: Seek,
    /// Not decided yet.
    held: String,
    /// What stood before the JSON in `held`, in case it is no call: white space, the opener, the start of a list.
    opened: String,
    calls: usize,
}

/// Where in an answer a parser is.
enum State {
    /// Nothing but white space has come: a call may begin without an opener.
    Start,
    /// In text, where an opener may come.
    Text,
    /// Where the JSON of a call has to be, and how far its end has been looked for.
    Call(Place, JsonEnd),
    /// In the arguments of a call, which are passed on.
    Arguments(JsonEnd, Place),
    /// Behind them, up to the end of the call.
    Tail(JsonEnd, Place),
    /// Behind a call in a list.
    Listed(Place),
    /// Behind a call or a list: its closer may come, and without an opener the next call.
    After,
}

/// Where a call stands.
#[derive(Clone, Copy)]
struct Place {
    /// Whether an opener came before it.
    is_opened: bool,
    in_list: bool,
}

/// Finds the end of a JSON object or list as it arrives.
#[derive(Default)]
struct JsonEnd {
    /// Bytes that have been looked at.
    seen: usize,
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

impl JsonEnd {
    /// The length of the JSON that `text` begins with, once it is complete. `text` has grown since the last time.
    fn find(&mut self, text: &str) -> Option<usize> {
        for &byte in &text.as_bytes()[self.seen..] {
            self.seen += 1;
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_text => self.is_escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return Some(self.seen);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// A call as models write it.
#[derive(Deserialize)]
struct Written<'a> {
    name: String,
    #[serde(borrow, alias = "parameters")]
    arguments: Option<&'a RawValue>,
}

/// What the beginning of a call is.
enum Head {
    /// That cannot be told yet.
    Open,
    /// A call of this name, whose arguments begin at this byte.
    Call(String, usize),
    /// Something else, or a call in another order.
    Other,
}

impl JsonCalls {
    /// A parser at the start of an answer, or behind the opener if the prompt ended with it.
    pub fn new(syntax: CallSyntax, is_inside: bool) -> Self {
        let opened = Place {
            is_opened: true,
            in_list: false,
        };
        Self {
            seek: Seek::new(syntax.openers()),
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
            State::Call(..) => self.call(&mut parts),
            State::Arguments(..) => self.arguments(&mut parts),
            State::Tail(..) => self.tail(),
            State::Listed(_) => self.listed(),
        } {}
        parts
    }

    /// The end of the answer. A call whose arguments were not complete stays so.
    pub fn finish(&mut self) -> Vec<Part> {
        let mut parts = Vec::new();
        let held = mem::take(&mut self.held);
        let text = match self.state {
            State::Tail(..) | State::Arguments(..) => String::new(),
            _ => mem::take(&mut self.opened) + &self.seek.finish() + &held,
        };
        self.text(&text, &mut parts);
        self.state = State::Text;
        parts
    }

    /// How many calls have been found.
    pub const fn calls(&self) -> usize {
        self.calls
    }

    /// Where a call may begin without an opener. Returns whether it is decided what is here.
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

    /// In text: passes on what is certain to be text, up to an opener. Returns whether there is one.
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
        self.opened = space + marker;
        let place = Place {
            is_opened: true,
            in_list: false,
        };
        self.state = State::Call(place, JsonEnd::default());
        true
    }

    /// Where a call has to be. Returns whether it is decided what is here.
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

    /// Where a call may be that cannot be passed on before it is complete.
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
        let end = json_end.find(&self.held);
        json_end.seen = 0;
        let rest = match end {
            Some(end) => self.held.split_off(end),
            None => String::new(),
        };
        let arguments = mem::replace(&mut self.held, rest);
        if !arguments.is_empty() {
            parts.push(Part::Arguments(arguments));
        }
        if end.is_some() {
            let inside = JsonEnd {
                depth: 1,
                ..JsonEnd::default()
            };
            self.state = State::Tail(inside, *place);
        }
        end.is_some()
    }

    /// Behind the arguments of a call: passes over what else it has. Returns whether it has ended.
    fn tail(&mut self) -> bool {
        let State::Tail(json_end, place) = &mut self.state else {
            return false;
        };
        let end = json_end.find(&self.held);
        json_end.seen = 0;
        self.held.drain(..end.unwrap_or(self.held.len()));
        if end.is_some() {
            self.state = place.after();
        }
        end.is_some()
    }

    /// Behind a call in a list: another follows, or the end of the list. Returns whether it is decided which.
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
        // White space between calls is layout.
        if !(text.is_empty() || self.calls > 0 && text.trim().is_empty()) {
            parts.push(Part::Text(text.to_owned()));
        }
    }
}

impl Place {
    /// Where a parser is when the call has ended.
    const fn after(self) -> State {
        match self.in_list {
            true => State::Listed(self),
            false => State::After,
        }
    }
}

/// What `text` begins with, if it is a call in the usual order: the name, then the arguments, an object.
fn head(text: &str) -> Head {
    let open = match text.len() < MAX_HEAD {
        true => Head::Open,
        false => Head::Other,
    };
    let mut ends = (0..=text.len().min(MAX_HEAD)).rev();
    let end = ends.find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    let text = &text[..end];
    let mut rest = text;
    let mut name = "";
    // What has to come next, one after the other.
    for expected in ["{", "\"name\"", ":", "", ",", "\"arguments\"", ":", "{"] {
        rest = rest.trim_start();
        let expected = match expected {
            "\"arguments\"" if rest.starts_with("\"p") => "\"parameters\"",
            expected => expected,
        };
        if expected.is_empty() {
            match text_length(rest) {
                Some(0) => return Head::Other,
                Some(length) => (name, rest) = rest.split_at(length),
                None => return open,
            }
            continue;
        }
        match rest.strip_prefix(expected) {
            Some(after) => rest = after,
            None if expected.starts_with(rest) => return open,
            None => return Head::Other,
        }
    }
    match serde_json::from_str(name) {
        Ok(name) => Head::Call(name, text.len() - rest.len() - 1),
        Err(_) => Head::Other,
    }
}

/// The length of the JSON text that `json` begins with: 0 if it begins with something else, `None` if it does not end.
fn text_length(json: &str) -> Option<usize> {
    let mut is_escaped = false;
    for (at, byte) in json.bytes().enumerate() {
        match byte {
            b'"' if at == 0 => {}
            _ if at == 0 => return Some(0),
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}

/// Whether JSON that begins like `text` can be a call; `None` while that is open.
fn may_be_call(text: &str) -> Option<bool> {
    let first = text.chars().next()?;
    let Some(fields) = text.strip_prefix('{') else {
        return Some(first == '{');
    };
    let key = fields.trim_start().chars().next();
    key.map(|first| first == '"')
}

impl Written<'_> {
    fn add(self, parts: &mut Vec<Part>) {
        let arguments = match self.arguments.map(RawValue::get) {
            None | Some("null") => "{}".to_owned(),
            // Some answers hold the object as a text.
            Some(json) => serde_json::from_str(json).unwrap_or_else(|_no_text| json.to_owned()),
        };
        parts.push(Part::Begin(self.name));
        parts.push(Part::Arguments(arguments));
    }
}
