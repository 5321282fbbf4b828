//! Folders that are already int8, as compressed-tensors and bitsandbytes write them, and with one error each.

use std::collections::HashMap;

use microgranite::cli::inspect::Report;
use microgranite::int8::matrix::CodeRows;
use microgranite::sources::{self, Checkpoint, Reference};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

use crate::refusals::Folder;
use crate::{fixture, offline};

const BAD_MODEL: u8 = 65;
const FILE: &str = "model.safetensors";

/// The folder, the checkpoint it was made from, and its description in `inspect`.
const FIXTURES: [(&str, &str, &str); 3] = [
    (
        "granite-3-tiny-w8a8",
        "granite-3-tiny",
        "compressed-tensors, symmetric",
    ),
    (
        "granite-4-dense-tiny-w8a8-zp",
        "granite-4-dense-tiny",
        "compressed-tensors, with zero points",
    ),
    (
        "granite-3-tiny-llm-int8",
        "granite-3-tiny",
        "LLM.int8 of bitsandbytes",
    ),
];

fn open(name: &str) -> Checkpoint {
    sources::open(&Reference::Folder(fixture(name)), &offline()).unwrap()
}

/// The values of a tensor as widened by candle.
fn floats(view: &TensorView<'_>) -> Vec<f32> {
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => bytes
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f32::from_le_bytes(*b))
            .collect(),
        Dtype::BF16 => bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| half::bf16::from_le_bytes(*b).to_f32())
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn int8_folders_have_the_tensors_of_the_model_they_were_made_from() {
    for (name, source, quantization) in FIXTURES {
        let (found, expected) = (open(name), open(source));
        assert_eq!(
            found.tensors().unwrap().names(),
            expected.tensors().unwrap().names()
        );
        assert!(found.config.get("quantization_config").is_none());
        for tensor in expected.tensors().unwrap().names() {
            assert_eq!(
                found.tensors().unwrap().shape(&tensor),
                expected.tensors().unwrap().shape(&tensor)
            );
            let is_linear = tensor.contains("_proj.") || tensor.contains("_linear.");
            assert_eq!(
                found.tensors().unwrap().has_codes(&tensor),
                is_linear,
                "{tensor}"
            );
            let dtype = if is_linear { "int8" } else { "bf16" };
            assert_eq!(found.tensors().unwrap().dtype(&tensor), Some(dtype));
            assert!(!expected.tensors().unwrap().has_codes(&tensor));
            let has_points = is_linear && name.ends_with("zp");
            assert_eq!(
                found.tensors().unwrap().has_zero_points(&tensor),
                has_points
            );
        }
        let report = Report::of(&found).unwrap();
        assert!(report.to_string().contains(quantization), "{report}");
        let json = serde_json::to_value(report).unwrap();
        assert_eq!(json["quantized_by"], quantization);
        assert_eq!(json["tensors"]["int8"]["tensors"].as_u64().unwrap() % 2, 0);
    }
}

#[test]
fn codes_scales_and_zero_points_are_those_of_the_file_to_the_bit() {
    for (name, ..) in FIXTURES {
        let bytes = std::fs::read(fixture(name).join(FILE)).unwrap();
        let stored = SafeTensors::deserialize(&bytes).unwrap();
        let checkpoint = open(name);
        let tensors = checkpoint.tensors().unwrap();
        let (mut matrices, mut nonzero_points) = (0, 0);
        for tensor in tensors
            .names()
            .iter()
            .filter(|name| tensors.has_codes(name))
        {
            let view = stored.tensor(tensor).unwrap();
            let &[n, k] = view.shape() else { panic!() };
            let module = tensor.trim_end_matches(".weight");
            let part = |suffix: &str| stored.tensor(&format!("{module}.{suffix}"));
            let scales: Vec<f32> = match part("SCB") {
                Ok(view) => floats(&view).into_iter().map(|most| most / 127.0).collect(),
                Err(_) => floats(&part("weight_scale").unwrap()),
            };
            let points = part("weight_zero_point")
                .map(|view| view.data().to_vec())
                .unwrap_or(vec![0; n]);
            nonzero_points += points.iter().filter(|point| **point != 0).count();
            // 7 does not divide any of the row counts, so the last piece is shorter.
            for start in (0..n).step_by(7) {
                let rows = start..n.min(start + 7);
                let count = rows.len();
                let (mut codes, mut found_scales, mut found_points) =
                    (vec![0; count * k], vec![0.0; count], vec![0; count]);
                let out = CodeRows {
                    codes: &mut codes,
                    scales: &mut found_scales,
                    zero_points: &mut found_points,
                };
                tensors.read_codes(tensor, rows.clone(), out).unwrap();
                let signed = |bytes: &[u8]| -> Vec<u8> {
                    bytes.iter().map(|b| b.wrapping_sub(128)).collect()
                };
                assert_eq!(signed(&codes), view.data()[rows.start * k..rows.end * k]);
                assert_eq!(found_scales, scales[rows.clone()]);
                assert_eq!(signed(&found_points), points[rows.clone()]);

                let mut values = vec![0.0; count * k];
                tensors
                    .read_rows(tensor, rows.clone(), &mut values)
                    .unwrap();
                for (i, value) in values.iter().enumerate() {
                    let row = rows.start + i / k;
                    let code = view.data()[rows.start * k + i].cast_signed();
                    let weight = f32::from(i16::from(code) - i16::from(points[row].cast_signed()))
                        * scales[row];
                    assert_eq!(*value, weight);
                }
            }
            matrices += 1;
        }
        assert!(matrices >= 12, "{name}: {matrices}");
        assert_eq!(
            nonzero_points > 100,
            name.ends_with("zp"),
            "{name}: {nonzero_points}"
        );
    }
}

#[test]
fn a_scale_for_a_whole_tensor_holds_for_each_row() {
    let folder = Folder::of("granite-3-tiny-w8a8");
    let scale = "model.layers.0.self_attn.k_proj.weight_scale";
    rewrite(&folder, |tensors| {
        tensors.insert(
            scale.into(),
            (Dtype::F32, vec![1], 0.25f32.to_le_bytes().into()),
        );
    });
    folder.edit("config.json", |config| {
        weights(config)["strategy"] = json!("tensor")
    });
    let checkpoint = folder.open().unwrap();
    let tensors = checkpoint.tensors().unwrap();
    let (mut codes, mut scales, mut points) = (vec![0; 2 * 256], [0.0; 2], [0; 2]);
    let out = CodeRows {
        codes: &mut codes,
        scales: &mut scales,
        zero_points: &mut points,
    };
    tensors
        .read_codes(scale.trim_end_matches("_scale"), 62..64, out)
        .unwrap();
    assert_eq!((scales, points), ([0.25; 2], [128; 2]));
}

fn weights(config: &mut Value) -> &mut Value {
    &mut config["quantization_config"]["config_groups"]["group_0"]["weights"]
}

#[test]
fn kinds_of_compressed_tensors_that_we_do_not_compute_are_refused_by_their_key() {
    for (key, value) in [
        ("quant_method", json!("hqq")),
        ("quant_method", Value::Null),
        ("format", json!("mixed-precision")),
        ("quantization_status", json!("frozen")),
        ("kv_cache_scheme", json!({"num_bits": 8})),
        ("transform_config", json!({"config_groups": {"R1": {}}})),
        ("sparsity_config", json!({"format": "sparse-24-bitmask"})),
        ("config_groups", json!({})),
        ("config_groups", json!([1])),
        ("config_groups.group_0", json!("W8A8")),
        ("config_groups.group_0.format", json!("dense")),
        (
            "config_groups.group_0.output_activations",
            json!({"num_bits": 8}),
        ),
        ("config_groups.group_0.weights", Value::Null),
        ("config_groups.group_0.weights.num_bits", json!(4)),
        ("config_groups.group_0.weights.num_bits", Value::Null),
        ("config_groups.group_0.weights.type", json!("float")),
        ("config_groups.group_0.weights.strategy", json!("block")),
        ("config_groups.group_0.weights.strategy", json!("group")),
        ("config_groups.group_0.weights.group_size", json!(128)),
        (
            "config_groups.group_0.weights.block_structure",
            json!([128, 128]),
        ),
        ("config_groups.group_0.weights.actorder", json!("group")),
        ("config_groups.group_0.weights.dynamic", json!(true)),
        ("config_groups.group_0.weights.symmetric", json!("yes")),
        (
            "config_groups.group_0.input_activations.dynamic",
            json!(false),
        ),
        (
            "config_groups.group_0.input_activations.dynamic",
            json!("local"),
        ),
        (
            "config_groups.group_0.input_activations.num_bits",
            json!(16),
        ),
        (
            "config_groups.group_0.input_activations.type",
            json!("float"),
        ),
    ] {
        let folder = Folder::of("granite-3-tiny-w8a8");
        folder.edit("config.json", |config| {
            let start = &mut config["quantization_config"];
            *key.split('.').fold(start, |json, key| &mut json[key]) = value;
        });
        let field = format!("quantization_config.{key}");
        folder.refused(BAD_MODEL, &["config.json", &field, "expected"]);
    }
    let folder = Folder::of("granite-3-tiny-w8a8");
    folder.edit("config.json", |config| {
        config["quantization_config"] = json!("int8")
    });
    folder.refused(BAD_MODEL, &["config.json", "quantization_config", "object"]);
    // A configuration without the fields that newer writers omit, and with quantized weights only.
    folder.edit("config.json", |config| {
        let weights = json!({"num_bits": 8, "strategy": "channel"});
        config["quantization_config"] =
            json!({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}});
    });
    folder.open().unwrap();
}

#[test]
fn kinds_of_bitsandbytes_that_we_do_not_compute_are_refused_by_their_key() {
    for (key, value) in [
        ("load_in_8bit", json!(false)),
        ("load_in_8bit", Value::Null),
        ("llm_int8_has_fp16_weight", json!(true)),
    ] {
        let folder = Folder::of("granite-3-tiny-llm-int8");
        folder.edit("config.json", |config| {
            config["quantization_config"][key] = value
        });
        let field = format!("quantization_config.{key}");
        folder.refused(BAD_MODEL, &["config.json", &field, "expected"]);
    }
}

/// Formats that users find on the hub, by their common names.
#[test]
fn quantized_forms_that_are_not_read_are_named_with_what_to_take_instead() {
    let group = |format: &str| json!({"quant_method": "compressed-tensors", "format": "int-quantized", "config_groups": {"g": {"format": format}}});
    let compressed = |format: &str| json!({"quant_method": "compressed-tensors", "format": format});
    let method = |name: &str| json!({"quant_method": name, "bits": 4, "group_size": 128});
    for (config, field, form) in [
        (method("awq"), "quant_method", "4-bit AWQ"),
        (method("gptq"), "quant_method", "GPTQ"),
        (method("fp8"), "quant_method", "FP8"),
        (method("mxfp4"), "quant_method", "MXFP4"),
        (compressed("float-quantized"), "format", "FP8"),
        (compressed("pack-quantized"), "format", "4 or fewer bits"),
        (
            group("nvfp4-pack-quantized"),
            "config_groups.g.format",
            "FP4",
        ),
        (
            json!({"quant_method": "bitsandbytes", "load_in_4bit": true}),
            "load_in_4bit",
            "4-bit bitsandbytes",
        ),
        (json!({"bits": 4, "group_size": 64}), "bits", "MLX"),
    ] {
        let folder = Folder::of("granite-3-tiny-w8a8");
        folder.edit("config.json", |json| json["quantization_config"] = config);
        let field = format!("quantization_config.{field}");
        let instead = "take the model's unquantized (bf16) repository";
        folder.refused(BAD_MODEL, &["config.json", &field, form, instead]);
    }
    let folder = Folder::of("granite-3-tiny");
    folder.edit("config.json", |json| {
        json["quantization"] = json!({"bits": 8, "group_size": 64})
    });
    folder.refused(BAD_MODEL, &["config.json", "quantization.bits", "MLX"]);
}

#[test]
fn the_order_in_which_columns_were_rounded_does_not_matter_to_rows() {
    for order in [json!("weight"), json!("static"), json!(false)] {
        let folder = Folder::of("granite-3-tiny-w8a8");
        folder.edit("config.json", |config| weights(config)["actorder"] = order);
        folder.open().unwrap();
    }
}

/// Type, shape and bytes of each tensor.
type Stored = HashMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Changes the tensors of a folder.
fn rewrite(folder: &Folder, change: impl FnOnce(&mut Stored)) {
    let bytes = std::fs::read(folder.path(FILE)).unwrap();
    let views = SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Stored = views
        .iter()
        .map(|(name, view)| {
            (
                name.to_owned(),
                (view.dtype(), view.shape().to_vec(), view.data().to_vec()),
            )
        })
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    folder.write(FILE, serialize(views, None).unwrap());
}

#[track_caller]
fn refused(fixture: &str, tensor: &str, problem: &str, change: impl FnOnce(&mut Stored)) {
    let folder = Folder::of(fixture);
    rewrite(&folder, change);
    folder.refused(BAD_MODEL, &[FILE, &format!(": {tensor}: "), problem]);
}

#[test]
fn scales_and_zero_points_that_are_missing_or_no_numbers_are_refused_by_name() {
    const MODULE: &str = "model.layers.1.self_attn.o_proj";
    for (fixture, suffix) in [
        ("granite-3-tiny-w8a8", "weight_scale"),
        ("granite-4-dense-tiny-w8a8-zp", "weight_scale"),
        ("granite-4-dense-tiny-w8a8-zp", "weight_zero_point"),
        ("granite-3-tiny-llm-int8", "SCB"),
    ] {
        let name = format!("{MODULE}.{suffix}");
        let refused =
            |problem: &str, change: &dyn Fn(&mut Stored)| refused(fixture, &name, problem, change);
        refused("is missing", &|tensors| _ = tensors.remove(&name));
        refused("shape [2]", &|tensors| {
            let _whole = tensors.insert(name.clone(), (Dtype::F32, vec![2], vec![0; 8]));
            if suffix.ends_with("zero_point") {
                tensors.insert(name.clone(), (Dtype::I8, vec![2], vec![0; 2]));
            }
        });
        if suffix.ends_with("zero_point") {
            refused("expected I8", &|tensors| {
                tensors.insert(name.clone(), (Dtype::F32, vec![256, 1], vec![0; 1024]));
            });
            continue;
        }
        refused("integers", &|tensors| {
            _ = tensors.insert(name.clone(), (Dtype::I8, vec![256], vec![0; 256]))
        });
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.5, f32::MAX] {
            refused("row 200", &|tensors| {
                let mut values = vec![1.0f32; 256];
                values[200] = bad;
                let bytes = values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect();
                tensors.insert(name.clone(), (Dtype::F32, vec![256, 1], bytes));
            });
        }
    }
    let format = format!("{MODULE}.weight_format");
    refused(
        "granite-3-tiny-llm-int8",
        &format,
        "plain rows",
        |tensors| tensors.get_mut(&format).unwrap().2[0] = 2,
    );
}

#[test]
fn codes_where_none_belong_are_refused_by_name() {
    let fixture = "granite-3-tiny-w8a8";
    let embedding = "model.embed_tokens.weight";
    let codes = |shape: Vec<usize>| (Dtype::I8, shape.clone(), vec![0; shape.iter().product()]);
    refused(
        fixture,
        "model.embed_tokens.weight_scale",
        "is missing",
        |tensors| {
            tensors.insert(embedding.into(), codes(vec![320, 256]));
        },
    );
    refused(fixture, "model.norm.weight", "matrix", |tensors| {
        _ = tensors.insert("model.norm.weight".into(), codes(vec![256]))
    });
    for shape in [vec![usize::MAX, 0], vec![0, 4], vec![2, 2, 2]] {
        let name = "model.layers.0.mlp.up_proj.weight";
        refused(fixture, name, "matrix", |tensors| {
            tensors.insert(
                name.into(),
                (
                    Dtype::I8,
                    shape.clone(),
                    vec![0; if shape.len() == 3 { 8 } else { 0 }],
                ),
            );
        });
    }
    refused(fixture, "model.codes", "not called weight", |tensors| {
        _ = tensors.insert("model.codes".into(), codes(vec![1, 1]))
    });
    // Scales of a matrix that has no codes.
    let gate = "model.layers.0.mlp.gate_proj.weight";
    refused(
        fixture,
        "model.layers.0.mlp.gate_proj.weight_scale",
        "no int8 codes",
        |tensors| {
            tensors.insert(
                gate.into(),
                (Dtype::BF16, vec![512, 256], vec![0; 512 * 256 * 2]),
            );
        },
    );
    // Without a quantization_config the meaning of codes is unknown.
    let folder = Folder::of(fixture);
    folder.edit("config.json", |config| {
        config["quantization_config"] = Value::Null
    });
    folder.refused(BAD_MODEL, &[FILE, "is I8", "BF16, F16 or F32"]);
}
