//! The table of routes: for each path its handler, its audience, how it is logged and counted, and its description.

use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router};
use serde_json::{Map, Value};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use super::app::App;
use super::error_body::ApiError;
use super::generate::{IGNORED, UNENFORCED};
use super::observe::{self, Observer, Traffic};
use super::openapi::{self, anthropic, describe};
use super::{
    auth, capacity, chat, completions, health, messages, models, page, responses, status, tokenize,
};

/// One route.
struct Route {
    path: &'static str,
    audience: Audience,
    traffic: Traffic,
    handler: fn() -> MethodRouter<App>,
    /// The path's entry in the OpenAPI document.
    describe: fn() -> Value,
}

/// Who uses a route, which decides whether it needs a key and on which port it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// Clients of the API. They need a key if the server has keys. These paths also work without `/v1`.
    Clients,
    /// Load balancers and kubelets, which never have a key. These paths are on both ports.
    Probes,
    /// Metrics collectors and operators. On the API's port they need a key only if there is an admin port as well.
    Operations,
    /// People with a browser, which cannot send a key with the address of a page. Not on the admin port, where half of what
    /// the page asks for is not.
    Visitors,
}

/// Every path.
const ROUTES: &[Route] = &[
    Route {
        path: "/v1/completions",
        audience: Audience::Clients,
        traffic: Traffic::Counted,
        handler: || post(completions::complete),
        describe: || {
            let shapes = ("CompletionRequest", "Completion");
            describe::generating(
                "create_completion",
                "Continue a text",
                shapes,
                describe::CHUNKS,
            )
        },
    },
    Route {
        path: "/v1/chat/completions",
        audience: Audience::Clients,
        traffic: Traffic::Counted,
        handler: || post(chat::complete),
        describe: || {
            let shapes = ("ChatRequest", "ChatCompletion");
            let summary = "Answer a conversation";
            describe::generating("create_chat_completion", summary, shapes, describe::CHUNKS)
        },
    },
    Route {
        path: "/v1/responses",
        audience: Audience::Clients,
        traffic: Traffic::Counted,
        handler: || post(responses::create),
        describe: || {
            let shapes = ("ResponsesRequest", "Response");
            let summary = "Answer a conversation: OpenAI's Responses API";
            describe::generating("create_response", summary, shapes, describe::TYPED)
        },
    },
    Route {
        path: "/v1/messages",
        audience: Audience::Clients,
        traffic: Traffic::Counted,
        handler: || post(messages::create),
        describe: || {
            let shapes = ("MessagesRequest", "AnthropicMessage");
            let summary = "Answer a conversation: Anthropic's API";
            anthropic::describe("create_message", summary, shapes, true)
        },
    },
    Route {
        path: "/v1/messages/count_tokens",
        audience: Audience::Clients,
        traffic: Traffic::Ordinary,
        handler: || post(messages::count_tokens),
        describe: || {
            let shapes = ("CountTokensRequest", "TokenCount");
            let summary = "The number of tokens of such a conversation";
            anthropic::describe("count_message_tokens", summary, shapes, false)
        },
    },
    Route {
        path: "/v1/embeddings",
        audience: Audience::Clients,
        traffic: Traffic::Ordinary,
        handler: || post(models::embeddings),
        describe: || describe::refused("create_embeddings", "Refused: the model makes text"),
    },
    Route {
        path: "/v1/models",
        audience: Audience::Clients,
        traffic: Traffic::Ordinary,
        handler: || get(models::list),
        describe: || {
            let summary = "The served model, under each of its names";
            describe::get("list_models", "model", summary, "ModelList")
        },
    },
    Route {
        // Names may contain slashes.
        path: "/v1/models/{*name}",
        audience: Audience::Clients,
        traffic: Traffic::Ordinary,
        handler: || get(models::show),
        describe: || describe::by_name("show_model", "model", "The model by its name", "Model"),
    },
    Route {
        path: "/v1/capacity",
        audience: Audience::Clients,
        traffic: Traffic::Ordinary,
        handler: || get(capacity::show),
        describe: || {
            let summary = "How much more fits now, and what int8 makes possible in this memory";
            describe::get("show_capacity", "model", summary, "Capacity")
        },
    },
    Route {
        path: "/tokenize",
        audience: Audience::Clients,
        traffic: Traffic::Ordinary,
        handler: || post(tokenize::tokenize),
        describe: || {
            let summary = "The ids of a text or a conversation";
            describe::post(
                "tokenize",
                "tokens",
                summary,
                ("TokenizeRequest", "Tokenized"),
            )
        },
    },
    Route {
        path: "/detokenize",
        audience: Audience::Clients,
        traffic: Traffic::Ordinary,
        handler: || post(tokenize::detokenize),
        describe: || {
            let shapes = ("DetokenizeRequest", "Detokenized");
            describe::post("detokenize", "tokens", "The text of ids", shapes)
        },
    },
    Route {
        path: "/tokenizer_info",
        audience: Audience::Clients,
        traffic: Traffic::Ordinary,
        handler: || get(tokenize::info),
        describe: || {
            let summary = "Facts about the tokenizer";
            describe::get("tokenizer_info", "tokens", summary, "TokenizerInfo")
        },
    },
    Route {
        path: "/health",
        audience: Audience::Probes,
        traffic: Traffic::Frequent,
        handler: || get(health::ready),
        describe: || describe::probe("health", "Whether a request sent now would be accepted"),
    },
    Route {
        path: "/ping",
        audience: Audience::Probes,
        traffic: Traffic::Frequent,
        handler: || get(health::ready),
        describe: || describe::probe("ping", "The same"),
    },
    Route {
        path: "/readyz",
        audience: Audience::Probes,
        traffic: Traffic::Frequent,
        handler: || get(health::ready),
        describe: || describe::probe("readyz", "The same"),
    },
    Route {
        path: "/livez",
        audience: Audience::Probes,
        traffic: Traffic::Frequent,
        handler: || get(health::live),
        describe: || describe::probe("livez", "Fails when only a restart can help"),
    },
    Route {
        path: "/v2/health/live",
        audience: Audience::Probes,
        traffic: Traffic::Frequent,
        handler: || get(health::inference_live),
        describe: || {
            let summary = "As livez, in the Open Inference Protocol";
            describe::probe("inference_live", summary)
        },
    },
    Route {
        path: "/v2/health/ready",
        audience: Audience::Probes,
        traffic: Traffic::Frequent,
        handler: || get(health::inference_ready),
        describe: || {
            let summary = "As readyz, in the Open Inference Protocol";
            describe::probe("inference_ready", summary)
        },
    },
    Route {
        // A slash in a name is written %2F here.
        path: "/v2/models/{name}/ready",
        audience: Audience::Probes,
        traffic: Traffic::Frequent,
        handler: || get(health::inference_model_ready),
        describe: || {
            let summary = "Whether this model is served, in the Open Inference Protocol";
            describe::probe_by_name("inference_model_ready", summary)
        },
    },
    Route {
        path: "/version",
        audience: Audience::Operations,
        traffic: Traffic::Ordinary,
        handler: || get(health::version),
        describe: || describe::open("version", "The version and the build", "application/json"),
    },
    Route {
        path: "/metrics",
        audience: Audience::Operations,
        traffic: Traffic::Frequent,
        handler: || get(observe::metrics),
        describe: || describe::open("metrics", "For Prometheus", "text/plain"),
    },
    Route {
        path: "/status",
        audience: Audience::Operations,
        traffic: Traffic::Frequent,
        handler: || get(status::status),
        describe: || {
            let summary = "What the server is doing: load, memory, counts and latencies";
            describe::get_open("status", "operations", summary, "Status")
        },
    },
    Route {
        path: "/openapi.json",
        audience: Audience::Operations,
        traffic: Traffic::Ordinary,
        handler: || get(document),
        describe: || describe::open("openapi", "This document", "application/json"),
    },
    Route {
        path: "/docs",
        audience: Audience::Operations,
        traffic: Traffic::Ordinary,
        handler: || get(openapi::page),
        describe: || describe::open("docs", "A page that shows this document", "text/html"),
    },
    Route {
        path: "/",
        audience: Audience::Visitors,
        traffic: Traffic::Ordinary,
        handler: || get(page::page),
        describe: || {
            let summary = "A page that shows the status, and lets people try the model";
            describe::open("page", summary, "text/html")
        },
    },
];

/// The prefix of the API's paths, which clients may leave out.
const VERSION: &str = "/v1";

impl Route {
    /// The path without the API's version, if it has one.
    fn short_path(&self) -> Option<&'static str> {
        self.path.strip_prefix(VERSION)
    }
}

/// How long a browser may cache the response to a preflight: Chrome's own maximum.
const PREFLIGHT_AGE: Duration = Duration::from_secs(2 * 60 * 60);

/// The router of the API's port.
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
    let clients = routes_for(Audience::Clients);
    let operations = routes_for(Audience::Operations);
    let mut always_open = routes_for(Audience::Probes);
    if !access.without_page {
        always_open = always_open.merge(routes_for(Audience::Visitors));
    }
    let routes = if access.has_admin_port {
        keyed(clients.merge(operations)).merge(open(always_open))
    } else {
        keyed(clients).merge(open(always_open.merge(operations)))
    };
    let routes = match access.root_path.as_str() {
        "" => routes,
        // Probes reach the server directly, not through the proxy that adds the prefix.
        prefix => keyed(Router::new())
            .merge(open(routes_for(Audience::Probes)))
            .nest(prefix, routes),
    };
    let cors = cors(&access.cors_origins);
    let routes = observed(routes, app.clone());
    match cors {
        // The outermost layer, because a preflight has no key.
        Some(cors) => routes.layer(cors),
        None => routes,
    }
    .with_state(app)
}

/// The router of the admin port: for probes, Prometheus and operators, without a key.
pub fn admin_router(app: App) -> Router {
    let routes = routes_for(Audience::Probes).merge(routes_for(Audience::Operations));
    let routes = routes
        .fallback(async || ApiError::PathNotFound)
        .method_not_allowed_fallback(async || ApiError::MethodNotAllowed);
    observed(routes, app.clone()).with_state(app)
}

fn routes_for(audience: Audience) -> Router<App> {
    let mut router = Router::new();
    for route in ROUTES.iter().filter(|route| route.audience == audience) {
        for path in [Some(route.path), route.short_path()].into_iter().flatten() {
            router = router.route(path, (route.handler)());
        }
    }
    router
}

/// For a path as the router has it, the full path of its route and its kind of traffic.
fn identify(path: &str) -> Option<(&'static str, Traffic)> {
    let is_it = |route: &&Route| route.path == path || route.short_path() == Some(path);
    let route = ROUTES.iter().find(is_it)?;
    Some((route.path, route.traffic))
}

/// `GET /openapi.json`.
async fn document(State(app): State<App>) -> Json<Value> {
    let root = &app.access().root_path;
    Json(openapi::document(app.limits(), root, described_paths()))
}

/// The entries of all paths in the OpenAPI document. OpenAPI has no wildcards in paths.
fn described_paths() -> Map<String, Value> {
    let entry = |route: &Route| (route.path.replace("{*", "{"), (route.describe)());
    ROUTES.iter().map(entry).collect()
}

/// The layers from the inside out: the last one added sees the request first.
fn observed(routes: Router<App>, app: App) -> Router<App> {
    let observer = Observer { app, identify };
    routes
        .layer(CatchPanicLayer::custom(observe::panicked))
        .layer(from_fn_with_state(observer, observe::observe))
}

/// The layer that allows requests from pages of other origins, if any are allowed.
fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let origin = match origins {
        [] => return None,
        origins if origins.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().cloned()),
    };
    let exposed = [
        "x-request-id",
        "request-id",
        IGNORED,
        UNENFORCED,
        "retry-after",
        "retry-after-ms",
    ];
    let exposed = exposed.map(HeaderName::from_static);
    let layer = CorsLayer::new()
        .allow_origin(origin)
        .allow_methods([Method::GET, Method::POST])
        // OpenAI's client sends a dozen headers of its own. `*` would not include `Authorization`.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(exposed)
        .max_age(PREFLIGHT_AGE);
    Some(layer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_known_by_its_path_with_and_without_the_version() {
        assert_eq!(
            identify("/chat/completions"),
            Some(("/v1/chat/completions", Traffic::Counted))
        );
        assert_eq!(identify("/v1/tokenize"), None);
        for route in ROUTES {
            let known = Some((route.path, route.traffic));
            assert_eq!(identify(route.path), known);
            let has_version = route.path.starts_with("/v1/");
            assert_eq!(route.short_path().is_some(), has_version, "{}", route.path);
        }
    }

    #[test]
    fn every_route_has_its_own_operation_and_asks_for_keys_as_its_audience_does() {
        let mut ids = std::collections::BTreeSet::new();
        for route in ROUTES {
            let entry = (route.describe)();
            let operations = entry.as_object().unwrap();
            assert_eq!(operations.len(), 1, "{}", route.path);
            for (method, operation) in operations {
                assert!(["get", "post"].contains(&method.as_str()));
                assert!(ids.insert(operation["operationId"].as_str().unwrap().to_owned()));
                let asks = operation["security"] != serde_json::json!([]);
                assert_eq!(asks, route.audience == Audience::Clients, "{}", route.path);
            }
        }
    }
}
