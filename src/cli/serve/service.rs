//! The service from its open port to its end: loads the model, answers, and drains.

use std::sync::Arc;
use std::time::Instant;

use super::Args;
use super::access::{self, KeptFiles};
use super::canary::Canary;
use super::listening::{self, Open, PassedSocket};
use super::load::{self, Loaded};
use super::notify::{Manager, Message};
use super::plan::Clients;
use super::prepare::{self, Prepared};
use super::ready::{self, Ready};
use super::signals::StopSignals;
use super::verify::{self, Verify};
use crate::engine::Health;
use crate::error::{Error, Result};
use crate::http::app::App;
use crate::http::server::{self, Server};
use crate::memory::accounts::Accounts;
use crate::sources;

/// Everything that is prepared before the port is bound.
pub(super) struct Service {
    pub(super) loading: Loading,
    /// How connections to the API are kept.
    pub(super) connections: server::Settings,
    /// The socket of the API, if it was passed.
    pub(super) passed: Option<PassedSocket>,
    pub(super) manager: Manager,
    /// When the command began.
    pub(super) began: Instant,
}

/// What loading the model takes.
pub(super) struct Loading {
    pub(super) args: Args,
    pub(super) sources: sources::Settings,
    pub(super) app: App,
    /// The model, if it is on this machine.
    pub(super) prepared: Option<Prepared>,
    pub(super) clients: Clients,
}

impl Service {
    /// Binds the port first, so that it answers 503 while the model loads; then loads the model; then waits for the
    /// end.
    pub(super) async fn serve(self, mut stop_signals: StopSignals) -> Result<()> {
        let Self {
            loading,
            connections,
            passed,
            manager,
            began,
        } = self;
        let (args, app) = (&loading.args, loading.app.clone());
        let drain_timeout = args.listening.drain_timeout;
        let canary_interval = args.model.canary_interval;
        let (needs_key, is_tls) = (app.access().keys.is_some(), connections.tls.is_some());
        let files = KeptFiles {
            app: app.clone(),
            tls: connections.tls.clone(),
            manager: manager.clone(),
        };
        tokio::spawn(files.keep(access::hangups()?));
        tokio::spawn(manager.clone().keep_alive(app.clone()));
        tokio::spawn(app.clone().beat());
        let (listen, mode) = (&args.listening.listen, args.listening.socket_mode);
        let Open { listener, file } = match passed {
            Some(passed) => passed.open()?,
            None => listening::open("--listen", listen, mode)?,
        };
        let address = listener.address().unwrap_or_else(|_| listen.clone());
        let server = Server::start(listener, app.clone(), connections);
        tracing::info!(%address, "listening; loading the model");
        manager.tell(Message::Status("loading the model".to_owned()));

        let loading = tokio::task::spawn_blocking(move || loading.load());
        let Loaded {
            model,
            facts,
            canary,
            ..
        } = tokio::select! {
            loaded = loading => loaded.map_err(|panic| Error::Internal(format!("loading: {panic}")))??,
            () = stop_signals.next() => return Ok(()),
        };
        let canary = Canary::new(&model, canary, canary_interval, app.clone())?;
        let engine = model.engine.clone();
        let serving = format!("serving {} on {address}", model.name);
        let ready = Ready {
            address: &address,
            is_tls,
            needs_key,
        };
        let ready = ready.text(&model.name, &facts);
        app.serve_model(model);
        app.metrics().set_startup("total", began.elapsed());
        stop_signals.set_serving();
        ready::show(ready);
        tracing::info!(%address, "ready");
        // Not before: a packed model is ready in a fraction of the time that this takes.
        if let Some(canary) = canary {
            tokio::spawn(canary.watch());
        }
        manager.tell(Message::Ready(serving));

        let engine_died = tokio::select! {
            () = stop_signals.next() => false,
            () = engine.stopped() => true,
        };
        if !engine_died {
            tracing::info!(?drain_timeout, "stopping: finishing what runs");
        }
        manager.tell(Message::Stopping("finishing what runs".to_owned()));
        // The requests of a stalled step have already been answered with an error.
        let hurry = async {
            tokio::select! {
                () = stop_signals.next() => {}
                () = app.stalled() => {}
            }
        };
        let is_finished = server.drain(drain_timeout, hurry).await;
        if engine.health() == Health::Failed {
            let cause = "the engine died; the log has the cause";
            return Err(Error::Internal(cause.to_owned()));
        }
        if !is_finished {
            tracing::warn!("stopped before all answers were complete");
        }
        // Until here, so that the socket is there as long as somebody listens on it.
        drop(file);
        Ok(())
    }
}

impl Loading {
    /// Loads the model and starts a thread that verifies its weights.
    fn load(self) -> Result<Loaded> {
        let Self {
            args,
            sources,
            app,
            prepared,
            clients,
        } = self;
        let metrics = Arc::clone(app.metrics());
        let prepared = match prepared {
            Some(prepared) => prepared,
            None => prepare::prepare(&args, &sources, clients)?,
        };
        let packed = prepared.packed();
        if let (Verify::Start, Some(packed)) = (args.model.verify, &packed) {
            let began = Instant::now();
            verify::at_start(packed, &sources, &metrics)?;
            metrics.set_startup("verify", began.elapsed());
        }
        let loaded = load::load(&args, prepared, &sources, Arc::clone(&metrics))?;
        // Here, because what only loading needed is gone.
        metrics.memory().set_accounts(Accounts {
            ready: prepare::allocated(),
            ..loaded.accounts.clone()
        });
        if let (Verify::Start | Verify::Background, Some(packed)) = (args.model.verify, packed) {
            let placement = args.model.weights.weights;
            verify::watch(packed, args.model.verify, placement, app, metrics);
        }
        Ok(loaded)
    }
}
