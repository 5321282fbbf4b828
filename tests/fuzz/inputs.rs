//! Random input: assembled from pieces, or a damaged valid one.

use rand::RngExt;
use rand::SeedableRng;
use rand_pcg::Pcg64;
use serde_json::{Value, json};

/// Largest size of one random text in bytes. Grammars may have 128 KiB, so some texts exceed the limit.
const MOST_BYTES: usize = 150 << 10;

/// A source of random input.
pub struct Inputs {
    random: Pcg64,
}

impl Inputs {
    pub fn new(seed: u64) -> Self {
        Self {
            random: Pcg64::seed_from_u64(seed),
        }
    }

    /// A number below `end`, which is not zero.
    pub fn below(&mut self, end: usize) -> usize {
        self.random.random_range(0..end)
    }

    /// True on average once in `times` calls.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }

    /// A number of repetitions: mostly a few, sometimes as many as an attacker would use.
    pub fn repeats(&mut self) -> usize {
        match self.below(8) {
            0..5 => 1 + self.below(4),
            5 | 6 => 1 + self.below(300),
            _ => 1 + self.below(40_000),
        }
    }

    /// `text` with some of its bytes cut, duplicated, repeated thousands of times, nested, or replaced by `words`.
    pub fn spoil(&mut self, text: &str, words: &[&str]) -> String {
        let mut text = text.to_owned();
        for _ in 0..1 + self.below(4) {
            let (from, to) = self.range(&text);
            let piece = text[from..to].to_owned();
            let new = match self.below(7) {
                0 => String::new(),
                1 => self.pick(words).to_owned(),
                2 => format!("{piece}{}", self.pick(words)),
                3 => {
                    let times = self.repeats().min(MOST_BYTES / piece.len().max(1));
                    piece.repeat(times)
                }
                4 => {
                    let (open, close) = (self.pick(words), self.pick(words));
                    let most = MOST_BYTES / (open.len() + close.len()).max(1);
                    let times = self.repeats().min(most);
                    format!("{}{piece}{}", open.repeat(times), close.repeat(times))
                }
                5 => {
                    let word = self.pick(words);
                    word.repeat(self.repeats().min(MOST_BYTES / word.len().max(1)))
                }
                _ => self.number(),
            };
            text.replace_range(from..to, &new);
            if text.len() > MOST_BYTES {
                let end = boundary(&text, MOST_BYTES);
                text.truncate(end);
            }
        }
        text
    }

    /// A range of `text`, mostly short.
    fn range(&mut self, text: &str) -> (usize, usize) {
        let from = boundary(text, self.below(text.len() + 1));
        let most = if self.once_in(3) { text.len() } else { 12 };
        let to = boundary(text, from + self.below(most + 1));
        (from, to.max(from))
    }

    /// A number as text, often near the limits of a type.
    pub fn number(&mut self) -> String {
        const EDGES: [&str; 14] = [
            "0",
            "-1",
            "1e308",
            "1e999",
            "-1e-7",
            "255",
            "65536",
            "2147483648",
            "4294967295",
            "9223372036854775807",
            "-9223372036854775808",
            "18446744073709551616",
            "1000000000",
            "0.1",
        ];
        if self.once_in(3) {
            self.below(1000).to_string()
        } else {
            self.pick(&EDGES).to_owned()
        }
    }

    /// `value` with a few of its parts replaced, removed or repeated.
    pub fn spoil_value(&mut self, value: &Value) -> Value {
        let mut value = value.clone();
        for _ in 0..1 + self.below(3) {
            self.spoil_once(&mut value, 0);
        }
        value
    }

    fn spoil_once(&mut self, value: &mut Value, depth: usize) {
        let goes_deeper = depth < 8 && !self.once_in(4);
        match value {
            Value::Object(fields) if goes_deeper && !fields.is_empty() => {
                let at = self.below(fields.len());
                let name = fields.keys().nth(at).expect("it is there").clone();
                if self.once_in(6) {
                    fields.remove(&name);
                } else {
                    self.spoil_once(&mut fields[&name], depth + 1);
                }
            }
            Value::Array(items) if goes_deeper && !items.is_empty() => {
                let at = self.below(items.len());
                if self.once_in(4) {
                    let item = items[at].clone();
                    let size = item.to_string().len();
                    let times = self.repeats().min(MOST_BYTES / size.max(1));
                    items.extend(std::iter::repeat_n(item, times));
                } else {
                    self.spoil_once(&mut items[at], depth + 1);
                }
            }
            _ => *value = self.hostile(),
        }
    }

    fn hostile(&mut self) -> Value {
        match self.below(10) {
            0 => Value::Null,
            1 => json!(true),
            2 => json!([]),
            3 => json!({}),
            4 => json!("a".repeat(self.repeats())),
            5 => json!("<|end_of_text|>\u{0}\u{feff}ￂ\u{202e}é"),
            6 => (0..100).fold(json!(0), |inner, _| json!([inner])),
            7 => json!(vec![1; self.repeats()]),
            8 => json!(f64::MAX),
            _ => serde_json::from_str(&self.number()).unwrap_or(Value::Null),
        }
    }
}

/// The last character boundary at or before `at`.
fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}
