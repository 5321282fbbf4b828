//! The server under attack, an honest client beside the attacker, and measurements of both.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use reqwest::blocking::Client;
use serde_json::json;

/// No request may make other clients wait longer than this.
const FREEZE: Duration = Duration::from_secs(2);
/// No request may make the server use more memory than this in addition to its use at rest.
const BLOAT: u64 = 256 << 20;
/// If a hostile request has no response after this time, the server hangs.
const ANSWER: Duration = Duration::from_secs(20);

/// A server, and threads that watch it.
pub struct Attacked {
    process: Arc<Mutex<Child>>,
    id: u32,
    url: String,
    client: Client,
    at_rest: u64,
    watch: Arc<Watch>,
    watchers: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Watch {
    is_over: AtomicBool,
    /// The longest response time for an honest request or a probe, in milliseconds.
    longest_ms: AtomicU64,
    /// The most memory seen, in bytes.
    most_bytes: AtomicU64,
    honest: AtomicU64,
    problem: Mutex<Option<String>>,
}

impl Watch {
    fn report(&self, problem: String) {
        let mut first = self.problem.lock().expect("nobody panics with it");
        first.get_or_insert(problem);
    }
}

impl Attacked {
    /// Starts the server on the tiny model, with a watcher for honest requests and one for memory.
    pub fn start() -> Self {
        let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
        let mut command = Command::new(env!("CARGO_BIN_EXE_microgranite"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MICROGRANITE_")) {
            command.env_remove(name);
        }
        let mut process = command
            .arg("serve")
            .arg("--model")
            .arg(tests.join("fixtures/granite-3-tiny"))
            .arg("--chat-template")
            .arg(tests.join("clients/chatml-tools.jinja"))
            .args(["--listen", "127.0.0.1:0", "--log", "error"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
        let ready = lines.next().expect("a line").expect("it is text");
        let (_, url) = ready
            .rsplit_once(' ')
            .expect("the line ends with the address");
        let id = process.id();
        let client = Client::builder().timeout(ANSWER).build().expect("a client");
        let mut attacked = Self {
            process: Arc::new(Mutex::new(process)),
            id,
            url: url.to_owned(),
            client,
            at_rest: 0,
            watch: Arc::default(),
            watchers: Vec::new(),
        };
        // The first grammar builds tables that are kept, so they are not counted against a later request.
        let format = json!({"type": "json_object"});
        let first = json!({"prompt": "a", "max_tokens": 1, "response_format": format});
        let (status, text) = attacked.post("/v1/completions", first.to_string());
        assert_eq!(status, 200, "{text}");
        attacked.at_rest = memory(id);
        attacked.watch();
        attacked
    }

    fn watch(&mut self) {
        let (watch, url) = (Arc::clone(&self.watch), self.url.clone());
        self.watchers
            .push(thread::spawn(move || ask_honestly(&watch, &url)));
        let (watch, id) = (Arc::clone(&self.watch), self.id);
        self.watchers.push(thread::spawn(move || {
            while !watch.is_over.load(Relaxed) {
                watch.most_bytes.fetch_max(memory(id), Relaxed);
                thread::sleep(Duration::from_millis(20));
            }
        }));
    }

    /// Sends `body`; returns the status and the text of the response. Status 0: there was no response.
    pub fn post(&self, path: &str, body: String) -> (u16, String) {
        let request = self.client.post(format!("{}{path}", self.url));
        let request = request
            .header("content-type", "application/json")
            .body(body);
        match request.send() {
            Ok(response) => {
                let status = response.status().as_u16();
                (status, response.text().unwrap_or_default())
            }
            Err(problem) => (0, problem.to_string()),
        }
    }

    /// Bytes that the server holds now beside what it holds at rest, without its child processes.
    pub fn holds(&self) -> u64 {
        resident(self.id).saturating_sub(self.at_rest)
    }

    /// Describes what is wrong with the server after a request with this response, if anything is.
    pub fn problem(&self, (status, text): &(u16, String)) -> Option<String> {
        let mut process = self.process.lock().expect("nobody panics with it");
        if let Ok(Some(end)) = process.try_wait() {
            return Some(format!("the server has ended: {end}"));
        }
        if *status == 0 {
            return Some(format!("no answer: {text}"));
        }
        if *status == 500 {
            return Some(format!("a defect: {text}"));
        }
        let held = self
            .watch
            .most_bytes
            .load(Relaxed)
            .saturating_sub(self.at_rest);
        if held > BLOAT {
            return Some(format!("it held {} MiB more than at rest", held >> 20));
        }
        let problem = self.watch.problem.lock().expect("nobody panics with it");
        problem.clone()
    }

    /// Ends the attack and reports the result.
    pub fn end(mut self, name: &str, cases: u64) {
        self.watch.is_over.store(true, Relaxed);
        for watcher in self.watchers.drain(..) {
            watcher.join().expect("watchers do not panic");
        }
        let watch = &self.watch;
        let held = watch.most_bytes.load(Relaxed).saturating_sub(self.at_rest);
        println!(
            "{name}: {cases} requests; {} honest ones beside them, the longest took {} ms; {} MiB more than at rest at most",
            watch.honest.load(Relaxed),
            watch.longest_ms.load(Relaxed),
            held >> 20,
        );
        assert!(
            watch.honest.load(Relaxed) > 0,
            "no honest request was answered"
        );
    }
}

impl Drop for Attacked {
    fn drop(&mut self) {
        self.watch.is_over.store(true, Relaxed);
        if let Ok(mut process) = self.process.lock() {
            let _gone_already = process.kill();
            let _reaped = process.wait();
        }
    }
}

/// Requests a token and the probe in turn, and measures the response times.
fn ask_honestly(watch: &Watch, url: &str) {
    let client = Client::builder().timeout(ANSWER).build().expect("a client");
    let body = json!({"prompt": "The capital", "max_tokens": 1}).to_string();
    while !watch.is_over.load(Relaxed) {
        for path in ["/v1/completions", "/livez"] {
            let began = Instant::now();
            let request = if path == "/livez" {
                client.get(format!("{url}{path}"))
            } else {
                let post = client.post(format!("{url}{path}"));
                post.header("content-type", "application/json")
                    .body(body.clone())
            };
            let answer = request.send();
            let took = began.elapsed();
            if watch.is_over.load(Relaxed) {
                return;
            }
            watch.longest_ms.fetch_max(took.as_millis() as u64, Relaxed);
            match answer {
                Ok(answer) if answer.status() == 200 => {}
                Ok(answer) => watch.report(format!("{path} answered {}", answer.status())),
                Err(problem) => watch.report(format!("{path}: {problem}")),
            }
            if took > FREEZE {
                watch.report(format!("{path} took {} ms", took.as_millis()));
            }
            watch.honest.fetch_add(1, Relaxed);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Resident bytes of a process and its children.
fn memory(id: u32) -> u64 {
    let own = resident(id);
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children"));
    let mut all = own;
    for child in children.unwrap_or_default().split_whitespace() {
        all += child.parse().map_or(0, resident);
    }
    all
}

fn resident(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}
