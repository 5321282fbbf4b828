//! What can be said of JSON of which only the beginning has arrived.

/// The most bytes before the arguments of a call. If they begin later, the call is passed on only when it is complete.
/// Names have at most 64 characters.
const MAX_HEAD: usize = 1024;

/// Searches for the end of a JSON object or list while it arrives.
#[derive(Default)]
pub struct JsonEnd {
    /// Number of bytes that have been examined.
    seen: usize,
    depth: usize,
    in_text: bool,
    is_escaped: bool,
}

impl JsonEnd {
    /// The search within an object or a list that has begun.
    pub fn inside() -> Self {
        Self {
            depth: 1,
            ..Self::default()
        }
    }

    /// Returns the length of the JSON at the beginning of `text` once it is complete. `text` must begin with the text
    /// of the previous call.
    pub fn find(&mut self, text: &str) -> Option<usize> {
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

    /// Like [`Self::find`], but `text` is only what follows the text of the previous call.
    pub fn find_next(&mut self, text: &str) -> Option<usize> {
        let end = self.find(text);
        self.seen = 0;
        end
    }
}

/// The possible beginnings of a JSON object.
pub enum Head {
    /// Unknown until more text arrives.
    Open,
    /// A call: the name of the tool, and the byte at which the arguments begin.
    Call(String, usize),
    /// Not a call, or a call with its fields in another order.
    Other,
}

/// Examines whether `text` begins with a call in the usual order: the name, then the arguments, which are an object.
pub fn head(text: &str) -> Head {
    let open = match text.len() < MAX_HEAD {
        true => Head::Open,
        false => Head::Other,
    };
    let mut ends = (0..=text.len().min(MAX_HEAD)).rev();
    let end = ends.find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    let text = &text[..end];
    let mut rest = text;
    let mut name = "";
    // The expected pieces of text, in this order; the empty one stands for the name.
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

/// The length of the JSON string at the beginning of `json`: 0 if `json` begins with something else, `None` if the
/// string is incomplete.
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

/// Whether JSON that begins with `text` can be a call; `None` if that is not known yet.
pub fn may_be_call(text: &str) -> Option<bool> {
    let first = text.chars().next()?;
    let Some(fields) = text.strip_prefix('{') else {
        return Some(first == '{');
    };
    let key = fields.trim_start().chars().next();
    key.map(|first| first == '"')
}
