//! A line of the key file: a key, or a key and the settings of its client, which begin with the name:
//! `KEY name=alice weight=2 requests_per_minute=60`.

use super::client::Terms;

/// What begins the settings of a line.
const NAME: &str = "name=";
/// Bytes of a name: it is a label of metrics and a part of messages.
const MOST_NAME_BYTES: usize = 64;
/// The largest weight.
const MOST_WEIGHT: u32 = 1000;
/// The largest of the other settings.
const MOST: u32 = 1_000_000_000;

/// A line of the file.
#[derive(Debug, PartialEq)]
pub(super) struct Line<'a> {
    /// The key.
    pub key: &'a str,
    /// The name of the client, if it has one.
    pub name: Option<&'a str>,
    /// `None` if it only names the client.
    pub terms: Option<Terms>,
}

impl<'a> Line<'a> {
    /// Parses a line that is neither blank nor a comment.
    ///
    /// # Errors
    /// What is wrong with it, without any part that could be a key.
    pub fn parse(line: &'a str) -> std::result::Result<Self, String> {
        // A key may contain spaces; files without settings mean what they always meant.
        let begins = |(at, _): &(usize, _)| {
            line[..*at].ends_with([' ', '\t']) && !line[..*at].trim().is_empty()
        };
        let Some((at, _)) = line.match_indices(NAME).find(begins) else {
            return Ok(Self {
                key: line,
                name: None,
                terms: None,
            });
        };
        let (key, settings) = (line[..at].trim(), &line[at + NAME.len()..]);
        let (name, settings) = settings.split_once([' ', '\t']).unwrap_or((settings, ""));
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        if name.is_empty() || name.len() > MOST_NAME_BYTES || !name.bytes().all(is_plain) {
            return Err(format!(
                "a name is made of up to {MOST_NAME_BYTES} letters, digits and -_."
            ));
        }
        let mut terms = None;
        let mut given = Vec::new();
        for setting in settings.split_whitespace() {
            let (field, value) = setting.split_once('=').unwrap_or((setting, ""));
            let terms = terms.get_or_insert_with(Terms::default);
            let number = |most| match value.parse() {
                Ok(number) if (1..=most).contains(&number) => Ok(number),
                _ => Err(format!("{field} must be a whole number from 1 to {most}")),
            };
            match field {
                "weight" => terms.weight = number(MOST_WEIGHT)?,
                "requests_per_minute" => terms.requests_per_minute = Some(number(MOST)?),
                "tokens_per_minute" => terms.tokens_per_minute = Some(number(MOST)?),
                "concurrent_requests" => terms.concurrent_requests = Some(number(MOST)?),
                _ => {
                    return Err(
                        "behind the name there can be weight, requests_per_minute, tokens_per_minute and \
                         concurrent_requests, each with = and a number"
                            .to_owned(),
                    );
                }
            }
            if given.contains(&field) {
                return Err(format!("{field} is there twice"));
            }
            given.push(field);
        }
        Ok(Self {
            key,
            name: Some(name),
            terms,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_name_is_a_key_whatever_is_in_it() {
        for line in [
            "a=b",
            "a weight=2",
            "name=",
            "name=x y",
            "a\tb  c==",
            "a xname=b",
        ] {
            let whole = Line {
                key: line,
                name: None,
                terms: None,
            };
            assert_eq!(Line::parse(line), Ok(whole));
        }
        let settings =
            "some key\tname=a-1.b weight=3  tokens_per_minute=5000 \tconcurrent_requests=1";
        let line = Line {
            key: "some key",
            name: Some("a-1.b"),
            terms: Some(Terms {
                weight: 3,
                tokens_per_minute: Some(5000),
                concurrent_requests: Some(1),
                requests_per_minute: None,
            }),
        };
        assert_eq!(Line::parse(settings), Ok(line));
    }
}
