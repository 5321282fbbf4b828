//! Every known kind of damage to model files: one line each, with the file and the field that the error must name.

use serde_json::{Value, json};

use crate::gguf_writer::{ARRAY, TEXT, U32, array};
use crate::model::Format::{self, *};
use crate::model::{CONFIG, Model, PACKED, QUANTIZATION, TOKENIZER, WEIGHTS};
use crate::model::{GGUF, INDEX, Stored};

const EMBEDDING: &str = "model.embed_tokens.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";
const DOWN_SCALE: &str = "model.layers.1.mlp.down_proj.weight_scale";
const OUTPUT_POINT: &str = "model.layers.1.shared_mlp.output_linear.weight_zero_point";
const DOWN_MAXIMUM: &str = "model.layers.1.mlp.down_proj.SCB";
const PACKED_SCALES: &str = "model.layers.1.mlp.down_proj.scales";

/// The damage, the format, the file and field that the error must name, and a function that causes the damage.
type Class = (&'static str, Format, &'static str, &'static str, fn(&Model));

/// A bf16 value at the start of a tensor.
fn first_bf16(bits: u16) -> impl FnOnce(Stored) -> Stored {
    move |(dtype, shape, mut data)| {
        data[..2].copy_from_slice(&bits.to_le_bytes());
        (dtype, shape, data)
    }
}

fn first_f32(value: f32) -> impl FnOnce(Stored) -> Stored {
    move |(dtype, shape, mut data)| {
        data[..4].copy_from_slice(&value.to_le_bytes());
        (dtype, shape, data)
    }
}

fn rows(count: usize) -> impl FnOnce(Stored) -> Stored {
    move |(dtype, mut shape, mut data)| {
        data.truncate(data.len() / shape[0] * count);
        shape[0] = count;
        (dtype, shape, data)
    }
}

/// One entry of `quantization_config.config_groups.group_0`.
fn scheme(model: &Model, part: &str, key: &str, value: Value) {
    model.edit(CONFIG, |json| {
        json["quantization_config"]["config_groups"]["group_0"][part][key] = value
    });
}

/// The first data offset of a tensor in a header.
fn first_offset(header: &str, name: &str) -> String {
    let entry = header.split(&format!("\"{name}\":")).nth(1).unwrap();
    entry
        .split("\"data_offsets\":[")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap()
        .to_owned()
}

const CLASSES: &[Class] = &[
    // Files.
    ("no configuration", Folder, CONFIG, "not found", |m| {
        std::fs::remove_file(m.path(CONFIG)).unwrap()
    }),
    ("no tokenizer", Folder, TOKENIZER, "", |m| {
        std::fs::remove_file(m.path(TOKENIZER)).unwrap()
    }),
    ("no weights", Folder, WEIGHTS, "not found", |m| {
        std::fs::remove_file(m.path(WEIGHTS)).unwrap()
    }),
    (
        "a folder where a file should be",
        Folder,
        WEIGHTS,
        "",
        |m| {
            std::fs::remove_file(m.path(WEIGHTS)).unwrap();
            std::fs::create_dir(m.path(WEIGHTS)).unwrap();
        },
    ),
    ("an empty configuration", Folder, CONFIG, "JSON", |m| {
        m.write(CONFIG, "")
    }),
    ("an empty tokenizer", Folder, TOKENIZER, "JSON", |m| {
        m.write(TOKENIZER, "")
    }),
    (
        "an empty file of weights",
        Folder,
        WEIGHTS,
        "is empty",
        |m| m.write(WEIGHTS, ""),
    ),
    ("an empty GGUF file", Gguf, GGUF, "is empty", |m| {
        m.write(GGUF, "")
    }),
    // config.json.
    (
        "a configuration that is a list",
        Folder,
        CONFIG,
        "JSON",
        |m| m.write(CONFIG, "[]"),
    ),
    (
        "a configuration nested without end",
        Folder,
        CONFIG,
        "JSON",
        |m| m.write(CONFIG, "[".repeat(1 << 20)),
    ),
    (
        "a configuration that is no text",
        Folder,
        CONFIG,
        "JSON",
        |m| m.write(CONFIG, [0xff; 64]),
    ),
    (
        "an unknown architecture",
        Folder,
        CONFIG,
        "architectures",
        |m| m.edit(CONFIG, |c| c["architectures"] = json!(["Qwen3ForCausalLM"])),
    ),
    ("no layers", Folder, CONFIG, "num_hidden_layers", |m| {
        m.edit(CONFIG, |c| c["num_hidden_layers"] = json!(0))
    }),
    (
        "more layers than anyone has",
        Folder,
        CONFIG,
        "num_hidden_layers",
        |m| m.edit(CONFIG, |c| c["num_hidden_layers"] = json!(1u64 << 40)),
    ),
    (
        "more layers than the file has",
        Folder,
        WEIGHTS,
        "model.layers.2.",
        |m| m.edit(CONFIG, |c| c["num_hidden_layers"] = json!(900)),
    ),
    (
        "fewer layers than the file has",
        Folder,
        WEIGHTS,
        "model.layers.1.",
        |m| m.edit(CONFIG, |c| c["num_hidden_layers"] = json!(1)),
    ),
    ("an absurd width", Folder, CONFIG, "hidden_size", |m| {
        m.edit(CONFIG, |c| c["hidden_size"] = json!(u64::MAX))
    }),
    (
        "a vocabulary of millions",
        Folder,
        WEIGHTS,
        EMBEDDING,
        |m| m.edit(CONFIG, |c| c["vocab_size"] = json!(4_000_000)),
    ),
    (
        "a width that is a text",
        Folder,
        CONFIG,
        "hidden_size",
        |m| m.edit(CONFIG, |c| c["hidden_size"] = json!("256")),
    ),
    (
        "heads that do not divide the width",
        Folder,
        CONFIG,
        "num_attention_heads",
        |m| m.edit(CONFIG, |c| c["num_attention_heads"] = json!(7)),
    ),
    ("an epsilon of zero", Folder, CONFIG, "rms_norm_eps", |m| {
        m.edit(CONFIG, |c| c["rms_norm_eps"] = json!(0))
    }),
    (
        "a head of its own that is not there",
        Folder,
        WEIGHTS,
        "lm_head.weight",
        |m| m.edit(CONFIG, |c| c["tie_word_embeddings"] = json!(false)),
    ),
    // The tokenizer.
    (
        "a tokenizer of words",
        Folder,
        TOKENIZER,
        "model.type",
        |m| {
            m.edit(
                TOKENIZER,
                |t| t["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            )
        },
    ),
    (
        "a tokenizer without its decoder",
        Folder,
        TOKENIZER,
        "decoder",
        |m| m.edit(TOKENIZER, |t| t["decoder"] = Value::Null),
    ),
    (
        "a merge of tokens that do not exist",
        Folder,
        TOKENIZER,
        "JSON",
        |m| {
            m.edit(TOKENIZER, |t| {
                t["model"]["merges"][0] = json!(["no", "where"])
            })
        },
    ),
    (
        "an end-of-text id that is no id",
        Folder,
        "generation_config.json",
        "eos_token_id",
        |m| m.edit("generation_config.json", |g| g["eos_token_id"] = json!(-1)),
    ),
    // The header of a safetensors file.
    (
        "a header longer than the file",
        Folder,
        WEIGHTS,
        "header",
        |m| m.damage(WEIGHTS, |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes())),
    ),
    ("a header that is no JSON", Folder, WEIGHTS, "header", |m| {
        m.damage(WEIGHTS, |b| b[8..40].fill(b'x'))
    }),
    (
        "a header nested without end",
        Folder,
        WEIGHTS,
        "header",
        |m| m.header(WEIGHTS, |_| "[".repeat(1 << 20)),
    ),
    ("a file that was cut off", Folder, WEIGHTS, "data", |m| {
        m.damage(WEIGHTS, |b| b.truncate(b.len() / 2))
    }),
    (
        "bytes behind the last tensor",
        Folder,
        WEIGHTS,
        "data",
        |m| m.damage(WEIGHTS, |b| b.extend([0; 100])),
    ),
    ("a tensor of an unknown type", Folder, WEIGHTS, "", |m| {
        m.header(WEIGHTS, |h| h.replacen("BF16", "BF17", 1))
    }),
    ("a tensor of integers", Folder, WEIGHTS, "", |m| {
        m.header(WEIGHTS, |h| h.replacen("BF16", "I16", 1))
    }),
    (
        "a shape that its bytes contradict",
        Folder,
        WEIGHTS,
        EMBEDDING,
        |m| m.header(WEIGHTS, |h| h.replace("[320,256]", "[320,257]")),
    ),
    ("a shape that overflows", Folder, WEIGHTS, EMBEDDING, |m| {
        m.header(WEIGHTS, |h| {
            h.replace("[320,256]", "[4294967296,4294967296]")
        })
    }),
    ("a negative size", Folder, WEIGHTS, "", |m| {
        m.header(WEIGHTS, |h| h.replace("[320,256]", "[-320,256]"))
    }),
    ("tensors that overlap", Folder, WEIGHTS, "", |m| {
        m.header(WEIGHTS, |h| {
            let (from, to) = (
                first_offset(&h, "model.layers.0.mlp.gate_proj.weight"),
                first_offset(&h, UP),
            );
            // Both have the same shape, so that only the overlap is wrong.
            let end = |start: &str| (start.parse::<usize>().unwrap() + 512 * 256 * 2).to_string();
            h.replace(
                &format!("[{to},{}]", end(&to)),
                &format!("[{from},{}]", end(&from)),
            )
        })
    }),
    ("a tensor under another name", Folder, WEIGHTS, UP, |m| {
        m.header(WEIGHTS, |h| {
            h.replace("layers.0.mlp.up_proj", "layers.0.mlp.up_poj")
        })
    }),
    ("a tensor that is there twice", Folder, WEIGHTS, "", |m| {
        m.header(WEIGHTS, |h| {
            h.replace("layers.0.mlp.up_proj", "layers.0.mlp.gate_proj")
        })
    }),
    (
        "a bias that nobody would add",
        Folder,
        WEIGHTS,
        "q_proj.bias",
        |m| {
            let bias = "model.layers.0.self_attn.q_proj.bias";
            m.damage(WEIGHTS, |bytes| {
                *bytes = with_copy(bytes, "model.norm.weight", bias)
            });
        },
    ),
    // Numbers.
    ("a weight that is infinite", Folder, WEIGHTS, UP, |m| {
        m.tensor(WEIGHTS, UP, first_bf16(0x7f80))
    }),
    ("a weight that is not a number", Folder, WEIGHTS, UP, |m| {
        m.tensor(WEIGHTS, UP, first_bf16(0x7fc0))
    }),
    (
        "a norm that is not a number",
        Folder,
        WEIGHTS,
        "model.norm.weight",
        |m| m.tensor(WEIGHTS, "model.norm.weight", first_bf16(0xffc0)),
    ),
    ("a matrix without rows", Folder, WEIGHTS, UP, |m| {
        m.tensor(WEIGHTS, UP, rows(0))
    }),
    ("a matrix with a row too few", Folder, WEIGHTS, UP, |m| {
        m.tensor(WEIGHTS, UP, rows(511))
    }),
    ("a matrix with three axes", Folder, WEIGHTS, UP, |m| {
        m.tensor(WEIGHTS, UP, |(t, _, d)| (t, vec![2, 256, 256], d))
    }),
    // Several files.
    (
        "a file that the index names and nobody has",
        Shards,
        INDEX,
        "two.safetensors",
        |m| std::fs::remove_file(m.path("two.safetensors")).unwrap(),
    ),
    (
        "a file that was cut off, one of two",
        Shards,
        "two.safetensors",
        "data",
        |m| m.damage("two.safetensors", |b| b.truncate(b.len() - 1)),
    ),
    (
        "a tensor that the index finds in the wrong file",
        Shards,
        INDEX,
        EMBEDDING,
        |m| {
            m.edit(INDEX, |i| {
                i["weight_map"][EMBEDDING] =
                    json!(if i["weight_map"][EMBEDDING] == "one.safetensors" {
                        "two.safetensors"
                    } else {
                        "one.safetensors"
                    })
            })
        },
    ),
    (
        "a tensor that the index does not list",
        Shards,
        INDEX,
        EMBEDDING,
        |m| {
            m.edit(INDEX, |i| {
                drop(i["weight_map"].as_object_mut().unwrap().remove(EMBEDDING))
            })
        },
    ),
    (
        "the same tensors in both files",
        Shards,
        "two.safetensors",
        "is also in",
        |m| {
            std::fs::copy(m.path("one.safetensors"), m.path("two.safetensors"))
                .map(drop)
                .unwrap()
        },
    ),
    (
        "an index that leaves the folder",
        Shards,
        INDEX,
        EMBEDDING,
        |m| {
            m.edit(INDEX, |i| {
                i["weight_map"][EMBEDDING] = json!("../one.safetensors")
            })
        },
    ),
    ("an index without a map", Shards, INDEX, "weight_map", |m| {
        m.write(INDEX, "{}")
    }),
    // GGUF.
    ("another magic", Gguf, GGUF, "magic", |m| {
        m.damage(GGUF, |b| b[0] = b'g')
    }),
    ("a version of the future", Gguf, GGUF, "version", |m| {
        m.gguf(|g| g.version = 9)
    }),
    ("more tensors than bytes", Gguf, GGUF, "tensor count", |m| {
        m.gguf(|g| g.claimed_tensors = Some(u64::MAX))
    }),
    (
        "more metadata than bytes",
        Gguf,
        GGUF,
        "metadata count",
        |m| m.gguf(|g| g.claimed_entries = Some(1 << 60)),
    ),
    (
        "a text longer than the file",
        Gguf,
        GGUF,
        "general.name",
        |m| m.gguf(|g| _ = g.set("general.name", TEXT, (1u64 << 50).to_le_bytes().into())),
    ),
    ("lists within lists", Gguf, GGUF, "deep", |m| {
        m.gguf(|g| _ = g.set("deep", ARRAY, array(ARRAY, &[array(U32, &[])])))
    }),
    (
        "tensors that overlap in a GGUF file",
        Gguf,
        GGUF,
        "overlaps",
        |m| m.gguf(|g| g.tensor("blk.1.ffn_up.weight").claimed_offset = Some(0)),
    ),
    ("a tensor past the end", Gguf, GGUF, "past the end", |m| {
        m.gguf(|g| g.tensor("blk.1.ffn_up.weight").claimed_offset = Some(1 << 40))
    }),
    (
        "a tensor of a type that nobody knows",
        Gguf,
        GGUF,
        "blk.1.ffn_up.weight",
        |m| m.gguf(|g| g.tensor("blk.1.ffn_up.weight").kind = 99),
    ),
    (
        "dimensions that overflow",
        Gguf,
        GGUF,
        "blk.1.ffn_up.weight",
        |m| m.gguf(|g| g.tensor("blk.1.ffn_up.weight").dimensions = vec![1 << 40, 1 << 40]),
    ),
    (
        "a block scale that is infinite",
        Gguf,
        GGUF,
        "up_proj",
        |m| {
            m.gguf(|g| {
                g.tensor("blk.1.ffn_up.weight").data[..2].copy_from_slice(&0x7c00u16.to_le_bytes())
            })
        },
    ),
    ("a GGUF file that was cut off", Gguf, GGUF, "", |m| {
        m.damage(GGUF, |b| b.truncate(b.len() / 2))
    }),
    // compressed-tensors and LLM.int8.
    (
        "codes of four bits",
        CompressedTensors,
        CONFIG,
        "weights.num_bits",
        |m| scheme(m, "weights", "num_bits", json!(4)),
    ),
    (
        "scales for blocks",
        CompressedTensors,
        CONFIG,
        "weights.strategy",
        |m| scheme(m, "weights", "strategy", json!("block")),
    ),
    (
        "an order of activations",
        CompressedTensors,
        CONFIG,
        "weights.actorder",
        |m| scheme(m, "weights", "actorder", json!("group")),
    ),
    (
        "static activations",
        CompressedTensors,
        CONFIG,
        "input_activations.dynamic",
        |m| scheme(m, "input_activations", "dynamic", json!(false)),
    ),
    (
        "eight bits that are floats",
        CompressedTensors,
        CONFIG,
        "weights.type",
        |m| scheme(m, "weights", "type", json!("float")),
    ),
    (
        "codes packed into words",
        CompressedTensors,
        CONFIG,
        "quantization_config.format",
        |m| {
            m.edit(CONFIG, |c| {
                c["quantization_config"]["format"] = json!("pack-quantized")
            })
        },
    ),
    (
        "codes without scales",
        CompressedTensors,
        WEIGHTS,
        DOWN_SCALE,
        |m| {
            m.header(WEIGHTS, |h| {
                h.replace(DOWN_SCALE, "model.layers.1.mlp.down_proj.wait_scale")
            })
        },
    ),
    (
        "a scale that is not a number",
        CompressedTensors,
        WEIGHTS,
        DOWN_SCALE,
        |m| m.tensor(WEIGHTS, DOWN_SCALE, first_bf16(0x7fc0)),
    ),
    (
        "a scale that is infinite",
        ZeroPoints,
        WEIGHTS,
        "output_linear.weight_scale",
        |m| {
            m.tensor(
                WEIGHTS,
                "model.layers.1.shared_mlp.output_linear.weight_scale",
                first_bf16(0x7f80),
            )
        },
    ),
    (
        "scales for too few rows",
        CompressedTensors,
        WEIGHTS,
        DOWN_SCALE,
        |m| m.tensor(WEIGHTS, DOWN_SCALE, rows(255)),
    ),
    (
        "zero points for too few rows",
        ZeroPoints,
        WEIGHTS,
        OUTPUT_POINT,
        |m| m.tensor(WEIGHTS, OUTPUT_POINT, rows(255)),
    ),
    (
        "codes of one matrix beside floats of another",
        CompressedTensors,
        WEIGHTS,
        "k_proj.weight",
        |m| {
            let module = "model.layers.0.self_attn.k_proj.weight";
            m.tensor(WEIGHTS, module, |(_, shape, data)| {
                (safetensors::Dtype::BF16, shape, data.repeat(2))
            });
            m.damage(WEIGHTS, |bytes| {
                *bytes = without(bytes, &format!("{module}_scale"))
            });
        },
    ),
    (
        "a row maximum that is negative",
        LlmInt8,
        WEIGHTS,
        DOWN_MAXIMUM,
        |m| m.tensor(WEIGHTS, DOWN_MAXIMUM, first_f32(-1.0)),
    ),
    (
        "codes in a GPU's order",
        LlmInt8,
        WEIGHTS,
        "down_proj.weight_format",
        |m| {
            m.tensor(
                WEIGHTS,
                "model.layers.1.mlp.down_proj.weight_format",
                |(t, s, _)| (t, s, vec![1]),
            )
        },
    ),
    (
        "a float model that calls itself int8",
        Folder,
        CONFIG,
        "load_in_8bit",
        |m| {
            m.edit(CONFIG, |c| {
                c["quantization_config"] =
                    json!({"quant_method": "bitsandbytes", "load_in_4bit": false})
            })
        },
    ),
    // Packed folders.
    (
        "no record of how it was packed",
        Packed,
        QUANTIZATION,
        "",
        |m| std::fs::remove_file(m.path(QUANTIZATION)).unwrap(),
    ),
    (
        "a format of the future",
        Packed,
        QUANTIZATION,
        "format",
        |m| m.edit(QUANTIZATION, |q| q["format"] = json!(99)),
    ),
    (
        "a packed scale that is not a number",
        Packed,
        PACKED,
        PACKED_SCALES,
        |m| m.tensor(PACKED, PACKED_SCALES, first_f32(f32::NAN)),
    ),
    (
        "a packed scale that changed",
        Packed,
        PACKED,
        PACKED_SCALES,
        |m| m.tensor(PACKED, PACKED_SCALES, first_f32(0.5)),
    ),
    (
        "packed weights that were cut off",
        Packed,
        PACKED,
        "data",
        |m| m.damage(PACKED, |b| b.truncate(b.len() - 1)),
    ),
    (
        "packed weights of another width",
        Packed,
        PACKED,
        "model.embed_tokens",
        |m| {
            m.edit(CONFIG, |c| c["vocab_size"] = json!(640));
        },
    ),
    (
        "a rotation that nobody knows",
        Packed,
        QUANTIZATION,
        "JSON",
        |m| {
            m.edit(QUANTIZATION, |q| {
                q["matrices"]["model.layers.0.mlp.down_proj"]["rotation"] = json!("spiral")
            })
        },
    ),
];

/// The file with a copy of the tensor `from` as `to`.
fn with_copy(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let views = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let copy = (to, views.tensor(from).unwrap());
    safetensors::serialize(views.iter().chain([copy]), None).unwrap()
}

/// The file without the tensor `name`.
fn without(bytes: &[u8], name: &str) -> Vec<u8> {
    let views = safetensors::SafeTensors::deserialize(bytes).unwrap();
    safetensors::serialize(views.iter().filter(|(other, _)| *other != name), None).unwrap()
}

#[test]
fn every_known_damage_is_refused_by_file_and_field() {
    assert!(CLASSES.len() >= 40);
    let mut wrong = Vec::new();
    for (what, format, file, part, damage) in CLASSES {
        let model = Model::new(*format);
        damage(&model);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.attempt()));
        match outcome {
            Err(_) => wrong.push(format!("{what}: see above")),
            Ok(Ok(())) => wrong.push(format!("{what}: was accepted")),
            Ok(Err(error)) => {
                let line = error.to_string();
                if !line.contains(file) || !line.contains(part) {
                    wrong.push(format!("{what}: {file:?} or {part:?} is not in {line:?}"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        CLASSES.len(),
        wrong.join("\n")
    );
}
