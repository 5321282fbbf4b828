//! `POST /v1/completions`: a prompt in, its continuation out.

use std::mem;
use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use tokio::task::spawn_blocking;

use super::answer::{Answer, Finish, Piece, Pieces, Rules, scored_bytes};
use super::body::JsonBytes;
use super::error_body::ApiError;
use super::fields::ignored_header;
use super::logprobs::{Logprobs, PromptLogprobs, name_or_id};
use super::memory::{Turn, copied};
use super::observe::Record;
use super::output::OutputRequest;
use super::prompt;
use super::streaming::{self, EventShape, event};
use super::structured::UNENFORCED;
use super::wire::{
    Choice, Completion, CompletionRequest, Prompt, StreamOptions, Usage, UsageField,
};
use super::{App, ServedModel, unix_seconds};
use crate::engine::{Generation, Refusal};
use crate::text::Tokenizer;

/// Checks the request, hands its generations to the engine and answers with their text.
pub async fn complete(
    State(app): State<App>,
    Extension(record): Extension<Arc<Record>>,
    JsonBytes(body, turn): JsonBytes,
) -> Result<Response, ApiError> {
    let model = app.model()?;
    let mut request = CompletionRequest::parse(&body, app.limits())?;
    drop(body);
    if let Some(name) = &request.model {
        model.check_name(name)?;
    }
    // Before the tokenizer works for a request that has to be refused.
    let count = request.prompts.len().saturating_mul(request.best_of);
    let param = if request.best_of > 1 { "n" } else { "prompt" };
    model.check_count(param, count)?;
    model.engine.has_room(count).map_err(refused)?;

    let ignored = mem::take(&mut request.ignored);
    let request = Arc::new(request);
    let (prompts, mut generations) = prepare(model, Arc::clone(&request), turn).await?;
    let prompt_tokens = prompts.iter().map(|prompt| prompt.len()).sum();
    record.set_prompt_tokens(prompt_tokens);
    record.hold(held_bytes(&prompts, &request))?;
    let grammar = request.sampling.grammar.as_ref();
    let unenforced = model
        .constrain(&mut generations, grammar, app.limits().strict)
        .await?;
    let streams = model.engine.submit(generations).map_err(refused)?;

    let rules = request.sampling.rules(request.max_tokens);
    let rules = Arc::new(Rules {
        echo: request.echo,
        scores_prompt: rules.scores_prompt || request.scores_echo(),
        ..rules
    });
    let answers = streams
        .into_iter()
        .enumerate()
        .map(|(index, events)| {
            let prompt = Arc::clone(&prompts[index / request.best_of]);
            let (tokenizer, rules) = (Arc::clone(&model.tokenizer), Arc::clone(&rules));
            Answer::new(events, prompt, tokenizer, rules)
        })
        .collect();
    let pieces = Pieces::new(answers, app.cut(), record);
    let stream = request.stream;
    let shape = Shape {
        id: format!("cmpl-{:032x}", rand::random::<u128>()),
        created: unix_seconds(),
        model: model.name.clone(),
        fingerprint: model.fingerprint.clone(),
        tokenizer: Arc::clone(&model.tokenizer),
        request,
        stream: stream.unwrap_or_default(),
        prompt_tokens,
        completion_tokens: 0,
        cached_tokens: 0,
    };
    let mut response = if stream.is_some() {
        streaming::events(pieces, shape).await?
    } else {
        shape.whole(pieces.collect().await?)
    };
    if let Some(names) = ignored_header(&ignored) {
        let header = HeaderName::from_static("x-ignored-params");
        response.headers_mut().insert(header, names);
    }
    if let Some(keywords) = unenforced {
        response.headers_mut().insert(UNENFORCED, keywords);
    }
    Ok(response)
}

/// The ids of every prompt, all of which the model knows and has room for, and the generations for each in turn.
async fn prepare(
    model: &ServedModel,
    request: Arc<CompletionRequest>,
    turn: Turn,
) -> Result<(Vec<Arc<[u32]>>, Vec<Generation>), ApiError> {
    let limits = model.engine.limits();
    let (tokenizer, eos_ids) = (Arc::clone(&model.tokenizer), model.stop_ids.clone());
    // A long text takes a while, and this thread also writes everyone else's tokens.
    let work = move || {
        let _turn = turn;
        let sampling = &request.sampling;
        let mut template = sampling.generation(&tokenizer, &eos_ids, limits)?;
        template.max_tokens = request.max_tokens;
        template.score_prompt |= request.scores_echo();
        if request.best_of > sampling.n && template.scores.is_none() {
            template.scores = Some(0);
        }
        let suffix = request.suffix.as_deref();
        let middle = suffix.map(|suffix| Middle::new(&tokenizer, suffix, limits.context_length));
        let middle = middle.transpose()?;
        let prompts = request.prompts.iter().map(|prompt| {
            // One that is cut down may be longer, up to what a body holds.
            let most = match sampling.output.truncation {
                Some(_) => usize::MAX,
                None => limits.context_length,
            };
            let mut ids = ids(&tokenizer, prompt, most)?;
            if let Some(middle) = &middle {
                ids = middle.surround(ids);
            }
            if let Some(truncation) = sampling.output.truncation {
                let room = limits.context_length.saturating_sub(request.max_tokens);
                truncation.apply(&mut ids, room);
            }
            prompt::check("prompt", &ids, request.max_tokens, limits)?;
            Ok(Arc::from(ids))
        });
        let prompts = prompts.collect::<Result<Vec<Arc<[u32]>>, ApiError>>()?;
        if let (true, Some(top)) = (template.score_prompt, template.scores) {
            let tokens = prompts.iter().map(|prompt| prompt.len()).sum();
            let field = sampling.output.prompt_logprobs.map(|_| "prompt_logprobs");
            OutputRequest::check_scores(field.unwrap_or("logprobs"), tokens, top, request.best_of)?;
        }
        let mut generations = Vec::with_capacity(prompts.len() * request.best_of);
        for prompt in &prompts {
            for choice in 0..request.best_of {
                let mut generation = template.clone();
                generation.prompt = copied(prompt, request.max_tokens)?;
                generation.sampling.seed = sampling.seed(choice);
                generations.push(generation);
            }
        }
        Ok((prompts, generations))
    };
    spawn_blocking(work)
        .await
        .map_err(|_panicked| ApiError::Internal)?
}

/// What is kept of the request while it is answered: its prompts, a copy of each for every answer, and the scores of
/// prompts that are echoed, as they are written out.
fn held_bytes(prompts: &[Arc<[u32]>], request: &CompletionRequest) -> usize {
    let ids: usize = prompts.iter().map(|prompt| prompt.len()).sum();
    let sampling = &request.sampling;
    let echoed = sampling.logprobs.filter(|_| request.echo);
    let scored = echoed.max(sampling.output.prompt_logprobs);
    let scored = scored.map_or(0, scored_bytes);
    ids.saturating_mul(size_of::<u32>() + request.best_of * (size_of::<u32>() + scored))
}

/// The tokens around a prompt whose answer goes between it and a suffix.
struct Middle {
    prefix: u32,
    suffix: Vec<u32>,
}

impl Middle {
    fn new(tokenizer: &Tokenizer, suffix: &str, context: usize) -> Result<Self, ApiError> {
        // As Granite 3 and Granite 4 spell them.
        let find = |name: &str| {
            let spelled = [format!("<fim_{name}>"), format!("<|fim_{name}|>")];
            spelled.iter().find_map(|token| tokenizer.id(token))
        };
        let (Some(prefix), Some(before), Some(middle)) =
            (find("prefix"), find("suffix"), find("middle"))
        else {
            let neutral = "this model has no tokens for filling in the middle, so leave it out";
            return Err(ApiError::Unsupported {
                param: "suffix",
                neutral,
            });
        };
        let text = prompt::encode(tokenizer, "suffix", suffix, context)?;
        let suffix = [vec![before], text, vec![middle]].concat();
        Ok(Self { prefix, suffix })
    }

    fn surround(&self, prompt: Vec<u32>) -> Vec<u32> {
        [vec![self.prefix], prompt, self.suffix.clone()].concat()
    }
}

fn ids(tokenizer: &Tokenizer, prompt: &Prompt, most: usize) -> Result<Vec<u32>, ApiError> {
    match prompt {
        Prompt::Ids(ids) => copied(ids, 0),
        Prompt::Text(text) => prompt::encode(tokenizer, "prompt", text, most),
    }
}

/// What the engine's refusal is to a client.
pub const fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::QueueFull { retry_after } => ApiError::QueueFull { retry_after },
        Refusal::Draining => ApiError::Draining,
        Refusal::Stopped => ApiError::EngineStopped,
    }
}

/// How answers are written: what all parts of a response have in common, and the counts so far.
struct Shape {
    id: String,
    created: u64,
    model: String,
    fingerprint: String,
    tokenizer: Arc<Tokenizer>,
    request: Arc<CompletionRequest>,
    stream: StreamOptions,
    prompt_tokens: usize,
    completion_tokens: usize,
    cached_tokens: usize,
}

impl EventShape for Shape {
    fn piece(&mut self, piece: &Piece) -> Vec<u8> {
        self.count(piece);
        let choice = self.choice(piece.index, piece);
        let is_silent = piece.text.is_empty()
            && piece.finish.is_none()
            && choice.logprobs.is_none()
            && choice.token_ids.is_none();
        if is_silent {
            return Vec::new();
        }
        let usage = self.stream.usage(self.usage());
        event(&self.completion(vec![choice], usage))
    }

    fn last(&mut self) -> Vec<u8> {
        if !self.stream.include_usage {
            return Vec::new();
        }
        event(&self.completion(Vec::new(), UsageField::Counts(self.usage())))
    }
}

impl Shape {
    /// The whole answer in one body.
    fn whole(mut self, answers: Vec<Piece>) -> Response {
        for answer in &answers {
            self.count(answer);
        }
        let (n, best_of) = (self.request.sampling.n, self.request.best_of);
        let mut given: Vec<&Piece> = Vec::new();
        for answers in answers.chunks(best_of) {
            let mut ranked: Vec<&Piece> = answers.iter().collect();
            if best_of > n {
                // Stable: of equals the first comes first.
                ranked.sort_by(|a, b| likelihood(b).total_cmp(&likelihood(a)));
            }
            given.extend(&ranked[..n]);
        }
        let choices = given.into_iter().enumerate();
        let choices = choices.map(|(index, answer)| self.choice(index, answer));
        let completion = self.completion(choices.collect(), UsageField::Counts(self.usage()));
        axum::Json(completion).into_response()
    }

    fn count(&mut self, piece: &Piece) {
        self.completion_tokens += piece.generated();
        // A prompt counts once, however many answers it has.
        if piece.index.is_multiple_of(self.request.best_of) {
            self.cached_tokens += piece.cached_tokens;
        }
    }

    const fn usage(&self) -> Usage {
        Usage::new(
            self.prompt_tokens,
            self.completion_tokens,
            self.cached_tokens,
        )
    }

    fn choice<'a>(&self, index: usize, piece: &'a Piece) -> Choice<'a> {
        let sampling = &self.request.sampling;
        let output = &sampling.output;
        let echoed = match self.request.echo {
            true => &piece.prompt[..],
            false => &[],
        };
        let generated = || piece.tokens.iter().chain(&piece.end);
        let has_logprobs = sampling.logprobs.is_some()
            && !(echoed.is_empty() && piece.tokens.is_empty() && piece.finish.is_none());
        let finish = piece.finish.as_ref();
        let name = |id| name_or_id(&self.tokenizer, output.names_by_id, id);
        Choice {
            index,
            text: &piece.text,
            logprobs: has_logprobs.then(|| {
                Logprobs::of(
                    name,
                    sampling.alternatives(),
                    echoed.iter().chain(generated()),
                )
            }),
            finish_reason: finish.map(Finish::reason),
            stop_reason: finish.and_then(Finish::stop_reason),
            prompt_token_ids: piece.prompt_ids.as_deref().filter(|_| output.token_ids),
            token_ids: output
                .token_ids
                .then(|| generated().map(|token| token.id).collect()),
            prompt_logprobs: output
                .prompt_logprobs
                .map(|top| PromptLogprobs::of(&self.tokenizer, top, &piece.prompt)),
        }
    }

    fn completion<'a>(&'a self, choices: Vec<Choice<'a>>, usage: UsageField) -> Completion<'a> {
        Completion {
            id: &self.id,
            object: "text_completion",
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
        }
    }
}

/// How likely an answer is, per token: what `best_of` ranks by.
fn likelihood(answer: &Piece) -> f64 {
    let scores = answer
        .tokens
        .iter()
        .filter_map(|token| token.score.as_ref());
    let sum: f64 = scores.map(|score| f64::from(score.token.1)).sum();
    sum / answer.tokens.len().max(1) as f64
}
