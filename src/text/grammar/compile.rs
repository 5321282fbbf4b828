//! Grammar → constraint, with llguidance.
//!
//! The work of compiling is bounded only by the size of the grammar. [`super::trial`] therefore compiles grammars of
//! clients in a child process first.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use llguidance::derivre::ExprRef;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{
    ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie,
};
use llguidance::{Matcher, ParserFactory, TokenParser};
use serde_json::{Value, json};

use super::options::{OPTIONS, with_options};
use super::schema::Schemas;
use super::watch::Watch;
use super::{CallForm, Calls, Grammar, MAX_BYTES, lark, regex, xml};
use crate::engine::Constraint;
use crate::text::Tokenizer;

/// The most symbols of a compiled grammar: some megabytes of memory.
const MAX_GRAMMAR_SIZE: usize = 100_000;
/// The most states of the lexer. Each takes one to two kilobytes, so an answer holds at most about 50 MB for them.
const MAX_LEXER_STATES: usize = 30_000;
/// The most work for one mask: about 4 ms for the lexer and 1 ms for the parser, because the whole batch waits for it.
/// [`Watch`] cancels steps that take too long in spite of these limits.
const STEP_LEXER_FUEL: u64 = 50_000;
const STEP_MAX_ITEMS: usize = 20_000;
/// The most work for the lexer of a new grammar: about 10 ms, on a thread for which the batch does not wait.
const INITIAL_LEXER_FUEL: u64 = 500_000;
/// The most transitions from one state of the lexer. The work for one byte grows with their square and is not
/// interrupted when the fuel runs out, so only this limit bounds its time.
const MAX_BRANCHES: usize = 1_000;

/// The error for a grammar without any text, such as a schema that only refers to itself.
const NOTHING_MATCHES: &str = "nothing matches it";

/// The tokens that a grammar is compiled for.
pub struct Vocabulary {
    /// The bytes of the tokens, by id. Special tokens begin with a marker: a grammar can name them, but characters do
    /// not match them.
    words: Vec<Vec<u8>>,
    /// The number of logits of the model.
    size: usize,
    /// Ids that end a text.
    eos: Vec<u32>,
}

impl Vocabulary {
    /// The vocabulary of the model.
    pub fn of(tokenizer: &Tokenizer, eos_ids: &[u32], size: usize) -> Self {
        let eos: Vec<u32> = eos_ids
            .iter()
            .copied()
            .filter(|&id| (id as usize) < size)
            .collect();
        let word = |id: u32| {
            let mut word = tokenizer.bytes(id).to_vec();
            if !word.is_empty() && (tokenizer.is_special(id) || eos.contains(&id)) {
                word.insert(0, TokTrie::SPECIAL_TOKEN_MARKER);
            }
            word
        };
        let mut words: Vec<Vec<u8>> = (0..size as u32).map(word).collect();
        // A model without an end-of-text token gets one, with an id behind the last logit.
        words.push([&[TokTrie::SPECIAL_TOKEN_MARKER][..], b"<|no_end_of_text|>"].concat());
        Self { words, size, eos }
    }

    /// A vocabulary of one token for each byte, and the special tokens with their ids. It shows whether a grammar
    /// compiles as well as the whole vocabulary does, and is made much faster.
    pub fn bytes(size: usize, eos: Vec<u32>, special: Vec<(u32, Vec<u8>)>) -> Self {
        let mut words = vec![Vec::new(); size];
        for (id, word) in special {
            if let Some(slot) = words.get_mut(id as usize) {
                *slot = word;
            }
        }
        words.extend((0..=u8::MAX).map(|byte| vec![byte]));
        Self { words, size, eos }
    }

    /// The special tokens, from which [`Self::bytes`] makes a small vocabulary.
    pub fn special(&self) -> Vec<(u32, Vec<u8>)> {
        let is_special = |word: &&Vec<u8>| word.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER);
        let words = (0..).zip(&self.words);
        let special = words.filter(|(_, word)| is_special(word));
        special.map(|(id, word)| (id, word.clone())).collect()
    }

    /// The number of logits of the model, and the ids that end a text.
    pub fn size(&self) -> (usize, &[u32]) {
        (self.size, &self.eos)
    }
}

/// Compiles grammars for one vocabulary.
pub struct Compiler {
    factory: ParserFactory,
    watch: Arc<Watch>,
}

/// A grammar that has been compiled.
pub struct Compiled {
    /// The constraint at the start of a text.
    pub constraint: GrammarConstraint,
    /// Keywords of its schema that are not enforced.
    pub unenforced: Vec<&'static str>,
}

impl Compiler {
    /// Makes a compiler. Takes a tenth of a second and some megabytes for a whole vocabulary.
    ///
    /// # Errors
    /// When the vocabulary is invalid.
    pub fn new(vocabulary: &Vocabulary) -> Result<Self, String> {
        let words = &vocabulary.words;
        let info = TokRxInfo::new(words.len() as u32, vocabulary.size as u32);
        let mut trie = TokTrie::from(&info, words);
        if !vocabulary.eos.is_empty() {
            trie = trie.with_eos_tokens(&vocabulary.eos);
        }
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = SlicedBiasComputer::general_slices();
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
        let watch = Arc::new(Watch::start());
        Ok(Self { factory, watch })
    }

    /// Compiles `grammar` to a constraint.
    ///
    /// # Errors
    /// A message for the author of the grammar.
    pub fn compile(&self, grammar: &Grammar) -> Result<Compiled, String> {
        let compiled = self.attempt(grammar, false);
        match compiled {
            // The compiler cannot express every range of numbers as a pattern, and the message does not name the range.
            Err(problem) if problem.contains("Failed to generate regex") => {
                self.attempt(grammar, true)
            }
            compiled => compiled,
        }
        .map_err(|problem| explained(grammar, &problem))
    }

    fn attempt(&self, grammar: &Grammar, drops_bounds: bool) -> Result<Compiled, String> {
        let (grammar, unenforced) = prepare(grammar, drops_bounds)?;
        let parser = self.factory.create_parser(grammar);
        let mut parser = parser.map_err(|problem| problem.to_string())?;
        check_branches(&parser)?;
        let warnings = parser.grammar_warnings();
        let mut matcher = Matcher::new(Ok(parser)).into_cancellable();
        // The first mask is computed here, because a grammar that exceeds the limits can still be refused with a
        // message now.
        let first = matcher.compute_mask_or_eos();
        let mask = first.map_err(|problem| problem.to_string())?;
        if mask.is_zero() {
            return Err(NOTHING_MATCHES.to_owned());
        }
        Ok(Compiled {
            constraint: GrammarConstraint {
                matcher,
                mask: Some(mask),
                watch: Arc::clone(&self.watch),
            },
            unenforced: with_warnings(unenforced, &warnings),
        })
    }
}

/// The grammar in the library's form, and the keywords that are not enforced.
fn prepare(
    grammar: &Grammar,
    drops_bounds: bool,
) -> Result<(TopLevelGrammar, Vec<&'static str>), String> {
    if grammar.bytes() > MAX_BYTES {
        return Err(format!("it is longer than {MAX_BYTES} bytes"));
    }
    let mut schemas = Schemas::new(drops_bounds);
    let parse =
        |text: &str| serde_json::from_str::<Value>(text).map_err(|problem| problem.to_string());
    Ok(match grammar {
        Grammar::JsonObject => (of_schema(json!({"type": "object"})), Vec::new()),
        Grammar::JsonSchema(text) => {
            let schema = schemas.add(&parse(text)?)?;
            let (schema, unenforced) = schemas.finish(schema);
            (of_schema(schema), unenforced)
        }
        Grammar::Calls(calls) if calls.form == CallForm::Xml => {
            let tools = calls.parameters(&mut schemas)?;
            let (schema, mut unenforced) = schemas.finish(json!({}));
            let lark = xml::lark(&tools, schema.get("$defs"), &mut unenforced)?;
            (TopLevelGrammar::from_lark(lark), unenforced)
        }
        Grammar::Calls(calls) => {
            let schema = calls.schema(&mut schemas)?;
            let (schema, unenforced) = schemas.finish(schema);
            (of_schema(schema), unenforced)
        }
        Grammar::Regex(text) => {
            regex::check(text)?;
            (TopLevelGrammar::from_regex(text), Vec::new())
        }
        Grammar::Choice(choices) => {
            // Lark writes strings as JSON does.
            let choices = choices.iter();
            let choices = choices.map(|choice| Value::from(&**choice).to_string());
            let choices: Vec<String> = choices.collect();
            let lark = format!("start: {}", choices.join(" | "));
            (TopLevelGrammar::from_lark(lark), Vec::new())
        }
        Grammar::Lark(lark) => {
            let mut unenforced = BTreeSet::new();
            let lark = lark::convert_schemas(lark, |schema| {
                let mut schemas = Schemas::new(drops_bounds);
                let converted = schemas.add(schema)?;
                let (converted, keywords) = schemas.finish(converted);
                unenforced.extend(keywords);
                // Schemas inside a Lark grammar may set the library's options.
                let own = schema.get(OPTIONS).cloned();
                Ok(with_options(converted, own))
            })?;
            let unenforced = unenforced.into_iter().collect();
            (TopLevelGrammar::from_lark(lark), unenforced)
        }
    })
}

impl Calls {
    /// The tools' names, and the schemas of their arguments in the compiler's form.
    fn parameters(&self, schemas: &mut Schemas) -> Result<Vec<(&str, Value)>, String> {
        let tools = self.tools.iter().map(|(name, parameters)| {
            let parameters = match parameters {
                Some(text) => serde_json::from_str(text)
                    .map_err(|problem| problem.to_string())
                    .and_then(|schema| schemas.add_object(&schema))
                    .map_err(|problem| format!("the parameters of '{name}': {problem}"))?,
                None => json!({"type": "object"}),
            };
            Ok((&**name, parameters))
        });
        tools.collect()
    }

    /// The schema of the text after the opener when a call is forced.
    fn schema(&self, schemas: &mut Schemas) -> Result<Value, String> {
        let calls = self.parameters(schemas)?.into_iter();
        let calls = calls.map(|(name, parameters)| {
            json!({
                "type": "object",
                "properties": {"name": {"const": name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": false,
            })
        });
        let mut calls: Vec<Value> = calls.collect();
        let call = match calls.len() {
            1 => calls.remove(0),
            _ => json!({"anyOf": calls}),
        };
        Ok(match self.form {
            CallForm::List => json!({"type": "array", "items": call, "minItems": 1, "maxItems": 1}),
            CallForm::Object | CallForm::Xml => call,
        })
    }
}

fn of_schema(schema: Value) -> TopLevelGrammar {
    TopLevelGrammar::from_grammar(GrammarWithLexer::from_json_schema(with_options(
        schema, None,
    )))
}

/// Adds the keywords that the library itself does not enforce.
fn with_warnings(unenforced: Vec<&'static str>, warnings: &[String]) -> Vec<&'static str> {
    let mut all: BTreeSet<&'static str> = unenforced.into_iter().collect();
    for warning in warnings {
        if warning.contains("oneOf") {
            all.insert("oneOf");
        }
    }
    all.into_iter().collect()
}

/// Refuses a lexer with too many transitions for one byte: each optional part of a sequence adds one, because it can be
/// skipped. Every expression comes after its parts, so one pass suffices.
fn check_branches(parser: &TokenParser) -> Result<(), String> {
    let expressions = parser.parser.grammar().lexer_spec().regex_builder.exprset();
    let mut branches = vec![0_usize; expressions.len()];
    for index in 1..expressions.len() {
        let expression = ExprRef::new(index as u32);
        let parts = expressions.get_args(expression);
        let first_is_optional = parts
            .first()
            .is_some_and(|&first| expressions.is_nullable(first));
        // The library shows the kind of an expression only through `Debug`. In alternatives and repetitions, no other
        // part follows.
        let is_sequence = || format!("{:?}", expressions.get_tag(expression)) == "Concat";
        let own = usize::from(first_is_optional && is_sequence());
        let of_parts = parts
            .iter()
            .filter_map(|part| branches.get(part.as_usize()));
        branches[index] = of_parts.fold(own, |sum, part| sum.saturating_add(*part));
        if branches[index] > MAX_BRANCHES {
            return Err(format!(
                "its regular expressions have more than {MAX_BRANCHES} parts that may be left out"
            ));
        }
    }
    Ok(())
}

/// The first line of the compiler's message, without the repeated grammar.
fn explained(grammar: &Grammar, problem: &str) -> String {
    let is_lark = matches!(grammar, Grammar::Lark(text) if text.contains("::="));
    if is_lark {
        return "it looks like GBNF or EBNF (`::=`); write it in Lark, as `start: …`".to_owned();
    }
    if problem.starts_with("panic") {
        return "the compiler has no way to express it".to_owned();
    }
    if problem.contains("NoExtensionBias") {
        return NOTHING_MATCHES.to_owned();
    }
    if problem.contains("patternProperty regexes") {
        return "two patterns of 'patternProperties' may match the same name".to_owned();
    }
    // For a regular expression, the last line has the error, below the expression.
    let mut lines = problem
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let line = match lines.next_back() {
        Some(last) if first.ends_with("regex parse error:") => format!("{first} {last}"),
        _ => first.to_owned(),
    };
    line.chars().take(200).collect()
}

/// The state of a grammar within a text.
pub struct GrammarConstraint {
    matcher: Matcher,
    /// The mask of tokens that may come next, once it has been computed.
    mask: Option<SimpleVob>,
    watch: Arc<Watch>,
}

impl Constraint for GrammarConstraint {
    fn allowed(&mut self) -> Option<&[u32]> {
        if self.mask.is_none() {
            let _watched = self.watch.step(self.matcher.cancellation_handle());
            match self.matcher.compute_mask_or_eos() {
                Ok(mask) => self.mask = Some(mask),
                Err(problem) => tracing::warn!(%problem, "a grammar takes too much work"),
            }
        }
        self.mask.as_ref().map(SimpleVob::as_slice)
    }

    fn accept(&mut self, token: u32) -> bool {
        self.mask = None;
        let _watched = self.watch.step(self.matcher.cancellation_handle());
        self.matcher.consume_token(token).is_ok() && self.matcher.is_stopped()
    }

    fn boxed_clone(&self) -> Box<dyn Constraint> {
        Box::new(Self {
            // A deep clone has its own caches: shared ones are behind a lock, and concurrent answers would wait for
            // each other.
            matcher: self.matcher.deep_clone(),
            mask: self.mask.clone(),
            watch: Arc::clone(&self.watch),
        })
    }
}

impl fmt::Debug for GrammarConstraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GrammarConstraint").finish_non_exhaustive()
    }
}
