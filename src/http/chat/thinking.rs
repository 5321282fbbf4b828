//! Whether and how long a model thinks before it answers: the fields that several servers have for this, and this
//! server's defaults.

use minijinja::Value;
use serde_json::value::RawValue;

use crate::http::error_body::ApiError;
use crate::http::fields::{Fields, invalid};
use crate::http::values::Range;
use crate::text::chat::{ChatTemplate, Conversation};
use crate::text::thoughts::Shown;

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
/// The fewest tokens in which there is room for a thought: one token, and the line feed before the closing tag.
const LEAST_THOUGHT: usize = 2;

/// The fields of a request that are about thinking.
#[derive(Debug)]
pub struct ThinkingRequest {
    /// One of [`EFFORTS`].
    pub effort: Option<&'static str>,
    /// Whether the model thinks at all.
    pub is_on: Option<bool>,
    /// Whether the model does not think if neither the request nor the server's defaults say so, whatever its template
    /// does.
    pub is_off_by_default: bool,
    /// The most tokens of a thought. 0 turns thinking off.
    pub budget: Option<usize>,
    /// The share of `max_tokens` that is reserved for the answer.
    pub answer_share: Option<f64>,
    /// Whether the response contains the thought.
    pub is_included: bool,
    /// Whether the thought is apart from the answer. Otherwise both are in the text, with the tags of the thought.
    pub is_separate: bool,
    /// The names of the fields that the request has.
    pub given: Vec<&'static str>,
}

/// The fields about thinking, except [`BUDGETS`].
const FIELDS: [&str; 5] = [
    EFFORT,
    INCLUDE,
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
            is_included: true,
            is_separate: f.take("separate_reasoning", YES_OR_NO)?.unwrap_or(true),
            ..Self::default()
        };
        for name in BUDGETS {
            let Some(budget) = f.count(name, 0..=MOST_BUDGET)? else {
                continue;
            };
            if request.budget.is_some_and(|other| other != budget) {
                return Err(invalid(name, SAME_BUDGET));
            }
            request.budget = Some(budget);
        }
        let is_included = f.take(INCLUDE, YES_OR_NO)?;
        let is_excluded = request.take_openrouters(f)?;
        if is_included.is_some() && is_included == is_excluded {
            return Err(contradicts("reasoning.exclude", INCLUDE, "the opposite of"));
        }
        request.is_included = is_included.unwrap_or(is_excluded != Some(true));
        let expected = ANSWER_SHARE.to_string();
        let share: Option<f64> = f.take("answer_share", &expected)?;
        if share.is_some_and(|share| !ANSWER_SHARE.contains(share)) {
            return Err(invalid("answer_share", expected));
        }
        request.answer_share = share;
        Ok(request)
    }

    /// Takes OpenRouter's object, and refuses values in it that contradict the other fields. Returns its `exclude`.
    fn take_openrouters(&mut self, f: &mut Fields<'_>) -> Result<Option<bool>, ApiError> {
        const PARAM: &str = "reasoning";
        const EXPECTED: &str = "an object with 'effort', 'max_tokens', 'exclude' or 'enabled'";
        const BUDGET: &str = "reasoning.max_tokens";
        const ENABLED: &str = "reasoning.enabled";
        const EXCLUDE: &str = "reasoning.exclude";
        let Some(mut given) = f.object(PARAM, EXPECTED)? else {
            return Ok(None);
        };
        let own_effort = effort(&mut given, "effort", "reasoning.effort")?;
        if own_effort.is_some() && self.effort.is_some_and(|other| own_effort != Some(other)) {
            return Err(contradicts("reasoning.effort", EFFORT, "the same as"));
        }
        self.effort = self.effort.or(own_effort);
        let in_object = |param| move |problem| renamed(problem, param);
        let budget = given.count("max_tokens", 0..=MOST_BUDGET);
        let budget = budget.map_err(in_object(BUDGET))?;
        if budget.is_some() && self.budget.is_some_and(|other| budget != Some(other)) {
            return Err(invalid(BUDGET, SAME_BUDGET));
        }
        self.budget = self.budget.or(budget);
        let enabled = given.take("enabled", YES_OR_NO);
        self.is_on = enabled.map_err(in_object(ENABLED))?;
        if self.is_on == Some(true) && (self.effort == Some("none") || self.budget == Some(0)) {
            let expected = "false or left out where another field turns thinking off";
            return Err(invalid(ENABLED, expected));
        }
        let exclude = given.take("exclude", YES_OR_NO);
        let exclude = exclude.map_err(in_object(EXCLUDE))?;
        // OpenAI's newer APIs have this field beside the effort. This server writes no summaries.
        if given.take::<&RawValue>("summary", "")?.is_some() {
            given.ignore("summary");
        }
        f.ignore_rest(PARAM, given);
        Ok(exclude)
    }

    /// How the response shows the thought.
    pub const fn shown(&self) -> Shown {
        match (self.is_included, self.is_separate) {
            (false, _) => Shown::Not,
            (true, true) => Shown::Apart,
            (true, false) => Shown::InText,
        }
    }

    /// The fields of the request that have no effect on a model with this template.
    pub fn ignored(&self, template: &ChatTemplate) -> impl Iterator<Item = String> {
        let thinks = template.thoughts().is_some();
        let reads_effort = template.mentions(EFFORT);
        let given = self.given.iter();
        let ignored = given.filter(move |name| !(thinks || reads_effort && **name == EFFORT));
        ignored.map(ToString::to_string)
    }

    /// Sets the template's variables for thinking. Variables that the client set itself take precedence over the effort
    /// and the budget. `max_tokens` is the most tokens of the answer, if it is known.
    ///
    /// # Errors
    /// When `reasoning.enabled` contradicts such a variable.
    pub fn apply(
        &self,
        template: &ChatTemplate,
        conversation: &mut Conversation,
        max_tokens: Option<usize>,
        defaults: ThinkingDefaults,
    ) -> Result<(), ApiError> {
        let variables = &mut conversation.variables;
        let given = |variables: &[(String, Value)], name: &str| {
            let mut given = variables.iter().filter(|(given, _)| given == name);
            given.next().map(|(_, value)| value.is_true())
        };
        let switch = template.thoughts().map(|form| form.switch);
        let switched = switch.and_then(|name| given(variables, name));
        if let (Some(name), Some(is_on), Some(switched)) = (switch, self.is_on, switched)
            && is_on != switched
        {
            let other = format!("chat_template_kwargs.{name}");
            return Err(contradicts("reasoning.enabled", &other, "the same as"));
        }
        let has_room = self.has_room(max_tokens, defaults);
        conversation.closes_thought = !has_room;
        let says_nothing = self.effort.is_none() && self.is_on.is_none() && has_room;
        let is_open = says_nothing && switched.is_none();
        let or_off = self.is_off_by_default.then_some(Mode::Off);
        let mode = defaults
            .mode
            .or(or_off)
            .filter(|_| is_open && given(variables, EFFORT).is_none());
        let effort = self.effort.or((mode == Some(Mode::Low)).then_some("low"));
        let is_on = match (has_room, self.is_on, effort, mode) {
            (false, ..) => Some(false),
            (_, Some(is_on), ..) => Some(is_on),
            (_, _, Some(effort), _) => Some(effort != "none"),
            (.., mode) => mode.map(|mode| mode != Mode::Off),
        };
        if let Some(name) = switch
            && let Some(is_on) = is_on
            && switched.is_none()
        {
            variables.push((name.to_owned(), Value::from(is_on)));
        }
        // `low` is the lowest effort that templates know.
        let effort = effort.map(|effort| if effort == "minimal" { "low" } else { effort });
        if let Some(effort) = effort.filter(|effort| *effort != "none")
            && template.mentions(EFFORT)
            && given(variables, EFFORT).is_none()
        {
            variables.push((EFFORT.to_owned(), Value::from(effort)));
        }
        Ok(())
    }

    /// Whether there is room for a thought. A budget of 0 leaves none, nor does an answer that takes all of its
    /// `max_tokens` for itself.
    fn has_room(&self, max_tokens: Option<usize>, defaults: ThinkingDefaults) -> bool {
        let rest = max_tokens.and_then(|max_tokens| self.beside_answer(max_tokens, defaults));
        self.budget.or(defaults.budget) != Some(0) && rest.is_none_or(|rest| rest >= LEAST_THOUGHT)
    }

    /// The most tokens of the thought in an answer of at most `max_tokens`.
    pub fn budget(&self, max_tokens: usize, defaults: ThinkingDefaults) -> Option<usize> {
        let budget = self.budget.or(defaults.budget);
        match (budget, self.beside_answer(max_tokens, defaults)) {
            (Some(budget), Some(rest)) => Some(budget.min(rest)),
            (budget, rest) => budget.or(rest),
        }
    }

    /// The tokens that the share of the answer leaves to the thought.
    fn beside_answer(&self, max_tokens: usize, defaults: ThinkingDefaults) -> Option<usize> {
        let share = self.answer_share.or(defaults.answer_share)?;
        // Rounded up, so that at least one token remains for the answer.
        let kept = (max_tokens as f64 * share).ceil() as usize;
        // The closing tag belongs to neither: it takes one token more than a budget counts.
        Some(max_tokens.saturating_sub(kept).saturating_sub(1))
    }
}

const YES_OR_NO: &str = "true or false";
const INCLUDE: &str = "include_reasoning";
const SAME_BUDGET: &str = "the same as the other budgets, or left out";

/// The error for `param`, which must have a certain `relation` to the field `other`.
fn contradicts(param: &'static str, other: &str, relation: &str) -> ApiError {
    invalid(param, format!("{relation} '{other}', or left out"))
}

/// The same error for a field within an object, which it names in full.
fn renamed(problem: ApiError, param: &'static str) -> ApiError {
    match problem {
        ApiError::InvalidValue { expected, .. } => invalid(param, expected),
        other => other,
    }
}

impl Default for ThinkingRequest {
    /// A request that says nothing about thinking.
    fn default() -> Self {
        Self {
            effort: None,
            is_on: None,
            is_off_by_default: false,
            budget: None,
            answer_share: None,
            is_included: true,
            is_separate: true,
            given: Vec::new(),
        }
    }
}

/// Takes an effort from the field `name`. If it is refused, the error names `param`.
///
/// # Errors
/// When it is none of [`EFFORTS`].
pub fn effort(
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
