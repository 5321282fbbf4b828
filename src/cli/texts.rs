//! Reads the texts of a file for a model: conversations are rendered with the model's own chat template.

use std::path::Path;

use jiff::Timestamp;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::http::chat::messages;
use crate::http::fields::Fields;
use crate::sources::Checkpoint;
use crate::text::Tokenizer;
use crate::text::chat::{ChatTemplate, Ending};
use crate::text::samples::{self, Sample};

/// The date for templates, fixed so that a file always gives the same text: 1 January 2026.
const TODAY: Timestamp = Timestamp::constant(1_767_225_600, 0);

/// Reads the texts of `file`, for `checkpoint` to be evaluated or calibrated on.
///
/// # Errors
/// As [`samples::read`], and [`Error::Usage`] naming the line of a conversation that is malformed or that the model's
/// template rejects.
pub fn read(file: &Path, checkpoint: &Checkpoint) -> Result<Vec<String>> {
    let mut template = None;
    let mut texts = Vec::new();
    for sample in samples::read(file)? {
        let (line, request) = match sample {
            Sample::Text(text) => {
                texts.push(text);
                continue;
            }
            Sample::Chat { line, request } => (line, request),
        };
        let rendered = match &template {
            Some(template) => render(template, &request),
            None => {
                compile(checkpoint).and_then(|compiled| render(template.insert(compiled), &request))
            }
        };
        let bad =
            |problem: String| Error::Usage(format!("{}: line {line}: {problem}", file.display()));
        texts.push(rendered.map_err(bad)?);
    }
    Ok(texts)
}

fn compile(checkpoint: &Checkpoint) -> std::result::Result<ChatTemplate, String> {
    let Some(source) = &checkpoint.chat_template else {
        let problem = "is a conversation, and the model has no chat template to make a text of it";
        return Err(problem.into());
    };
    let tokenizer = Tokenizer::new(checkpoint.tokenizer.clone(), &checkpoint.config_file);
    let tokenizer = tokenizer.map_err(|problem| problem.to_string())?;
    let bos = checkpoint.config["bos_token_id"].as_u64();
    let bos = bos.and_then(|id| u32::try_from(id).ok());
    let eos = checkpoint.eos_token_ids.first().copied();
    ChatTemplate::new(source, &tokenizer, bos, eos)
        .map_err(|problem| format!("the model's chat template cannot be used: {problem}"))
}

/// The whole conversation as text, validated like a chat request.
fn render(template: &ChatTemplate, request: &Value) -> std::result::Result<String, String> {
    let body = request.to_string();
    let conversation = Fields::parse(body.as_bytes())
        .and_then(|mut fields| messages::take(&mut fields))
        .map_err(|problem| problem.to_string());
    let (mut conversation, _tools) = conversation?;
    conversation.ending = Ending::Closed;
    let text = template.render(&conversation, TODAY);
    text.map_err(|problem| problem.to_string())
}
