//! Whether and how long a model thinks before it answers: the fields that several servers have for this, and this
//! server's defaults.

use minijinja::Value;
use serde_json::value::RawValue;

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::values::Range;
use crate::text::chat::{ChatTemplate, Conversation};

/// The share of `max_tokens` that can be reserved for the answer. It is less than 1, so that there is room for a
/// thought.
pub const ANSWER_SHARE: Range = Range::above(0.0, 0.9, 0.25);
/// The values of `reasoning_effort`.
pub const EFFORTS: [&str; 7] = ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
/// The names of the field for the most tokens of a thought: vLLM's, Qwen's, llama.cpp's two, and NVIDIA's.
pub const BUDGETS: [&str; 5] = [
    "thinking_token_budget",
    "thinking_budget",
    "thinking_budget_tokens",
    "reasoning_budget_tokens",
    "reasoning_budget",
];
/// The largest budget: the largest integer that readers of the API's description whose numbers are all floats
/// (browsers) take exactly. No context has as many tokens.
pub const MOST_BUDGET: usize = 1 << 53;
/// The template variable that the effort is passed to.
const EFFORT: &str = "reasoning_effort";

/// The fields of a request that are about thinking.
#[derive(Debug)]
pub struct ThinkingRequest {
    effort: Option<&'static str>,
    /// Whether the model thinks at all.
    is_on: Option<bool>,
    /// The most tokens of a thought. 0 turns thinking off.
    budget: Option<usize>,
    /// The share of `max_tokens` that is reserved for the answer.
    answer_share: Option<f64>,
    /// Whether the response contains the thought.
    pub is_included: bool,
    /// Whether the thought is apart from the answer. Otherwise both are in the text, with the tags of the thought.
    pub is_separate: bool,
    /// The names of the fields that the request has.
    given: Vec<&'static str>,
}

/// The fields about thinking, except [`BUDGETS`].
const FIELDS: [&str; 5] = [
    EFFORT,
    "include_reasoning",
    "separate_reasoning",
    "reasoning",
    "answer_share",
];

/// The server's defaults for requests that say nothing about thinking.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ThinkingDefaults {
    /// Whether models think; if it is not set, their templates decide.
    pub mode: Option<Mode>,
    /// The most tokens of a thought.
    pub budget: Option<usize>,
    /// The share of `max_tokens` that is reserved for the answer.
    pub answer_share: Option<f64>,
}

/// Whether a model thinks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// The model thinks.
    On,
    /// The model does not think.
    Off,
    /// The model thinks, but only briefly if its template has a low effort.
    Low,
}

impl ThinkingRequest {
    /// Takes the fields.
    ///
    /// # Errors
    /// The first field that is of the wrong type or out of range.
    pub fn take(f: &mut Fields<'_>) -> Result<Self, ApiError> {
        let names = FIELDS.into_iter().chain(BUDGETS);
        let given = names.filter(|name| !f.is_unset(name)).collect();
        let mut request = Self {
            given,
            effort: effort(f, EFFORT, EFFORT)?,
            is_on: None,
            budget: None,
            answer_share: None,
            is_included: f.take("include_reasoning", YES_OR_NO)?.unwrap_or(true),
            is_separate: f.take("separate_reasoning", YES_OR_NO)?.unwrap_or(true),
        };
        for name in BUDGETS {
            let Some(budget) = f.count(name, 0..=MOST_BUDGET)? else {
                continue;
            };
            if request.budget.is_some_and(|other| other != budget) {
                return Err(invalid(name, "the same as the other budgets, or left out"));
            }
            request.budget = Some(budget);
        }
        request.take_openrouters(f)?;
        let expected = ANSWER_SHARE.to_string();
        let share: Option<f64> = f.take("answer_share", &expected)?;
        if share.is_some_and(|share| !ANSWER_SHARE.contains(share)) {
            return Err(invalid("answer_share", expected));
        }
        request.answer_share = share;
        Ok(request)
    }

    /// Takes OpenRouter's object.
    fn take_openrouters(&mut self, f: &mut Fields<'_>) -> Result<(), ApiError> {
        const PARAM: &str = "reasoning";
        const EXPECTED: &str = "an object with 'effort', 'max_tokens', 'exclude' or 'enabled'";
        let refused = |_| invalid(PARAM, EXPECTED);
        let Some(mut given) = f.object(PARAM, EXPECTED)? else {
            return Ok(());
        };
        let effort = effort(&mut given, "effort", PARAM)?;
        self.effort = self.effort.or(effort);
        self.is_on = given.take("enabled", YES_OR_NO).map_err(refused)?;
        let budget = given
            .count("max_tokens", 0..=MOST_BUDGET)
            .map_err(refused)?;
        self.budget = self.budget.or(budget);
        if given.flag("exclude").map_err(refused)? {
            self.is_included = false;
        }
        // OpenAI's newer APIs have this field beside the effort. This server writes no summaries.
        if given
            .take::<&RawValue>("summary", "")
            .map_err(refused)?
            .is_some()
        {
            given.ignore("summary");
        }
        f.ignore_rest(PARAM, given);
        Ok(())
    }

    /// Whether the thought stands in the text, in front of the answer, as the model wrote it.
    pub const fn is_inline(&self) -> bool {
        self.is_included && !self.is_separate
    }

    /// The fields of the request that have no effect on a model with this template.
    pub fn ignored(&self, template: &ChatTemplate) -> impl Iterator<Item = String> {
        let thinks = template.thoughts().is_some();
        let reads_effort = template.mentions(EFFORT);
        let given = self.given.iter();
        let ignored = given.filter(move |name| !(thinks || reads_effort && **name == EFFORT));
        ignored.map(ToString::to_string)
    }

    /// Sets the template's variables for thinking. Variables that the client set itself take precedence.
    pub fn apply(
        &self,
        template: &ChatTemplate,
        conversation: &mut Conversation,
        defaults: ThinkingDefaults,
    ) {
        let variables = &mut conversation.variables;
        let is_given = |variables: &[(String, Value)], name: &str| {
            variables.iter().any(|(given, _)| given == name)
        };
        let switch = template.thoughts().map(|form| form.switch);
        let says_nothing = self.effort.is_none() && self.is_on.is_none() && self.budget != Some(0);
        let is_open = says_nothing && !switch.is_some_and(|name| is_given(variables, name));
        let mode = defaults
            .mode
            .filter(|_| is_open && !is_given(variables, EFFORT));
        let effort = self.effort.or((mode == Some(Mode::Low)).then_some("low"));
        let is_on = match (self.budget, self.is_on, effort, mode) {
            (Some(0), ..) => Some(false),
            (_, Some(is_on), ..) => Some(is_on),
            (_, _, Some(effort), _) => Some(effort != "none"),
            (.., mode) => mode.map(|mode| mode != Mode::Off),
        };
        if let Some(name) = switch
            && let Some(is_on) = is_on
            && !is_given(variables, name)
        {
            variables.push((name.to_owned(), Value::from(is_on)));
        }
        // `low` is the lowest effort that templates know.
        let effort = effort.map(|effort| if effort == "minimal" { "low" } else { effort });
        if let Some(effort) = effort.filter(|effort| *effort != "none")
            && template.mentions(EFFORT)
            && !is_given(variables, EFFORT)
        {
            variables.push((EFFORT.to_owned(), Value::from(effort)));
        }
    }

    /// The most tokens of the thought in an answer of at most `max_tokens`.
    pub fn budget(&self, max_tokens: usize, defaults: ThinkingDefaults) -> Option<usize> {
        let budget = self.budget.or(defaults.budget);
        let share = self.answer_share.or(defaults.answer_share);
        // Rounded up, so that at least one token remains for the answer.
        let kept = share.map(|share| (max_tokens as f64 * share).ceil() as usize);
        let rest = kept.map(|kept| max_tokens.saturating_sub(kept));
        match (budget, rest) {
            (Some(budget), Some(rest)) => Some(budget.min(rest)),
            (budget, rest) => budget.or(rest),
        }
    }
}

const YES_OR_NO: &str = "true or false";

/// Takes an effort from the field `name`. If it is refused, the error names `param`.
fn effort(
    f: &mut Fields<'_>,
    name: &'static str,
    param: &'static str,
) -> Result<Option<&'static str>, ApiError> {
    let refused = || invalid(param, format!("one of {}", EFFORTS.join(", ")));
    let given: Option<String> = f.take(name, "").map_err(|_| refused())?;
    let Some(given) = given else {
        return Ok(None);
    };
    let known = EFFORTS.into_iter().find(|effort| *effort == given);
    known.map(Some).ok_or_else(refused)
}
