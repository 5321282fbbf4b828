//! R14, R29: behind proxies.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::arguments::Context;
use crate::client::{self, COMPLETIONS};
use crate::findings::{Findings, Problem};
use crate::load::ids;
use crate::machine::find_program;
use crate::models;
use crate::server::{Launch, Server, free_address};

/// A proxy in front of servers.
struct Proxy {
    process: Child,
    address: SocketAddr,
    _folder: TempDir,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _gone_already = self.process.kill();
        let _reaped = self.process.wait();
    }
}

const ALL: [&str; 3] = ["haproxy", "nginx", "envoy"];

impl Proxy {
    /// Starts a proxy that keeps its connections to the servers open and asks `/readyz`; `None` if it is not installed.
    async fn start(
        name: &str,
        servers: &[(SocketAddr, SocketAddr)],
    ) -> Result<Option<Self>, Problem> {
        let Some(program) = find_program(name) else {
            return Ok(None);
        };
        let folder = tempfile::tempdir()?;
        let address = free_address();
        let (file, text, arguments): (_, String, fn(&Path) -> Vec<String>) = match name {
            "haproxy" => ("haproxy.cfg", haproxy(address, servers), |file| {
                vec!["-db".into(), "-f".into(), file.display().to_string()]
            }),
            "nginx" => (
                "nginx.conf",
                nginx(address, servers, folder.path()),
                |file| {
                    vec![
                        "-c".into(),
                        file.display().to_string(),
                        "-g".into(),
                        "daemon off;".into(),
                    ]
                },
            ),
            _ => ("envoy.json", envoy(address, servers), |file| {
                let quiet = [
                    "--log-level",
                    "error",
                    "--concurrency",
                    "1",
                    "--disable-hot-restart",
                    "-c",
                ];
                let quiet = quiet.iter().map(ToString::to_string);
                quiet.chain([file.display().to_string()]).collect()
            }),
        };
        let file = folder.path().join(file);
        fs::write(&file, text)?;
        let mut command = Command::new(program);
        command
            .args(arguments(&file))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let errors = fs::File::create(folder.path().join("errors"))?;
        let process = command.stderr(errors).spawn()?;
        let mut proxy = Self {
            process,
            address,
            _folder: folder,
        };
        let began = Instant::now();
        while client::status_of(address, "/livez").await != Some(200) {
            if proxy.process.try_wait()?.is_some() || began.elapsed() > Duration::from_secs(30) {
                let errors = fs::read_to_string(proxy._folder.path().join("errors"))?;
                return Err(format!("{name} does not start: {errors:.400}").into());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(Some(proxy))
    }
}

fn haproxy(address: SocketAddr, servers: &[(SocketAddr, SocketAddr)]) -> String {
    let mut text = format!(
        "global\n  maxconn 2000\ndefaults\n  mode http\n  timeout connect 2s\n  timeout client 60s\n  timeout server 60s\n  \
         option redispatch\n  retries 3\n  retry-on conn-failure empty-response 503\nfrontend all\n  bind {address}\n  default_backend servers\n\
         backend servers\n  http-reuse always\n  option httpchk GET /readyz\n"
    );
    for (at, (api, admin)) in servers.iter().enumerate() {
        text += &format!(
            "  server s{at} {api} check port {} inter 200ms fall 1 rise 1\n",
            admin.port()
        );
    }
    text
}

fn nginx(address: SocketAddr, servers: &[(SocketAddr, SocketAddr)], folder: &Path) -> String {
    let folder = folder.display();
    let servers: String = servers
        .iter()
        .map(|(api, _)| format!("server {api};"))
        .collect();
    format!(
        "pid {folder}/pid; error_log stderr; worker_processes 1; events {{ worker_connections 1024; }}\n\
         http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;\n\
         upstream servers {{ {servers} keepalive 8; }}\n\
         server {{ listen {address}; location / {{ proxy_pass http://servers; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
    )
}

fn envoy(address: SocketAddr, servers: &[(SocketAddr, SocketAddr)]) -> String {
    let socket = |address: SocketAddr| json!({"socket_address": {"address": address.ip().to_string(), "port_value": address.port()}});
    let endpoints = servers.iter().map(|(api, admin)| {
        json!({"endpoint": {"address": socket(*api), "health_check_config": {"port_value": admin.port()}}})
    });
    let retry = json!({
        "retry_on": "connect-failure,refused-stream,reset-before-request,retriable-status-codes", "num_retries": 5,
        "retriable_status_codes": [503], "retry_host_predicate": [{
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"},
        }], "host_selection_retry_max_attempts": 3,
    });
    let route = json!({
        "name": "all", "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "servers", "timeout": "60s", "retry_policy": retry}},
        ]}],
    });
    let manager = json!({
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "all", "route_config": route, "http_filters": [{
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
        }],
    });
    let check = json!({
        "timeout": "1s", "interval": "0.2s", "no_traffic_interval": "0.2s", "unhealthy_threshold": 1, "healthy_threshold": 1,
        "http_health_check": {"path": "/readyz"},
    });
    json!({"static_resources": {
        "listeners": [{"address": socket(address), "filter_chains": [{"filters": [
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager},
        ]}]}],
        "clusters": [{
            "name": "servers", "type": "STATIC", "connect_timeout": "2s", "health_checks": [check],
            "common_lb_config": {"healthy_panic_threshold": {"value": 0}},
            "load_assignment": {"cluster_name": "servers", "endpoints": [{"lb_endpoints": endpoints.collect::<Vec<_>>()}]},
        }],
    }})
    .to_string()
}

/// R14: two servers behind a proxy are replaced in turn, and no request fails.
pub async fn rolling_restart(context: Context) -> Result<Findings, Problem> {
    let model = models::packed(&context, 2048)?;
    let start = || Launch::new(&context, &model.path, &["--drain-timeout", "20"]).start();
    let mut servers = [start().await?, start().await?];
    let addresses = servers
        .each_ref()
        .map(|server| (server.address, server.admin));
    let mut proxy = None;
    // Envoy is what the check is for; HAProxy does as well.
    let mut used = "";
    for name in ["envoy", "haproxy"] {
        if proxy.is_none() {
            proxy = Proxy::start(name, &addresses).await?;
            used = name;
        }
    }
    let Some(proxy) = proxy else {
        return Ok(Findings::skipped("needs Envoy or HAProxy"));
    };
    let is_over = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..4 {
        let (is_over, address) = (Arc::clone(&is_over), proxy.address);
        clients.spawn(async move {
            let (mut random, mut total, mut failed) = (crate::load::random(client), 0, Vec::new());
            while !is_over.load(Relaxed) {
                let body = json!({"prompt": ids(&mut random, 8), "max_tokens": 8});
                total += 1;
                match client::post(address, COMPLETIONS, &body).await {
                    Ok(answer) if answer.status == 200 => {}
                    Ok(answer) => failed.push(format!("{} {:.200}", answer.status, answer.text())),
                    Err(problem) => failed.push(problem.to_string()),
                }
            }
            (total, failed)
        });
    }
    let rounds = context.of(2, 10);
    let began = Instant::now();
    for _ in 0..rounds {
        for server in &mut servers {
            sleep(Duration::from_millis(500)).await;
            server.signal(Signal::TERM);
            server.ended().await?;
            *server = replace(&context, &model.path, server).await?;
            // The proxy must have noticed before the other one goes.
            sleep(Duration::from_millis(700)).await;
        }
    }
    let least = context.of(100, 10_000);
    sleep(Duration::from_millis(
        if began.elapsed() < Duration::from_secs(60) {
            500
        } else {
            0
        },
    ))
    .await;
    is_over.store(true, Relaxed);
    let outcomes = clients.join_all().await;
    let total: usize = outcomes.iter().map(|(total, _)| total).sum();
    let failed: Vec<&String> = outcomes.iter().flat_map(|(_, failed)| failed).collect();
    let mut found = Findings::default();
    found.timed_at_least("requests", total as f64, "", f64::from(least));
    found.never(
        &format!("failed in {rounds} rounds behind {used}"),
        failed.len(),
    );
    failed
        .iter()
        .take(2)
        .for_each(|problem| found.note((*problem).clone()));
    Ok(found)
}

/// A new server on the ports of one that has ended.
async fn replace(context: &Context, model: &Path, old: &Server) -> Result<Server, Problem> {
    let mut launch = Launch::new(context, model, &["--drain-timeout", "20"]);
    launch.move_to(old.address, old.admin);
    launch.start().await
}

/// R29: requests whose end proxy and server might see in different places.
pub async fn smuggling(context: Context) -> Result<Findings, Problem> {
    let model = models::tiny(512)?;
    let server = Server::start(&context, &model.path, &[]).await?;
    let variants = variants();
    let mut found = Findings::default();
    let mut tried = Vec::new();
    let mut routes: Vec<(&str, SocketAddr)> = vec![("directly", server.address)];
    let mut proxies = Vec::new();
    for name in ALL {
        match Proxy::start(name, &[(server.address, server.admin)]).await? {
            Some(proxy) => {
                routes.push((name, proxy.address));
                proxies.push(proxy);
            }
            None => found.note(format!("{name} is not installed")),
        }
    }
    let (mut split, mut mixed_up) = (0, 0);
    for (name, address) in &routes {
        tried.push(*name);
        for (number, variant) in variants.iter().enumerate() {
            let answer = client::raw(*address, variant, Duration::from_millis(150))
                .await
                .unwrap_or_default();
            // The hidden request asks for a model with this name.
            if client::find(&answer, b"hidden-request").is_some() {
                split += 1;
                found.note(format!(
                    "{name}: {:.120?}",
                    String::from_utf8_lossy(variant)
                ));
            }
            // The next client of the proxy gets its own answer.
            let marker = format!("marker-{number}");
            let next = client::get(*address, &format!("/v1/models/{marker}")).await?;
            mixed_up += usize::from(!next.text().contains(&marker));
        }
    }
    found.at_least("variants", variants.len() as f64, "", 60.0);
    found.note(format!("tried {}", tried.join(", ")));
    found.never("hidden requests answered", split);
    found.never("answers to somebody else", mixed_up);
    Ok(found)
}

/// Requests with a second one hidden in their body or behind a doubtful end.
fn variants() -> Vec<Vec<u8>> {
    const HIDDEN: &str = "GET /v1/models/hidden-request HTTP/1.1\r\nhost: x\r\n\r\n";
    let length = HIDDEN.len();
    let chunked = format!("{length:x}\r\n{HIDDEN}\r\n0\r\n\r\n");
    let mut all = Vec::new();
    let mut add = |headers: &str, body: &str| {
        let head = format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}\r\n"
        );
        all.push((head + body).into_bytes());
    };
    let encodings = [
        "transfer-encoding: chunked",
        "transfer-encoding : chunked",
        "transfer-encoding:\tchunked",
        " transfer-encoding: chunked",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: identity, chunked",
        "transfer-encoding: identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: x",
        "transfer-encoding: x\r\ntransfer-encoding: chunked",
        "transfer-encoding: \u{b}chunked",
        "transfer-encoding:\r\n chunked",
        "Transfer-Encoding: CHUNKED",
        "transfer_encoding: chunked",
        "transfer-encoding: \"chunked\"",
        "transfer-encoding: chunked;x=y",
        "x: y\ntransfer-encoding: chunked",
        "x: y\rtransfer-encoding: chunked",
    ];
    for encoding in encodings {
        // Either the length or the chunks end early.
        add(
            &format!("content-length: {}\r\n{encoding}\r\n", chunked.len()),
            &format!("0\r\n\r\n{HIDDEN}"),
        );
        add(&format!("content-length: 4\r\n{encoding}\r\n"), &chunked);
    }
    for lengths in [
        "content-length: 0\r\ncontent-length: 60".to_owned(),
        "content-length: 60\r\ncontent-length: 0".to_owned(),
        "content-length: 0, 60".to_owned(),
        "content-length: +0".to_owned(),
        "content-length: -0".to_owned(),
        "content-length: 0x0".to_owned(),
        "content-length: 0 0".to_owned(),
        "content-length: 0\u{b}".to_owned(),
        "content-length:".to_owned(),
        "content-length: 00000000000000000000000".to_owned(),
        "content-length: 18446744073709551616".to_owned(),
        "content-length : 0".to_owned(),
        "content_length: 60".to_owned(),
        "content-length\0: 60".to_owned(),
    ] {
        add(&format!("{lengths}\r\n"), HIDDEN);
    }
    for chunk in [
        format!("0\r\n\r\n{HIDDEN}"),
        format!("00\r\n\r\n{HIDDEN}"),
        format!("0;x=\"\r\n\r\n{HIDDEN}"),
        format!("0\n\n{HIDDEN}"),
        format!("0\r\n\n{HIDDEN}"),
        format!("+0\r\n\r\n{HIDDEN}"),
        format!("0x0\r\n\r\n{HIDDEN}"),
        format!("-1\r\n{HIDDEN}"),
        format!("100000000\r\n{HIDDEN}"),
        format!("0\r\nx: y\r\n\r\n{HIDDEN}"),
        format!("0\r\nx\r\n\r\n{HIDDEN}"),
        format!("1\r\nZ\r\n0\r\n\r\n{HIDDEN}"),
        format!("1\r\nZQ\r\n0\r\n\r\n{HIDDEN}"),
    ] {
        add("transfer-encoding: chunked\r\n", &chunk);
    }
    all
}
