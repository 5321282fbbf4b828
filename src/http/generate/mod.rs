//! The common part of all generating routes, between reading the request and writing the response.
//!
//! [`request`] reads the shared fields, with [`sampling`], [`length`], [`structured`] and [`output`] for parts of them,
//! and [`prompt`] turns texts into ids. [`admit`] refuses requests for which there is no room, [`Work`] is the input of
//! the engine, and [`respond`] submits it. [`answer`] turns tokens into text, which a route's [`Writer`] writes in one
//! body or as events ([`streaming`]).

pub mod answer;
pub mod length;
pub mod logprobs;
pub mod output;
pub mod pieces;
pub mod prompt;
pub mod request;
pub mod response;
pub mod sampling;
pub mod streaming;
pub mod structured;

use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;

use crate::engine::{Generation, QueuePart, Refusal, TokenStream};
use crate::http::app::{App, ServedModel};
use crate::http::error_body::ApiError;
use crate::http::fields::{ignored_header, invalid};
use crate::http::memory::copied;
use crate::http::observe::Record;
use crate::http::receipt::Generations;
use crate::text::Tokenizer;
use crate::text::grammar::Problem;
use crate::text::thoughts::{Bounds, Form, Phase, Shown, Splitter, ThoughtFirst, ThoughtTokens};
use answer::{Answer, Rules, scored_bytes};
use pieces::Pieces;
use request::GenerationRequest;
use response::Writer;
use structured::FromField;

/// The header that names fields that changed nothing.
pub const IGNORED: &str = "x-ignored-params";
/// The header that names keywords of a schema that are not enforced.
pub const UNENFORCED: &str = "x-unenforced-schema-keywords";
/// `Retry-After` when too many grammars are waiting: about the time to compile one of them.
const RETRY_BUSY: Duration = Duration::from_secs(2);

/// Refuses a request for another model, for more generations than even an idle engine could accept (a 429 would make
/// the client retry for ever), or for more than there is room for now. Called before the prompt is tokenized. `param`
/// is the field that sets the number of generations.
///
/// # Errors
/// The reason for the refusal.
pub fn admit(
    model: &ServedModel,
    record: &Record,
    request: &GenerationRequest,
    param: &'static str,
    generations: usize,
) -> Result<(), ApiError> {
    if let Some(name) = &request.model {
        model.check_name(name)?;
    }
    let limits = model.engine.limits();
    let most = limits.max_batch.saturating_add(limits.max_queue);
    if generations > most {
        let expected =
            format!("less: {generations} answers are asked for, and there is room for {most}");
        return Err(invalid(param, expected));
    }
    let room = model
        .engine
        .has_room(record.flow(request.user), generations);
    room.map_err(|refusal| refused(record, refusal))
}

/// The input of the engine for one request.
pub struct Work {
    /// The ids of each prompt.
    prompts: Vec<Arc<[u32]>>,
    /// The same number for each prompt, ordered by prompt.
    generations: Vec<Generation>,
    rules: Rules,
    thought: Option<Thought>,
}

/// A thought that may come before each answer.
struct Thought {
    tokens: Arc<ThoughtTokens>,
    /// The splitter in its state at the end of the prompt.
    splitter: Splitter,
    bounds: Bounds,
}

impl Work {
    /// Makes `answers` generations for each of `prompts`, all of them like `template`. Takes time in proportion to the
    /// prompts, so call it on a thread that may block.
    ///
    /// # Errors
    /// When there is not enough memory for them.
    pub fn new(
        record: &Record,
        request: &GenerationRequest,
        prompts: Vec<Arc<[u32]>>,
        template: &Generation,
        answers: usize,
    ) -> Result<Self, ApiError> {
        let tokens = prompts.iter().map(|prompt| prompt.len()).sum();
        record.set_prompt_tokens(tokens);
        record
            .hold(held_bytes(tokens, template, answers).saturating_add(request.repeated_bytes))?;
        let mut generations = Vec::with_capacity(prompts.len() * answers);
        for prompt in &prompts {
            for choice in 0..answers {
                let mut generation = template.clone();
                generation.prompt = copied(prompt, template.max_tokens)?;
                generation.sampling.seed = request.seed(choice);
                generation.flow = record.flow(request.user);
                generation.priority = request.priority;
                generations.push(generation);
            }
        }
        Ok(Self {
            prompts,
            generations,
            rules: request.rules(template),
            thought: None,
        })
    }

    /// The tokens of all prompts.
    pub fn prompt_tokens(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.len()).sum()
    }

    /// Sets whether answers begin with their prompts.
    pub fn echo(&mut self, echo: bool) {
        self.rules.echo = echo;
    }

    /// Sets a special token that is written to the text of answers.
    pub fn show(&mut self, token: Option<u32>) {
        self.rules.shown_tokens.extend(token);
    }

    /// Separates thoughts from answers and limits them to `bounds`. `splitter` has the state at the end of the prompt.
    ///
    /// # Errors
    /// When the tokenizer has no ids for the tags of thoughts.
    pub fn think(
        &mut self,
        form: &'static Form,
        tokenizer: &Arc<Tokenizer>,
        splitter: Splitter,
        bounds: Bounds,
        shown: Shown,
    ) -> Result<(), ApiError> {
        let tokens = ThoughtTokens::new(form, Arc::clone(tokenizer));
        let tokens = tokens.map_err(|_no_ids| ApiError::Internal)?;
        self.rules.shown_tokens.extend(tokens.tags());
        self.rules.thoughts = Some(splitter.clone());
        self.rules.shown_thoughts = shown;
        self.thought = Some(Thought {
            tokens: Arc::new(tokens),
            splitter,
            bounds,
        });
        Ok(())
    }

    /// Makes the constraints of the generations allow a thought before the constrained answer.
    fn begin_with_thoughts(&mut self) {
        let Some(thought) = &self.thought else {
            return;
        };
        let phase = thought.splitter.phase();
        for generation in &mut self.generations {
            let inner = generation.constraint.take();
            let is_bounded = !thought.bounds.are_empty() && phase != Phase::Answer;
            let needed = match inner {
                None => is_bounded,
                Some(_) => thought.tokens.may_think(&thought.splitter),
            };
            generation.constraint = if needed {
                let (tokens, splitter) = (Arc::clone(&thought.tokens), thought.splitter.clone());
                let bounds = thought.bounds.clone();
                Some(Box::new(ThoughtFirst::new(tokens, splitter, bounds, inner)))
            } else {
                inner
            };
        }
    }
}

/// Bytes that a request holds while it is answered: its prompts, a copy of each for every answer, and the scores of
/// prompts as JSON.
fn held_bytes(tokens: usize, template: &Generation, answers: usize) -> usize {
    let scored = template.scores.filter(|_| template.score_prompt);
    let scored = scored.map_or(0, scored_bytes);
    tokens.saturating_mul(size_of::<u32>() + answers * (size_of::<u32>() + scored))
}

/// Submits `work` to the engine and responds with the generated text.
///
/// # Errors
/// When the grammar does not compile, the engine refuses the work, or a generation fails before the response has begun.
pub async fn respond(
    app: &App,
    model: &ServedModel,
    record: Arc<Record>,
    request: &GenerationRequest,
    mut work: Work,
    writer: impl Writer,
) -> Result<Response, ApiError> {
    let grammar = request.grammar.as_ref();
    let is_strict = app.limits().strict;
    let unenforced = constrain(model, &mut work.generations, grammar, is_strict).await?;
    work.begin_with_thoughts();
    let answers = work.generations.len() / work.prompts.len().max(1);
    let streams = model.engine.submit(work.generations);
    let streams = streams.map_err(|refusal| refused(&record, refusal))?;
    let receipts = streams.iter().map(TokenStream::receipt).collect();
    record.set_generations(Generations::new(receipts, answers));
    let rules = Arc::new(work.rules);
    let answers = streams.into_iter().enumerate().map(|(index, events)| {
        let prompt = Arc::clone(&work.prompts[index / answers]);
        let (tokenizer, rules) = (Arc::clone(&model.tokenizer), Arc::clone(&rules));
        Answer::new(events, prompt, tokenizer, rules)
    });
    let has_receipt = app.limits().receipts;
    let mut pieces = Pieces::new(answers.collect(), app.cut(), record, has_receipt);
    let mut response = if request.output.stream.is_some() {
        streaming::events(pieces, writer).await?
    } else {
        let answers = pieces.collect().await?;
        writer.whole(answers, pieces.receipt())
    };
    let ignored = ignored_header(&request.ignored);
    for (name, value) in [(IGNORED, ignored), (UNENFORCED, unenforced)] {
        if let Some(value) = value {
            let name = HeaderName::from_static(name);
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// Constrains all `generations` by a grammar. Returns the header with the keywords of its schema that are not enforced.
///
/// # Errors
/// When the grammar does not compile within its limits, or when it has such keywords and the server `is_strict`.
async fn constrain(
    model: &ServedModel,
    generations: &mut [Generation],
    grammar: Option<&FromField>,
    is_strict: bool,
) -> Result<Option<HeaderValue>, ApiError> {
    let Some(&(param, ref grammar)) = grammar else {
        return Ok(None);
    };
    let compiled = model.grammars.constraints(grammar, generations.len()).await;
    let compiled = compiled.map_err(|problem| match problem {
        Problem::Refused(problem) => invalid(param, format!("a grammar that compiles: {problem}")),
        Problem::Busy => ApiError::QueueFull {
            limit: "too many grammars wait to be compiled",
            retry_after: RETRY_BUSY,
        },
        Problem::Unavailable => ApiError::GrammarsUnavailable,
    })?;
    let keywords = compiled.unenforced.join(", ");
    if is_strict && !keywords.is_empty() {
        let expected = format!("a schema without {keywords}, which cannot be enforced");
        return Err(invalid(param, expected));
    }
    for (generation, constraint) in generations.iter_mut().zip(compiled.constraints) {
        generation.constraint = Some(constraint);
    }
    let is_empty = keywords.is_empty();
    Ok((!is_empty)
        .then(|| HeaderValue::try_from(keywords).ok())
        .flatten())
}

/// The error that the client of the request of `record` gets for a refusal by the engine.
pub fn refused(record: &Record, refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::QueueFull { part, retry_after } => {
            let limit = match (part, record.client()) {
                (QueuePart::Share, Some(client)) => return client.share_is_taken(retry_after),
                (QueuePart::Share, None) => "this user has as much of the queue as one may have",
                (QueuePart::Requests, _) => "no more requests may wait",
                (QueuePart::Tokens, _) => "the prompts that wait may have no more tokens",
            };
            ApiError::QueueFull { limit, retry_after }
        }
        Refusal::Late { retry_after } => ApiError::TooLate { retry_after },
        Refusal::Draining => ApiError::Draining,
        Refusal::Stopped => ApiError::EngineStopped,
    }
}
