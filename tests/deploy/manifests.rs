//! The Kubernetes manifests are consistent with each other and with the binary they start. `validate.sh` checks their
//! schema.

use serde_json::{Value, json};

const FOLDER: &str = "deploy/kubernetes";

/// Granite 2B's weights at int8, scales and norms included, in bytes.
const GRANITE_2B_WEIGHTS: u64 = 2_550_000_000;
/// Tokenizer, activations, thread stacks, the binary, and the memory that clients can make it use, in bytes.
const PROCESS_OVERHEAD: u64 = 900_000_000;

fn manifest(name: &str) -> Value {
    let path = format!("{FOLDER}/{name}");
    serde_saphyr::from_str(&crate::read(&path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The pod of the Deployment.
fn pod() -> Value {
    manifest("deployment.yaml")["spec"]["template"].take()
}

/// The one container of the pod.
fn server() -> Value {
    let mut pod = pod();
    let containers = pod["spec"]["containers"].as_array_mut().expect("a list");
    assert_eq!(containers.len(), 1);
    containers.remove(0)
}

/// The arguments that `microgranite` gets.
fn args() -> Vec<String> {
    serde_json::from_value(server()["args"].take()).expect("a list of strings")
}

/// The value of `--name=value`.
fn flag(name: &str) -> String {
    args()
        .iter()
        .find_map(|arg| Some(arg.strip_prefix(name)?.strip_prefix('=')?.to_owned()))
        .unwrap_or_else(|| panic!("the manifest does not set {name}"))
}

/// `5Gi` or `1GiB` in bytes.
fn bytes(quantity: &str) -> u64 {
    let (number, shift) = [("Ki", 10), ("Mi", 20), ("Gi", 30)]
        .iter()
        .find_map(|(unit, shift)| {
            let number = quantity.trim_end_matches('B').strip_suffix(unit)?;
            Some((number, shift))
        })
        .unwrap_or_else(|| panic!("{quantity} has no binary unit"));
    number.parse::<u64>().expect("a whole number") << shift
}

#[test]
fn every_manifest_is_applied_and_every_applied_file_exists() {
    let mut listed: Vec<String> =
        serde_json::from_value(manifest("kustomization.yaml")["resources"].take()).expect("names");
    let mut found: Vec<String> = std::fs::read_dir(crate::package_file(FOLDER))
        .expect("the folder")
        .map(|entry| entry.expect("an entry").file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".yaml"))
        .filter(|name| !["kustomization.yaml", "values.yaml"].contains(&name.as_str()))
        .collect();
    listed.sort();
    found.sort();
    assert_eq!(listed, found);
    for name in listed {
        assert!(manifest(&name)["kind"].is_string(), "{name} has no kind");
    }
}

#[test]
fn the_pod_holds_no_privilege() {
    let pod = &pod()["spec"];
    assert_eq!(pod["automountServiceAccountToken"], false);
    let identity = &pod["securityContext"];
    assert_eq!(identity["runAsNonRoot"], true);
    assert_eq!(identity["runAsUser"], 65532);
    assert_eq!(identity["runAsGroup"], 65532);
    assert_eq!(identity["seccompProfile"]["type"], "RuntimeDefault");
    assert_eq!(
        server()["securityContext"],
        json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        })
    );
    let mounts = server()["volumeMounts"].take();
    let model = mounts
        .as_array()
        .expect("a list")
        .iter()
        .find(|mount| flag("--model").starts_with(mount["mountPath"].as_str().expect("a path")))
        .expect("the model is on a volume");
    assert_eq!(model["readOnly"], true);
}

#[test]
fn requests_equal_limits_and_threads_equal_cpus() {
    let resources = &server()["resources"];
    assert_eq!(resources["requests"], resources["limits"]);
    // A whole number: `500m` does not parse.
    let cpus: u64 = resources["limits"]["cpu"]
        .as_str()
        .expect("text")
        .parse()
        .expect("whole CPUs");
    assert_eq!(flag("--threads"), cpus.to_string());
}

#[test]
fn the_memory_limit_holds_weights_cache_and_overhead_and_little_more() {
    let limit = bytes(
        server()["resources"]["limits"]["memory"]
            .as_str()
            .expect("text"),
    );
    let needed = GRANITE_2B_WEIGHTS + bytes(&flag("--kv-cache")) + PROCESS_OVERHEAD;
    assert!(
        needed <= limit,
        "{needed} bytes do not fit a limit of {limit}"
    );
    // With more than a third for the page cache, the limit would waste what int8 saves.
    assert!(
        limit <= needed + needed / 3,
        "{limit} is far above {needed}"
    );
}

#[test]
fn the_grace_period_covers_the_pre_stop_sleep_and_the_drain() {
    let sleep = server()["lifecycle"]["preStop"]["sleep"]["seconds"]
        .as_u64()
        .expect("a number");
    let drain: u64 = flag("--drain-timeout").parse().expect("seconds");
    let grace = pod()["spec"]["terminationGracePeriodSeconds"]
        .as_u64()
        .expect("a number");
    assert!(
        grace >= sleep + drain + 10,
        "{grace} s < {sleep} + {drain} + 10 s"
    );
}

#[test]
fn probes_ask_the_admin_port_and_startup_has_ten_minutes() {
    let server = server();
    for (probe, path) in [
        ("startupProbe", "/readyz"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/livez"),
    ] {
        assert_eq!(
            server[probe]["httpGet"],
            json!({ "path": path, "port": "admin" }),
            "{probe}"
        );
    }
    let startup = &server["startupProbe"];
    let seconds = startup["periodSeconds"].as_u64().expect("a number")
        * startup["failureThreshold"].as_u64().expect("a number");
    assert!(seconds >= 600, "{seconds} s");
}

#[test]
fn ports_are_the_ones_the_server_listens_on() {
    let ports = server()["ports"].take();
    for (name, listen) in [("http", "--listen"), ("admin", "--admin-listen")] {
        let port = ports
            .as_array()
            .expect("a list")
            .iter()
            .find(|port| port["name"] == name)
            .unwrap_or_else(|| panic!("no port {name}"));
        assert_eq!(
            flag(listen),
            format!("0.0.0.0:{}", port["containerPort"]),
            "{name}"
        );
    }
    assert_eq!(
        manifest("service.yaml")["spec"]["ports"][0]["targetPort"],
        "http"
    );
}

#[test]
fn service_monitor_and_policy_select_the_pods_of_the_deployment() {
    let labels = pod()["metadata"]["labels"].take();
    let chosen_by = [
        (
            "deployment",
            manifest("deployment.yaml")["spec"]["selector"]["matchLabels"].take(),
        ),
        (
            "service",
            manifest("service.yaml")["spec"]["selector"].take(),
        ),
        (
            "policy",
            manifest("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"].take(),
        ),
        (
            "monitor",
            manifest("podmonitor.yaml")["spec"]["selector"]["matchLabels"].take(),
        ),
    ];
    let affinity = pod()["spec"]["affinity"]["podAffinity"].take();
    let term = &affinity["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
    assert_eq!(term["topologyKey"], "kubernetes.io/hostname");
    let affinity = ("affinity", term["labelSelector"]["matchLabels"].clone());
    for (name, selector) in chosen_by.into_iter().chain([affinity]) {
        let selector = selector.as_object().expect("labels");
        assert!(!selector.is_empty(), "{name} selects everything");
        for (label, value) in selector {
            assert_eq!(&labels[label], value, "{name} selects by {label}");
        }
    }
}

/// Kubernetes' own schemas do not include this custom resource; these are its fields by the operator's API.
#[test]
fn the_pod_monitor_has_no_unknown_field_and_scrapes_the_admin_port() {
    let monitor = manifest("podmonitor.yaml");
    assert_eq!(monitor["apiVersion"], "monitoring.coreos.com/v1");
    let known = ["jobLabel", "selector", "podMetricsEndpoints"];
    for field in monitor["spec"].as_object().expect("a map").keys() {
        assert!(known.contains(&field.as_str()), "unknown field {field}");
    }
    assert_eq!(
        monitor["spec"]["podMetricsEndpoints"],
        json!([{ "port": "admin", "path": "/metrics", "interval": "15s", "scrapeTimeout": "5s" }])
    );
}

/// The objects that the README's commands apply, in their order.
fn objects_of_the_readme() -> Vec<Value> {
    let readme = crate::read("deploy/README.md");
    let here_documents = readme.split("<<'YAML'\n").skip(1);
    let texts = here_documents.map(|text| text.split("    YAML\n").next().expect("an end"));
    let unindented = texts.map(|text| text.replace("\n    ", "\n"));
    let objects = unindented.flat_map(|text| {
        let documents: Vec<String> = text.split("\n---\n").map(str::to_owned).collect();
        documents
    });
    let parse = |text: String| {
        let text = text.trim_start();
        serde_saphyr::from_str(text).unwrap_or_else(|e| panic!("{e} in {text}"))
    };
    objects.map(parse).collect()
}

#[test]
fn the_readme_fills_and_packs_the_claim_that_the_pod_serves() {
    let [claim, fill, pack] = &objects_of_the_readme()[..] else {
        panic!("a claim and two pods");
    };
    let served = &pod()["spec"]["volumes"][0]["persistentVolumeClaim"];
    assert_eq!(claim["metadata"]["name"], served["claimName"]);
    for pod in [fill, pack] {
        let volume = &pod["spec"]["volumes"][0]["persistentVolumeClaim"];
        assert_eq!(volume["claimName"], served["claimName"]);
        // A fresh volume belongs to root; only with the group may the server's user write to it.
        let identity = &pod["spec"]["securityContext"];
        for field in ["runAsUser", "runAsGroup", "fsGroup"] {
            assert_eq!(identity[field], 65532, "{field}");
        }
        let mount = &pod["spec"]["containers"][0]["volumeMounts"][0];
        assert_eq!(mount["mountPath"], server()["volumeMounts"][0]["mountPath"]);
    }
    let container = &pack["spec"]["containers"][0];
    let image = &manifest("kustomization.yaml")["images"][0];
    let part = |name: &str| image[name].as_str().expect("text").to_owned();
    assert_eq!(
        container["image"],
        format!("{}:{}", part("newName"), part("newTag"))
    );
    let args: Vec<String> = serde_json::from_value(container["args"].clone()).expect("texts");
    let [command, source, output, folder] = &args[..] else {
        panic!("{args:?}");
    };
    assert_eq!([command.as_str(), output], ["quantize", "--output"]);
    assert_eq!(*folder, flag("--model"), "what is packed is served");
    let copied = format!("fill-granite-model:{source}\n");
    assert!(
        crate::read("deploy/README.md").contains(&copied),
        "what is copied is packed"
    );
}

#[test]
fn the_policy_lets_nothing_out() {
    let policy = manifest("networkpolicy.yaml")["spec"].take();
    assert_eq!(policy["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(policy["egress"], json!([]));
}

/// Passes the arguments to the real program, with a folder that does not exist: if every flag and value is accepted,
/// the only error is the folder.
#[test]
fn the_binary_accepts_the_arguments_of_the_manifest() {
    let missing = "/nonexistent/granite";
    let args: Vec<String> = args()
        .into_iter()
        .map(|arg| match arg.split_once('=') {
            Some(("--model", _)) => format!("--model={missing}"),
            // The manifest's ports may be taken on the machine that runs the tests.
            Some((listen @ ("--listen" | "--admin-listen"), _)) => format!("{listen}=127.0.0.1:0"),
            _ => arg,
        })
        .collect();
    let output = crate::microgranite()
        .args(&args)
        .output()
        .expect("the binary runs");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(66), "{stderr}");
    assert!(stderr.contains(missing), "{stderr}");
}
