//! Which `config.json` files are accepted, and how others are refused.

use serde_json::json;

use super::*;

/// The shape of `granite-3.3-2b-instruct`, as transformers 4 writes it.
fn granite() -> Value {
    parse(
        r#"{
            "architectures": ["GraniteForCausalLM"], "attention_bias": false, "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192,
            "logits_scaling": 8.0, "max_position_embeddings": 131072, "mlp_bias": false, "num_attention_heads": 32,
            "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-05,
            "rope_scaling": null, "rope_theta": 10000000.0, "tie_word_embeddings": true, "vocab_size": 49159
        }"#,
    )
}

/// A dense `granitemoehybrid` with two layers; multipliers that are whole numbers are written as integers.
fn hybrid() -> Value {
    parse(
        r#"{
            "architectures": ["GraniteMoeHybridForCausalLM"], "attention_multiplier": 0.015625, "embedding_multiplier": 12,
            "hidden_size": 1024, "intermediate_size": 999, "layer_types": ["attention", "attention"], "logits_scaling": 4,
            "max_position_embeddings": 32768, "num_attention_heads": 16, "num_hidden_layers": 2, "num_key_value_heads": 4,
            "num_local_experts": 0, "position_embedding_type": "rope", "residual_multiplier": 0.263, "rms_norm_eps": 1e-05,
            "rope_theta": 10000000, "shared_intermediate_size": 2048, "tie_word_embeddings": true, "vocab_size": 100352
        }"#,
    )
}

/// The hybrid with a Mamba-2 layer, as in Granite 4.0's h- models.
fn mamba() -> Value {
    let changes = json!({
        "layer_types": ["mamba", "attention"], "mamba_chunk_size": 256, "mamba_conv_bias": true, "mamba_d_conv": 4,
        "mamba_d_head": 64, "mamba_d_state": 128, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_n_heads": 32,
        "mamba_proj_bias": false, "position_embedding_type": "nope"
    });
    with(hybrid(), changes)
}

fn llama() -> Value {
    parse(
        r#"{
            "architectures": ["LlamaForCausalLM"], "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9,
            "num_hidden_layers": 30, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192, "vocab_size": 49152
        }"#,
    )
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn read(json: &Value) -> Result<ModelConfig> {
    ModelConfig::from_json(Path::new("folder/config.json"), json)
}

/// `base` with each `(field, value)` set; `null` counts as absent.
fn with(mut base: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

#[test]
fn granite_reads_every_field_as_written() {
    let expected = ModelConfig {
        architecture: Architecture::Granite,
        hidden_size: 2048,
        mixers: vec![MixerKind::Attention; 40],
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 64,
        mamba: None,
        intermediate_size: 8192,
        experts: None,
        vocab_size: 49159,
        max_positions: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: Some(1e7),
        embedding_multiplier: 12.0,
        attention_multiplier: 0.015625,
        residual_multiplier: 0.22,
        logits_scaling: 8.0,
        tie_word_embeddings: true,
    };
    assert_eq!(read(&granite()).unwrap(), expected);
}

#[test]
fn the_dense_hybrid_reads_its_shared_width_and_integer_multipliers() {
    let config = read(&hybrid()).unwrap();
    assert_eq!(config.architecture, Architecture::GraniteHybrid);
    assert_eq!(config.intermediate_size, 2048);
    assert_eq!(config.embedding_multiplier, 12.0);
    assert_eq!(config.logits_scaling, 4.0);
    assert_eq!(config.rope_theta, Some(1e7));
}

#[test]
fn hybrids_read_their_layers_and_have_no_positions() {
    let config = read(&mamba()).unwrap();
    let kinds = [MixerKind::Mamba, MixerKind::Attention];
    assert_eq!(config.mixers, kinds);
    let shape = Mamba {
        heads: 32,
        head_dim: 64,
        state_size: 128,
    };
    assert_eq!((config.mamba, config.rope_theta), (Some(shape), None));
    assert_eq!((config.intermediate_size, config.experts), (2048, None));
    // As transformers 5 writes the same configuration.
    let spelled = json!({
        "layer_types": ["linear_attention", "full_attention"], "mamba_d_head": "auto", "mamba_expand": null,
        "time_step_limit": [0.0, {"__float__": "Infinity"}], "rope_theta": null, "position_embedding_type": null,
        "rope_parameters": {"rope_theta": 10000, "rope_type": "default"}, "num_local_experts": null
    });
    assert_eq!(read(&with(mamba(), spelled)).unwrap(), config);
}

#[test]
fn experts_are_read_beside_a_shared_layer_or_alone() {
    let experts =
        json!({"num_local_experts": 64, "num_experts_per_tok": 6, "intermediate_size": 512});
    let read_with = |base, name: &str| {
        let named = with(base, json!({"architectures": [name]}));
        read(&with(named, experts.clone())).unwrap()
    };
    let expected = Experts {
        count: 64,
        taken: 6,
        width: 512,
    };
    for (config, shared) in [
        (read_with(mamba(), "GraniteMoeHybridForCausalLM"), 2048),
        (read_with(granite(), "GraniteMoeForCausalLM"), 0),
        (
            read_with(
                with(granite(), json!({"shared_intermediate_size": 96})),
                "GraniteMoeSharedForCausalLM",
            ),
            96,
        ),
        (
            read_with(
                with(granite(), json!({"shared_intermediate_size": 0})),
                "GraniteMoeSharedForCausalLM",
            ),
            0,
        ),
    ] {
        assert_eq!(
            (config.experts, config.intermediate_size),
            (Some(expected), shared)
        );
    }
}

#[test]
fn llama_is_granite_with_neutral_multipliers() {
    // Granite's multipliers do not apply to Llama.
    let config = read(&with(llama(), json!({"embedding_multiplier": 12}))).unwrap();
    assert_eq!(config.attention_multiplier, 0.125);
    assert_eq!(config.embedding_multiplier, 1.0);
    assert_eq!(config.residual_multiplier, 1.0);
    assert_eq!(config.logits_scaling, 1.0);
    assert_eq!(config.num_kv_heads, 9);
    assert_eq!(config.rope_theta, Some(10_000.0));
    assert!(!config.tie_word_embeddings);
}

#[test]
fn other_spellings_of_the_same_configuration_are_read() {
    for changes in [
        json!({"rope_theta": null, "rope_parameters": {"rope_theta": 1e7, "rope_type": "default"}}),
        json!({"rope_parameters": {"rope_theta": 10000000, "partial_rotary_factor": 1.0}}),
        json!({"hidden_size": 2048.0, "vocab_size": 49159.0, "logits_scaling": 8}),
        json!({"head_dim": 64, "num_local_experts": 0, "quantization_config": null}),
        json!({"hidden_act": null, "mlp_bias": null, "attention_bias": null}),
        json!({"layer_types": vec!["full_attention"; 40]}),
    ] {
        let changed = with(granite(), changes.clone());
        assert_eq!(
            read(&changed).unwrap(),
            read(&granite()).unwrap(),
            "{changes}"
        );
    }
}

#[test]
fn an_explicit_head_width_needs_no_relation_to_the_hidden_width() {
    let config = read(&with(
        granite(),
        json!({"head_dim": 128, "hidden_size": 2050}),
    ))
    .unwrap();
    assert_eq!(config.head_dim, 128);
}

#[test]
fn absent_multipliers_are_neutral_except_the_softmax_scale() {
    let absent =
        json!({"embedding_multiplier": null, "residual_multiplier": null, "logits_scaling": null});
    let config = read(&with(granite(), absent)).unwrap();
    assert_eq!(config.embedding_multiplier, 1.0);
    assert_eq!(config.residual_multiplier, 1.0);
    assert_eq!(config.logits_scaling, 1.0);
}

/// `base | change | field named in the error | part of the problem`, one refusal per line.
const REFUSALS: &str = r#"
granite | {"architectures": null} | architectures | missing
granite | {"architectures": "GraniteForCausalLM"} | architectures | expected ["Granite
granite | {"architectures": []} | architectures | expected
granite | {"architectures": ["FalconForCausalLM"]} | architectures | LlamaForCausalLM
granite | {"architectures": ["GraniteSwaForCausalLM"]} | architectures | sliding windows
granite | {"architectures": ["GraniteForCausalLM", "LlamaForCausalLM"]} | architectures | expected
granite | {"hidden_size": null} | hidden_size | missing, expected an integer from 1 to 65536
granite | {"hidden_size": 0} | hidden_size | an integer from 1
granite | {"hidden_size": -2048} | hidden_size | an integer from 1
granite | {"hidden_size": 2048.5} | hidden_size | is 2048.5
granite | {"hidden_size": "2048"} | hidden_size | is "2048"
granite | {"hidden_size": true} | hidden_size | is true
granite | {"hidden_size": 18446744073709551615} | hidden_size | 65536
granite | {"hidden_size": 65537} | hidden_size | 65536
granite | {"num_hidden_layers": 1001} | num_hidden_layers | 1000
granite | {"vocab_size": 4194305} | vocab_size | 4194304
granite | {"intermediate_size": 1e300} | intermediate_size | 1048576
granite | {"max_position_embeddings": 0} | max_position_embeddings | an integer from 1
granite | {"num_attention_heads": 0} | num_attention_heads | an integer from 1
granite | {"num_attention_heads": 24} | num_attention_heads | a divisor of hidden_size (2048)
granite | {"num_key_value_heads": 5} | num_key_value_heads | a divisor of num_attention_heads (32)
granite | {"num_key_value_heads": 64} | num_key_value_heads | an integer from 1 to 32
granite | {"head_dim": 66} | head_dim | a multiple of 4
granite | {"head_dim": 512} | head_dim | an integer from 1 to 256
granite | {"num_attention_heads": 4, "num_key_value_heads": 4} | head_dim | at most 256
granite | {"rms_norm_eps": null} | rms_norm_eps | missing
granite | {"rms_norm_eps": 0.0} | rms_norm_eps | a number from
granite | {"rms_norm_eps": "1e-5"} | rms_norm_eps | a number from
granite | {"rope_theta": null} | rope_theta | missing
granite | {"rope_theta": 0} | rope_theta | a number from 1
granite | {"rope_theta": -1e4} | rope_theta | a number from 1
granite | {"rope_parameters": {"rope_theta": 1e4}} | rope_theta | expected 10000 as rope_parameters
granite | {"rope_parameters": {"rope_type": "yarn"}} | rope_parameters.rope_type | "default"
granite | {"rope_parameters": {"rope_type": 1}} | rope_parameters.rope_type | "default"
granite | {"partial_rotary_factor": 0.5} | partial_rotary_factor | expected 1
granite | {"rope_scaling": {"type": "linear", "factor": 2}} | rope_scaling | expected null
granite | {"attention_multiplier": null} | attention_multiplier | the softmax scale
granite | {"attention_multiplier": 0} | attention_multiplier | a number from
granite | {"embedding_multiplier": "12"} | embedding_multiplier | is "12"
granite | {"residual_multiplier": 1e7} | residual_multiplier | to 1000000
granite | {"logits_scaling": 0} | logits_scaling | a number from
granite | {"tie_word_embeddings": 1} | tie_word_embeddings | true or false
granite | {"hidden_act": "gelu"} | hidden_act | "silu"
granite | {"normalization_function": "layernorm"} | normalization_function | "rmsnorm"
granite | {"sliding_window": 4096} | sliding_window | expected null
granite | {"attention_bias": true} | attention_bias | expected false
granite | {"mlp_bias": true} | mlp_bias | expected false
granite | {"mlp_bias": "no"} | mlp_bias | true or false
granite | {"quantization_config": {"quant_method": "awq"}} | quantization_config | bf16, f16 or f32
granite | {"num_local_experts": 8} | num_local_experts | Granite has no experts
granite | {"num_experts": 8} | num_experts | Granite has no experts
granite | {"position_embedding_type": "nope"} | position_embedding_type | "rope"
granite | {"layer_types": ["mamba"]} | layer_types | expected 40 layer types
granite | {"architectures": ["GraniteMoeForCausalLM"]} | num_local_experts | missing
granite | {"architectures": ["GraniteMoeSharedForCausalLM"]} | num_local_experts | missing
granite | {"architectures": ["BambaForCausalLM"]} | architectures | relative of Granite's hybrids
granite | {"architectures": ["GraniteMoeSWAForCausalLM"]} | architectures | sliding windows
granite | {"architectures": ["GraniteSpeechForConditionalGeneration"]} | architectures | speech
granite | {"architectures": ["MixtralForCausalLM"]} | architectures | of another family
granite | {"architectures": ["Qwen3MoeForCausalLM"]} | architectures | of another family
hybrid | {"position_embedding_type": "alibi"} | position_embedding_type | "rope" or "nope"
hybrid | {"layer_types": null} | layer_types | missing
hybrid | {"layer_types": ["attention"]} | layer_types | expected 2 layer types
hybrid | {"layer_types": ["mamba", "mamba"]} | layer_types | at least one
hybrid | {"layer_types": ["attention", "sliding_attention"]} | layer_types[1] | "attention" or "mamba"
hybrid | {"layer_types": ["attention", "mamba"]} | mamba_n_heads | missing
mamba | {"mamba_n_groups": 8} | mamba_n_groups | expected 1
mamba | {"mamba_d_conv": 3} | mamba_d_conv | expected 4
mamba | {"mamba_proj_bias": true} | mamba_proj_bias | expected false
mamba | {"mamba_conv_bias": false} | mamba_conv_bias | expected true
mamba | {"time_step_limit": [0.001, 100.0]} | time_step_limit | expected [0, Infinity]
mamba | {"time_step_limit": [0.0, 1e30]} | time_step_limit | expected [0, Infinity]
mamba | {"mamba_d_state": 100} | mamba_d_state | a multiple of 64
mamba | {"mamba_d_state": 1e9} | mamba_d_state | to 1024
mamba | {"mamba_n_heads": 0} | mamba_n_heads | from 1
mamba | {"mamba_n_heads": 1e18} | mamba_n_heads | to 1024
mamba | {"mamba_expand": 65} | mamba_expand | to 64
mamba | {"mamba_d_head": 32} | mamba_d_head | mamba_expand · hidden_size = 2048
mamba | {"mamba_n_heads": 31, "mamba_d_head": "auto"} | mamba_d_head | mamba_expand · hidden_size
mamba | {"mamba_n_heads": 256, "mamba_d_head": 8} | mamba_d_head | 16, 32 or a multiple of 64
mamba | {"num_local_experts": -1} | num_local_experts | a number from 0
mamba | {"num_local_experts": 1025} | num_local_experts | to 1024
granite | {"architectures": ["GraniteMoeForCausalLM"], "num_hidden_layers": 33, "num_local_experts": 1000} | num_local_experts | 1000 in each of 33 layers, expected at most 32768 in all
mamba | {"num_local_experts": 64} | num_experts_per_tok | missing
mamba | {"num_local_experts": 4, "num_experts_per_tok": 5} | num_experts_per_tok | from 1 to 4
mamba | {"num_local_experts": 4, "num_experts_per_tok": 2} | intermediate_size | a multiple of 32
mamba | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 512, "hidden_size": 1056, "mamba_n_heads": 66, "mamba_d_head": 32} | hidden_size | a multiple of 64
hybrid | {"layer_types": "attention"} | layer_types | expected 2 layer types
hybrid | {"shared_intermediate_size": null} | shared_intermediate_size | missing
llama | {"attention_bias": true} | attention_bias | expected false
llama | {"rope_scaling": {"rope_type": "llama3"}} | rope_scaling | expected null
"#;

#[test]
fn every_refusal_names_the_file_the_field_and_what_was_expected() {
    for line in REFUSALS.trim().lines() {
        let [base, changes, field, expected] = line.split(" | ").collect::<Vec<_>>()[..] else {
            panic!("not four columns: {line}");
        };
        let base = match base {
            "granite" => granite(),
            "hybrid" => hybrid(),
            "mamba" => mamba(),
            "llama" => llama(),
            _ => panic!("no such base: {line}"),
        };
        let changes: Value = serde_json::from_str(changes).expect(line);
        match read(&with(base, changes.clone())) {
            Err(Error::BadModel {
                file,
                field: named,
                problem,
            }) => {
                assert_eq!(file, Path::new("folder/config.json"));
                assert_eq!(&named, field, "{changes}: {problem}");
                assert!(problem.contains(expected), "{changes}: {problem}");
            }
            other => panic!("{changes}: expected a refusal, got {other:?}"),
        }
    }
}

#[test]
fn what_is_no_object_is_refused() {
    for value in [json!([]), json!(null), json!("config")] {
        assert_eq!(
            read(&value).unwrap_err().to_string(),
            "folder/config.json: config: is not a JSON object, expected one"
        );
    }
}

#[test]
fn a_refusal_is_one_short_line_whatever_the_file_holds() {
    let long = with(granite(), json!({"hidden_act": "é\n".repeat(1_000_000)}));
    let message = read(&long).unwrap_err().to_string();
    assert!(message.len() < 200 && !message.contains('\n'), "{message}");
}

#[test]
#[ignore = "needs the Granite configs: set MICROGRANITE_ASSETS"]
fn the_published_configurations_are_read() {
    let Some(assets) = std::env::var_os("MICROGRANITE_ASSETS") else {
        eprintln!("skipped: MICROGRANITE_ASSETS is not set; tests/README.md says what it holds");
        return;
    };
    // (file, hidden, layers, heads, kv heads, head width, feed-forward width, vocabulary, softmax scale)
    for (name, shape, attention_multiplier) in [
        (
            "granite-3.3/config-2b-instruct.json",
            [2048, 40, 32, 8, 64, 8192, 49159],
            0.015625,
        ),
        (
            "granite-3.3/config-8b-instruct.json",
            [4096, 40, 32, 8, 128, 12800, 49159],
            0.0078125,
        ),
        (
            "granite-4.x/config-4.0-350m.json",
            [1024, 28, 16, 4, 64, 2048, 100352],
            0.015625,
        ),
    ] {
        let file = Path::new(&assets).join(name);
        let text = std::fs::read_to_string(&file).unwrap();
        let config = ModelConfig::from_json(&file, &serde_json::from_str(&text).unwrap());
        let config = config.unwrap();
        let found = [
            config.hidden_size,
            config.num_layers(),
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
        ];
        assert_eq!(found, shape, "{name}");
        assert_eq!(config.attention_multiplier, attention_multiplier, "{name}");
        assert_eq!(config.rope_theta, Some(1e7), "{name}");
        assert!(config.tie_word_embeddings, "{name}");
    }
}
