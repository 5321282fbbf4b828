//! Defaults for sampling and thinking that apply when a request does not set them, as flags of `serve`.

use crate::config;
use crate::http::app::Defaults;
use crate::http::chat::thinking::{ANSWER_SHARE, Mode, ThinkingDefaults};
use crate::sources::generation::GenerationDefaults;

/// Defaults for fields that a request leaves out.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Defaults of requests")]
pub struct GenerationArgs {
    /// Which defaults apply to temperature, top_p, top_k, repetition_penalty and the length of an answer when a request leaves
    /// them out: model takes those of generation_config.json or of the GGUF file, none takes the API's own.
    #[arg(
        long,
        env = "MICROGRANITE_GENERATION_CONFIG",
        value_enum,
        value_name = "FROM",
        default_value = "model"
    )]
    generation_config: From,

    /// Whether a model that can think before it answers does so when a request does not say: on, off, or low for short
    /// thoughts. [default: what the model's template does]
    #[arg(
        long,
        env = "MICROGRANITE_THINKING",
        value_enum,
        value_name = "ON|OFF|LOW"
    )]
    thinking: Option<Thinking>,

    /// The largest number of tokens in a thought when a request does not say. When it is reached, the thought is closed and the
    /// model answers. A smaller budget gives the answer sooner, and a worse one to hard questions. [default: no limit]
    #[arg(long, env = "MICROGRANITE_THINKING_BUDGET", value_name = "N", value_parser = config::tokens)]
    thinking_budget: Option<usize>,

    /// The share of max_tokens to keep for the answer after the thought when a request does not say: above 0 and at most 0.9.
    /// The thought is closed before it takes more than the rest. [default: none]
    #[arg(long, env = "MICROGRANITE_ANSWER_SHARE", value_name = "SHARE", value_parser = share)]
    answer_share: Option<f64>,
}

/// The source of the defaults for sampling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum From {
    Model,
    None,
}

/// Whether models that can think do so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Thinking {
    /// It thinks.
    On,
    /// It does not.
    Off,
    /// It thinks briefly.
    Low,
}

impl GenerationArgs {
    /// The defaults for a model whose files give `of_model`.
    pub fn defaults(&self, of_model: &GenerationDefaults) -> Defaults {
        Defaults {
            sampling: match self.generation_config {
                From::Model => of_model.clone(),
                From::None => GenerationDefaults::default(),
            },
            thinking: ThinkingDefaults {
                mode: self.thinking.map(|thinking| match thinking {
                    Thinking::On => Mode::On,
                    Thinking::Off => Mode::Off,
                    Thinking::Low => Mode::Low,
                }),
                budget: self.thinking_budget,
                answer_share: self.answer_share,
            },
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok();
    let share = share.filter(|&share| ANSWER_SHARE.contains(share));
    share.ok_or_else(|| format!("write {ANSWER_SHARE}"))
}
