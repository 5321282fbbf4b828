//! Starts the service on a port of its own and talks to it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use microgranite::engine::{self, Engine};
use microgranite::http::access::Access;
use microgranite::http::app::{App, Defaults, Facts, ServedModel};
use microgranite::http::limits::Limits;
use microgranite::http::server::{self, Server};
use microgranite::model::Forward;
use microgranite::telemetry::Metrics;
use microgranite::telemetry::otlp::Exporter;
use microgranite::text::chat::ChatTemplate;
use microgranite::text::{Grammars, Tokenizer, grammar};
use reqwest::{Client, RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The size of the fixtures' vocabulary: a token for each byte, 60 merges, and four special tokens.
pub const VOCAB: usize = 320;
/// Its end-of-text token.
pub const END_OF_TEXT: u32 = 0;
/// The path of the program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_microgranite");
/// The name of the served model.
pub const MODEL: &str = "granite-test";

/// Settings that a test may change.
#[derive(Default)]
pub struct Options {
    pub engine: engine::Settings,
    pub server: server::Settings,
    pub access: Access,
    pub aliases: Vec<String>,
    pub limits: Limits,
    pub chat_template: Option<&'static str>,
    pub defaults: Defaults,
    pub tokenizer: Option<Tokenizer>,
    /// How long compiling a grammar may take. A long time by default, because tests share the machine.
    pub grammar_deadline: Option<Duration>,
    /// The address of a collector of spans.
    pub collector: Option<String>,
    /// The program that tries grammars; the real one by default.
    pub grammar_program: Option<&'static str>,
}

/// A running service. Dropping it stops it and all its answers.
pub struct Service {
    pub address: SocketAddr,
    pub metrics: Arc<Metrics>,
    pub client: Client,
    drain: Option<oneshot::Sender<(Duration, oneshot::Sender<bool>)>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Service {
    /// Serves `model` as the product does, with one thread for the network and one for the engine.
    pub fn start(model: impl Forward + 'static) -> Self {
        Self::with(model, Options::default())
    }

    pub fn with(model: impl Forward + 'static, options: Options) -> Self {
        Self::of(Some(Box::new(model)), options)
    }

    /// A service that is still loading its model.
    pub fn loading() -> Self {
        Self::of(None, Options::default())
    }

    fn of(model: Option<Box<dyn Forward>>, options: Options) -> Self {
        let metrics = Arc::new(Metrics::new());
        let exporter = options
            .collector
            .map(|url| Exporter::start(url, &metrics).unwrap());
        let (access, limits) = (options.access, options.limits);
        let app = App::traced(Arc::clone(&metrics), access, limits, exporter);
        if let Some(model) = model {
            let engine = Engine::start(model, options.engine, Arc::clone(&metrics)).unwrap();
            let tokenizer = options.tokenizer.unwrap_or_else(tokenizer);
            let grammars = Grammars::new(
                &tokenizer,
                &[END_OF_TEXT],
                VOCAB,
                grammar::Settings {
                    deadline: options.grammar_deadline.unwrap_or(Duration::from_secs(30)),
                    program: Some(options.grammar_program.unwrap_or(PROGRAM).into()),
                },
                Arc::clone(&metrics),
            );
            app.serve_model(ServedModel {
                name: MODEL.to_owned(),
                aliases: options.aliases,
                root: "tests".to_owned(),
                fingerprint: "test-fingerprint".to_owned(),
                created: 1_700_000_000,
                stop_ids: vec![END_OF_TEXT],
                chat: options.chat_template.map(|source| {
                    let template = ChatTemplate::new(source, &tokenizer, None, Some(END_OF_TEXT));
                    Arc::new(template.unwrap())
                }),
                facts: Facts::default(),
                defaults: options.defaults,
                tokenizer: Arc::new(tokenizer),
                grammars: Arc::new(grammars),
                engine,
            });
        }
        let (address, bound) = mpsc::channel();
        let (drain, drained) = oneshot::channel::<(Duration, oneshot::Sender<bool>)>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                address.send(listener.local_addr().unwrap()).unwrap();
                let server = Server::start(listener, app, options.server);
                match drained.await {
                    Ok((limit, done)) => {
                        let is_finished = server.drain(limit, std::future::pending()).await;
                        let _nobody_asks = done.send(is_finished);
                    }
                    Err(_dropped) => {
                        server.drain(Duration::ZERO, std::future::ready(())).await;
                    }
                }
            });
        });
        Self {
            address: bound.recv().unwrap(),
            metrics,
            client: Client::builder()
                .timeout(Duration::from_secs(60))
                .build()
                .unwrap(),
            drain: Some(drain),
            thread: Some(thread),
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(self.url(path)).send().await.unwrap()
    }

    pub fn completion(&self, body: &Value) -> RequestBuilder {
        self.client.post(self.url("/v1/completions")).json(body)
    }

    /// Requests a completion, which must succeed.
    pub async fn complete(&self, body: Value) -> Value {
        let response = self.completion(&body).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{body} → {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// The text of the first choice.
    pub async fn text(&self, body: Value) -> String {
        let answer = self.complete(body).await;
        answer["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    /// Requests a stream and returns its events, which must end with `[DONE]`.
    pub async fn events(&self, mut body: Value) -> Vec<Value> {
        body["stream"] = json!(true);
        let response = self.completion(&body).send().await.unwrap();
        assert_eq!(response.status(), 200, "{body}");
        read_events(response).await
    }

    /// Begins to drain, as SIGTERM does; the receiver gets whether everything was finished.
    pub fn drain(&mut self, limit: Duration) -> oneshot::Receiver<bool> {
        let (done, is_done) = oneshot::channel();
        let drain = self.drain.take().expect("drained once");
        drain.send((limit, done)).unwrap();
        is_done
    }

    /// Waits until `condition` holds, and fails the test if that takes longer than `limit`.
    pub async fn within(&self, limit: Duration, what: &str, condition: impl Fn(&Metrics) -> bool) {
        let start = Instant::now();
        while !condition(&self.metrics) {
            assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until nothing runs, which must take at most a second.
    pub async fn idle_within_a_second(&self) {
        let idle = |metrics: &Metrics| metrics.requests_running.get() == 0;
        self.within(Duration::from_secs(1), "all places are free", idle)
            .await;
    }

    pub fn count(&self, outcome: &str) -> u64 {
        let counter = self.metrics.requests_total.with_label_values(&[outcome]);
        counter.get()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        drop(self.drain.take());
        if let Some(thread) = self.thread.take() {
            let outcome = thread.join();
            assert!(outcome.is_ok() || std::thread::panicking());
        }
    }
}

/// Reads a stream to its `[DONE]`.
pub async fn read_events(response: Response) -> Vec<Value> {
    let text = response.text().await.unwrap();
    let mut events: Vec<&str> = text
        .split_terminator("\n\n")
        // Comments come while a stream waits for long, as on a busy machine.
        .filter(|event| !event.starts_with(':'))
        .map(|event| event.strip_prefix("data: ").expect("only data events"))
        .collect();
    assert_eq!(events.pop(), Some("[DONE]"), "{text}");
    let parse = |event| serde_json::from_str(event).unwrap();
    events.into_iter().map(parse).collect()
}

/// Reads a stream up to its first event and leaves the rest unread.
pub async fn first_event(response: Response) -> impl StreamExt {
    let mut chunks = response.bytes_stream();
    let first = chunks.next().await.unwrap().unwrap();
    assert!(first.starts_with(b"data: "));
    chunks
}

/// The text of one choice, joined from a stream's events.
pub fn streamed_text(events: &[Value], index: usize) -> String {
    events
        .iter()
        .flat_map(|event| event["choices"].as_array().unwrap())
        .filter(|choice| choice["index"] == index)
        .map(|choice| choice["text"].as_str().unwrap())
        .collect()
}

/// The token counts of an answer to prompts that were not in the prefix cache.
pub fn usage(prompt_tokens: u64, completion_tokens: u64) -> Value {
    json!({
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    })
}

/// The fixtures' tokenizer.
pub fn tokenizer() -> Tokenizer {
    let file = fixture("granite-3-tiny").join("tokenizer.json");
    let inner = tokenizers::Tokenizer::from_file(&file).unwrap();
    Tokenizer::new(inner, &file).unwrap()
}

/// The tokens of `text` for a model to recite, one per byte, so that characters are split over tokens at every possible
/// position.
pub fn byte_tokens(text: &str) -> Vec<u32> {
    let tokenizer = tokenizer();
    let token_of = |byte: u8| {
        (0..VOCAB as u32)
            .find(|&id| tokenizer.bytes(id) == [byte])
            .expect("the tokenizer has every byte")
    };
    text.bytes().map(token_of).collect()
}

/// A folder of `tests/fixtures`.
pub fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}
