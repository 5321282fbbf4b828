//! Who answers: the application in this process, or a server at an address.

use std::io::{self, Read};
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::Request;
use axum::http::header::CONTENT_TYPE;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::answer::{Answered, Part, parts};
use crate::cli::client::{self, Client};
use crate::cli::serve;
use crate::error::{Error, Result};
use crate::http::app::App;
use crate::http::routes;

/// More than the cards of a model, or an error.
const MOST_BYTES: usize = 1 << 20;
/// Pieces of an answer that wait to be shown: enough for a burst, and the server waits when a terminal is slow.
const WAITING: usize = 64;
/// Bytes that are read at once from a server: an event takes some hundreds.
const PIECE: usize = 16 << 10;

/// A model that answers.
pub struct Peer {
    to: To,
    runtime: Runtime,
    model: Model,
}

enum To {
    Here(TowerToHyperService<Router>),
    There(Arc<Client>),
}

/// What matters about the model.
#[derive(Debug, Clone)]
pub struct Model {
    /// The name for requests.
    pub name: String,
    /// Whether it has a chat template; otherwise it continues texts.
    pub chats: bool,
    /// Whether it may think before it answers.
    pub thinks: bool,
}

/// The bytes of a response as they come.
type Bytes = BoxStream<'static, io::Result<axum::body::Bytes>>;

impl Peer {
    /// The application of this process.
    ///
    /// # Errors
    /// [`Error::Internal`] if the system refuses a runtime.
    pub fn here(app: App) -> Result<Self> {
        let runtime = serve::runtime()?;
        let service = TowerToHyperService::new(routes::router(app));
        let request = Request::get("/v1/models").body(Body::empty());
        let request = request.map_err(|problem| Error::Internal(problem.to_string()))?;
        let body = runtime.block_on(async {
            let response = service.call(request).await;
            let response = response.unwrap_or_else(|never| match never {});
            to_bytes(response.into_body(), MOST_BYTES).await
        });
        let models = body
            .ok()
            .and_then(|body| serde_json::from_slice(&body).ok())
            .unwrap_or_default();
        let model = model(&models).ok_or_else(|| Error::Internal("no model".to_owned()))?;
        let to = To::Here(service);
        Ok(Self { to, runtime, model })
    }

    /// A server.
    ///
    /// # Errors
    /// Those of [`Client::get`].
    pub fn there(client: Client) -> Result<Self> {
        let models: Value = client.get("/v1/models")?;
        let model = model(&models).ok_or_else(|| {
            Error::Unavailable(format!("{}: the server has no model", client.base()))
        })?;
        let (runtime, to) = (serve::runtime()?, To::There(Arc::new(client)));
        Ok(Self { to, runtime, model })
    }

    /// The model.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// Sends a request with `stream`, and calls `show` with each part of the answer. If `may_stop`, Ctrl-C ends the answer
    /// and not the program.
    ///
    /// # Errors
    /// [`Error::Usage`] for a refused request, [`Error::Unavailable`] where the answer ends with an error, and those of
    /// `show`.
    pub fn answer(
        &self,
        request: &Value,
        may_stop: bool,
        show: &mut dyn FnMut(&Part) -> Result<()>,
    ) -> Result<Answered> {
        let path = match self.model.chats {
            true => "/v1/chat/completions",
            false => "/v1/completions",
        };
        self.runtime.block_on(async {
            let mut answered = Answered::default();
            // Only signals from now on count.
            let interrupts = may_stop.then(|| signal(SignalKind::interrupt()));
            let mut interrupts = interrupts.transpose().map_err(internal)?;
            let stopped = async {
                match &mut interrupts {
                    Some(interrupts) => interrupts.recv().await,
                    None => std::future::pending().await,
                }
            };
            let mut stopped = pin!(stopped);
            let bytes = tokio::select! {
                bytes = self.post(path, request) => bytes?,
                _ = &mut stopped => {
                    answered.was_stopped = true;
                    return Ok(answered);
                }
            };
            let mut parts = pin!(parts(bytes));
            loop {
                let part = tokio::select! {
                    part = parts.next() => part,
                    _ = &mut stopped => {
                        answered.was_stopped = true;
                        return Ok(answered);
                    }
                };
                match part {
                    None => return Ok(answered),
                    Some(part) => {
                        let part = part?;
                        show(&part)?;
                        answered.add(part);
                    }
                }
            }
        })
    }

    /// Sends a request. Returns the bytes of the answer.
    async fn post(&self, path: &'static str, request: &Value) -> Result<Bytes> {
        let (status, bytes) = match &self.to {
            To::Here(service) => {
                let built = Request::post(path).header(CONTENT_TYPE, "application/json");
                let built = built.body(Body::from(request.to_string()));
                let response = service.call(built.map_err(internal)?).await;
                let response = response.unwrap_or_else(|never| match never {});
                let (head, body) = response.into_parts();
                let bytes = body.into_data_stream();
                let bytes = bytes.map(|bytes| bytes.map_err(io::Error::other)).boxed();
                (head.status.as_u16(), bytes)
            }
            To::There(client) => {
                let (client, request) = (Arc::clone(client), request.clone());
                let sent = tokio::task::spawn_blocking(move || {
                    let (status, reader) = client.post(path, &request)?;
                    Ok::<_, Error>((status, read_aside(reader)?))
                });
                sent.await.map_err(internal)??
            }
        };
        if status == 200 {
            return Ok(bytes);
        }
        let body = Body::from_stream(bytes);
        let body = to_bytes(body, MOST_BYTES).await.unwrap_or_default();
        let message = client::api_message(&body);
        let message =
            message.unwrap_or_else(|| format!("the server answered with status {status}"));
        Err(match status {
            400..500 => Error::Usage(message),
            _ => Error::Unavailable(message),
        })
    }
}

fn internal(problem: impl std::fmt::Display) -> Error {
    Error::Internal(problem.to_string())
}

/// Reads on a thread of its own. It ends when nobody wants what it reads, which closes the connection.
fn read_aside(mut reader: impl Read + Send + 'static) -> Result<Bytes> {
    let (pieces, arrived) = mpsc::channel(WAITING);
    let read = move || {
        let mut buffer = vec![0; PIECE];
        loop {
            let piece = match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(length) => Ok(buffer[..length].to_vec().into()),
                Err(problem) => Err(problem),
            };
            let is_last = piece.is_err();
            if pieces.blocking_send(piece).is_err() || is_last {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("answer".into());
    thread.spawn(read).map_err(internal)?;
    let next = |mut arrived: mpsc::Receiver<_>| async { Some((arrived.recv().await?, arrived)) };
    Ok(stream::unfold(arrived, next).boxed())
}

/// The model in the answer of `/v1/models`. Other servers than this one say nothing of chat, and can.
fn model(models: &Value) -> Option<Model> {
    let card = models["data"].get(0)?;
    let can = &card["capabilities"];
    Some(Model {
        name: card["id"].as_str()?.to_owned(),
        chats: can["chat_completions"].as_bool().unwrap_or(true),
        thinks: can["reasoning"].as_bool().unwrap_or(true),
    })
}
