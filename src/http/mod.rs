//! Everything that knows HTTP, and nothing else does.
//!
//! A request comes in through [`server`] (connections, their limits and their end), is watched by [`observe`] and
//! reaches by [`routes`] one like [`completions`], which reads it as [`wire`] and [`sampling`] define, field by field ([`fields`]). The tokens
//! become text in [`answer`] and events in [`streaming`]. Whatever goes wrong on the way is an [`error_body::ApiError`].

pub mod accept;
pub mod answer;
pub mod auth;
pub mod body;
pub mod chat;
pub mod completions;
pub mod connection;
pub mod error_body;
pub mod fields;
pub mod health;
pub mod limits;
pub mod logprobs;
pub mod memory;
pub mod models;
pub mod observe;
pub mod openapi;
pub mod output;
pub mod prompt;
pub mod routes;
pub mod sampling;
pub mod server;
pub mod stall;
pub mod streaming;
pub mod structured;
pub mod tokenize;
mod watchdog;
pub mod wire;

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use crate::engine::Engine;
use crate::telemetry::Metrics;
use crate::text::chat::ChatTemplate;
use crate::text::{Grammars, Tokenizer};
use error_body::ApiError;
use limits::Limits;
use memory::RequestMemory;
use models::Facts;
use routes::Access;

/// What the handlers share. It exists before the model does, so that the port answers while the model loads.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    metrics: Arc<Metrics>,
    access: Access,
    memory: RequestMemory,
    limits: Limits,
    model: OnceLock<ServedModel>,
    phase: watch::Sender<Phase>,
    faults: watch::Sender<Faults>,
}

/// The model once it is loaded, and how it presents itself.
pub struct ServedModel {
    /// The name clients use, and the one in answers.
    pub name: String,
    /// Other names that clients may use.
    pub aliases: Vec<String>,
    /// Where it came from, for `/v1/models`.
    pub root: String,
    /// Weights, number format, build and instruction set: together with a request they decide the answer's bytes.
    pub fingerprint: String,
    /// Seconds since the Unix epoch when it was loaded.
    pub created: u64,
    /// Ids that end an answer.
    pub stop_ids: Vec<u32>,
    /// Text ↔ ids.
    pub tokenizer: Arc<Tokenizer>,
    /// What answers must be → constraints on their tokens.
    pub grammars: Arc<Grammars>,
    /// Makes prompts of conversations, if the model is made for them.
    pub chat: Option<Arc<ChatTemplate>>,
    /// What is known about the weights.
    pub facts: Facts,
    /// Runs it.
    pub engine: Engine,
}

/// What keeps a loaded model from being served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Faults {
    /// A step does not end. It may yet.
    stalled: bool,
    /// The weights are not those that were written. Only a restart helps.
    damaged: bool,
}

impl Faults {
    /// What requests are answered then.
    fn error(self) -> Option<ApiError> {
        if self.damaged {
            return Some(ApiError::Damaged);
        }
        self.stalled.then_some(ApiError::Stalled)
    }
}

/// How far the end has come. Only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Requests are taken (once the model is loaded).
    Open,
    /// No new requests; those that run go on.
    Draining,
    /// The time to drain is over: answers end with an error now.
    Cut,
}

impl App {
    /// An application without a model: everything under `/v1` answers 503 until [`App::serve_model`].
    pub fn new(metrics: Arc<Metrics>, access: Access, limits: Limits) -> Self {
        Self(Arc::new(Shared {
            metrics,
            access,
            memory: RequestMemory::new(limits.memory_bytes),
            limits,
            model: OnceLock::new(),
            phase: watch::Sender::new(Phase::Open),
            faults: watch::Sender::new(Faults::default()),
        }))
    }

    /// Starts answering with `model`, and watching that it does. A second call changes nothing.
    pub fn serve_model(&self, model: ServedModel) {
        if self.0.model.set(model).is_ok() {
            watchdog::start(self);
        }
    }

    /// Whether a step does not end. As long as one does not, requests are refused, and those that run fail.
    fn set_stalled(&self, stalled: bool) {
        self.0.faults.send_modify(|faults| faults.stalled = stalled);
    }

    /// From now on all requests are refused, and those that run fail, because the weights are damaged.
    pub fn set_damaged(&self) {
        self.0.faults.send_modify(|faults| faults.damaged = true);
    }

    /// Resolves when a step does not end.
    pub async fn stalled(&self) {
        let mut faults = self.0.faults.subscribe();
        // The sender cannot be gone: `self` holds it.
        let _ = faults.wait_for(|faults| faults.stalled).await;
    }

    /// Moves towards the end: refuses new requests, or cuts off those that still run.
    pub fn enter(&self, phase: Phase) {
        self.0.phase.send_if_modified(|now| {
            let is_later = phase > *now;
            *now = phase.max(*now);
            is_later
        });
    }

    /// The model, if requests are taken at all.
    fn model(&self) -> Result<&ServedModel, ApiError> {
        if *self.0.phase.borrow() > Phase::Open {
            return Err(ApiError::Draining);
        }
        match self.0.faults.borrow().error() {
            Some(error) => Err(error),
            None => self.0.model.get().ok_or(ApiError::Loading),
        }
    }

    /// The engine, once there is a model.
    pub fn engine(&self) -> Option<Engine> {
        self.0.model.get().map(|model| model.engine.clone())
    }

    /// Who may ask, from where, and under which paths.
    pub fn access(&self) -> &Access {
        &self.0.access
    }

    /// How much a request may ask for.
    fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// What requests hold together.
    fn memory(&self) -> &RequestMemory {
        &self.0.memory
    }

    fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Resolves when running answers must end, to what they end with.
    fn cut(&self) -> impl Future<Output = ApiError> + Send + use<> {
        let (mut phase, mut faults) = (self.0.phase.subscribe(), self.0.faults.subscribe());
        async move {
            // The senders cannot be gone: `App` outlives its requests. If they were, ending them would be right too.
            tokio::select! {
                _ = phase.wait_for(|&phase| phase == Phase::Cut) => ApiError::Draining,
                fault = faults.wait_for(|faults| faults.error().is_some()) => {
                    fault.ok().and_then(|fault| fault.error()).unwrap_or(ApiError::Draining)
                }
            }
        }
    }
}

/// Now, as the API writes times.
pub fn unix_seconds() -> u64 {
    // A clock before 1970 is the machine's problem, not the request's.
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.unwrap_or_default().as_secs()
}
