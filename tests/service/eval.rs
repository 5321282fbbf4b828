//! `microgranite eval` on the small checkpoints.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::fixture;
use crate::process::{microgranite, running, tiny};

/// Runs `eval` and returns its exit code, its standard output, and the last line of its standard error.
fn eval(arguments: &[&str]) -> (i32, String, String) {
    let output = microgranite(&["eval"]).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let last = text(output.stderr)
        .lines()
        .last()
        .unwrap_or_default()
        .to_owned();
    (output.status.code().unwrap(), text(output.stdout), last)
}

#[test]
fn json_has_the_promised_fields_and_every_matrix() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let lines = [
        "The cat sat on the mat.",
        "A second text of its own, a little longer.",
    ];
    let lines = lines
        .map(|text| json!({"text": text}).to_string())
        .join("\n");
    std::fs::write(path("texts.jsonl"), lines).unwrap();
    let arguments = [
        &tiny(),
        "--text",
        &path("texts.jsonl"),
        "--json",
        "--q8-0",
        "--plot",
        &path("layers.svg"),
    ];
    let (code, out, err) = eval(&arguments);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    // The first token of each text is not counted, because nothing predicts it.
    assert!(report["tokens"].as_u64().unwrap() > 20);
    for of in [&report, &report["q8_0"]] {
        for name in [
            "perplexity",
            "perplexity_reference",
            "kl_mean",
            "same_top_token",
            "rms_dp",
        ] {
            assert!(of[name].is_number(), "{name}");
            assert!(of[format!("{name}_se")].is_number(), "{name}_se");
        }
        let kl = of["kl_mean"].as_f64().unwrap();
        assert!((0.0..1e-4).contains(&kl) && kl > 0.0, "{kl}");
        let most = of["kl_max"].as_f64().unwrap();
        assert!(most >= kl && of["kl_median"].as_f64().unwrap() < most);
    }
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 1 + 2 * 7);
    let errors: Vec<f64> = (tensors.iter())
        .map(|t| t["relative_error"].as_f64().unwrap())
        .collect();
    assert!(
        errors.is_sorted_by(|a, b| a >= b),
        "worst first: {errors:?}"
    );
    // The expected error of int8 for a rotated row of 256 normally distributed values: 127 codes for about three
    // standard deviations.
    assert!(
        errors.iter().all(|error| (0.002..0.02).contains(error)),
        "{errors:?}"
    );
    assert!(
        tensors
            .iter()
            .all(|t| t["sqnr_db"].as_f64().unwrap() > 33.0)
    );
    let svg = std::fs::read_to_string(path("layers.svg")).unwrap();
    assert!(svg.contains("down_proj") && svg.contains("</svg>"));
}

#[test]
fn the_hybrid_architecture_has_every_matrix_too() {
    let hybrid = fixture("granite-4-dense-tiny").display().to_string();
    let (code, out, err) = eval(&[&hybrid, "--tokens", "40", "--json"]);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["tokens"], 39);
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 1 + 2 * 6);
    assert!(
        tensors
            .iter()
            .all(|t| t["sqnr_db"].as_f64().unwrap() > 33.0),
        "{tensors:?}"
    );
}

#[test]
fn a_packed_mixture_with_recurrent_layers_is_described_verified_and_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    for (name, tensors, in_shape) in [
        // An embedding; three mixers of two matrices and one of four; four layers of a shared layer and experts.
        (
            "granite-4-hybrid-moe-tiny",
            1 + 3 * 2 + 4 + 4 * 4,
            ("state_bytes_per_sequence", 3 * 4 * (3 * 512 + 256 * 128)),
        ),
        (
            "granite-4-hybrid-tiny",
            1 + 4 * 2 + 2 * 4 + 6 * 2,
            ("mamba_n_heads", 8),
        ),
        ("granite-3-moe-tiny", 1 + 4 * 6, ("num_experts_per_tok", 3)),
        (
            "granite-moe-shared-tiny",
            1 + 2 * 8,
            ("num_local_experts", 8),
        ),
    ] {
        let float = fixture(name).display().to_string();
        let packed = folder.path().join(name).display().to_string();
        let made = microgranite(&["quantize", &float, "-o", &packed])
            .output()
            .unwrap();
        let said = String::from_utf8(made.stderr).unwrap();
        assert!(made.status.success(), "{said}");

        let inspect = |more: &[&str]| {
            let output = microgranite(&["inspect", &packed])
                .args(more)
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let json: Value = serde_json::from_str(&inspect(&["--json", "--verify"])).unwrap();
        assert_eq!(json["config"][in_shape.0], in_shape.1, "{name}: {json}");
        assert!(
            json["verified"]["bytes"].as_u64().unwrap() > 500_000,
            "{json}"
        );
        let is_hybrid = name.contains("hybrid");
        assert_eq!(json["config"]["mamba_n_heads"].is_number(), is_hybrid);
        let has_experts = name.contains("moe");
        assert_eq!(json["config"]["num_local_experts"].is_number(), has_experts);

        let arguments = [&packed, "--against", &float, "--tokens", "60", "--q8-0"];
        let plot = folder.path().join("layers.svg").display().to_string();
        let (code, out, err) = eval(&[&arguments[..], &["--json", "--plot", &plot]].concat());
        assert_eq!(code, 0, "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(report["tokens"], 59);
        let (own, q8_0) = (&report["kl_median"], &report["q8_0"]["kl_median"]);
        let (own, q8_0) = (own.as_f64().unwrap(), q8_0.as_f64().unwrap());
        assert!(own > 0.0 && own < 2.0 * q8_0, "{name}: {own}, Q8_0 {q8_0}");
        let errors = report["tensors"].as_array().unwrap();
        assert_eq!(errors.len(), tensors, "{name}");
        let of = |tensor: &str| errors.iter().find(|error| error["tensor"] == tensor);
        for tensor in [
            "model.layers.1.block_sparse_moe.input_linear.weight",
            "model.layers.1.block_sparse_moe.output_linear.weight",
        ] {
            assert_eq!(of(tensor).is_some(), has_experts, "{name}: {tensor}");
        }
        for tensor in ["in_proj", "out_proj"] {
            let tensor = format!("model.layers.0.mamba.{tensor}.weight");
            assert_eq!(of(&tensor).is_some(), is_hybrid, "{name}: {tensor}");
        }
        let small = |error: &Value| error["sqnr_db"].as_f64().unwrap() > 30.0;
        assert!(errors.iter().all(small), "{name}: {errors:?}");
        let svg = std::fs::read_to_string(&plot).unwrap();
        assert_eq!(svg.contains("expert input_linear"), has_experts);

        // For people: what it is made of, what was measured, and every line within 80 columns.
        let (code, out, err) = eval(&arguments);
        assert_eq!(code, 0, "{err}");
        assert!(out.contains(" (median "), "{out}");
        let is_command = |line: &&str| line.starts_with("    ");
        let mut lines = out.lines().filter(|line| !is_command(line));
        assert_eq!(lines.find(|line| line.chars().count() > 80), None);
        let shown = inspect(&[]);
        assert!(shown.contains("\nevaluated     mean KL ") && shown.contains(" (median "));
        let part = "2 with attention and the others with Mamba-2";
        assert_eq!(
            shown.contains(part),
            name == "granite-4-hybrid-tiny",
            "{shown}"
        );
        let part = "8 in each layer, 64 wide; a token takes 3";
        assert_eq!(shown.contains(part), has_experts, "{shown}");
    }
}

#[test]
fn the_table_shows_the_float_model_beside_int8_and_the_worst_matrices() {
    let (code, out, err) = eval(&[&tiny(), "--tokens", "40"]);
    assert_eq!(code, 0, "{err}");
    for part in [
        "granite-3-tiny in f32",
        "39 predicted tokens",
        "\nf32 ",
        "\nint8 ",
        "the worst 10 of 15",
        "is no more than",
        "lm_eval --model local-completions",
    ] {
        assert!(out.contains(part), "{part:?} is not in\n{out}");
    }
    // Divergences of a millionth are shown with their digits, and every table fits a terminal of 80 columns.
    assert!(!out.contains("0.00000"), "{out}");
    let is_command = |line: &&str| line.starts_with("    ");
    let mut lines = out.lines().filter(|line| !is_command(line));
    assert_eq!(lines.find(|line| line.chars().count() > 80), None);
}

/// Packs the small Granite with the given flags and returns the folder.
fn packed(folder: &Path, name: &str, flags: &[&str]) -> String {
    let path = folder.join(name).display().to_string();
    let made = microgranite(&["quantize", &tiny(), "-o", &path])
        .args(flags)
        .output()
        .unwrap();
    let said = String::from_utf8(made.stderr).unwrap();
    assert!(made.status.success(), "{said}");
    path
}

#[test]
fn packed_models_are_compared_with_one_float_model_in_one_table() {
    let folder = tempfile::tempdir().unwrap();
    let channel = packed(folder.path(), "channel", &["--rounding", "nearest"]);
    let flags = ["--rounding", "nearest", "--granularity", "tensor"];
    let tensor = packed(folder.path(), "tensor", &flags);
    let plot = folder.path().join("both.svg").display().to_string();
    let arguments = [&channel, &tensor, "--tokens", "60", "--against", &tiny()];
    let (code, out, err) = eval(&[&arguments[..], &["--json", "--plot", &plot]].concat());
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let models = report["models"].as_array().unwrap();
    assert_eq!(models.len(), 2);
    for (model, (name, path)) in models
        .iter()
        .zip([("channel", &channel), ("tensor", &tensor)])
    {
        assert_eq!(model["model"], name);
        assert_eq!(model["reference"], "granite-3-tiny");
        // The result is the same as in a run of its own.
        let (_, alone, _) = eval(&[path, "--tokens", "60", "--against", &tiny(), "--json"]);
        let alone: Value = serde_json::from_str(&alone).unwrap();
        assert_eq!(model["kl_mean"], alone["kl_mean"]);
        assert_eq!(model["tensors"], alone["tensors"]);
    }
    assert!(
        std::fs::read_to_string(&plot)
            .unwrap()
            .contains("A: channel, B: tensor")
    );

    let (code, out, err) = eval(&arguments);
    assert_eq!(code, 0, "{err}");
    for part in [
        "A          channel",
        "B          tensor",
        "\nA  ",
        "\nB  ",
        "error        A        B\n",
    ] {
        assert!(out.contains(part), "{part:?} is not in\n{out}");
    }

    for (arguments, part) in [
        (
            vec![channel.as_str(), "--against", &tensor],
            "--against CHECKPOINT",
        ),
        (vec![channel.as_str(), &tensor], "name the checkpoint"),
        (vec![channel.as_str()], "name the checkpoint"),
    ] {
        let (code, _, err) = eval(&arguments);
        assert_eq!(code, 64, "{arguments:?}: {err}");
        assert!(err.contains(part), "{err}");
    }
}

#[test]
fn conversations_and_prompts_with_completions_are_texts_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let conversation = json!({"messages": [
        {"role": "user", "content": "Where does the cat sit?"},
        {"role": "assistant", "content": "On the mat."},
    ]});
    let lines = [
        json!({"prompt": "The cat sat", "completion": " on the mat."}),
        conversation.clone(),
    ];
    let lines = lines.map(|line| line.to_string()).join("\n");
    std::fs::write(path("texts.jsonl"), lines).unwrap();
    let (code, _, err) = eval(&[&tiny(), "--text", &path("texts.jsonl")]);
    assert_eq!(code, 64, "{err}");
    assert!(
        err.contains("line 2: is a conversation, and the model has no chat template"),
        "{err}"
    );

    let with_template = path("granite-with-template");
    std::fs::create_dir(&with_template).unwrap();
    for file in std::fs::read_dir(tiny()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(
            file.path(),
            Path::new(&with_template).join(file.file_name()),
        )
        .unwrap();
    }
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}";
    std::fs::write(
        Path::new(&with_template).join("chat_template.jinja"),
        template,
    )
    .unwrap();
    let tokens = |text: &str| {
        std::fs::write(path("one.jsonl"), text).unwrap();
        let (code, out, err) = eval(&[&with_template, "--text", &path("one.jsonl"), "--json"]);
        assert_eq!(code, 0, "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        (
            report["tokens"].clone(),
            report["perplexity_reference"].clone(),
        )
    };
    let rendered = "user: Where does the cat sit?\nassistant: On the mat.\n";
    assert_eq!(
        tokens(&conversation.to_string()),
        tokens(&json!(rendered).to_string())
    );

    let calibrated = path("calibrated");
    let made = microgranite(&["quantize", &with_template, "-o", &calibrated])
        .args(["--calibrate", &path("texts.jsonl")])
        .output()
        .unwrap();
    assert!(made.status.success());
    let said = String::from_utf8(made.stdout).unwrap();
    assert!(said.contains("their errors cancel"), "{said}");
    let shown = microgranite(&["inspect", &calibrated, "--verify"]).output();
    let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
    for part in [
        "rounding      compensated, on ",
        " tokens of texts.jsonl",
        "\nverified      ",
        " bytes, ",
    ] {
        assert!(shown.contains(part), "{part:?} is not in\n{shown}");
    }
    let malformed = json!({"messages": [{"role": "user"}]}).to_string();
    std::fs::write(path("bad.jsonl"), malformed).unwrap();
    let (code, _, err) = eval(&[&with_template, "--text", &path("bad.jsonl")]);
    assert_eq!(code, 64, "{err}");
    assert!(err.contains("line 1: 'messages' must be"), "{err}");
}

#[test]
fn another_model_can_be_the_truth_if_it_speaks_the_same_tokens() {
    let other = fixture("granite-4-dense-tiny").display().to_string();
    let (code, out, err) = eval(&[&tiny(), "--against", &other, "--tokens", "40", "--json"]);
    assert_eq!(code, 0, "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["reference"], "granite-4-dense-tiny");
    // The two models have only their shape in common.
    assert!(report["kl_mean"].as_f64().unwrap() > 1e-3, "{report}");
}

#[test]
fn what_cannot_be_evaluated_is_refused_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("empty.txt"), "").unwrap();
    std::fs::write(path("bad.jsonl"), "{}").unwrap();
    for (arguments, expected, part) in [
        (vec!["--text", &path("nowhere.txt")], 66, "nowhere.txt"),
        (vec!["--text", &path("empty.txt")], 64, "too short"),
        (vec!["--text", &path("bad.jsonl")], 64, "line 1"),
        (vec!["--plot", "layers.bmp"], 64, "--plot"),
        (
            vec!["--plot", &path("no/layers.svg"), "--tokens", "9"],
            74,
            "layers.svg",
        ),
        (vec!["--against", &path("nowhere")], 66, "nowhere"),
    ] {
        let (code, _, err) = eval(&[&[tiny().as_str()], arguments.as_slice()].concat());
        assert_eq!(code, expected, "{arguments:?}: {err}");
        assert!(err.starts_with("error: ") && err.contains(part), "{err}");
    }
}

#[test]
fn the_result_for_a_packed_model_is_kept_with_it_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let packed = folder.path().join("packed").display().to_string();
    let made = microgranite(&["quantize", &tiny(), "-o", &packed]).output();
    assert!(made.unwrap().status.success());
    let get = |path: &str| {
        let (_process, url) = running(&packed);
        let answer = reqwest::blocking::get(format!("{url}{path}")).unwrap();
        answer.text().unwrap()
    };
    let quantization = |answer: &str| {
        let answer: Value = serde_json::from_str(answer).unwrap();
        answer["data"][0]["quantization"].clone()
    };
    assert_eq!(quantization(&get("/v1/models"))["accuracy"], Value::Null);
    assert!(!get("/metrics").contains("microgranite_model_accuracy"));

    let mut newest = 0.0;
    for (runs, tokens) in [(1, "30"), (2, "40")] {
        let (code, out, err) = eval(&[&packed, "--against", &tiny(), "--tokens", tokens, "--json"]);
        assert_eq!(code, 0, "{err}");
        let report: Value = serde_json::from_str(&out).unwrap();
        newest = report["kl_mean"].as_f64().unwrap();
        let inspect = |more: &[&str]| {
            let output = microgranite(&["inspect", &packed]).args(more).output();
            String::from_utf8(output.unwrap().stdout).unwrap()
        };
        let shown: Value = serde_json::from_str(&inspect(&["--json"])).unwrap();
        let evaluations = shown["quantization"]["evaluations"].as_array().unwrap();
        assert_eq!(evaluations.len(), runs);
        let kept = evaluations.last().unwrap()["kl_mean"].as_f64().unwrap();
        // A number may lose its last bit when it is written to a file and read back.
        assert!((kept / newest - 1.0).abs() < 1e-12, "{kept}");
        let shown = inspect(&[]);
        let (_, figure) = shown
            .split_once("mean KL ")
            .expect("the divergence is shown");
        let figure: f64 = figure.split(' ').next().unwrap().parse().unwrap();
        assert!(
            (figure / newest - 1.0).abs() < 0.01,
            "{figure} for {newest}"
        );
    }
    let served = quantization(&get("/v1/models"));
    let kept = served["accuracy"]["kl_mean"].as_f64().unwrap();
    assert!((kept / newest - 1.0).abs() < 1e-12, "{kept}");
    assert!(get("/metrics").contains("microgranite_model_accuracy{measure=\"same_top_token\"} "));
    let files = std::fs::read_dir(&packed).unwrap().count();
    assert_eq!(files, 6, "no temporary file stays");
}
