//! State shared by the handlers: the model once it is loaded, the limits, and the shutdown phase.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use tokio::sync::watch;

use super::access::Access;
use super::chat::thinking::ThinkingDefaults;
use super::error_body::ApiError;
use super::fields::MAX_REPEATED;
use super::heartbeat::Heartbeat;
use super::limits::Limits;
use super::memory::RequestMemory;
use super::watchdog;
use crate::engine::Engine;
use crate::int8::scheme::Scheme;
use crate::memory::Limit;
use crate::model::packed::{EvaluationRecord, SavingsRecord};
use crate::sources::generation::GenerationDefaults;
use crate::telemetry::Metrics;
use crate::telemetry::SignatureState;
use crate::telemetry::otlp::Exporter;
use crate::text::chat::ChatTemplate;
use crate::text::{Grammars, Tokenizer};

/// State shared by the handlers. It exists before the model is loaded, so that the server answers while the model
/// loads.
#[derive(Clone)]
pub struct App(Arc<Shared>);

struct Shared {
    metrics: Arc<Metrics>,
    access: Access,
    memory: RequestMemory,
    limits: Limits,
    model: OnceLock<ServedModel>,
    /// Requests that were accepted and are on their way to the engine.
    accepted: watch::Sender<usize>,
    phase: watch::Sender<Phase>,
    faults: watch::Sender<Faults>,
    canary: Mutex<CanaryStatus>,
    heartbeat: Heartbeat,
    /// Takes the spans of requests, if there is a collector.
    exporter: Option<Exporter>,
}

/// What the canary has found, for `/v1/models`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct CanaryStatus {
    /// The result of the last run.
    pub state: CanaryState,
    /// When it was, in seconds since the Unix epoch; `null` before the first.
    pub last_run: Option<u64>,
}

/// A result of the canary.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CanaryState {
    /// It does not run.
    #[default]
    Off,
    /// It has not run yet.
    Waiting,
    /// The model answers as it did.
    Passed,
    /// It does not.
    Failed,
}

/// The model once it is loaded, and how it presents itself.
pub struct ServedModel {
    /// The name that clients use and that responses contain.
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
    /// Grammars of answers → constraints on their tokens.
    pub grammars: Arc<Grammars>,
    /// Makes prompts from conversations, if the model is trained for them.
    pub chat: Option<Arc<ChatTemplate>>,
    /// Facts about the weights.
    pub facts: Facts,
    /// Defaults for fields that a request leaves out.
    pub defaults: Defaults,
    /// Runs the model.
    pub engine: Engine,
}

/// Defaults for fields that a request leaves out.
#[derive(Debug, Clone, Default)]
pub struct Defaults {
    /// Defaults for sampling.
    pub sampling: GenerationDefaults,
    /// Defaults for thinking.
    pub thinking: ThinkingDefaults,
}

/// Facts about the served weights, for `/v1/models`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Facts {
    /// How the weights were mapped to codes.
    pub scheme: Scheme,
    /// The instruction set in use.
    pub kernel: String,
    /// The number of parameters in the checkpoint.
    pub parameters: u64,
    /// Bytes of the weights as they are in memory.
    pub weight_bytes: u64,
    /// Bytes that the same weights take as f32.
    pub weight_bytes_f32: u64,
    /// Bytes of the KV cache.
    pub kv_cache_bytes: u64,
    /// Bytes reserved for the states of running sequences and for snapshots; 0 for a model without Mamba-2 layers.
    pub recurrent_state_bytes: u64,
    /// The loss of accuracy through quantization, as `eval` measured it last; `null` if it has not been measured, and
    /// for a model that was quantized while loading.
    pub accuracy: Option<EvaluationRecord>,
    /// What is known of the publisher's signature.
    pub signature: SignatureState,
    /// What int8 saves, as `verify-savings` measured it; `null` if it did not.
    pub savings: Option<SavingsRecord>,
    /// What was planned, for `/v1/capacity`.
    #[serde(skip)]
    pub plan: Plan,
}

/// What was planned when the model was loaded.
#[derive(Debug, Clone, Default)]
pub struct Plan {
    /// The memory that this process may use, if it is known.
    pub limit: Option<Limit>,
    /// Bytes beside the weights and what sequences leave behind: requests, buffers, code.
    pub beside: u64,
    /// Bytes of one KV page over all layers, and how many values it holds.
    pub kv_page: u64,
    /// Keys and values in it.
    pub kv_page_values: u64,
    /// Bytes of the state of one sequence; 0 without Mamba-2 layers.
    pub state: u64,
}

impl ServedModel {
    /// Refuses any name that is not the model's name or an alias. No name is ever used as a path.
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

/// A request that was accepted, on its way to the engine.
pub struct Accepted(App);

impl Drop for Accepted {
    fn drop(&mut self) {
        self.0.0.accepted.send_modify(|requests| *requests -= 1);
    }
}

/// Faults that keep a loaded model from being served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Faults {
    /// A step takes too long. It may still end.
    stalled: bool,
    /// The weights do not match their checksums. Only a restart helps.
    damaged: bool,
    /// The model does not answer fixed prompts as it did. Only a restart helps.
    unfaithful: bool,
}

impl Faults {
    /// The error that requests get because of these faults.
    fn error(self) -> Option<ApiError> {
        if self.damaged {
            return Some(ApiError::Damaged);
        }
        if self.unfaithful {
            return Some(ApiError::CanaryFailed);
        }
        self.stalled.then_some(ApiError::Stalled)
    }
}

/// The shutdown phase. It only moves forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Requests are accepted (once the model is loaded).
    Open,
    /// New requests are refused; running ones continue.
    Draining,
    /// The time to drain is over: running answers end with an error.
    Cut,
}

impl App {
    /// An application without a model: everything under `/v1` answers 503 until [`App::serve_model`].
    pub fn new(metrics: Arc<Metrics>, access: Access, limits: Limits) -> Self {
        Self::traced(metrics, access, limits, None)
    }

    /// The same, with spans of requests for `exporter`.
    pub fn traced(
        metrics: Arc<Metrics>,
        access: Access,
        limits: Limits,
        exporter: Option<Exporter>,
    ) -> Self {
        let app = Self(Arc::new(Shared {
            metrics,
            access,
            memory: RequestMemory::new(limits.memory_bytes),
            limits,
            model: OnceLock::new(),
            accepted: watch::Sender::new(0),
            phase: watch::Sender::new(Phase::Open),
            faults: watch::Sender::new(Faults::default()),
            canary: Mutex::default(),
            heartbeat: Heartbeat::default(),
            exporter,
        }));
        app.show_clients();
        app
    }

    /// Makes the metrics of all clients that have a key, at zero, so that the first request of each is seen as an increase.
    pub fn show_clients(&self) {
        if let Some(keys) = &self.access().keys {
            for name in keys.names() {
                self.metrics().show_client(&name);
            }
        }
    }

    /// Starts serving `model` and starts the watchdog of its engine. A second call changes nothing.
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

    /// Sets whether a step takes too long. While it does, new requests are refused and running ones fail.
    fn set_stalled(&self, stalled: bool) {
        let has_changed = self
            .0
            .faults
            .send_if_modified(|faults| std::mem::replace(&mut faults.stalled, stalled) != stalled);
        if has_changed && stalled {
            self.0.metrics.engine_stalls_total.inc();
        }
    }

    /// Marks the weights as damaged: from now on new requests are refused and running ones fail.
    pub fn set_damaged(&self) {
        self.0.faults.send_modify(|faults| faults.damaged = true);
    }

    /// Sets what the canary has found. Once it has failed, new requests are refused and running ones fail.
    pub fn set_canary(&self, status: CanaryStatus) {
        *self.0.canary.lock().unwrap_or_else(PoisonError::into_inner) = status;
        if status.state == CanaryState::Failed {
            self.0.faults.send_modify(|faults| faults.unfaithful = true);
        }
    }

    /// What the canary has found.
    pub fn canary(&self) -> CanaryStatus {
        *self.0.canary.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resolves when a step takes too long.
    pub async fn stalled(&self) {
        let mut faults = self.0.faults.subscribe();
        // The sender cannot be gone: `self` holds it.
        let _ = faults.wait_for(|faults| faults.stalled).await;
    }

    /// Enters a later shutdown phase, which refuses new requests or cuts off running ones.
    pub fn enter(&self, phase: Phase) {
        self.0.phase.send_if_modified(|now| {
            let is_later = phase > *now;
            *now = phase.max(*now);
            is_later
        });
    }

    /// The model, if requests are accepted.
    ///
    /// # Errors
    /// The reason why no requests are accepted.
    pub fn model(&self) -> Result<&ServedModel, ApiError> {
        if *self.0.phase.borrow() > Phase::Open {
            return Err(ApiError::Draining);
        }
        match self.0.faults.borrow().error() {
            Some(error) => Err(error),
            None => self.0.model.get().ok_or(ApiError::Loading),
        }
    }

    /// The model, to be described: also when its canary has failed, because the description says so.
    ///
    /// # Errors
    /// As [`Self::model`].
    pub fn described_model(&self) -> Result<&ServedModel, ApiError> {
        match (self.model(), self.loaded_model()) {
            (Err(ApiError::CanaryFailed), Some(model)) => Ok(model),
            (model, _) => model,
        }
    }

    /// The model, for a request that is going to generate, and a guard that the request holds until it has been handed to the
    /// engine. A shutdown waits for these requests, because they were accepted before it began.
    ///
    /// # Errors
    /// As [`Self::model`].
    pub fn accept(&self) -> Result<(&ServedModel, Accepted), ApiError> {
        let model = self.model()?;
        self.0.accepted.send_modify(|requests| *requests += 1);
        Ok((model, Accepted(self.clone())))
    }

    /// Resolves when no request is on its way to the engine.
    pub async fn handed_over(&self) {
        let mut accepted = self.0.accepted.subscribe();
        // The sender cannot be gone: `self` holds it.
        let _ = accepted.wait_for(|requests| *requests == 0).await;
    }

    /// The model once it is loaded, whether or not requests are accepted.
    pub fn loaded_model(&self) -> Option<&ServedModel> {
        self.0.model.get()
    }

    /// The engine, once there is a model.
    pub fn engine(&self) -> Option<Engine> {
        self.loaded_model().map(|model| model.engine.clone())
    }

    /// Who may send requests, from which origins, and under which path prefix.
    pub fn access(&self) -> &Access {
        &self.0.access
    }

    /// Takes the spans of requests, if there is a collector.
    pub fn exporter(&self) -> Option<&Exporter> {
        self.0.exporter.as_ref()
    }

    /// The limits on requests.
    pub fn limits(&self) -> &Limits {
        &self.0.limits
    }

    /// The memory budget of all requests.
    pub fn memory(&self) -> &RequestMemory {
        &self.0.memory
    }

    /// Shows the probes that the thread which serves the API runs, for as long as it does.
    pub async fn beat(self) {
        self.0.heartbeat.keep_up().await;
    }

    /// For how long the thread that serves the API has not been seen running; `None` if it does not show it.
    pub fn silence(&self) -> Option<Duration> {
        self.0.heartbeat.age()
    }

    /// The metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Resolves when running answers must end, to the error with which they end.
    pub fn cut(&self) -> impl Future<Output = ApiError> + Send + use<> {
        let (mut phase, mut faults) = (self.0.phase.subscribe(), self.0.faults.subscribe());
        async move {
            // The senders cannot be gone: `App` outlives its requests. If they were, ending the requests would be right
            // too.
            tokio::select! {
                _ = phase.wait_for(|&phase| phase == Phase::Cut) => ApiError::Draining,
                fault = faults.wait_for(|faults| faults.error().is_some()) => {
                    fault.ok().and_then(|fault| fault.error()).unwrap_or(ApiError::Draining)
                }
            }
        }
    }
}

/// The present time in seconds since the Unix epoch, as the API writes it.
pub fn unix_seconds() -> u64 {
    // A clock that is set before 1970 gives 0; it must not make requests fail.
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH);
    since_epoch.unwrap_or_default().as_secs()
}
