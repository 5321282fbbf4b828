//! Tests of `microgranite run`: one prompt through a pipe, and a conversation on a terminal.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::fixture;
use crate::process::{Running, microgranite, running, running_with, tiny};

fn thinking() -> String {
    fixture("granite-4.2-tiny").display().to_string()
}

/// Runs the command with `prompt` on its standard input. Returns its exit code, output and error.
fn piped(mut command: Command, prompt: &[u8]) -> (i32, String, String) {
    command.stdin(Stdio::piped());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    // A command that ends early does not read.
    let _ = process.stdin.take().unwrap().write_all(prompt);
    let output = process.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().unwrap();
    (code, text(output.stdout), text(output.stderr))
}

#[test]
fn a_prompt_from_a_pipe_gets_what_the_api_answers_and_nothing_else() {
    let model = thinking();
    let (_server, url) = running(&model);
    let question = "Where is Rome?";
    let answer: Value = reqwest::blocking::Client::new()
        .post(format!("{url}/v1/chat/completions"))
        .json(&json!({
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": question}],
            "temperature": 0, "max_tokens": 24, "reasoning_effort": "none",
        }))
        .send()
        .unwrap()
        .json()
        .unwrap();
    let content = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!content.is_empty());
    let mut expected = content.to_owned();
    if !expected.ends_with('\n') {
        expected.push('\n');
    }
    let options = [
        "--system",
        "Be brief.",
        "--temperature",
        "0",
        "--max-tokens",
        "24",
        "--thinking",
        "off",
    ];
    for who in [&[&*model][..], &["--url", &*url]] {
        let command = microgranite(&[&["run"][..], who, &options].concat());
        let (code, out, err) = piped(command, format!("\n{question}\n").as_bytes());
        assert_eq!((code, &*out, &*err), (0, &*expected, ""), "{who:?}");
    }
    // The same as an argument, with figures.
    let command = [&["run", &model, question, "--verbose"][..], &options].concat();
    let (code, out, err) = piped(microgranite(&command), b"not read");
    assert_eq!((code, &*out), (0, &*expected));
    assert!(err.contains(" 24 tokens written in "), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn a_model_without_a_chat_template_continues_the_text() {
    let model = tiny();
    let (_server, url) = running(&model);
    let answer: Value = reqwest::blocking::Client::new()
        .post(format!("{url}/v1/completions"))
        .json(&json!({"prompt": "Once", "temperature": 0, "max_tokens": 8}))
        .send()
        .unwrap()
        .json()
        .unwrap();
    let mut expected = answer["choices"][0]["text"].as_str().unwrap().to_owned();
    if !expected.ends_with('\n') {
        expected.push('\n');
    }
    let options = ["--temperature", "0", "--max-tokens", "8"];
    let command = microgranite(&[&["run", &*model][..], &options].concat());
    let (code, out, err) = piped(command, b"Once");
    assert_eq!((code, &*out, &*err), (0, &*expected, ""));
}

/// The address of a server of another kind.
pub fn other_service() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            read_request(&mut BufReader::new(stream.try_clone().unwrap()));
            let page = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>";
            stream.write_all(page.as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn what_cannot_be_answered_ends_with_one_line_and_a_documented_code() {
    let home = tempfile::tempdir().unwrap();
    let keys = home.path().join("keys");
    std::fs::write(&keys, "right").unwrap();
    let (_server, keyed) = running_with(&tiny(), &["--api-key-file", keys.to_str().unwrap()]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    let other_url = other_service();
    let (model, long) = (thinking(), "word ".repeat(100_000));
    for (arguments, prompt, code, words) in [
        (&[][..], "hi", 69, "`microgranite pull demo` fetches it"),
        (&[&*model], " \n", 64, "the prompt is empty"),
        (&[&*model], &*long, 64, "maximum context length is"),
        (&["/nowhere/at/all"], "hi", 66, "/nowhere/at/all"),
        (&[&*model, "--temperature", "9"], "hi", 64, "temperature"),
        (
            &["--url", &*closed_url],
            "hi",
            69,
            "start one with `microgranite serve`",
        ),
        (
            &["--url", &*other_url],
            "hi",
            69,
            "something else answers there",
        ),
        (&["--url", &*keyed], "hi", 78, "MICROGRANITE_API_KEY"),
        (
            &["--url", &*keyed, "--api-key", "wrong"],
            "hi",
            78,
            "does not accept",
        ),
        (&["demo", "--url", &*keyed], "hi", 64, "--url"),
        (
            &["--url", "ftp://x"],
            "hi",
            64,
            "write the address of a server",
        ),
    ] {
        let mut command = microgranite(&[&["run"][..], arguments].concat());
        // Neither a cache nor a history.
        command.env("HOME", home.path());
        for name in ["XDG_CACHE_HOME", "XDG_STATE_HOME"] {
            command.env_remove(name);
        }
        let (found, out, err) = piped(command, prompt.as_bytes());
        assert_eq!((found, &*out), (code, ""), "{arguments:?}: {err}");
        assert!(
            err.starts_with("error: ") && err.contains(words),
            "{arguments:?}: {err}"
        );
        assert_eq!(err.lines().count(), 1, "{err}");
    }
    let mut command = microgranite(&["run", "--url", &*keyed]);
    command.env("MICROGRANITE_API_KEY", "right");
    let (code, _, err) = piped(command, b"hi");
    assert_eq!((code, &*err), (0, ""));
}

/// A terminal with a program on it.
struct Terminal {
    process: Running,
    keyboard: ChildStdin,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(arguments: &[&str], home: &std::path::Path) -> Self {
        // It opens a terminal for the command, and passes on what its own input says.
        let mut command = Command::new("script");
        // In place of the shell, which Ctrl-C would end.
        let mut words = vec!["exec", crate::harness::PROGRAM, "run"];
        words.extend(arguments);
        command.args([
            "--quiet",
            "--return",
            "--flush",
            "--command",
            &words.join(" "),
            "/dev/null",
        ]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MICROGRANITE_")) {
            command.env_remove(name);
        }
        command
            .env("HOME", home)
            .env("TERM", "xterm")
            .env("SHELL", "/bin/sh");
        for name in ["XDG_STATE_HOME", "NO_COLOR", "CLICOLOR"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let keyboard = process.stdin.take().unwrap();
        let mut reader = process.stdout.take().unwrap();
        let (shown, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                if shown.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self {
            process: Running(process),
            keyboard,
            screen,
            seen: String::new(),
        }
    }

    fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until `text` is shown, and returns everything before it since the last call.
    fn wait_for(&mut self, text: &str) -> String {
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                let mut before = std::mem::replace(&mut self.seen, rest);
                before.truncate(at);
                return before;
            }
            let more = self.screen.recv_timeout(Duration::from_secs(60));
            let more = more.unwrap_or_else(|_| panic!("{text:?} is not in {:?}", self.seen));
            self.seen += &String::from_utf8_lossy(&more);
        }
    }

    fn end(mut self) -> i32 {
        self.process.0.wait().unwrap().code().unwrap()
    }
}

#[test]
fn a_conversation_on_a_terminal_has_commands_several_lines_and_a_history() {
    let home = tempfile::tempdir().unwrap();
    let model = thinking();
    let mut terminal = Terminal::start(
        &[
            &model,
            "--temperature",
            "0",
            "--max-tokens",
            "40",
            "--verbose",
        ],
        home.path(),
    );
    terminal.wait_for("Chatting with granite-4.2-tiny.");
    terminal.wait_for(">>> ");
    terminal.type_keys("/hepl\r");
    terminal.wait_for("/hepl is no command; did you mean /help?");
    terminal.type_keys("/system Answer in verse.\r");
    terminal.wait_for("Told, from the next answer on.");
    terminal.type_keys("/system\r");
    terminal.wait_for("The model is told: Answer in verse.");

    // The thought is dim.
    terminal.type_keys("/think on\r");
    terminal.wait_for("The model thinks before it answers.");
    terminal.wait_for(">>> ");
    terminal.type_keys("first question\r");
    let answer = terminal.wait_for(" tokens written in ");
    assert!(answer.contains("\u{1b}[2m"), "{answer:?}");
    terminal.type_keys("/think off\r");
    terminal.wait_for("The model answers without thinking first.");
    terminal.wait_for(">>> ");
    terminal.type_keys("\"\"\"second\rquestion\"\"\"\r");
    terminal.wait_for(" tokens read (");
    terminal.wait_for(" tokens written in ");
    terminal.wait_for(">>> ");
    // Ctrl-C at the prompt ends nothing.
    terminal.type_keys("unfinished\u{3}");
    terminal.wait_for("/bye or Ctrl-D ends the conversation.");
    // The history has the last text, whole.
    terminal.wait_for(">>> ");
    terminal.type_keys("\u{1b}[A");
    terminal.wait_for("second");
    terminal.type_keys("\u{3}");
    terminal.wait_for(">>> ");
    terminal.type_keys("/clear\r");
    terminal.wait_for("The conversation begins anew.");
    terminal.type_keys("/bye\r");
    assert_eq!(terminal.end(), 0);

    let history = home.path().join(".local/state/microgranite/history");
    let mode = history.metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = std::fs::read_to_string(&history).unwrap();
    for entry in [
        "first question",
        "/think off",
        "\"\"\"second\nquestion\"\"\"",
        "/bye",
    ] {
        let line = entry.replace('\n', "\\n");
        assert!(text.lines().any(|other| other == line), "{line}: {text}");
    }

    // The next conversation remembers it. Ctrl-D ends it.
    let mut terminal = Terminal::start(&[&*model], home.path());
    terminal.wait_for(">>> ");
    terminal.type_keys("\u{1b}[A");
    terminal.wait_for("/bye");
    terminal.type_keys("\u{3}");
    terminal.wait_for(">>> ");
    terminal.type_keys("\u{4}");
    assert_eq!(terminal.end(), 0);
}

/// Reads the head and body of a request.
fn read_request(stream: &mut impl BufRead) -> String {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line.trim().is_empty() {
            break;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    head + &String::from_utf8(body).unwrap()
}

/// Answers one request with `body` as far as it goes.
fn begin_answer(listener: &TcpListener, kind: &str, body: &str) -> (String, TcpStream) {
    let (mut stream, _) = listener.accept().unwrap();
    let request = read_request(&mut BufReader::new(stream.try_clone().unwrap()));
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n");
    stream.write_all((head + body).as_bytes()).unwrap();
    (request, stream)
}

#[test]
fn ctrl_c_stops_an_answer_and_not_the_conversation() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let home = tempfile::tempdir().unwrap();
    let mut terminal = Terminal::start(&["--url", &*url], home.path());
    let models = r#"{"data":[{"id":"slow"}]}"#;
    drop(begin_answer(&listener, "application/json", models));
    terminal.wait_for("Chatting with slow.");
    terminal.wait_for(">>> ");

    // The answer begins, and never ends by itself.
    let event = |text: &str| {
        format!("data: {{\"choices\":[{{\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
    };
    terminal.type_keys("count\r");
    let (_, mut stream) = begin_answer(&listener, "text/event-stream", &event("one, two"));
    terminal.wait_for("one, two");
    terminal.type_keys("\u{3}");
    terminal.wait_for("Stopped.");
    terminal.wait_for(">>> ");
    // The server notices at its next words.
    let is_gone = (0..1000).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        stream.write_all(event("three").as_bytes()).is_err()
    });
    assert!(is_gone, "the connection is still open");

    // The conversation goes on from what was said.
    terminal.type_keys("go on\r");
    let (request, stream) = begin_answer(&listener, "text/event-stream", &event("three"));
    let body: Value = serde_json::from_str(request.lines().last().unwrap()).unwrap();
    let messages = json!([
        {"role": "user", "content": "count"},
        {"role": "assistant", "content": "one, two"},
        {"role": "user", "content": "go on"},
    ]);
    assert_eq!(body["messages"], messages);
    drop(stream);
    terminal.wait_for("three");
    terminal.wait_for(">>> ");

    // A server that is gone does not end it either.
    drop(listener);
    terminal.type_keys("still there?\r");
    terminal.wait_for("error: no server answers at ");
    terminal.wait_for(">>> ");
    terminal.type_keys("\u{4}");
    assert_eq!(terminal.end(), 0);
}
