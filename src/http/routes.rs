//! The table of routes: what is answered where, and who may ask.
//!
//! Who may ask is decided where a route is declared. `api` needs a key where there are keys, and so do unknown paths;
//! `probes` never do, because what asks them has none; `operations` and the first page need one only where operations
//! have a port of their own.

use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::from_fn_with_state;
use axum::response::Html;
use axum::routing::{get, post};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::auth::{self, ApiKeys};
use super::error_body::ApiError;
use super::structured::UNENFORCED;
use super::{App, chat, completions, health, models, observe, openapi, tokenize};

/// Who may ask, from where, and under which paths.
#[derive(Default)]
pub struct Access {
    /// One of these keys is needed; `None` lets everybody in.
    pub keys: Option<ApiKeys>,
    /// Whether metrics, version and documents have a port of their own, so that the API's port need not have them open.
    pub has_admin_port: bool,
    /// What stands before every path, for proxies that do not take it off: empty, or `/prefix`.
    pub root_path: String,
    /// Pages of these origins may ask from within a browser; `*` stands for all.
    pub cors_origins: Vec<HeaderValue>,
}

/// How long a browser may remember what a preflight was answered: Chrome's own maximum.
const PREFLIGHT_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// Everything the service answers.
pub fn router(app: App) -> Router {
    let access = app.access();
    let keyed = |routes: Router<App>| {
        let routes = routes.fallback(async || ApiError::PathNotFound);
        let routes = routes.method_not_allowed_fallback(async || ApiError::MethodNotAllowed);
        routes.layer(from_fn_with_state(app.clone(), auth::require_key))
    };
    let open = |routes: Router<App>| {
        routes.method_not_allowed_fallback(async || ApiError::MethodNotAllowed)
    };
    let routes = if access.has_admin_port {
        keyed(api().merge(operations()).merge(start())).merge(open(probes()))
    } else {
        keyed(api()).merge(open(probes().merge(operations()).merge(start())))
    };
    let routes = match access.root_path.as_str() {
        "" => routes,
        // Probes come straight from the machine, past the proxy that adds the prefix.
        prefix => keyed(Router::new())
            .merge(open(probes()))
            .nest(prefix, routes),
    };
    let cors = cors(&access.cors_origins);
    let routes = observed(routes, app.clone());
    match cors {
        // Outermost: a preflight has no key.
        Some(cors) => routes.layer(cors),
        None => routes,
    }
    .with_state(app)
}

/// What the admin port answers: probes, Prometheus and people, without a key.
pub fn admin_router(app: App) -> Router {
    let routes = probes().merge(operations());
    let routes = routes
        .fallback(async || ApiError::PathNotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed);
    observed(routes, app.clone()).with_state(app)
}

/// The paths of the API. Clients that were configured without `/v1` find it too.
fn api() -> Router<App> {
    let openai = || {
        Router::new()
            .route("/completions", post(completions::complete))
            .route("/chat/completions", post(chat::complete))
            .route("/embeddings", post(models::embeddings))
            .route("/models", get(models::list))
            // Names may contain slashes.
            .route("/models/{*name}", get(models::show))
    };
    Router::new()
        .nest("/v1", openai())
        .merge(openai())
        .route("/tokenize", post(tokenize::tokenize))
        .route("/detokenize", post(tokenize::detokenize))
        .route("/tokenizer_info", get(tokenize::info))
}

/// What load balancers and kubelets ask.
fn probes() -> Router<App> {
    Router::new()
        .route("/health", get(health::ready))
        .route("/ping", get(health::ready))
        .route("/livez", get(health::live))
        .route("/readyz", get(health::ready))
}

/// What collectors and people ask.
fn operations() -> Router<App> {
    Router::new()
        .route("/version", get(health::version))
        .route("/metrics", get(observe::metrics))
        .route("/openapi.json", get(openapi::document))
        .route("/docs", get(openapi::page))
}

/// The first page; the admin port has none, because half of what it names is not there.
fn start() -> Router<App> {
    Router::new().route("/", get(index))
}

/// `GET /`: where to go from here.
async fn index(State(app): State<App>) -> Html<String> {
    let root = &app.access().root_path;
    Html(format!(
        "<!doctype html><title>microgranite</title><p>microgranite: \
         <a href=\"{root}/docs\">{root}/docs</a>, <a href=\"{root}/v1/models\">{root}/v1/models</a>, \
         <a href=\"{root}/metrics\">{root}/metrics</a></p>\n"
    ))
}

/// The layers from the inside out: the last one added sees the request first.
fn observed(routes: Router<App>, app: App) -> Router<App> {
    routes
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(app, observe::observe))
}

/// What lets pages of other origins ask, if any may.
fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origin = match origins {
        [] => return None,
        origins if origins.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().cloned()),
    };
    let exposed = [
        "x-request-id",
        "x-ignored-params",
        UNENFORCED,
        "retry-after",
        "retry-after-ms",
    ];
    let exposed = exposed.map(HeaderName::from_static);
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        // OpenAI's client sends a dozen of its own. `*` would not stand for `Authorization`.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
        .max_age(PREFLIGHT_AGE);
    Some(layer)
}
