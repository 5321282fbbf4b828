//! Schemas of request bodies. Their ranges are those that requests are checked against.

use serde_json::{Map, Value, json};

use super::schema::{flag, id, merge, model, optional, reference, tokens, within};
use crate::http::chat::messages::{MAX_DOCUMENTS, MAX_ROLE};
use crate::http::chat::request::UNSUPPORTED;
use crate::http::chat::thinking::{ANSWER_SHARE, BUDGETS, EFFORTS, MOST_BUDGET};
use crate::http::chat::tools::{MAX_TOOL_NAME, MAX_TOOLS};
use crate::http::completions::request::DEFAULT_MAX_TOKENS;
use crate::http::generate::output::{MAX_LOGPROBS, MAX_SCORED_IDS};
use crate::http::generate::request::STOP_IDS_PER_STOP;
use crate::http::generate::sampling::{
    LOGIT_BIAS, MAX_ENTRIES, MIN_P, PENALTY, REPETITION_PENALTY, TEMPERATURE, TOP_P,
};
use crate::http::generate::structured::MAX_CHOICES;
use crate::http::limits::Limits;
use crate::http::values::Range;

/// Adds the schemas of request bodies.
pub fn add(schemas: &mut Map<String, Value>, limits: &Limits) {
    let mut add = |name: &str, schema| schemas.insert(name.to_owned(), schema);
    add("CompletionRequest", completion(limits));
    add("ChatRequest", chat(limits));
    add(
        "Message",
        json!({"oneOf": [reference("AssistantMessage"), reference("OtherMessage")]}),
    );
    add("AssistantMessage", assistant_message());
    add("OtherMessage", other_message());
    add("Tool", tool());
    add("TokenizeRequest", tokenize());
    add(
        "DetokenizeRequest",
        json!({
            "type": "object",
            "required": ["tokens"],
            "properties": {"model": model(), "tokens": {"type": "array", "items": id()}},
        }),
    );
}

fn completion(limits: &Limits) -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let ids = json!({"type": "array", "minItems": 1, "items": id()});
    let several = |items: &Value| json!({"type": "array", "minItems": 1, "maxItems": limits.prompts, "items": items});
    let mut properties = json!({
        "prompt": {
            "description": "A text, a list of texts, a list of ids, or a list of lists of ids. No token is added in front.",
            "anyOf": [text, several(&text), ids, several(&ids)],
        },
        "max_tokens": tokens(limits, 0, &format!("{DEFAULT_MAX_TOKENS} if absent. 0 only together with `echo`, to score the prompt.")),
        "max_completion_tokens": tokens(limits, 0, "Another name of `max_tokens`."),
        "echo": flag("Begin answers with their prompts."),
        "logprobs": {
            "description": "Give log-probabilities with this many alternatives; with `echo`, also those of the prompt's tokens.",
            "anyOf": [{"type": "integer", "minimum": 0, "maximum": MAX_LOGPROBS}, {"enum": [false, null]}],
        },
        "best_of": optional("integer", json!({"minimum": 1, "maximum": limits.choices, "description":
            "Generate this many answers and return the `n` likeliest. Not in streams."})),
        "suffix": optional("string", json!({"description": "The text that follows the answer: fill in the middle."})),
    });
    merge(&mut properties, common(limits));
    merge(&mut properties, output());
    json!({"type": "object", "required": ["prompt"], "properties": properties})
}

fn chat(limits: &Limits) -> Value {
    let named = json!({
        "type": "object", "required": ["type", "function"],
        "properties": {
            "type": {"const": "function"},
            "function": {"type": "object", "required": ["name"], "properties": {"name": tool_name()}},
        },
    });
    let mut properties = conversation();
    merge(
        &mut properties,
        json!({
            "tool_choice": {
                "description": "Whether tools may, must or must not be called, or which one must be called. `none` leaves the tools out of the prompt.",
                "anyOf": [{"enum": ["none", "auto", "required", null]}, named],
            },
            "parallel_tool_calls": flag("Whether the answer may have more than one call; if false, calls after the first are dropped. True if absent."),
            "max_tokens": tokens(limits, 1, "The rest of the context if absent."),
            "max_completion_tokens": tokens(limits, 1, "Another name of `max_tokens`."),
            "logprobs": flag("Give log-probabilities."),
            "top_logprobs": optional("integer", json!({"minimum": 0, "maximum": MAX_LOGPROBS, "description":
                "Alternatives for each token; above 0 only together with `logprobs`."})),
            "echo": flag("Begin answers with the last message, if it is the assistant's."),
        }),
    );
    merge(&mut properties, common(limits));
    merge(&mut properties, output());
    for (name, instead) in UNSUPPORTED {
        let refused = json!({"type": "null", "description": format!("Refused: {instead}.")});
        merge(&mut properties, json!({name: refused}));
    }
    json!({"type": "object", "required": ["messages"], "properties": properties})
}

fn tokenize() -> Value {
    let mut properties = json!({
        "model": model(),
        "prompt": optional("string", json!({"description": "A text. If absent, `messages` is required."})),
        "add_special_tokens": flag("Changes nothing: these tokenizers add no special tokens."),
        "return_token_strs": flag("Give the tokens' texts too."),
    });
    merge(&mut properties, conversation());
    json!({
        "type": "object",
        "properties": properties,
        "anyOf": [
            {"required": ["prompt"], "properties": {"prompt": {"type": "string"}}},
            {"required": ["messages"]},
        ],
    })
}

/// The fields for the chat template.
fn conversation() -> Value {
    let mut properties = json!({
        "messages": {"type": "array", "minItems": 1, "items": {"$ref": "#/components/schemas/Message"}},
        "tools": optional("array", json!({"maxItems": MAX_TOOLS, "items": {"$ref": "#/components/schemas/Tool"},
            "description": "The tools that the model may call, if its chat template supports tools."})),
        "documents": optional("array", json!({"maxItems": MAX_DOCUMENTS, "items": {"type": "object"},
            "description": "Documents to base the answer on, if the chat template supports them. Granite 3 reads `doc_id` and `text`."})),
        "chat_template_kwargs": optional("object", json!({"description":
            "Further variables of the chat template, such as `thinking`."})),
        "add_generation_prompt": flag("Whether the assistant's turn begins after the messages. True if absent."),
        "continue_final_message": flag("Go on with the last message instead of beginning an answer."),
    });
    merge(&mut properties, thinking());
    properties
}

/// The fields for whether and how long the model thinks before it answers. They have no effect on a model that does not
/// think.
pub fn thinking() -> Value {
    let mut efforts: Vec<Value> = EFFORTS.map(Value::from).to_vec();
    efforts.push(Value::Null);
    let mut share = within(ANSWER_SHARE);
    share["description"] =
        "Keep this share of `max_tokens` for the answer: a thought that would leave less is cut off."
            .into();
    let budget = |description: &str| {
        optional(
            "integer",
            json!({"minimum": 0, "maximum": MOST_BUDGET, "description": description}),
        )
    };
    let mut properties = json!({
        "reasoning_effort": {"enum": efforts, "description":
            "How much the model thinks; `none` turns thinking off. `enable_thinking` in `chat_template_kwargs` takes precedence."},
        "include_reasoning": flag("Whether the response contains the thought. True if absent."),
        "separate_reasoning": flag("Whether thoughts are separated from the answer; otherwise they stay in the text, with their tags. True if absent."),
        "answer_share": optional("number", share),
        "reasoning": optional("object", json!({"description": "The same in OpenRouter's form.", "properties": {
            "effort": {"enum": efforts},
            "max_tokens": budget("As `thinking_token_budget`."),
            "exclude": flag("The opposite of `include_reasoning`."),
            "enabled": flag("Whether to think."),
        }})),
    });
    for (at, name) in BUDGETS.into_iter().enumerate() {
        let description = match at {
            0 => "The most tokens of a thought, which is cut off there; 0 turns thinking off.",
            _ => "Another name of `thinking_token_budget`.",
        };
        merge(&mut properties, json!({name: budget(description)}));
    }
    properties
}

/// The content of a message: a text, or a list of text parts.
fn content() -> Value {
    let part = |kinds: &[&str], key: &str| {
        json!({"type": "object", "required": ["type", key],
            "properties": {"type": {"enum": kinds}, key: {"type": "string"}}})
    };
    let text = part(&["text", "input_text", "output_text"], "text");
    let refusal = part(&["refusal"], "refusal");
    let parts = json!({"anyOf": [text, refusal, {"type": "string"}]});
    json!([{"type": "string"}, {"type": "array", "items": parts}, {"type": "null"}])
}

fn other_message() -> Value {
    let pattern = format!("^[A-Za-z0-9 _.-]{{1,{MAX_ROLE}}}$");
    json!({
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"type": "string", "pattern": pattern, "not": {"const": "assistant"}, "description":
                "`system`, `developer`, `user`, `tool`, or another that the model's chat template prints."},
            "content": {"anyOf": content(), "description": "Null only in the message of a tool."},
            "name": optional("string", json!({})),
            "tool_call_id": optional("string", json!({})),
        },
    })
}

fn assistant_message() -> Value {
    let arguments =
        json!({"type": ["string", "object", "null"], "description": "A JSON object, or its text."});
    let call = json!({
        "type": "object", "required": ["function"],
        "properties": {
            "id": optional("string", json!({})),
            "type": {"enum": ["function", null]},
            "function": {"type": "object", "required": ["name"],
                "properties": {"name": {"type": "string"}, "arguments": arguments}},
        },
    });
    json!({
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"const": "assistant"},
            "content": {"anyOf": content()},
            "reasoning_content": optional("string", json!({"description": "The thought before the message."})),
            "reasoning": optional("string", json!({"description": "Another name of `reasoning_content`, which takes precedence."})),
            "name": optional("string", json!({})),
            "tool_calls": optional("array", json!({"items": call})),
        },
    })
}

fn tool() -> Value {
    json!({
        "type": "object", "required": ["type", "function"],
        "properties": {
            "type": {"const": "function"},
            "function": {
                "type": "object", "required": ["name"],
                "properties": {
                    "name": tool_name(),
                    "description": optional("string", json!({})),
                    "parameters": optional("object", json!({"description": "A JSON schema."})),
                },
            },
        },
    })
}

/// The name of a tool.
pub fn tool_name() -> Value {
    json!({"type": "string", "pattern": format!("^[A-Za-z0-9_.-]{{1,{MAX_TOOL_NAME}}}$")})
}

/// The fields that completions and chat completions have in common with each other, but not with other APIs.
fn common(limits: &Limits) -> Value {
    let mut properties = json!({
        "n": optional("integer", json!({"minimum": 1, "maximum": limits.choices, "description": "Answers to each prompt."})),
        "stop": strings(limits.stops, "Texts that end the answer; it ends before the text."),
        "stream": flag("Respond with server-sent events."),
        "stream_options": optional("object", json!({"description": "Only together with `stream`.", "properties": {
            "include_usage": flag("End with an event that has the token counts."),
            "continuous_usage_stats": flag("Token counts in every event."),
        }})),
        "priority": optional("integer", json!({"format": "int64", "description": "Among waiting requests of the same client, those with lower numbers are first."})),
        "use_beam_search": optional("boolean", json!({"enum": [false, null], "description": "Only false is accepted."})),
        "length_penalty": optional("number", json!({"description": "Changes nothing: it belongs to beam search."})),
        "user": {"description": "The end user. With `serve --fair-by user`, users get equal shares of the server."},
    });
    merge(&mut properties, shared(limits));
    properties
}

/// One or several texts.
pub fn strings(most: usize, description: &str) -> Value {
    let text = json!({"type": "string", "minLength": 1});
    json!({"description": description,
        "anyOf": [text, {"type": "array", "maxItems": most, "items": text}, {"type": "null"}]})
}

/// The fields that have the same names in all APIs: for sampling, stopping and grammars.
pub fn shared(limits: &Limits) -> Value {
    let number = |range: Range, description: &str| {
        let mut schema = within(range);
        schema["description"] = description.into();
        optional("number", schema)
    };
    let choices = json!({"minItems": 1, "maxItems": MAX_CHOICES, "items": {"type": "string", "minLength": 1}});
    let token_ids = |least: usize, most: usize, description: &str| {
        optional(
            "array",
            json!({"minItems": least, "maxItems": most, "items": id(), "description": description}),
        )
    };
    let schema = json!({"type": ["object", "boolean"]});
    let mut logit_bias = within(LOGIT_BIAS);
    logit_bias["type"] = "number".into();
    json!({
        "model": model(),
        "temperature": number(TEMPERATURE, "The model's own default if absent, or else 1; 0 always chooses the likeliest token."),
        "top_p": number(TOP_P, "Keep the likeliest tokens up to this share of the probability."),
        "top_k": optional("integer", json!({"minimum": -1, "format": "int64", "description":
            "Keep this many of the likeliest tokens; 0 and -1 keep all."})),
        "min_p": number(MIN_P, "Drop tokens that are less likely than this share of the likeliest token's probability."),
        "presence_penalty": number(PENALTY, "Subtracted from the logits of tokens that are in the answer."),
        "frequency_penalty": number(PENALTY, "Subtracted from the logits of tokens once for each time they are in the answer."),
        "repetition_penalty": number(REPETITION_PENALTY, "Above 1, makes tokens that are in the prompt or the answer less likely; 1 has no effect."),
        "logit_bias": optional("object", json!({"maxProperties": MAX_ENTRIES, "description": "Token ids, each with a number that is added to its logit.",
            "propertyNames": {"pattern": "^[0-9]{1,9}$"},
            "additionalProperties": logit_bias})),
        "allowed_token_ids": token_ids(1, MAX_ENTRIES, "Only these tokens can be chosen."),
        "bad_words": strings(MAX_ENTRIES, "Words that the answer must not contain."),
        "seed": optional("integer", json!({"format": "int64", "description":
            "The same seed gives the same answer. Answer i of n uses the seed plus i."})),
        "stop_token_ids": token_ids(0, limits.stops.saturating_mul(STOP_IDS_PER_STOP), "Ids that end an answer."),
        "include_stop_str_in_output": flag("Whether the stop text or id that ended the answer is part of it."),
        "min_tokens": optional("integer", json!({"minimum": 0, "format": "int64", "description":
            "Nothing ends the answer before it has this many tokens; at most `max_tokens`."})),
        "ignore_eos": flag("Continue after the model's end-of-text token."),
        "response_format": optional("object", json!({"required": ["type"], "description": "Constrains the answer.", "properties": {
            "type": {"enum": ["text", "json_object", "json_schema"]},
            "schema": schema,
            "json_schema": optional("object", json!({"required": ["schema"], "properties": {"schema": schema}})),
        }})),
        "structured_outputs": optional("object", json!({"description": "The same in vLLM's form: one of these.", "properties": {
            "json": {"description": "A JSON schema, as an object or as text."},
            "json_object": flag("Any JSON object."),
            "regex": optional("string", json!({})),
            "choice": optional("array", choices.clone()),
            "grammar": optional("string", json!({"description": "Lark."})),
        }})),
        "guided_json": {"description": "A JSON schema, as an object or as text: vLLM's older name."},
        "guided_regex": optional("string", json!({})),
        "guided_choice": optional("array", choices.clone()),
        "guided_grammar": optional("string", json!({"description": "Lark."})),
        "guided_decoding_backend": {"description": "Changes nothing."},
        "guided_whitespace_pattern": {"type": "null"},
        "json_schema": {"description": "A JSON schema: llama.cpp's name."},
        "grammar": optional("string", json!({"description": "Lark: llama.cpp's name."})),
        "cache_salt": optional("string", json!({"minLength": 1, "description":
            "Share the prefix cache only with requests that have the same salt."})),
    })
}

/// The fields for what a response has beside the text, and how tokens are written.
fn output() -> Value {
    json!({
        "skip_special_tokens": flag("Whether special tokens are left out of the text. True if absent."),
        "spaces_between_special_tokens": flag("Changes nothing: byte-level tokens are joined without anything between them."),
        "return_token_ids": flag("Return token ids beside texts."),
        "return_tokens_as_token_ids": flag("Name tokens `token_id:7` in `logprobs`."),
        "prompt_logprobs": optional("integer", json!({"minimum": 0, "maximum": MAX_LOGPROBS, "description":
            "Return log-probabilities of the prompt's tokens with this many alternatives. Not in streams."})),
        "logprob_token_ids": optional("array", json!({"maxItems": MAX_SCORED_IDS, "items": id(), "description":
            "Return the log-probabilities of these ids instead of those of the likeliest tokens."})),
        "truncate_prompt_tokens": optional("integer", json!({"minimum": -1, "format": "int64", "description":
            "Keep this many of a prompt's tokens; -1 keeps as many as fit the context."})),
        "truncation_side": optional("string", json!({"enum": ["left", "right", null], "description":
            "The side that is cut off: `left` is the beginning and the default."})),
    })
}
