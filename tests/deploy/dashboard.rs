//! The Grafana dashboards follow the rules of Grafana's dashboard linter, and query only metrics that there are: the
//! service's, those that its rules record, and some of the cluster.

use serde_json::Value;

use crate::metrics::{self, Catalog};
use crate::{alerts, cluster};

/// The files of the dashboards.
const FILES: [&str; 3] = ["memory.json", "load.json", "slo.json"];

/// Grafana's names of the units that the panels use; it silently ignores an unknown one.
const UNITS: &[&str] = &[
    "Bps",
    "bytes",
    "dateTimeFromNow",
    "none",
    "percentunit",
    "reqps",
    "s",
    "short",
];

/// The dashboards as shipped.
pub fn shipped() -> [Value; 3] {
    FILES.map(|file| {
        let text = crate::read(&format!("deploy/grafana/{file}"));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{file}: {e}"))
    })
}

/// The one of memory savings.
fn memory() -> Value {
    let [memory, ..] = shipped();
    memory
}

/// Every panel that is not a row.
pub fn panels(dashboard: &Value) -> impl Iterator<Item = &Value> {
    array(&dashboard["panels"])
        .iter()
        .filter(|panel| panel["type"] != "row")
}

/// The queries of a panel, with their reference letters.
pub fn queries(panel: &Value) -> impl Iterator<Item = (&str, &str)> {
    array(&panel["targets"])
        .iter()
        .map(|target| (text(&target["refId"]), text(&target["expr"])))
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// An occurrence of one of our metrics in a query.
struct Selector<'a> {
    before: &'a str,
    metric: &'a str,
    matchers: &'a str,
    after: &'a str,
}

fn selectors(expr: &str) -> Vec<Selector<'_>> {
    expr.match_indices("microgranite_")
        .map(|(start, _)| {
            let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
            let rest = &expr[start..];
            let (metric, rest) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
            let (matchers, after) = rest
                .strip_prefix('{')
                .and_then(|inner| inner.split_once('}'))
                .unwrap_or(("", rest));
            Selector {
                before: &expr[..start],
                metric,
                matchers,
                after,
            }
        })
        .collect()
}

/// Selectors of metrics that are not ours: names with the matchers behind them.
fn foreign_selectors(expr: &str) -> Vec<(&str, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    expr.match_indices('{')
        .map(|(brace, _)| {
            let start = expr[..brace].rfind(|c| !is_name(c)).map_or(0, |at| at + 1);
            let matchers = expr[brace + 1..].split('}').next().unwrap_or_default();
            (&expr[start..brace], matchers)
        })
        .filter(|(name, _)| !name.starts_with("microgranite_"))
        .collect()
}

/// What is wrong with selectors of metrics that are not ours.
fn lint_foreign(expr: &str) -> Vec<String> {
    let mut findings = Vec::new();
    let recorded = alerts::recorded();
    for (name, matchers) in foreign_selectors(expr) {
        let needed: &[&str] = match cluster::find(name) {
            _ if recorded.contains(name) || name == cluster::ALERTS => &["namespace", "job"],
            // A node is in no namespace.
            Some(_) if name.starts_with("kube_node_") => &[],
            Some(_) => &["namespace"],
            None => {
                findings.push(format!("{name} is not known"));
                continue;
            }
        };
        for variable in needed {
            if !matchers.contains(&format!("{variable}=~\"${variable}\"")) {
                findings.push(format!("{name} is not limited to ${variable}"));
            }
        }
        let is_counter = cluster::find(name).is_some_and(|foreign| foreign.is_counter);
        let is_rate = format!("{name}{{{matchers}}}[$__rate_interval]");
        if is_counter && !expr.contains(&is_rate) {
            findings.push(format!("{name} is a raw counter"));
        }
    }
    findings
}

/// Everything that is wrong with a dashboard, one line each.
fn lint(dashboard: &Value, exposed: &Catalog) -> Vec<String> {
    let mut findings = lint_frame(dashboard);
    findings.extend(lint_grid(dashboard));
    for panel in panels(dashboard) {
        let name = format!("panel {} {}", panel["id"], panel["title"]);
        findings.extend(
            lint_panel(panel)
                .into_iter()
                .map(|what| format!("{name}: {what}")),
        );
        for (letter, expr) in queries(panel) {
            findings.extend(
                lint_query(expr, exposed)
                    .into_iter()
                    .map(|what| format!("{name}: query {letter}: {what}")),
            );
        }
    }
    findings
}

/// The dashboard's own settings and variables.
fn lint_frame(dashboard: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    let mut require = |holds: bool, what: &str| {
        if !holds {
            findings.push(what.to_owned());
        }
    };
    // 39 to 41 load in every Grafana from 10 to 13.
    require(
        matches!(dashboard["schemaVersion"].as_u64(), Some(39..=41)),
        "schemaVersion is not 39 to 41",
    );
    require(!text(&dashboard["uid"]).is_empty(), "no stable uid");
    require(dashboard["editable"] == false, "it is editable");
    require(
        dashboard["id"].is_null(),
        "its id belongs to one Grafana instance",
    );
    let variable = |name: &str| {
        array(&dashboard["templating"]["list"])
            .iter()
            .find(|variable| variable["name"] == name)
            .unwrap_or(&Value::Null)
    };
    let source = variable("datasource");
    require(
        source["type"] == "datasource" && source["query"] == "prometheus",
        "the data source is no variable",
    );
    // Targets outside Kubernetes have an empty namespace, so "all" must match it. For instances, "all" means those in
    // the list, which belong to the chosen model.
    for (name, all) in [
        ("namespace", Value::from(".*")),
        ("job", ".+".into()),
        ("model", Value::Null),
        ("instance", Value::Null),
    ] {
        let variable = variable(name);
        require(
            text(&variable["query"]["query"]).starts_with("label_values(microgranite_"),
            &format!("${name} does not list label values"),
        );
        // A sum over two models says nothing of either, so only one can be chosen.
        let is_right = (variable["multi"] == (name != "model")) && variable["allValue"] == all;
        require(is_right, &format!("${name} does not choose as it should"));
        // 2 is "on time range change".
        require(
            variable["refresh"] == 2,
            &format!("${name} is not refreshed"),
        );
        require(
            variable["datasource"]["uid"] == "${datasource}",
            &format!("${name} has a fixed data source"),
        );
    }
    findings
}

fn lint_panel(panel: &Value) -> Vec<String> {
    let mut findings = Vec::new();
    if text(&panel["title"]).is_empty() || text(&panel["description"]).is_empty() {
        findings.push("no title or no description".to_owned());
    }
    let unit = text(&panel["fieldConfig"]["defaults"]["unit"]);
    if !UNITS.contains(&unit) && !unit.starts_with("suffix:") {
        findings.push(format!("unknown unit {unit:?}"));
    }
    if queries(panel).next().is_none() {
        findings.push("no query".to_owned());
    }
    let letters: Vec<&str> = queries(panel).map(|(letter, _)| letter).collect();
    if (1..letters.len()).any(|i| letters[..i].contains(&letters[i])) {
        findings.push("two queries with one letter".to_owned());
    }
    let sources = array(&panel["targets"])
        .iter()
        .map(|target| &target["datasource"]);
    if sources
        .chain([&panel["datasource"]])
        .any(|source| source["uid"] != "${datasource}")
    {
        findings.push("a fixed data source".to_owned());
    }
    findings
}

fn lint_query(expr: &str, exposed: &Catalog) -> Vec<String> {
    let mut findings = Vec::new();
    let selectors = selectors(expr);
    if selectors.is_empty() && foreign_selectors(expr).is_empty() {
        findings.push("it reads none of our metrics".to_owned());
    }
    findings.extend(lint_foreign(expr));
    let grouped_by = expr
        .split("by (")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .flat_map(|(labels, _)| labels.split(", "));
    for label in grouped_by {
        let is_known = cluster::OF_TARGETS.contains(&label)
            || selectors
                .iter()
                .filter_map(|selector| exposed.get(selector.metric))
                .any(|sample| sample.labels.contains(label));
        if !is_known {
            findings.push(format!("nothing to group by in label {label}"));
        }
    }
    for Selector {
        before,
        metric,
        matchers,
        after,
    } in selectors
    {
        let Some(sample) = exposed.get(metric) else {
            findings.push(format!("{metric} is not exposed"));
            continue;
        };
        for variable in ["job", "instance"] {
            if !matchers.contains(&format!("{variable}=~\"${variable}\"")) {
                findings.push(format!("{metric} is not limited to ${variable}"));
            }
        }
        for label in metrics::label_names(matchers) {
            if !["job", "instance"].contains(&label.as_str()) && !sample.labels.contains(&label) {
                findings.push(format!("{metric} has no label {label}"));
            }
        }
        let is_rate = before.ends_with("rate(") || before.ends_with("increase(");
        if sample.is_counter && !is_rate {
            findings.push(format!("{metric} is a raw counter"));
        }
        if is_rate && !after.starts_with("[$__rate_interval]") {
            findings.push(format!("{metric} is not over $__rate_interval"));
        }
    }
    findings
}

/// Ids are distinct, and panels share no cell of the 24 columns.
fn lint_grid(dashboard: &Value) -> Vec<String> {
    let all = array(&dashboard["panels"]);
    let mut findings = Vec::new();
    let rectangle = |panel: &Value| {
        ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().expect("a grid number"))
    };
    for (i, one) in all.iter().enumerate() {
        let [x, y, w, h] = rectangle(one);
        if x + w > 24 || w == 0 || h == 0 {
            findings.push(format!("panel {} leaves the grid", one["id"]));
        }
        for other in &all[..i] {
            if one["id"] == other["id"] {
                findings.push(format!("two panels with id {}", one["id"]));
            }
            let [x2, y2, w2, h2] = rectangle(other);
            if x < x2 + w2 && x2 < x + w && y < y2 + h2 && y2 < y + h {
                findings.push(format!("panels {} and {} overlap", other["id"], one["id"]));
            }
        }
    }
    findings
}

#[test]
fn the_shipped_dashboards_break_no_rule() {
    let exposed = metrics::declared();
    let dashboards = shipped();
    let findings: Vec<String> = dashboards.iter().flat_map(|d| lint(d, &exposed)).collect();
    assert!(findings.is_empty(), "{}", findings.join("\n"));
}

#[test]
fn every_metric_is_on_a_dashboard() {
    let dashboards = shipped();
    let shown: String = dashboards
        .iter()
        .flat_map(panels)
        .flat_map(queries)
        .map(|(_, expr)| expr)
        .collect();
    for name in metrics::declared().keys() {
        // It is enough that one of a histogram's three names is used.
        let stem = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(name);
        assert!(shown.contains(stem), "{name} is on no panel");
    }
}

#[test]
fn every_file_is_a_dashboard_with_an_address_of_its_own() {
    let folder = std::fs::read_dir(crate::package_file("deploy/grafana")).expect("the folder");
    let names = folder.map(|entry| entry.expect("an entry").file_name().into_string().unwrap());
    let mut found: Vec<String> = names.filter(|name| name.ends_with(".json")).collect();
    found.sort();
    let mut files = FILES;
    files.sort_unstable();
    assert_eq!(found, files);
    let kustomization = crate::read("deploy/grafana/kustomization.yaml");
    for file in FILES {
        assert!(kustomization.contains(&format!("- {file}\n")), "{file}");
    }
    let mut addresses = shipped().map(|dashboard| text(&dashboard["uid"]).to_owned());
    addresses.sort_unstable();
    assert!(addresses.windows(2).all(|pair| pair[0] != pair[1]));
}

/// Figures of one row are never of both kinds.
#[test]
fn what_is_computed_and_what_is_measured_are_apart() {
    let memory = memory();
    let mut rows: Vec<(&str, String)> = Vec::new();
    for panel in array(&memory["panels"]) {
        if panel["type"] == "row" {
            rows.push((text(&panel["title"]), String::new()));
        } else {
            let (_, expressions) = rows.last_mut().expect("a row comes first");
            expressions.extend(queries(panel).map(|(_, expr)| expr));
        }
    }
    let [(computed, of_tensors), (measured, of_kernel), ..] = &rows[..] else {
        panic!("{rows:?}");
    };
    assert_eq!(*computed, "Computed from the loaded tensors");
    assert_eq!(*measured, "Measured");
    for (expressions, own, other) in [
        (of_tensors, "memory_saved_bytes", "process_resident_bytes"),
        (of_kernel, "process_resident_bytes", "memory_saved_bytes"),
    ] {
        assert!(expressions.contains(own) && !expressions.contains(other));
    }
}

/// Tests the linter itself: each rule, violated once in a shipped dashboard, is reported.
#[test]
fn each_broken_rule_is_found() {
    let exposed = metrics::declared();
    let counter = "microgranite_requests_total{job=~\"$job\", instance=~\"$instance\"}";
    let query = |expr: &str| ("/panels/1/targets/0/expr".to_owned(), expr.into());
    let set = |pointer: &str, value: Value| (pointer.to_owned(), value);
    let cases: &[((String, Value), &str)] = &[
        (set("/schemaVersion", 30.into()), "schemaVersion"),
        (set("/editable", true.into()), "editable"),
        (set("/uid", "".into()), "uid"),
        (set("/id", 7.into()), "belongs to one"),
        (
            set("/templating/list/0/type", "constant".into()),
            "no variable",
        ),
        (
            set("/templating/list/2/refresh", 1.into()),
            "$job is not refreshed",
        ),
        (
            set("/templating/list/3/multi", true.into()),
            "$model does not choose",
        ),
        (
            set("/templating/list/4/allValue", ".+".into()),
            "$instance does not choose",
        ),
        (set("/panels/1/description", "".into()), "no description"),
        (
            set("/panels/1/fieldConfig/defaults/unit", "parsecs".into()),
            "unknown unit",
        ),
        (
            set("/panels/1/datasource/uid", "P123".into()),
            "fixed data source",
        ),
        (set("/panels/1/targets", Value::Array(vec![])), "no query"),
        (set("/panels/1/gridPos/x", 22.into()), "leaves the grid"),
        (set("/panels/2/gridPos/x", 0.into()), "overlap"),
        (set("/panels/2/id", 1.into()), "two panels with id"),
        (query("up"), "none of our metrics"),
        (
            query("kube_typo{namespace=~\"$namespace\"}"),
            "kube_typo is not known",
        ),
        (
            query("container_memory_working_set_bytes{container=\"server\"}"),
            "not limited to $namespace",
        ),
        (
            query("sum(container_cpu_cfs_periods_total{namespace=~\"$namespace\"})"),
            "raw counter",
        ),
        (
            query("microgranite:request_errors:ratio_rate5m{job=~\"$job\"}"),
            "not limited to $namespace",
        ),
        (query("microgranite_typo{job=~\"$job\"}"), "not exposed"),
        (
            query("microgranite_requests_running"),
            "not limited to $job",
        ),
        (query(&format!("sum({counter})")), "raw counter"),
        (
            query(&format!("rate({counter}[5m])")),
            "not over $__rate_interval",
        ),
        (
            query(&format!(
                "sum by (color) (rate({counter}[$__rate_interval]))"
            )),
            "label color",
        ),
        (
            query(&format!(
                "rate({}[$__rate_interval])",
                counter.replace('{', "{colour=\"red\", ")
            )),
            "no label colour",
        ),
    ];
    for ((pointer, value), expected) in cases {
        let mut dashboard = memory();
        *dashboard.pointer_mut(pointer).expect("the pointer exists") = value.clone();
        let findings = lint(&dashboard, &exposed);
        assert!(
            findings.iter().any(|finding| finding.contains(expected)),
            "{pointer} = {value}: expected {expected:?} among {findings:?}"
        );
    }
}
