//! Access to the service: API keys, allowed origins, path prefixes and model names.

use std::io::{BufRead, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use axum::http::HeaderValue;
use microgranite::http::access::{Access, ApiKeys};
use microgranite::http::routes;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::fake::Fake;
use crate::harness::{MODEL, Options, Service};
use crate::process::{microgranite, tiny};
use crate::refusals::error_of;

/// The keys `first-key` and `second key`.
fn keys() -> Option<ApiKeys> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "\n  first-key\n\nsecond key \n").unwrap();
    Some(ApiKeys::read(file.path()).unwrap())
}

fn service(access: Access) -> Service {
    let options = Options {
        access,
        ..Options::default()
    };
    Service::with(Fake::babbling(), options)
}

const PROBES: [&str; 6] = [
    "/health",
    "/livez",
    "/readyz",
    "/ping",
    "/v2/health/live",
    "/v2/health/ready",
];
const OPERATIONS: [&str; 5] = ["/version", "/metrics", "/status", "/openapi.json", "/docs"];

#[tokio::test]
async fn with_keys_only_probes_and_what_has_no_other_port_are_open() {
    for has_admin_port in [false, true] {
        let service = service(Access {
            keys: keys(),
            has_admin_port,
            ..Access::default()
        });
        for path in PROBES {
            assert_eq!(service.get(path).await.status(), 200, "{path}");
        }
        for path in OPERATIONS {
            let expected = if has_admin_port { 401 } else { 200 };
            assert_eq!(service.get(path).await.status(), expected, "{path}");
            let request = service
                .client
                .get(service.url(path))
                .bearer_auth("first-key");
            assert_eq!(request.send().await.unwrap().status(), 200, "{path}");
        }
        for path in [
            "/v1/models",
            "/models",
            "/v1/completions",
            "/completions",
            "/nope",
            "/metrics/",
            "//metrics",
            "/v1/../metrics/x",
            "/health/x",
            "/v2",
            "/v2/health",
        ] {
            assert_eq!(service.get(path).await.status(), 401, "{path}");
        }
    }
}

#[tokio::test]
async fn a_key_is_taken_as_bearer_token_or_in_its_own_header() {
    let service = service(Access {
        keys: keys(),
        ..Access::default()
    });
    let models = |name: &str, key: &str| {
        let request = service.client.get(service.url("/v1/models"));
        request.header(name, key)
    };
    for (name, good) in [
        ("authorization", "Bearer first-key"),
        ("authorization", "bearer second key"),
        ("authorization", "BEARER first-key"),
        ("x-api-key", "first-key"),
        ("x-api-key", "second key"),
    ] {
        let response = models(name, good).send().await.unwrap();
        assert_eq!(response.status(), 200, "{name}: {good}");
    }
    for (name, bad) in [
        ("authorization", ""),
        ("authorization", "Bearer"),
        ("authorization", "Bearer "),
        ("authorization", "first-key"),
        ("authorization", "Basic first-key"),
        ("authorization", "Bearer First-Key"),
        ("authorization", "Bearer first-ke"),
        ("authorization", "Bearer first-keys"),
        ("authorization", "Bearer  first-key"),
        ("authorization", "Bearer second"),
        ("authorization", "Bearer first-key\tsecond key"),
        ("x-api-key", ""),
        ("x-api-key", "first-ke"),
        ("x-api-key", "Bearer first-key"),
    ] {
        let response = models(name, bad).send().await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer");
        let (status, code, _) = error_of(response).await;
        let expected = (401, "invalid_api_key");
        assert_eq!((status, code.as_str()), expected, "{name}: {bad:?}");
    }
    for name in ["authorization", "x-api-key"] {
        let key = if name == "x-api-key" {
            "first-key"
        } else {
            "Bearer first-key"
        };
        let twice = models(name, key).header(name, key);
        assert_eq!(twice.send().await.unwrap().status(), 401, "{name}");
    }
}

#[test]
fn an_empty_or_missing_file_of_keys_keeps_the_server_from_starting() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert_eq!(ApiKeys::read(file.path()).err().unwrap().exit_code(), 78);
    std::fs::write(&file, b"key\xff").unwrap();
    assert_eq!(ApiKeys::read(file.path()).err().unwrap().exit_code(), 78);
    let missing = file.path().join("nothing");
    assert_eq!(ApiKeys::read(&missing).err().unwrap().exit_code(), 66);
}

/// The value of a response's header, or an empty text if there is none.
fn header(response: &Response, name: &str) -> String {
    let value = response.headers().get(name);
    value.map_or("", |value| value.to_str().unwrap()).to_owned()
}

const HERE: &str = "https://chat.example.org";
const ELSEWHERE: &str = "https://elsewhere.example.org";

/// Sends the preflight that a browser sends before a request with JSON and a key.
async fn preflight(service: &Service, origin: &str) -> Response {
    let url = service.url("/v1/chat/completions");
    let request = service.client.request(Method::OPTIONS, url);
    let request = request
        .header("origin", origin)
        .header("access-control-request-method", "POST")
        .header(
            "access-control-request-headers",
            "authorization,content-type,x-stainless-os",
        );
    request.send().await.unwrap()
}

#[tokio::test]
async fn pages_of_the_origins_named_may_ask_with_keys_and_without() {
    for keys in [None, keys()] {
        let needs_key = keys.is_some();
        let service = service(Access {
            keys,
            cors_origins: vec![HeaderValue::from_static(HERE)],
            ..Access::default()
        });
        let answer = preflight(&service, HERE).await;
        assert_eq!(answer.status(), 200, "a preflight needs no key");
        assert_eq!(header(&answer, "access-control-allow-origin"), HERE);
        assert_eq!(header(&answer, "access-control-allow-methods"), "GET,POST");
        let allowed = header(&answer, "access-control-allow-headers");
        assert_eq!(allowed, "authorization,content-type,x-stainless-os");
        let answer = preflight(&service, ELSEWHERE).await;
        assert_eq!(header(&answer, "access-control-allow-origin"), "");

        let request = service
            .completion(&json!({"prompt": "x"}))
            .header("origin", HERE);
        // Errors need the header too, or the page could not read them.
        let answer = request.try_clone().unwrap().send().await.unwrap();
        assert_eq!(answer.status(), if needs_key { 401 } else { 200 });
        assert_eq!(header(&answer, "access-control-allow-origin"), HERE);
        let answer = request.bearer_auth("first-key").send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let exposed = header(&answer, "access-control-expose-headers");
        for name in ["x-request-id", "x-ignored-params", "retry-after"] {
            assert!(
                exposed.split(',').any(|exposed| exposed == name),
                "{exposed}"
            );
        }
    }
}

#[tokio::test]
async fn a_star_stands_for_all_origins_and_without_one_there_are_none() {
    let cors_origins = vec![HeaderValue::from_static("*")];
    let open = service(Access {
        cors_origins,
        ..Access::default()
    });
    let answer = preflight(&open, ELSEWHERE).await;
    assert_eq!(header(&answer, "access-control-allow-origin"), "*");

    let closed = service(Access::default());
    let answer = preflight(&closed, HERE).await;
    assert_eq!(answer.status(), 405);
    assert_eq!(header(&answer, "access-control-allow-origin"), "");
}

#[tokio::test]
async fn the_api_answers_without_its_version_and_under_a_prefix() {
    for (root_path, prefix) in [("", ""), ("/a/granite", "/a/granite")] {
        let service = service(Access {
            root_path: root_path.to_owned(),
            ..Access::default()
        });
        let model = format!("/models/{MODEL}");
        for path in [
            "/v1/models",
            "/models",
            &model,
            "/docs",
            "/openapi.json",
            "/version",
        ] {
            let path = format!("{prefix}{path}");
            assert_eq!(service.get(&path).await.status(), 200, "{path}");
        }
        for path in PROBES {
            assert_eq!(service.get(path).await.status(), 200, "{path}");
            let path = format!("{prefix}{path}");
            assert_eq!(service.get(&path).await.status(), 200, "{path}");
        }
        let body = json!({"prompt": "x", "max_tokens": 1});
        for path in ["/v1/completions", "/completions"] {
            let request = service.client.post(service.url(&format!("{prefix}{path}")));
            assert_eq!(
                request.json(&body).send().await.unwrap().status(),
                200,
                "{path}"
            );
        }
        assert_eq!(service.count("ok"), 2, "both are counted as what they are");
        let request = service
            .client
            .post(service.url(&format!("{prefix}/chat/completions")));
        let answer = request.json(&json!({"messages": []})).send().await.unwrap();
        assert_eq!(answer.status(), 400);
        let (status, code, _) = error_of(service.get(&format!("{prefix}/nope")).await).await;
        assert_eq!((status, code.as_str()), (404, "not_found"));
    }
    let service = service(Access {
        root_path: "/granite".to_owned(),
        keys: keys(),
        ..Access::default()
    });
    for path in ["/v1/models", "/granite/v1/models", "/nope", "/granite/nope"] {
        assert_eq!(error_of(service.get(path).await).await.0, 401, "{path}");
    }
    let document: Value = service
        .get("/granite/openapi.json")
        .await
        .json()
        .await
        .unwrap();
    assert_eq!(document["servers"], json!([{"url": "/granite"}]));
    let index = service.get("/granite").await;
    assert_eq!(index.status(), 200);
    assert!(
        index
            .text()
            .await
            .unwrap()
            .contains("<base href=\"/granite/\">")
    );
}

#[tokio::test]
async fn the_first_page_says_where_to_go() {
    let service = service(Access::default());
    let page = service.get("/").await;
    assert_eq!(header(&page, "content-type"), "text/html; charset=utf-8");
    let page = page.text().await.unwrap();
    let links = page.split("href=\"").skip(1);
    let links: Vec<&str> = links.map(|link| link.split('"').next().unwrap()).collect();
    let expected = [
        "data:,",
        "#question",
        "docs",
        "v1/models",
        "metrics",
        "openapi.json",
    ];
    assert_eq!(links, expected);
    for link in &links[2..] {
        let path = format!("/{link}");
        assert_eq!(service.get(&path).await.status(), 200, "{link}");
    }
}

#[tokio::test]
async fn every_name_is_accepted_and_listed_and_the_first_is_answered() {
    const ALIAS: &str = "also/granite-test";
    let options = Options {
        aliases: vec![ALIAS.to_owned()],
        ..Options::default()
    };
    let service = Service::with(Fake::babbling(), options);
    let models: Value = service.get("/v1/models").await.json().await.unwrap();
    let ids: Vec<&Value> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|card| &card["id"])
        .collect();
    assert_eq!(ids, [MODEL, ALIAS]);
    for name in [MODEL, ALIAS] {
        let card: Value = service
            .get(&format!("/v1/models/{name}"))
            .await
            .json()
            .await
            .unwrap();
        assert_eq!(card["id"], name);
        let answer = service
            .complete(json!({"prompt": "x", "model": name}))
            .await;
        assert_eq!(answer["model"], MODEL);
    }
}

#[tokio::test]
async fn the_admin_port_answers_probes_and_operations_without_a_key() {
    use microgranite::http::{app::App, limits::Limits, server};
    let access = Access {
        keys: keys(),
        has_admin_port: true,
        ..Access::default()
    };
    let app = App::new(Default::default(), access, Limits::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let never = std::future::pending();
    let settings = server::Settings::default();
    let served = server::serve(
        listener.into(),
        routes::admin_router(app),
        settings,
        never,
        Default::default(),
    );
    let served = tokio::spawn(served);
    for (paths, status) in [
        (&OPERATIONS[..], 200),
        (&["/livez", "/v2/health/live"], 200),
        // No model is loaded.
        (&["/health", "/ping", "/v2/health/ready"], 503),
        (&["/", "/v1/models", "/completions"], 404),
    ] {
        for path in paths {
            let answer = reqwest::get(format!("http://{address}{path}"))
                .await
                .unwrap();
            assert_eq!(answer.status(), status, "{path}");
        }
    }
    served.abort();
}

#[test]
fn a_changed_file_of_keys_counts_soon_and_a_hangup_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys");
    std::fs::write(&file, "old-key").unwrap();
    let mut command = microgranite(&[
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--log",
        "off",
        "--model",
    ]);
    command.arg(tiny()).arg("--api-key-file").arg(&file);
    let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let ready = lines.next().unwrap().unwrap();
    let (_, url) = ready.rsplit_once(' ').unwrap();
    let client = reqwest::blocking::Client::new();
    let status = |key: &str| {
        let request = client.get(format!("{url}/v1/models")).bearer_auth(key);
        request.send().unwrap().status().as_u16()
    };
    assert_eq!((status("old-key"), status("new-key")), (200, 401));
    std::fs::write(&file, "new-key").unwrap();
    let id = process.id().to_string();
    let hang_up = Command::new("kill").args(["-HUP", &id]).status();
    assert!(hang_up.unwrap().success());
    let start = Instant::now();
    while (status("old-key"), status("new-key")) != (401, 200) {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "it is read again"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    process.kill().unwrap();
    process.wait().unwrap();
}
