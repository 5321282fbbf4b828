//! The two files of a packed model: their content, and what is refused.

use std::fs;
use std::path::Path;

use microgranite::error::Error;
use microgranite::int8::kernels::pool::Pool;
use microgranite::int8::scheme::{Granularity, Mapping, Scheme};
use microgranite::model::{Placement, packed};
use microgranite::sources::hash::sha256_of;
use microgranite::sources::packed::{QUANTIZATION, WEIGHTS};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{open, pack, try_load, try_open};

/// The scheme in which a matrix has all kinds of tensors: scales per group, and zero points.
fn everything() -> Scheme {
    Scheme {
        mapping: Mapping::Affine,
        granularity: Granularity::Group,
        ..Scheme::default()
    }
}

fn packed() -> TempDir {
    pack("granite-3-tiny", &everything())
}

#[test]
fn the_weights_are_a_safetensors_file_whose_tensors_begin_on_cache_lines() {
    let folder = packed();
    let bytes = fs::read(folder.path().join(WEIGHTS)).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = metadata.tensors();
    // Two layers of four matrices and two norms, the embedding, the last norm; four tensors each.
    assert_eq!(tensors.len(), 9 * 4 + 5);
    for (name, info) in tensors {
        assert_eq!((8 + header + info.data_offsets.0) % 64, 0, "{name}");
    }
}

#[test]
fn a_file_does_not_depend_on_the_number_of_threads() {
    let one = packed();
    let checkpoint = open(&crate::fixture("granite-3-tiny"));
    let other = tempfile::tempdir().unwrap();
    let plan = pack::Plan {
        scheme: everything(),
        ..pack::Plan::default()
    };
    pack::write(&checkpoint, &plan, 3, other.path(), &mut |_, _| ()).unwrap();
    for file in [WEIGHTS, QUANTIZATION] {
        let read = |folder: &Path| fs::read(folder.join(file)).unwrap();
        assert!(read(one.path()) == read(other.path()), "{file}");
    }
}

#[track_caller]
fn refused<T>(result: Result<T, Error>, parts: &[&str]) {
    let Err(error) = result else {
        panic!("was accepted; expected a refusal that names {parts:?}");
    };
    let line = error.to_string();
    assert!(matches!(error.exit_code(), 65 | 66), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    for part in parts {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
}

fn load(folder: &Path) -> Result<(), Error> {
    try_load(&try_open(folder)?, Placement::Mmap).map(drop)
}

fn packed_hybrid() -> TempDir {
    pack("granite-4-hybrid-moe-tiny", &everything())
}

/// Changes bytes of one tensor in place.
fn damage(folder: &Path, tensor: &str, change: impl FnOnce(&mut [u8])) {
    let path = folder.join(WEIGHTS);
    let mut bytes = fs::read(&path).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let (start, end) = metadata.info(tensor).unwrap().data_offsets;
    change(&mut bytes[8 + header + start..8 + header + end]);
    fs::write(&path, bytes).unwrap();
}

/// Changes `quantization.json`.
fn edit(folder: &Path, change: impl FnOnce(&mut Value)) {
    let path = folder.join(QUANTIZATION);
    let mut json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(&path, json.to_string()).unwrap();
}

#[test]
fn damaged_scales_norms_and_zero_points_are_refused_when_the_model_is_loaded() {
    for tensor in [
        "model.embed_tokens.scales",
        "model.layers.1.mlp.down_proj.group_scales",
        "model.layers.0.self_attn.qkv_proj.zero_points",
        "model.layers.0.input_layernorm.weight",
        "model.norm.weight",
    ] {
        let folder = packed();
        damage(folder.path(), tensor, |bytes| bytes[5] ^= 1);
        refused(load(folder.path()), &[WEIGHTS, tensor, "is damaged"]);
    }
}

#[test]
fn damaged_parts_of_mixers_and_experts_are_refused_when_the_model_is_loaded() {
    for tensor in [
        "model.layers.0.mamba.in_proj.scales",
        "model.layers.0.mamba.conv1d.weight",
        "model.layers.0.mamba.conv1d.bias",
        "model.layers.2.mamba.A",
        "model.layers.2.mamba.D",
        "model.layers.3.mamba.dt_bias",
        "model.layers.3.mamba.norm.weight",
        "model.layers.1.block_sparse_moe.router.layer.weight",
        "model.layers.1.experts.gate_up_proj.group_scales",
        "model.layers.1.experts.down_proj.zero_points",
    ] {
        let folder = packed_hybrid();
        damage(folder.path(), tensor, |bytes| bytes[5] ^= 1);
        refused(load(folder.path()), &[WEIGHTS, tensor, "is damaged"]);
    }
}

#[test]
fn damaged_codes_are_found_by_verify() {
    let verify = |folder: &Path| {
        let checkpoint = open(folder);
        let packed = checkpoint.packed().unwrap();
        packed::verify(packed, &mut Pool::new(2).unwrap(), &mut |_, _| ())
    };
    for (folder, tensor) in [
        (packed(), "model.layers.0.self_attn.o_proj.codes"),
        (packed_hybrid(), "model.layers.0.mamba.out_proj.codes"),
        (packed_hybrid(), "model.layers.3.experts.down_proj.codes"),
    ] {
        verify(folder.path()).unwrap();
        damage(folder.path(), tensor, |bytes| {
            // Of the last expert, if there are some.
            *bytes.last_mut().unwrap() ^= 128;
        });
        refused(verify(folder.path()), &[WEIGHTS, tensor, "is damaged"]);
    }
}

#[test]
fn scales_that_are_not_finite_are_refused_whatever_their_checksum_says() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let folder = packed();
        let tensor = "model.layers.0.mlp.gate_up_proj.scales";
        let mut checksum = String::new();
        damage(folder.path(), tensor, |bytes| {
            bytes[4..8].copy_from_slice(&value.to_le_bytes());
            checksum = sha256_of(bytes);
        });
        edit(folder.path(), |json| {
            json["checksums"][tensor] = checksum.into()
        });
        refused(
            load(folder.path()),
            &[WEIGHTS, tensor, "value 1 is", "not a finite number"],
        );
    }
}

#[test]
fn files_that_do_not_belong_together_are_refused_in_one_line() {
    type Change = fn(&mut Value);
    let cases: [(Change, &[&str]); 7] = [
        (
            |json| json["format"] = json!(2),
            &["format", "is 2", "reads 1"],
        ),
        (|json| json["layout"] = json!("other"), &["layout", "other"]),
        (|json| json["scheme"] = json!("best"), &["JSON"]),
        (
            |json| json["matrices"] = json!({}),
            &["matrices", "self_attn.qkv_proj is missing"],
        ),
        (
            |json| json["checksums"] = json!({}),
            &["checksums", "has no checksum"],
        ),
        (|json| *json = json!([]), &["format"]),
        (
            |json| json["matrices"]["model.embed_tokens"]["rotation"] = json!("some"),
            &["JSON", "some"],
        ),
    ];
    for (change, parts) in cases {
        let folder = packed();
        edit(folder.path(), change);
        refused(load(folder.path()), &[&[QUANTIZATION], parts].concat());
    }

    let folder = packed();
    fs::remove_file(folder.path().join(QUANTIZATION)).unwrap();
    refused(load(folder.path()), &[QUANTIZATION]);
    let folder = packed();
    fs::remove_file(folder.path().join(WEIGHTS)).unwrap();
    refused(load(folder.path()), &[WEIGHTS]);
    let folder = packed();
    let path = folder.path().join(WEIGHTS);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 64]).unwrap();
    refused(load(folder.path()), &[WEIGHTS, "is it cut off"]);
}

#[test]
fn weights_of_another_shape_than_the_configuration_are_refused_by_name() {
    for (key, value, part) in [
        ("vocab_size", 384, "model.embed_tokens.codes"),
        ("num_hidden_layers", 1, "model.layers.1"),
        ("num_hidden_layers", 3, "model.layers.2"),
        ("intermediate_size", 384, "model.layers.0.mlp"),
    ] {
        let folder = packed();
        let path = folder.path().join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert!(json[key].is_number() && json[key] != value, "{key}");
        json[key] = value.into();
        fs::write(&path, json.to_string()).unwrap();
        refused(load(folder.path()), &[part]);
    }
}
