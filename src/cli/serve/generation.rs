//! How tokens are chosen and how models think where a request says nothing, as flags of `serve`.

use crate::config;
use crate::http::app::Defaults;
use crate::http::chat::thinking::{ANSWER_SHARE, Mode, ThinkingDefaults};
use crate::sources::generation::GenerationDefaults;

/// What holds where a request says nothing.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Defaults of requests")]
pub struct GenerationArgs {
    /// Where temperature, top_p, top_k, repetition_penalty and the length of an answer come from, if a request does not
    /// say: model takes those that the model's files name, none the API's own.
    #[arg(
        long,
        env = "MICROGRANITE_GENERATION_CONFIG",
        value_enum,
        value_name = "FROM",
        default_value = "model"
    )]
    generation_config: From,

    /// Whether models that can think before they answer do so, if a request does not say: on, off, or low for thoughts that
    /// are short. [default: as the model's template has it]
    #[arg(
        long,
        env = "MICROGRANITE_THINKING",
        value_enum,
        value_name = "ON|OFF|LOW"
    )]
    thinking: Option<Thinking>,

    /// The most tokens of a thought, if a request does not say; then the thought is ended and the model answers. Less
    /// answers sooner, and worse where much has to be thought about. [default: no limit]
    #[arg(long, env = "MICROGRANITE_THINKING_BUDGET", value_name = "N", value_parser = config::tokens)]
    thinking_budget: Option<usize>,

    /// The share of an answer's tokens that is kept for what follows the thought, if a request does not say: above 0 and at
    /// most 0.9. A thought that would leave less is ended. [default: none]
    #[arg(long, env = "MICROGRANITE_ANSWER_SHARE", value_name = "SHARE", value_parser = share)]
    answer_share: Option<f64>,
}

/// Where the defaults of sampling come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum From {
    Model,
    None,
}

/// Whether models think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Thinking {
    On,
    Off,
    Low,
}

impl GenerationArgs {
    /// The defaults, for a model whose files say this.
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
