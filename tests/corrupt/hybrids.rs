//! Damage that only models with Mamba-2 layers or experts can have.

use microgranite::sources::hash::sha256_of;
use serde_json::{Value, json};

use crate::classes::{Class, class, first_bf16, first_f32, rows, with_copy, without};
use crate::model::Format::{Experts, Hybrid, PackedHybrid};
use crate::model::{CONFIG, Model, PACKED, QUANTIZATION, WEIGHTS};

const EXPERTS_IN: &str = "model.layers.0.block_sparse_moe.input_linear.weight";
const EXPERTS_OUT: &str = "model.layers.0.block_sparse_moe.output_linear.weight";
const ROUTER: &str = "model.layers.0.block_sparse_moe.router.layer.weight";
const TAPS: &str = "model.layers.0.mamba.conv1d.weight";
const TAPS_BIAS: &str = "model.layers.0.mamba.conv1d.bias";
const A_LOG: &str = "model.layers.0.mamba.A_log";
const RATE: &str = "model.layers.0.mamba.A";
const SKIP: &str = "model.layers.0.mamba.D";
const STEP_BIAS: &str = "model.layers.0.mamba.dt_bias";
const MIXER_NORM: &str = "model.layers.0.mamba.norm.weight";
const MIXER_IN: &str = "model.layers.0.mamba.in_proj.weight";
const MIXER_OUT: &str = "model.layers.0.mamba.out_proj.weight";

/// Replaces fields of the configuration.
fn set(model: &Model, fields: Value) {
    model.edit(CONFIG, |config| {
        for (name, value) in fields.as_object().unwrap() {
            config[name] = value.clone();
        }
    });
}

/// Removes a tensor.
fn remove(model: &Model, file: &str, name: &str) {
    model.damage(file, |bytes| *bytes = without(bytes, name));
}

/// Adds a copy of the tensor `from` as `to`.
fn add(model: &Model, from: &str, to: &str) {
    model.damage(WEIGHTS, |bytes| *bytes = with_copy(bytes, from, to));
}

#[rustfmt::skip]
pub const CLASSES: &[Class] = &[
    // Layers.
    class("a hybrid that does not list its layers", Hybrid)
        .names(CONFIG, "layer_types")
        .after(|m| set(m, json!({"layer_types": null}))),
    class("a list of layers that is too short", Hybrid)
        .names(CONFIG, "layer_types")
        .after(|m| set(m, json!({"layer_types": ["mamba", "attention"]}))),
    class("a layer of an unknown kind", Hybrid)
        .names(CONFIG, "layer_types[1]")
        .after(|m| set(m, json!({"layer_types": ["mamba", "rwkv", "mamba", "mamba"]}))),
    class("a layer that is a number", Hybrid)
        .names(CONFIG, "layer_types[3]")
        .after(|m| set(m, json!({"layer_types": ["mamba", "attention", "mamba", 7]}))),
    class("a hybrid without attention", Hybrid)
        .names(CONFIG, "layer_types")
        .after(|m| set(m, json!({"layer_types": ["mamba", "mamba", "mamba", "mamba"]}))),
    class("attention where the file has Mamba-2", Hybrid)
        .names(WEIGHTS, "model.layers.0.self_attn.q_proj")
        .after(|m| set(m, json!({"layer_types": ["attention", "attention", "mamba", "mamba"]}))),
    class("Mamba-2 where the file has attention", Hybrid)
        .names(WEIGHTS, "model.layers.1.mamba.in_proj")
        .after(|m| set(m, json!({"layer_types": ["mamba", "mamba", "attention", "mamba"]}))),
    // Mamba-2.
    class("no Mamba-2 heads", Hybrid)
        .names(CONFIG, "mamba_n_heads")
        .after(|m| set(m, json!({"mamba_n_heads": 0}))),
    class("Mamba-2 heads by the billion", Hybrid)
        .names(CONFIG, "mamba_n_heads")
        .after(|m| set(m, json!({"mamba_n_heads": 1u64 << 40}))),
    class("Mamba-2 heads that are a text", Hybrid)
        .names(CONFIG, "mamba_n_heads")
        .after(|m| set(m, json!({"mamba_n_heads": "4"}))),
    class("fewer Mamba-2 heads than none", Hybrid)
        .names(CONFIG, "mamba_n_heads")
        .after(|m| set(m, json!({"mamba_n_heads": -4}))),
    class("half a Mamba-2 head", Hybrid)
        .names(CONFIG, "mamba_n_heads")
        .after(|m| set(m, json!({"mamba_n_heads": 4.5}))),
    class("a state of nothing", Hybrid)
        .names(CONFIG, "mamba_d_state")
        .after(|m| set(m, json!({"mamba_d_state": 0}))),
    class("a state of a billion", Hybrid)
        .names(CONFIG, "mamba_d_state")
        .after(|m| set(m, json!({"mamba_d_state": 1u64 << 30}))),
    class("a state of an odd size", Hybrid)
        .names(CONFIG, "mamba_d_state")
        .after(|m| set(m, json!({"mamba_d_state": 100}))),
    class("Mamba-2 heads without a width", Hybrid)
        .names(CONFIG, "mamba_d_head")
        .after(|m| set(m, json!({"mamba_d_head": 0}))),
    class("Mamba-2 heads that are too wide for the model", Hybrid)
        .names(CONFIG, "mamba_d_head")
        .after(|m| set(m, json!({"mamba_d_head": 1024}))),
    class("Mamba-2 heads of an endless width", Hybrid)
        .names(CONFIG, "mamba_d_head")
        .after(|m| set(m, json!({"mamba_d_head": 1e300}))),
    class("a convolution over five rows", Hybrid)
        .names(CONFIG, "mamba_d_conv")
        .after(|m| set(m, json!({"mamba_d_conv": 5}))),
    class("inputs of the state in groups", Hybrid)
        .names(CONFIG, "mamba_n_groups")
        .after(|m| set(m, json!({"mamba_n_groups": 8}))),
    class("a mixer that is not wide", Hybrid)
        .names(CONFIG, "mamba_expand")
        .after(|m| set(m, json!({"mamba_expand": 0}))),
    class("a mixer that is too wide", Hybrid)
        .names(CONFIG, "mamba_expand")
        .after(|m| set(m, json!({"mamba_expand": 1e18}))),
    class("biases of projections", Hybrid)
        .names(CONFIG, "mamba_proj_bias")
        .after(|m| set(m, json!({"mamba_proj_bias": true}))),
    class("a convolution without a bias", Hybrid)
        .names(CONFIG, "mamba_conv_bias")
        .after(|m| set(m, json!({"mamba_conv_bias": false}))),
    class("bounds of time steps", Hybrid)
        .names(CONFIG, "time_step_limit")
        .after(|m| set(m, json!({"time_step_limit": [0.001, 0.1]}))),
    class("more and narrower Mamba-2 heads than the file has", Hybrid)
        .names(WEIGHTS, "mamba.in_proj")
        .after(|m| set(m, json!({"mamba_n_heads": 8, "mamba_d_head": 32}))),
    class("a larger state than the file has", Hybrid)
        .names(WEIGHTS, "mamba.in_proj")
        .after(|m| set(m, json!({"mamba_d_state": 1024}))),
    class("a wider mixer than the file has", Hybrid)
        .names(WEIGHTS, "mamba.in_proj")
        .after(|m| set(m, json!({"mamba_expand": 64, "mamba_d_head": 1024, "mamba_n_heads": 8}))),
    // Experts.
    class("a mixture of no experts", Experts)
        .names(CONFIG, "num_local_experts")
        .after(|m| set(m, json!({"num_local_experts": 0}))),
    class("a mixture of fewer experts than none", Experts)
        .names(CONFIG, "num_local_experts")
        .after(|m| set(m, json!({"num_local_experts": -8}))),
    class("experts by the billion", Experts)
        .names(CONFIG, "num_local_experts")
        .after(|m| set(m, json!({"num_local_experts": 1u64 << 40}))),
    class("experts that are a list", Experts)
        .names(CONFIG, "num_local_experts")
        .after(|m| set(m, json!({"num_local_experts": [8]}))),
    class("a number of experts that is not given", Experts)
        .names(CONFIG, "num_local_experts")
        .after(|m| set(m, json!({"num_local_experts": null}))),
    class("tokens that take no expert", Experts)
        .names(CONFIG, "num_experts_per_tok")
        .after(|m| set(m, json!({"num_experts_per_tok": 0}))),
    class("tokens that take more experts than there are", Experts)
        .names(CONFIG, "num_experts_per_tok")
        .after(|m| set(m, json!({"num_experts_per_tok": 9}))),
    class("tokens that take nobody knows how many experts", Experts)
        .names(CONFIG, "num_experts_per_tok")
        .after(|m| set(m, json!({"num_experts_per_tok": null}))),
    class("experts without a width", Experts)
        .names(CONFIG, "intermediate_size")
        .after(|m| set(m, json!({"intermediate_size": 0}))),
    class("experts of an odd width", Experts)
        .names(CONFIG, "intermediate_size")
        .after(|m| set(m, json!({"intermediate_size": 65}))),
    class("experts of an endless width", Experts)
        .names(CONFIG, "intermediate_size")
        .after(|m| set(m, json!({"intermediate_size": 1e12}))),
    class("a width that does not fill panels", Experts)
        .names(CONFIG, "hidden_size")
        .after(|m| set(m, json!({"hidden_size": 100}))),
    class("a shared layer of less than nothing", Hybrid)
        .names(CONFIG, "shared_intermediate_size")
        .after(|m| set(m, json!({"shared_intermediate_size": -1}))),
    class("experts under the name that others use", Hybrid)
        .names(CONFIG, "num_experts")
        .after(|m| set(m, json!({"num_experts": 8}))),
    class("experts by the thousand in each of a thousand layers", Experts)
        .names(CONFIG, "num_local_experts")
        .after(|m| set(m, json!({"num_local_experts": 1024, "num_experts_per_tok": 8, "num_hidden_layers": 1000}))),
    class("as many experts as may be, in a file of 32", Experts)
        .names(WEIGHTS, "block_sparse_moe")
        .after(|m| set(m, json!({"num_local_experts": 1024, "num_hidden_layers": 32}))),
    class("more experts than the file has", Experts)
        .names(WEIGHTS, "block_sparse_moe")
        .after(|m| set(m, json!({"num_local_experts": 16}))),
    class("fewer experts than the file has", Experts)
        .names(WEIGHTS, "block_sparse_moe")
        .after(|m| set(m, json!({"num_local_experts": 4}))),
    class("wider experts than the file has", Experts)
        .names(WEIGHTS, "block_sparse_moe.input_linear")
        .after(|m| set(m, json!({"intermediate_size": 96}))),
    class("experts that the configuration does not know", Hybrid)
        .names(WEIGHTS, "block_sparse_moe")
        .after(|m| set(m, json!({"num_local_experts": 0}))),
    class("a shared layer that the configuration does not know", Hybrid)
        .names(WEIGHTS, "shared_mlp")
        .after(|m| set(m, json!({"shared_intermediate_size": 0}))),
    class("experts and widths that are exchanged", Experts)
        .names(WEIGHTS, EXPERTS_IN)
        .after(|m| {
            m.tensor(WEIGHTS, EXPERTS_IN, |(t, _, d)| (t, vec![128, 8, 128], d));
        }),
    class("experts one after the other, without an axis of their own", Experts)
        .names(WEIGHTS, EXPERTS_IN)
        .after(|m| {
            m.tensor(WEIGHTS, EXPERTS_IN, |(t, _, d)| (t, vec![8 * 128, 128], d));
        }),
    class("experts whose outputs and inputs are exchanged", Experts)
        .names(WEIGHTS, EXPERTS_OUT)
        .after(|m| {
            m.tensor(WEIGHTS, EXPERTS_OUT, |(t, _, d)| (t, vec![8, 64, 128], d));
        }),
    class("a router whose axes are exchanged", Experts)
        .names(WEIGHTS, ROUTER)
        .after(|m| {
            m.tensor(WEIGHTS, ROUTER, |(t, _, d)| (t, vec![128, 8], d));
        }),
    class("a bias of the router", Experts)
        .names(WEIGHTS, "router.layer.bias")
        .after(|m| add(m, "model.norm.weight", "model.layers.0.block_sparse_moe.router.layer.bias")),
    // Numbers.
    class("a decay whose logarithm is not a number", Hybrid)
        .names(WEIGHTS, A_LOG)
        .after(|m| m.tensor(WEIGHTS, A_LOG, first_f32(f32::NAN))),
    class("a decay whose logarithm is infinite", Hybrid)
        .names(WEIGHTS, A_LOG)
        .after(|m| m.tensor(WEIGHTS, A_LOG, first_f32(f32::INFINITY))),
    class("a decay that overflows", Hybrid)
        .names(WEIGHTS, "whose exponential is infinite")
        .after(|m| m.tensor(WEIGHTS, A_LOG, first_f32(89.0))),
    class("a decay that overflows by far", Hybrid)
        .names(WEIGHTS, A_LOG)
        .after(|m| m.tensor(WEIGHTS, A_LOG, first_f32(f32::MAX))),
    class("rates that are positive", Hybrid)
        .names(WEIGHTS, "mamba.A: value")
        .after(|m| m.header(WEIGHTS, |h| h.replace("mamba.A_log\"", "mamba.A\""))),
    class("rates and their logarithms", Hybrid)
        .names(WEIGHTS, A_LOG)
        .after(|m| add(m, A_LOG, "model.layers.0.mamba.A")),
    class("a bypass that is not a number", Hybrid)
        .names(WEIGHTS, SKIP)
        .after(|m| m.tensor(WEIGHTS, SKIP, first_f32(f32::NAN))),
    class("a bias of time steps that is infinite", Hybrid)
        .names(WEIGHTS, STEP_BIAS)
        .after(|m| m.tensor(WEIGHTS, STEP_BIAS, first_f32(f32::NEG_INFINITY))),
    class("a tap that is not a number", Hybrid)
        .names(WEIGHTS, TAPS)
        .after(|m| m.tensor(WEIGHTS, TAPS, first_bf16(0x7fc0))),
    class("a router that is not a number", Hybrid)
        .names(WEIGHTS, ROUTER)
        .after(|m| m.tensor(WEIGHTS, ROUTER, first_bf16(0x7fc0))),
    class("an expert that is infinite", Hybrid)
        .names(WEIGHTS, EXPERTS_IN)
        .after(|m| m.tensor(WEIGHTS, EXPERTS_IN, first_bf16(0xff80))),
    class("the norm of a mixer that is not a number", Hybrid)
        .names(WEIGHTS, MIXER_NORM)
        .after(|m| m.tensor(WEIGHTS, MIXER_NORM, first_bf16(0x7fc0))),
    // Packed folders.
    class("a packed rate that changed", PackedHybrid)
        .names(PACKED, RATE)
        .after(|m| m.tensor(PACKED, RATE, first_f32(-0.5))),
    class("a packed rate that is positive, with the right checksum", PackedHybrid)
        .names(PACKED, "expected a negative number")
        .after(|m| {
            m.tensor(PACKED, RATE, |stored| {
                let (dtype, shape, data) = first_f32(0.5)(stored);
                m.edit(QUANTIZATION, |q| q["checksums"][RATE] = json!(sha256_of(&data)));
                (dtype, shape, data)
            });
        }),
    class("packed taps that changed", PackedHybrid)
        .names(PACKED, TAPS)
        .after(|m| m.tensor(PACKED, TAPS, first_f32(0.5))),
    class("packed taps in the shape of a checkpoint", PackedHybrid)
        .names(PACKED, TAPS)
        .after(|m| m.tensor(PACKED, TAPS, |(t, _, d)| (t, vec![512, 1, 4], d))),
    class("a packed router that changed", PackedHybrid)
        .names(PACKED, ROUTER)
        .after(|m| m.tensor(PACKED, ROUTER, first_f32(0.5))),
    class("packed experts without scales", PackedHybrid)
        .names(PACKED, "experts.gate_up_proj.scales")
        .after(|m| remove(m, PACKED, "model.layers.0.experts.gate_up_proj.scales")),
    class("packed experts of which nothing is recorded", PackedHybrid)
        .names(QUANTIZATION, "experts.down_proj is missing")
        .after(|m| {
            m.edit(QUANTIZATION, |q| {
                let all = q["matrices"].as_object_mut().unwrap();
                all.remove("model.layers.0.experts.down_proj").unwrap();
            });
        }),
    class("more experts than were packed", PackedHybrid)
        .names(PACKED, "")
        .after(|m| set(m, json!({"num_local_experts": 16}))),
    class("a larger state than was packed", PackedHybrid)
        .names(PACKED, "mamba.in_proj.codes")
        .after(|m| set(m, json!({"mamba_d_state": 256}))),
    class("more and narrower Mamba-2 heads than were packed", PackedHybrid)
        .names(PACKED, "mamba.in_proj.codes")
        .after(|m| set(m, json!({"mamba_n_heads": 16, "mamba_d_head": 16, "mamba_d_state": 1024}))),
    class("no experts where some were packed", PackedHybrid)
        .names(PACKED, "mlp")
        .after(|m| set(m, json!({"num_local_experts": 0, "shared_intermediate_size": 64}))),
];

#[test]
fn a_tensor_of_a_mixer_or_of_experts_that_is_missing_or_misshapen_is_refused_by_name() {
    let all = [
        EXPERTS_IN,
        EXPERTS_OUT,
        ROUTER,
        TAPS,
        TAPS_BIAS,
        A_LOG,
        SKIP,
        STEP_BIAS,
        MIXER_NORM,
        MIXER_IN,
        MIXER_OUT,
    ];
    for tensor in all {
        type Change = fn(&Model, &str);
        let changes: [(&str, Change); 5] = [
            ("missing", |m, tensor| remove(m, WEIGHTS, tensor)),
            ("under another name", |m, tensor| {
                m.header(WEIGHTS, |h| h.replace(tensor, &format!("{tensor}s")));
            }),
            ("empty", |m, tensor| m.tensor(WEIGHTS, tensor, rows(0))),
            ("short", |m, tensor| {
                m.tensor(WEIGHTS, tensor, |stored| {
                    let count = stored.1[0] - 1;
                    rows(count)(stored)
                });
            }),
            ("with an axis too many", |m, tensor| {
                m.tensor(WEIGHTS, tensor, |(dtype, mut shape, data)| {
                    shape.insert(0, 1);
                    (dtype, shape, data)
                });
            }),
        ];
        for (what, change) in changes {
            let model = Model::new(Hybrid);
            change(&model, tensor);
            let line = model.attempt().expect_err(what).to_string();
            assert!(
                line.contains(WEIGHTS) && line.contains(tensor),
                "{what}: {line}"
            );
        }
    }
}

#[test]
fn numbers_that_are_huge_but_finite_run() {
    for (tensor, value) in [
        (A_LOG, 88.0),
        (A_LOG, -f32::MAX),
        (SKIP, f32::MAX),
        (STEP_BIAS, f32::MAX),
        (STEP_BIAS, -f32::MAX),
    ] {
        let model = Model::new(Hybrid);
        model.tensor(WEIGHTS, tensor, first_f32(value));
        if let Err(error) = model.attempt() {
            panic!("{tensor} = {value}: {error}");
        }
    }
    for tensor in [ROUTER, EXPERTS_IN, EXPERTS_OUT, TAPS, MIXER_NORM, MIXER_IN] {
        let model = Model::new(Hybrid);
        model.tensor(WEIGHTS, tensor, first_bf16(0x7f7f));
        if let Err(error) = model.attempt() {
            panic!("{tensor}: {error}");
        }
    }
}
