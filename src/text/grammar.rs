//! Grammars: what a text must be, as a constraint on its tokens.

use std::fmt;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};

use super::Tokenizer;
use crate::engine::Constraint;

/// Bytes of a grammar's text. The largest schemas in use have a few tens of thousands.
const MAX_GRAMMAR_BYTES: usize = 128 << 10;
/// Symbols of a compiled grammar: some megabytes of memory.
const MAX_GRAMMAR_SIZE: usize = 100_000;
/// States of the lexer, at one to two kilobytes each, so that an answer holds at most about 50 MB for them.
const MAX_LEXER_STATES: usize = 30_000;
/// Work on one mask: about four milliseconds for the lexer and one for the parser, since the whole batch waits for it.
const STEP_LEXER_FUEL: u64 = 50_000;
const STEP_MAX_ITEMS: usize = 20_000;
/// Work on the lexer of a new grammar, on a thread where nobody waits for it: about ten milliseconds.
const INITIAL_LEXER_FUEL: u64 = 500_000;

/// What a text must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// Any JSON object.
    JsonObject,
    /// JSON that a schema, given as its text, describes.
    JsonSchema(String),
    /// What a regular expression matches from start to end.
    Regex(String),
    /// One of these, none of which is empty.
    Choice(Vec<String>),
    /// What a grammar in llguidance's dialect of Lark describes.
    Lark(String),
}

impl Grammar {
    fn compile(&self) -> Result<TopLevelGrammar, String> {
        let text_bytes = match self {
            Self::JsonObject => 0,
            Self::JsonSchema(text) | Self::Regex(text) | Self::Lark(text) => text.len(),
            Self::Choice(choices) => choices.iter().map(String::len).sum(),
        };
        if text_bytes > MAX_GRAMMAR_BYTES {
            return Err(format!("it is longer than {MAX_GRAMMAR_BYTES} bytes"));
        }
        Ok(match self {
            Self::JsonObject => of_schema(json!({"type": "object"})),
            Self::JsonSchema(text) => {
                let schema: Value =
                    serde_json::from_str(text).map_err(|problem| problem.to_string())?;
                if !schema.is_object() && !schema.is_boolean() {
                    return Err("a schema is an object".to_owned());
                }
                of_schema(schema)
            }
            Self::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Self::Choice(choices) => {
                // Lark's strings are written as JSON's.
                let choices = choices
                    .iter()
                    .map(|choice| Value::from(&**choice).to_string());
                let choices: Vec<String> = choices.collect();
                TopLevelGrammar::from_lark(format!("start: {}", choices.join(" | ")))
            }
            Self::Lark(lark) => TopLevelGrammar::from_lark(lark.clone()),
        })
    }
}

/// One space after commas and colons and no other white space: as Python writes JSON, so models have seen much of it, and
/// no answer spends its tokens on blanks.
fn of_schema(mut schema: Value) -> TopLevelGrammar {
    if let Some(fields) = schema.as_object_mut() {
        let spacing =
            json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
        // The request does not choose the compiler's options.
        fields.insert("x-guidance".to_owned(), spacing);
    }
    TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(schema))
}

/// Compiles grammars for one tokenizer.
pub(super) struct Grammars(ParserFactory);

impl Grammars {
    /// Takes a tenth of a second and some megabytes, so it is made when the first grammar comes.
    pub fn new(tokenizer: &Tokenizer, eos_ids: &[u32], vocab_size: usize) -> Result<Self, String> {
        let eos_ids: Vec<u32> = eos_ids
            .iter()
            .copied()
            .filter(|&id| (id as usize) < vocab_size)
            .collect();
        let mut words: Vec<Vec<u8>> = (0..vocab_size as u32)
            .map(|id| {
                let mut word = tokenizer.bytes(id).to_vec();
                // Special tokens are no text: a grammar can name them, but no character of its strings matches them.
                if !word.is_empty() && (tokenizer.is_special(id) || eos_ids.contains(&id)) {
                    word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
                }
                word
            })
            .collect();
        // A model without an end of text gets one that no logit stands for.
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER][..], b"<|no_end_of_text|>"].concat());
        let info = TokRxInfo::new(words.len() as u32, vocab_size as u32);
        let mut trie = TokTrie::from(&info, &words);
        if !eos_ids.is_empty() {
            trie = trie.with_eos_tokens(&eos_ids);
        }
        let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory =
            ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
                .map_err(|problem| problem.to_string())?;
        factory.quiet();
        let limits = factory.limits_mut();
        limits.max_grammar_size = MAX_GRAMMAR_SIZE;
        limits.max_lexer_states = MAX_LEXER_STATES;
        limits.step_lexer_fuel = STEP_LEXER_FUEL;
        limits.step_max_items = STEP_MAX_ITEMS;
        limits.initial_lexer_fuel = INITIAL_LEXER_FUEL;
        limits.verbose_errors = false;
        Ok(Self(factory))
    }

    /// The constraint that `grammar` puts on tokens.
    ///
    /// # Errors
    /// In words for whoever wrote the grammar.
    pub fn constraint(&self, grammar: &Grammar) -> Result<GrammarConstraint, String> {
        let parser = self.0.create_parser(grammar.compile()?);
        let mut matcher = Matcher::new(parser);
        // Working out the first mask shows whether the grammar is within bounds while that can still be said.
        let first = matcher.compute_mask_or_eos();
        let mask = first.map_err(|problem| one_line(&problem.to_string()))?;
        if mask.is_zero() {
            return Err("nothing matches it".to_owned());
        }
        Ok(GrammarConstraint {
            matcher,
            mask: Some(mask),
        })
    }
}

/// The state of a grammar within a text.
pub struct GrammarConstraint {
    matcher: Matcher,
    /// What may come next, once it has been worked out.
    mask: Option<SimpleVob>,
}

impl Constraint for GrammarConstraint {
    fn allowed(&mut self) -> Option<&[u32]> {
        if self.mask.is_none() {
            match self.matcher.compute_mask_or_eos() {
                Ok(mask) => self.mask = Some(mask),
                Err(problem) => tracing::warn!(%problem, "a grammar takes too much work"),
            }
        }
        self.mask.as_ref().map(SimpleVob::as_slice)
    }

    fn accept(&mut self, token: u32) -> bool {
        self.mask = None;
        self.matcher.consume_token(token).is_ok() && self.matcher.is_stopped()
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(Self {
            // Not the caches: they are behind a lock, and answers side by side would wait for each other.
            matcher: self.matcher.deep_clone(),
            mask: self.mask.clone(),
        })
    }
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarConstraint").finish_non_exhaustive()
    }
}

/// The first line of a compiler's message, without the grammar that it may repeat.
fn one_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const VOCAB: usize = 320;

    fn tokenizer() -> Tokenizer {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
        let file = fixtures.join("granite-3-tiny/tokenizer.json");
        Tokenizer::new(tokenizers::Tokenizer::from_file(&file).unwrap(), &file).unwrap()
    }

    /// Whether `text` may be written, token by token, and then end.
    fn matches(grammar: &Grammar, text: &str) -> bool {
        let tokenizer = tokenizer();
        let mut constraint = tokenizer.constraint(grammar, &[0], VOCAB).unwrap();
        let has = |words: &[u32], id: u32| words[id as usize / 32] >> (id % 32) & 1 == 1;
        for id in tokenizer.encode(text, 1000).unwrap() {
            if !has(constraint.allowed().unwrap(), id) {
                return false;
            }
            constraint.accept(id);
        }
        has(constraint.allowed().unwrap(), 0)
    }

    #[test]
    fn every_kind_of_grammar_allows_what_it_describes() {
        let schema = r#"{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}"#;
        let schema = Grammar::JsonSchema(schema.into());
        for (grammar, good, bad) in [
            (Grammar::JsonObject, r#"{"b": [1, {"c": "é"}]}"#, "[1]"),
            (schema, r#"{"a": -12}"#, r#"{"a": "x"}"#),
            (Grammar::Regex("[a-c]{2}|é".into()), "ab", "ad"),
            (
                Grammar::Choice(vec!["y\"es\n".into(), "no".into()]),
                "y\"es\n",
                "yes",
            ),
            (
                Grammar::Lark("start: \"a\" start | \"b\"".into()),
                "aaab",
                "ba",
            ),
        ] {
            assert!(matches(&grammar, good), "{grammar:?}");
            assert!(!matches(&grammar, bad), "{grammar:?}");
        }
        let half = Grammar::Choice(vec!["whole".into()]);
        assert!(!matches(&half, "who"), "the text may not end in the middle");
    }

    #[test]
    fn grammars_that_make_no_sense_or_too_much_work_are_refused() {
        let tokenizer = tokenizer();
        for grammar in [
            Grammar::Regex("(".into()),
            Grammar::Lark("start: nothing".into()),
            Grammar::Lark("x".repeat(MAX_GRAMMAR_BYTES + 1)),
            Grammar::JsonSchema("{".into()),
            Grammar::JsonSchema("3".into()),
            Grammar::JsonSchema(r#"{"type": "nonsense"}"#.into()),
            Grammar::JsonSchema(format!("{}1{}", "[".repeat(500), "]".repeat(500))),
            Grammar::JsonSchema(r#"{"$ref": "http://example.com/schema"}"#.into()),
        ] {
            let refused = tokenizer.constraint(&grammar, &[0], VOCAB).err();
            let problem = refused.unwrap_or_else(|| panic!("accepted: {grammar:?}"));
            assert!(!problem.contains('\n'), "{problem}");
        }
    }
}
