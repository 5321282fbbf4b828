//! What the handlers share: the model once it is loaded, the limits, and how far the end has come.

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;

use super::access::Access;
use super::error_body::ApiError;
use super::fields::MAX_REPEATED;
use super::limits::Limits;
use super::memory::RequestMemory;
use super::watchdog;
use crate::engine::Engine;
use crate::int8::scheme::Scheme;
use crate::model::packed::EvaluationRecord;
use crate::telemetry::Metrics;
use crate::text::chat::ChatTemplate;
use crate::text::{Grammars, Tokenizer};

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

/// What is known about the weights that are served.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// How weights were mapped to codes.
    pub scheme: Scheme,
    /// The instruction set in use.
    pub kernel: String,
    /// Numbers in the checkpoint.
    pub parameters: u64,
    /// Bytes of the weights as they are in memory.
    pub weight_bytes: u64,
    /// Bytes that the same weights take as f32.
    pub weight_bytes_f32: u64,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: u64,
    /// What quantizing cost, as `eval` measured it last; `null` where it has not, and for a model quantized while loading.
    pub accuracy: Option<EvaluationRecord>,
}

impl ServedModel {
    /// Refuses any name but ours. No name ever becomes a path.
    ///
    /// # Errors
    /// [`ApiError::ModelNotFound`].
    pub fn check_name(&self, name: &str) -> Result<(), ApiError> {
        if name == self.name || self.aliases.iter().any(|alias| alias == name) {
            return Ok(());
        }
        Err(ApiError::ModelNotFound {
            requested: name.chars().take(MAX_REPEATED).collect(),
            served: self.name.clone(),
        })
    }

    /// The chat template.
    ///
    /// # Errors
    /// [`ApiError::NoChatTemplate`].
    pub fn chat_template(&self) -> Result<&Arc<ChatTemplate>, ApiError> {
        self.chat.as_ref().ok_or(ApiError::NoChatTemplate)
    }
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
        let engine = model.engine.clone();
        if self.0.model.set(model).is_ok() {
            let shared = Arc::downgrade(&self.0);
            watchdog::start(engine, move |stalled| {
                let Some(shared) = shared.upgrade() else {
                    return false;
                };
                Self(shared).set_stalled(stalled);
                true
            });
        }
    }

    /// Whether a step does not end. As long as one does not, requests are refused, and those that run fail.
    fn set_stalled(&self, stalled: bool) {
        let has_changed = self
            .0
            .faults
            .send_if_modified(|faults| std::mem::replace(&mut faults.stalled, stalled) != stalled);
        if has_changed && stalled {
            self.0.metrics.engine_stalls_total.inc();
        }
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
    ///
    /// # Errors
    /// Why none are.
    pub fn model(&self) -> Result<&ServedModel, ApiError> {
        if *self.0.phase.borrow() > Phase::Open {
            return Err(ApiError::Draining);
        }
        match self.0.faults.borrow().error() {
            Some(error) => Err(error),
            None => self.0.model.get().ok_or(ApiError::Loading),
        }
    }

    /// The model once it is loaded, whether or not requests are taken.
    pub fn loaded_model(&self) -> Option<&ServedModel> {
        self.0.model.get()
    }

    /// The engine, once there is a model.
    pub fn engine(&self) -> Option<Engine> {
        self.loaded_model().map(|model| model.engine.clone())
    }

    /// Who may ask, from where, and under which paths.
    pub fn access(&self) -> &Access {
        &self.0.access
    }

    /// How much a request may ask for.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// What requests hold together.
    pub fn memory(&self) -> &RequestMemory {
        &self.0.memory
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Resolves when running answers must end, to what they end with.
    pub fn cut(&self) -> impl Future<Output = ApiError> + Send + use<> {
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
