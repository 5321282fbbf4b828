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
        num_layers: 40,
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 64,
        intermediate_size: 8192,
        vocab_size: 49159,
        max_positions: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 1e7,
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
    assert_eq!(config.architecture, Architecture::GraniteHybridDense);
    assert_eq!(config.intermediate_size, 2048);
    assert_eq!(config.embedding_multiplier, 12.0);
    assert_eq!(config.logits_scaling, 4.0);
    assert_eq!(config.rope_theta, 1e7);
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
    assert_eq!(config.rope_theta, 10_000.0);
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
granite | {"architectures": ["GraniteSwaForCausalLM"]} | architectures | LlamaForCausalLM
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
granite | {"attention_bias": true} | attention_bias | expected false
granite | {"mlp_bias": true} | mlp_bias | expected false
granite | {"mlp_bias": "no"} | mlp_bias | true or false
granite | {"quantization_config": {"quant_method": "awq"}} | quantization_config | bf16, f16 or f32
granite | {"num_local_experts": 8} | num_local_experts | is a mixture of experts
granite | {"position_embedding_type": "nope"} | position_embedding_type | "rope"
hybrid | {"num_local_experts": 64} | num_local_experts | is a mixture of experts
hybrid | {"position_embedding_type": null} | position_embedding_type | missing
hybrid | {"position_embedding_type": "nope"} | position_embedding_type | is "nope"
hybrid | {"layer_types": null} | layer_types | missing
hybrid | {"layer_types": ["attention"]} | layer_types | expected 2 layer types
hybrid | {"layer_types": ["attention", "mamba"]} | layer_types[1] | Granite 4 hybrid (Mamba-2)
hybrid | {"layer_types": ["linear_attention", "full_attention"]} | layer_types[0] | Granite 4 hybrid (Mamba-2)
granite | {"architectures": ["GraniteMoeForCausalLM"]} | architectures | is a mixture of experts
granite | {"architectures": ["GraniteMoeSharedForCausalLM"]} | architectures | is a mixture of experts
granite | {"architectures": ["BambaForCausalLM"]} | architectures | Granite 4 hybrid (Mamba-2)
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
            config.num_layers,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.intermediate_size,
            config.vocab_size,
        ];
        assert_eq!(found, shape, "{name}");
        assert_eq!(config.attention_multiplier, attention_multiplier, "{name}");
        assert_eq!(config.rope_theta, 1e7, "{name}");
        assert!(config.tie_word_embeddings, "{name}");
    }
}
