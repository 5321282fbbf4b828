//! The files for a gateway with an endpoint picker: the picker reads metrics that there are, and the pool selects the chart's pods.

use serde_json::{Value, json};

use crate::metrics;

fn parsed(path: &str) -> Value {
    serde_saphyr::from_str(&crate::read(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The picker takes one series of a metric, and no sum, so none of the three may be split by labels.
#[test]
fn the_picker_reads_gauges_of_one_series() {
    let config = parsed("deploy/llm-d/picker.yaml");
    let plugins = config["plugins"].as_array().expect("plugins");
    let extractor = plugins
        .iter()
        .find(|plugin| plugin["type"] == "core-metrics-extractor")
        .expect("the plugin that reads metrics");
    let parameters = &extractor["parameters"];
    let engine = &parameters["engineConfigs"][0];
    assert_eq!(engine["name"], parameters["defaultEngine"]);
    let exposed = metrics::declared();
    for field in ["queuedRequestsSpec", "runningRequestsSpec", "kvUsageSpec"] {
        let name = engine[field].as_str().expect("a name");
        let sample = exposed.get(name).unwrap_or_else(|| panic!("no {name}"));
        assert!(sample.labels.is_empty() && !sample.is_counter, "{name}");
    }
    // Every plugin that the profile refers to is declared.
    let profile = config["schedulingProfiles"][0]["plugins"]
        .as_array()
        .expect("plugins");
    for reference in profile {
        let name = &reference["pluginRef"];
        assert!(plugins.iter().any(|p| p["type"] == *name), "{name}");
    }
}

/// The fields of `inference.networking.k8s.io/v1` by its reference; Kubernetes' own schemas do not include it.
#[test]
fn the_pool_has_known_fields_and_selects_the_charts_pods() {
    let pool = parsed("deploy/llm-d/pool.yaml");
    assert_eq!(pool["apiVersion"], "inference.networking.k8s.io/v1");
    let spec = pool["spec"].as_object().expect("a map");
    for field in spec.keys() {
        let known = ["selector", "targetPorts", "endpointPickerRef"];
        assert!(known.contains(&field.as_str()), "{field}");
    }
    assert_eq!(spec["targetPorts"], json!([{ "number": 8080 }]));
    let picker = &spec["endpointPickerRef"];
    assert_eq!(picker["failureMode"], "FailOpen");
    assert_eq!(picker["port"], json!({ "number": 9002 }));
    let deployment = parsed("deploy/kubernetes/deployment.yaml");
    let labels = &deployment["spec"]["template"]["metadata"]["labels"];
    let selector = spec["selector"]["matchLabels"].as_object().expect("labels");
    for (label, value) in selector {
        // The name of the release differs from one to the next.
        if label != "app.kubernetes.io/instance" {
            assert_eq!(&labels[label], value, "{label}");
        }
        assert!(labels[label].is_string(), "{label}");
    }
}
