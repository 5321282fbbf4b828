//! Compares what the model answers to a few prompts with what it answered before, while it is idle.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::engine::canary::{self, Answer, MOST_PROMPT_TOKENS, Run, TEXTS};
use crate::engine::{Engine, Health};
use crate::error::{Error, Result};
use crate::http::app::{App, CanaryState, CanaryStatus, ServedModel, unix_seconds};
use crate::model::packed::{CANARY, CanaryRecord};
use crate::telemetry::Metrics;

/// How long after it was displaced the canary looks again whether the engine is idle. A request that comes in that moment
/// waits for one step at most.
const AGAIN: Duration = Duration::from_secs(2);
/// The prompts, and what is known of their answers.
pub struct Canary {
    engine: Engine,
    prompts: Vec<Vec<u32>>,
    /// How the answers begin, if the packed model says it.
    recorded: Option<Vec<Vec<u32>>>,
    /// The answers of the first run, which all later ones must repeat to the last bit.
    first: Option<Vec<Answer>>,
    interval: Duration,
    app: App,
    metrics: Arc<Metrics>,
}

impl Canary {
    /// A canary for `model`, with the `record` of a packed one, that runs every `interval`. `None` where the interval is
    /// zero, and for a model that cannot run the prompts.
    ///
    /// # Errors
    /// [`Error::BadModel`] if the record is for another model.
    pub fn new(
        model: &ServedModel,
        record: Option<CanaryRecord>,
        interval: Duration,
        app: App,
    ) -> Result<Option<Self>> {
        if interval.is_zero() {
            return Ok(None);
        }
        let is_recorded = record.is_some();
        let (prompts, recorded) = match record {
            Some(record) => {
                let prompts = record.prompts.into_iter();
                let (prompts, answers): (Vec<_>, Vec<_>) =
                    prompts.map(|one| (one.prompt, one.answer)).unzip();
                (prompts, Some(answers))
            }
            None => {
                let encode = |text: &&str| model.tokenizer.encode_text(text);
                let prompts: std::result::Result<Vec<_>, _> = TEXTS.iter().map(encode).collect();
                let mut prompts = prompts.unwrap_or_default();
                prompts
                    .iter_mut()
                    .for_each(|ids| ids.truncate(MOST_PROMPT_TOKENS));
                (prompts, None)
            }
        };
        if prompts.is_empty() || !canary::fits(&model.engine, &prompts) {
            if is_recorded {
                let problem = "its prompts are not for this model";
                return Err(Error::bad_model(CANARY, "prompts", problem));
            }
            tracing::warn!("this model cannot run the prompts of the canary; it runs without");
            return Ok(None);
        }
        app.set_canary(CanaryStatus {
            state: CanaryState::Waiting,
            last_run: None,
        });
        Ok(Some(Self {
            engine: model.engine.clone(),
            prompts,
            recorded,
            first: None,
            interval,
            metrics: Arc::clone(app.metrics()),
            app,
        }))
    }

    /// Runs now, and again and again. Returns when an answer is not what it was: then only a restart helps.
    pub async fn watch(mut self) {
        loop {
            loop {
                match self.check().await {
                    Some(true) => break,
                    Some(false) => return,
                    None => sleep(AGAIN).await,
                }
            }
            sleep(self.interval).await;
        }
    }

    /// Runs the prompts and returns whether to go on: whether the answers are right. `None` if the engine had other work.
    async fn check(&mut self) -> Option<bool> {
        let problem = match canary::run(&self.engine, &self.prompts).await {
            Run::Displaced => return None,
            // It stopped in the middle, or died, which the log has.
            Run::Failed if self.engine.health() != Health::Running => return Some(false),
            Run::Failed => Some("its logits are not finite".to_owned()),
            Run::Complete(answers) => {
                let problem = self.problem(&answers);
                if problem.is_none() {
                    self.first = Some(answers);
                }
                problem
            }
        };
        let now = unix_seconds();
        let last_run = &self.metrics.canary_last_run_timestamp_seconds;
        last_run.set(i64::try_from(now).unwrap_or(i64::MAX));
        let state = match &problem {
            None => CanaryState::Passed,
            Some(problem) => {
                self.metrics.canary_failures_total.inc();
                tracing::error!(
                    "the model does not answer as it did: {problem}; refusing requests until the server is restarted on whole weights"
                );
                CanaryState::Failed
            }
        };
        self.app.set_canary(CanaryStatus {
            state,
            last_run: Some(now),
        });
        Some(problem.is_none())
    }

    /// What is wrong with these answers.
    fn problem(&self, answers: &[Answer]) -> Option<String> {
        if let Some(first) = &self.first {
            let differs = answers
                .iter()
                .zip(first)
                .position(|(now, then)| now != then);
            return differs
                .map(|at| format!("prompt {} has another answer than the first time", at + 1));
        }
        let recorded = self.recorded.as_ref()?;
        let differs = answers.iter().zip(recorded);
        let at = differs
            .into_iter()
            .position(|(now, recorded)| !now.begins_with(recorded))?;
        Some(format!(
            "prompt {} has another answer than {CANARY} says",
            at + 1
        ))
    }
}
