//! `microgranite run`: a conversation with a model in the terminal.
//!
//! | file | what it holds |
//! |---|---|
//! | `peer.rs` | who answers: the application in this process, without a port, or a server at an address |
//! | `answer.rs` | an answer as it comes |
//! | `dialogue.rs` | what was said so far, and the request that continues it |
//! | `commands.rs`, `editor.rs` | what users type: commands, several lines, history |
//! | `screen.rs` | thoughts and text on the terminal |
//!
//! Whoever answers, requests go through the route `/v1/chat/completions`, with its template, thinking and limits.

mod answer;
mod commands;
mod dialogue;
mod editor;
mod peer;
mod screen;

use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::path::{Path, PathBuf};

use super::WeightsArg;
use super::client::{self, Client, KeyArg};
use super::serve::generation::Thinking;
use super::serve::here;
use super::signature::SignatureArgs;
use crate::config::{self, ByteSize};
use crate::error::{Error, Result};
use crate::http::limits::Limits;
use crate::sources::{self, Freshness, Reference};
use commands::Command;
use dialogue::{Dialogue, Options};
use editor::{Editor, Typed};
use peer::Peer;
use screen::Screen;

/// Chat with a model in the terminal.
///
/// The model is loaded into this process, as serve does, or one that a server has loaded answers (--url). Where standard
/// input is a file or a pipe, all of it is one prompt, and standard output gets the answer and nothing else.
#[derive(Debug, clap::Args)]
#[command(after_help = commands::HELP)]
pub struct Args {
    /// The model: a folder, a .gguf file, hf:OWNER/NAME[@REVISION][:LABEL], ollama:NAME[:TAG],
    /// oci://HOST/REPOSITORY[:TAG], or demo. [default: demo, if it was fetched before]
    #[arg(value_name = "REF")]
    reference: Option<Reference>,

    /// One question. Its answer is printed, and the program ends.
    #[arg(value_name = "PROMPT")]
    prompt: Option<String>,

    /// Let the server at this address answer, instead of loading a model. HOST:PORT and :PORT are enough.
    #[arg(long, value_name = "URL", value_parser = client::url, conflicts_with = "reference")]
    url: Option<String>,

    #[command(flatten)]
    key: KeyArg,

    #[command(flatten)]
    options: OptionArgs,

    /// Print the number of tokens, and tokens per second, after each answer, on standard error.
    #[arg(long, short)]
    verbose: bool,

    #[command(flatten)]
    loading: LoadArgs,
}

/// Fields of the requests.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Answers")]
struct OptionArgs {
    /// What the model is told before the conversation begins.
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Whether a model that can think before it answers does so: on, off, or low for short thoughts. [default: what the
    /// model's template does]
    #[arg(
        long,
        env = "MICROGRANITE_THINKING",
        value_enum,
        value_name = "ON|OFF|LOW"
    )]
    thinking: Option<Thinking>,

    /// The most tokens of an answer, thoughts included. [default: what the context leaves]
    #[arg(long, value_name = "N", value_parser = config::tokens)]
    max_tokens: Option<usize>,

    /// How random answers are, 0 to 2; 0 always takes the likeliest token. [default: the model's own]
    #[arg(long, value_name = "T")]
    temperature: Option<f64>,

    /// The seed of random answers: with the same one, the same conversation gets the same answers. [default: a new one for
    /// each answer]
    #[arg(long, value_name = "N")]
    seed: Option<i64>,
}

/// How a model is loaded into this process.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Loading (without --url)")]
struct LoadArgs {
    /// The same as REF, which takes precedence.
    #[arg(long, env = "MICROGRANITE_MODEL", value_name = "REF")]
    model: Option<Reference>,

    /// A Jinja file with a chat template, which replaces the model's own.
    #[arg(long, env = "MICROGRANITE_CHAT_TEMPLATE", value_name = "FILE")]
    chat_template: Option<PathBuf>,

    #[command(flatten)]
    weights: WeightsArg,

    #[command(flatten)]
    signature: SignatureArgs,

    /// Compute threads, at most one per available core. [default: the number of cores, or the cgroup's CPU quota]
    #[arg(long, env = "MICROGRANITE_THREADS", value_name = "N", value_parser = config::thread_count)]
    threads: Option<usize>,

    /// Largest length of the conversation, in tokens. [default: the model's own, or what the KV cache has room for]
    #[arg(long, env = "MICROGRANITE_CONTEXT", value_name = "N", value_parser = config::tokens)]
    context: Option<usize>,

    /// Memory for the KV cache, which limits the length of the conversation: 512MiB, 2GiB, 1G or bytes. [default: 16384
    /// tokens, at most half of the free memory]
    #[arg(long, env = "MICROGRANITE_KV_CACHE", value_name = "SIZE")]
    kv_cache: Option<ByteSize>,
}

/// Answers one prompt, or chats until the user ends it.
///
/// # Errors
/// Those of loading a model or reaching a server; of a single prompt also the refusal of the request.
pub fn run(args: Args, settings: &sources::Settings) -> Result<()> {
    let typed_by_a_person = stdin().is_terminal() && stdout().is_terminal();
    // Read before the model is loaded, so that an empty one costs no time.
    let prompt = match args.prompt {
        Some(prompt) => Some(prompt),
        None if typed_by_a_person => None,
        None => Some(read_prompt(stdin().lock())?),
    };
    let (peer, facts) = match args.url {
        Some(url) => (Peer::there(Client::new(&url, args.key))?, None),
        None => {
            let here = here::load(args.loading.settings(args.reference, settings)?, settings)?;
            (Peer::here(here.app)?, Some(here.facts))
        }
    };
    let options = Options {
        thinking: args.options.thinking,
        max_tokens: args.options.max_tokens,
        temperature: args.options.temperature,
        seed: args.options.seed,
    };
    let mut dialogue = Dialogue::new(peer.model().clone(), args.options.system, options);
    match prompt {
        Some(prompt) => answer_one(&peer, &mut dialogue, prompt, args.verbose),
        None => Chat {
            peer: &peer,
            dialogue: &mut dialogue,
            screen: Screen::new(),
            is_verbose: args.verbose,
        }
        .run(facts),
    }
}

impl LoadArgs {
    fn settings(
        self,
        reference: Option<Reference>,
        settings: &sources::Settings,
    ) -> Result<here::Settings> {
        let reference = match reference.or(self.model) {
            Some(reference) => reference,
            None => model_at_hand(settings)?,
        };
        Ok(here::Settings {
            reference,
            chat_template: self.chat_template,
            weights: self.weights,
            signature: self.signature,
            threads: self.threads,
            context: self.context,
            kv_cache: self.kv_cache,
        })
    }
}

/// The demo model, if it is on this machine.
fn model_at_hand(settings: &sources::Settings) -> Result<Reference> {
    let offline = sources::Settings {
        offline: true,
        ..settings.clone()
    };
    match sources::fetch(&Reference::Demo, &offline, Freshness::Cached) {
        Ok(_) => Ok(Reference::Demo),
        Err(Error::Unavailable(_)) => Err(Error::Unavailable(
            "no model was named, and the demo model is not on this machine yet: `microgranite pull demo` fetches it (98 MB), \
             or name a model, as in `microgranite run hf:ibm-granite/granite-4.1-3b`"
                .to_owned(),
        )),
        Err(other) => Err(other),
    }
}

/// Reads a prompt, of at most the size of a request.
fn read_prompt(from: impl Read) -> Result<String> {
    let most = Limits::default().body_bytes;
    let file = Path::new("standard input");
    let mut bytes = Vec::new();
    let read = from.take(most as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|problem| Error::io(file, problem))?;
    if bytes.len() > most {
        let most = ByteSize(most as u64);
        let problem = format!("standard input: a prompt has at most {most}");
        return Err(Error::Usage(problem));
    }
    let text = String::from_utf8(bytes);
    let text = text.map_err(|_| Error::Usage("standard input: is not text in UTF-8".to_owned()))?;
    match text.trim() {
        "" => Err(Error::Usage(
            "standard input: the prompt is empty".to_owned(),
        )),
        text => Ok(text.to_owned()),
    }
}

/// Prints the answer to a single prompt, without its thoughts, as it comes.
fn answer_one(
    peer: &Peer,
    dialogue: &mut Dialogue,
    prompt: String,
    is_verbose: bool,
) -> Result<()> {
    let failed = |problem| Error::io(Path::new("standard output"), problem);
    let request = dialogue.ask(prompt);
    let mut out = stdout().lock();
    let answered = peer.answer(&request, false, &mut |part| {
        if let answer::Part::Text(text) = part {
            out.write_all(text.as_bytes()).map_err(failed)?;
            out.flush().map_err(failed)?;
        }
        Ok(())
    })?;
    if !answered.text.ends_with('\n') {
        writeln!(out).map_err(failed)?;
    }
    if is_verbose {
        eprint_line(&answered.figures());
    }
    Ok(())
}

/// Prints a line on standard error, behind what was logged.
fn eprint_line(line: &str) {
    crate::logging::write_stderr(&format!("{line}\n"));
}

/// A conversation with a person.
struct Chat<'a> {
    peer: &'a Peer,
    dialogue: &'a mut Dialogue,
    screen: Screen,
    is_verbose: bool,
}

impl Chat<'_> {
    fn run(mut self, facts: Option<String>) -> Result<()> {
        if let Some(facts) = facts {
            self.screen.note(&facts)?;
        }
        let name = &self.dialogue.model().name;
        let begun = match self.dialogue.model().chats {
            true => format!("Chatting with {name}. /help lists the commands; /bye or Ctrl-D ends."),
            false => format!(
                "{name} has no chat template: it continues each text that you type. /bye or Ctrl-D ends."
            ),
        };
        self.screen.note(&begun)?;
        let mut editor = Editor::new()?;
        loop {
            match editor.read()? {
                Typed::End => return Ok(()),
                Typed::Nothing => {}
                Typed::Interrupt => self.screen.note("/bye or Ctrl-D ends the conversation.")?,
                Typed::Text(text) => match commands::parse(&text) {
                    Some(Ok(Command::Bye)) => return Ok(()),
                    Some(Ok(command)) => self.obey(command)?,
                    Some(Err(problem)) => self.screen.note(&problem)?,
                    None => self.ask(text)?,
                },
            }
        }
    }

    fn obey(&mut self, command: Command) -> Result<()> {
        let line = match command {
            Command::Help => commands::HELP.trim_end().to_owned(),
            Command::Clear => {
                self.dialogue.clear();
                "The conversation begins anew.".to_owned()
            }
            Command::ShowSystem => match self.dialogue.system() {
                Some(text) => format!("The model is told: {text}"),
                None => "The model is told nothing beforehand.".to_owned(),
            },
            Command::System(text) => {
                self.dialogue.set_system(text);
                "Told, from the next answer on.".to_owned()
            }
            Command::Think(_) if !self.dialogue.model().thinks => {
                "This model does not think before it answers.".to_owned()
            }
            Command::Think(thinking) => {
                self.dialogue.set_thinking(thinking);
                match thinking {
                    Some(Thinking::On) => "The model thinks before it answers.".to_owned(),
                    Some(Thinking::Off) => "The model answers without thinking first.".to_owned(),
                    Some(Thinking::Low) => "The model thinks briefly before it answers.".to_owned(),
                    None => "The model's template decides whether it thinks.".to_owned(),
                }
            }
            Command::Bye => return Ok(()),
        };
        self.screen.note(&line)
    }

    /// Shows the answer to `text`. What goes wrong is shown too, and does not end the conversation.
    fn ask(&mut self, text: String) -> Result<()> {
        let request = self.dialogue.ask(text);
        let screen = &mut self.screen;
        let answered = self
            .peer
            .answer(&request, true, &mut |part| screen.show(part));
        self.screen.end_answer()?;
        match answered {
            Ok(answered) => {
                if self.is_verbose {
                    self.screen.note(&answered.figures())?;
                }
                if let Some(remark) = answered.remark() {
                    self.screen.note(remark)?;
                }
                self.dialogue.heard(answered.text, answered.thought);
                Ok(())
            }
            // The terminal is gone.
            Err(error @ Error::Io { .. }) => Err(error),
            Err(error) => {
                self.dialogue.take_back();
                self.screen.note(&format!("error: {error}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_from_a_pipe_is_bounded_and_not_empty() {
        assert_eq!(read_prompt(&b"  two\nlines \n"[..]).unwrap(), "two\nlines");
        for (bytes, problem) in [
            (vec![b' '; 5], "standard input: the prompt is empty"),
            (vec![0xff], "standard input: is not text in UTF-8"),
            (
                vec![b'a'; Limits::default().body_bytes + 1],
                "standard input: a prompt has at most 1.00 MiB",
            ),
        ] {
            let error = read_prompt(&bytes[..]).unwrap_err();
            assert_eq!(
                (error.to_string().as_str(), error.exit_code()),
                (problem, 64)
            );
        }
        // What never ends is not read to its end.
        assert!(read_prompt(std::io::repeat(b'a')).is_err());
    }
}
