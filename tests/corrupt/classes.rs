//! Every known kind of damage to model files: one entry each, with the file and the field that the error must name.

use serde_json::{Value, json};

use crate::gguf_writer::{ARRAY, TEXT, U32, array};
use crate::hybrids;
use crate::model::Format::{self, *};
use crate::model::{CONFIG, Model, PACKED, QUANTIZATION, TOKENIZER, WEIGHTS};
use crate::model::{GGUF, INDEX, Stored};

const EMBEDDING: &str = "model.embed_tokens.weight";
const UP: &str = "model.layers.0.mlp.up_proj.weight";
const DOWN_SCALE: &str = "model.layers.1.mlp.down_proj.weight_scale";
const OUTPUT_POINT: &str = "model.layers.1.shared_mlp.output_linear.weight_zero_point";
const DOWN_MAXIMUM: &str = "model.layers.1.mlp.down_proj.SCB";
const PACKED_SCALES: &str = "model.layers.1.mlp.down_proj.scales";

/// One kind of damage to a model's files.
#[derive(Clone, Copy)]
pub struct Class {
    /// The damage, in words.
    what: &'static str,
    format: Format,
    /// The file that the error must name.
    file: &'static str,
    /// The field, or another part of the message, that the error must have.
    field: &'static str,
    /// Causes the damage.
    change: fn(&Model),
}

/// A kind of damage to models of `format`, still to be described.
pub const fn class(what: &'static str, format: Format) -> Class {
    Class {
        what,
        format,
        file: "",
        field: "",
        change: |_| {},
    }
}

impl Class {
    pub const fn names(self, file: &'static str, field: &'static str) -> Self {
        Self {
            file,
            field,
            ..self
        }
    }

    pub const fn after(self, change: fn(&Model)) -> Self {
        Self { change, ..self }
    }
}

/// A bf16 value at the start of a tensor.
pub fn first_bf16(bits: u16) -> impl FnOnce(Stored) -> Stored {
    move |(dtype, shape, mut data)| {
        data[..2].copy_from_slice(&bits.to_le_bytes());
        (dtype, shape, data)
    }
}

pub fn first_f32(value: f32) -> impl FnOnce(Stored) -> Stored {
    move |(dtype, shape, mut data)| {
        data[..4].copy_from_slice(&value.to_le_bytes());
        (dtype, shape, data)
    }
}

pub fn rows(count: usize) -> impl FnOnce(Stored) -> Stored {
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
    class("no configuration", Folder)
        .names(CONFIG, "not found")
        .after(|m| std::fs::remove_file(m.path(CONFIG)).unwrap()),
    class("no tokenizer", Folder)
        .names(TOKENIZER, "")
        .after(|m| std::fs::remove_file(m.path(TOKENIZER)).unwrap()),
    class("no weights", Folder)
        .names(WEIGHTS, "not found")
        .after(|m| std::fs::remove_file(m.path(WEIGHTS)).unwrap()),
    class("a folder where a file should be", Folder)
        .names(WEIGHTS, "")
        .after(|m| {
            std::fs::remove_file(m.path(WEIGHTS)).unwrap();
            std::fs::create_dir(m.path(WEIGHTS)).unwrap();
        }),
    class("an empty configuration", Folder)
        .names(CONFIG, "JSON")
        .after(|m| m.write(CONFIG, "")),
    class("an empty tokenizer", Folder)
        .names(TOKENIZER, "JSON")
        .after(|m| m.write(TOKENIZER, "")),
    class("an empty file of weights", Folder)
        .names(WEIGHTS, "is empty")
        .after(|m| m.write(WEIGHTS, "")),
    class("an empty GGUF file", Gguf)
        .names(GGUF, "is empty")
        .after(|m| m.write(GGUF, "")),
    // config.json.
    class("a configuration that is a list", Folder)
        .names(CONFIG, "JSON")
        .after(|m| m.write(CONFIG, "[]")),
    class("a configuration nested without end", Folder)
        .names(CONFIG, "JSON")
        .after(|m| m.write(CONFIG, "[".repeat(1 << 20))),
    class("a configuration that is no text", Folder)
        .names(CONFIG, "JSON")
        .after(|m| m.write(CONFIG, [0xff; 64])),
    class("an unknown architecture", Folder)
        .names(CONFIG, "architectures")
        .after(|m| m.edit(CONFIG, |c| c["architectures"] = json!(["Qwen3ForCausalLM"]))),
    class("no layers", Folder)
        .names(CONFIG, "num_hidden_layers")
        .after(|m| m.edit(CONFIG, |c| c["num_hidden_layers"] = json!(0))),
    class("more layers than anyone has", Folder)
        .names(CONFIG, "num_hidden_layers")
        .after(|m| m.edit(CONFIG, |c| c["num_hidden_layers"] = json!(1u64 << 40))),
    class("more layers than the file has", Folder)
        .names(WEIGHTS, "model.layers.2.")
        .after(|m| m.edit(CONFIG, |c| c["num_hidden_layers"] = json!(900))),
    class("fewer layers than the file has", Folder)
        .names(WEIGHTS, "model.layers.1.")
        .after(|m| m.edit(CONFIG, |c| c["num_hidden_layers"] = json!(1))),
    class("an absurd width", Folder)
        .names(CONFIG, "hidden_size")
        .after(|m| m.edit(CONFIG, |c| c["hidden_size"] = json!(u64::MAX))),
    class("a vocabulary of millions", Folder)
        .names(WEIGHTS, EMBEDDING)
        .after(|m| m.edit(CONFIG, |c| c["vocab_size"] = json!(4_000_000))),
    class("a width that is a text", Folder)
        .names(CONFIG, "hidden_size")
        .after(|m| m.edit(CONFIG, |c| c["hidden_size"] = json!("256"))),
    class("heads that do not divide the width", Folder)
        .names(CONFIG, "num_attention_heads")
        .after(|m| m.edit(CONFIG, |c| c["num_attention_heads"] = json!(7))),
    class("an epsilon of zero", Folder)
        .names(CONFIG, "rms_norm_eps")
        .after(|m| m.edit(CONFIG, |c| c["rms_norm_eps"] = json!(0))),
    class("a head of its own that is not there", Folder)
        .names(WEIGHTS, "lm_head.weight")
        .after(|m| m.edit(CONFIG, |c| c["tie_word_embeddings"] = json!(false))),
    // The tokenizer.
    class("a tokenizer of words", Folder)
        .names(TOKENIZER, "model.type")
        .after(|m| {
            m.edit(
                TOKENIZER,
                |t| t["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}),
            )
        }),
    class("a tokenizer without its decoder", Folder)
        .names(TOKENIZER, "decoder")
        .after(|m| m.edit(TOKENIZER, |t| t["decoder"] = Value::Null)),
    class("a merge of tokens that do not exist", Folder)
        .names(TOKENIZER, "JSON")
        .after(|m| {
            m.edit(TOKENIZER, |t| {
                t["model"]["merges"][0] = json!(["no", "where"])
            })
        }),
    class("an end-of-text id that is no id", Folder)
        .names("generation_config.json", "eos_token_id")
        .after(|m| m.edit("generation_config.json", |g| g["eos_token_id"] = json!(-1))),
    // The header of a safetensors file.
    class("a header longer than the file", Folder)
        .names(WEIGHTS, "header")
        .after(|m| m.damage(WEIGHTS, |b| b[..8].copy_from_slice(&u64::MAX.to_le_bytes()))),
    class("a header that is no JSON", Folder)
        .names(WEIGHTS, "header")
        .after(|m| m.damage(WEIGHTS, |b| b[8..40].fill(b'x'))),
    class("a header nested without end", Folder)
        .names(WEIGHTS, "header")
        .after(|m| m.header(WEIGHTS, |_| "[".repeat(1 << 20))),
    class("a file that was cut off", Folder)
        .names(WEIGHTS, "data")
        .after(|m| m.damage(WEIGHTS, |b| b.truncate(b.len() / 2))),
    class("bytes behind the last tensor", Folder)
        .names(WEIGHTS, "data")
        .after(|m| m.damage(WEIGHTS, |b| b.extend([0; 100]))),
    class("a tensor of an unknown type", Folder)
        .names(WEIGHTS, "")
        .after(|m| m.header(WEIGHTS, |h| h.replacen("BF16", "BF17", 1))),
    class("a tensor of integers", Folder)
        .names(WEIGHTS, "")
        .after(|m| m.header(WEIGHTS, |h| h.replacen("BF16", "I16", 1))),
    class("a shape that its bytes contradict", Folder)
        .names(WEIGHTS, EMBEDDING)
        .after(|m| m.header(WEIGHTS, |h| h.replace("[320,256]", "[320,257]"))),
    class("a shape that overflows", Folder)
        .names(WEIGHTS, EMBEDDING)
        .after(|m| {
            m.header(WEIGHTS, |h| {
                h.replace("[320,256]", "[4294967296,4294967296]")
            })
        }),
    class("a negative size", Folder)
        .names(WEIGHTS, "")
        .after(|m| m.header(WEIGHTS, |h| h.replace("[320,256]", "[-320,256]"))),
    class("tensors that overlap", Folder)
        .names(WEIGHTS, "")
        .after(|m| {
            m.header(WEIGHTS, |h| {
                let (from, to) = (
                    first_offset(&h, "model.layers.0.mlp.gate_proj.weight"),
                    first_offset(&h, UP),
                );
                // Both have the same shape, so that only the overlap is wrong.
                let end =
                    |start: &str| (start.parse::<usize>().unwrap() + 512 * 256 * 2).to_string();
                h.replace(
                    &format!("[{to},{}]", end(&to)),
                    &format!("[{from},{}]", end(&from)),
                )
            })
        }),
    class("a tensor under another name", Folder)
        .names(WEIGHTS, UP)
        .after(|m| {
            m.header(WEIGHTS, |h| {
                h.replace("layers.0.mlp.up_proj", "layers.0.mlp.up_poj")
            })
        }),
    class("a tensor that is there twice", Folder)
        .names(WEIGHTS, "")
        .after(|m| {
            m.header(WEIGHTS, |h| {
                h.replace("layers.0.mlp.up_proj", "layers.0.mlp.gate_proj")
            })
        }),
    class("a bias that nobody would add", Folder)
        .names(WEIGHTS, "q_proj.bias")
        .after(|m| {
            let bias = "model.layers.0.self_attn.q_proj.bias";
            m.damage(WEIGHTS, |bytes| {
                *bytes = with_copy(bytes, "model.norm.weight", bias)
            });
        }),
    // Numbers.
    class("a weight that is infinite", Folder)
        .names(WEIGHTS, UP)
        .after(|m| m.tensor(WEIGHTS, UP, first_bf16(0x7f80))),
    class("a weight that is not a number", Folder)
        .names(WEIGHTS, UP)
        .after(|m| m.tensor(WEIGHTS, UP, first_bf16(0x7fc0))),
    class("a norm that is not a number", Folder)
        .names(WEIGHTS, "model.norm.weight")
        .after(|m| m.tensor(WEIGHTS, "model.norm.weight", first_bf16(0xffc0))),
    class("a matrix without rows", Folder)
        .names(WEIGHTS, UP)
        .after(|m| m.tensor(WEIGHTS, UP, rows(0))),
    class("a matrix with a row too few", Folder)
        .names(WEIGHTS, UP)
        .after(|m| m.tensor(WEIGHTS, UP, rows(511))),
    class("a matrix with three axes", Folder)
        .names(WEIGHTS, UP)
        .after(|m| m.tensor(WEIGHTS, UP, |(t, _, d)| (t, vec![2, 256, 256], d))),
    // Several files.
    class("a file that the index names and nobody has", Shards)
        .names(INDEX, "two.safetensors")
        .after(|m| std::fs::remove_file(m.path("two.safetensors")).unwrap()),
    class("a file that was cut off, one of two", Shards)
        .names("two.safetensors", "data")
        .after(|m| m.damage("two.safetensors", |b| b.truncate(b.len() - 1))),
    class("a tensor that the index finds in the wrong file", Shards)
        .names(INDEX, EMBEDDING)
        .after(|m| {
            m.edit(INDEX, |i| {
                i["weight_map"][EMBEDDING] =
                    json!(if i["weight_map"][EMBEDDING] == "one.safetensors" {
                        "two.safetensors"
                    } else {
                        "one.safetensors"
                    })
            })
        }),
    class("a tensor that the index does not list", Shards)
        .names(INDEX, EMBEDDING)
        .after(|m| {
            m.edit(INDEX, |i| {
                drop(i["weight_map"].as_object_mut().unwrap().remove(EMBEDDING))
            })
        }),
    class("the same tensors in both files", Shards)
        .names("two.safetensors", "is also in")
        .after(|m| {
            std::fs::copy(m.path("one.safetensors"), m.path("two.safetensors"))
                .map(drop)
                .unwrap()
        }),
    class("an index that leaves the folder", Shards)
        .names(INDEX, EMBEDDING)
        .after(|m| {
            m.edit(INDEX, |i| {
                i["weight_map"][EMBEDDING] = json!("../one.safetensors")
            })
        }),
    class("an index without a map", Shards)
        .names(INDEX, "weight_map")
        .after(|m| m.write(INDEX, "{}")),
    // GGUF.
    class("another magic", Gguf)
        .names(GGUF, "magic")
        .after(|m| m.damage(GGUF, |b| b[0] = b'g')),
    class("a version of the future", Gguf)
        .names(GGUF, "version")
        .after(|m| m.gguf(|g| g.version = 9)),
    class("more tensors than bytes", Gguf)
        .names(GGUF, "tensor count")
        .after(|m| m.gguf(|g| g.claimed_tensors = Some(u64::MAX))),
    class("more metadata than bytes", Gguf)
        .names(GGUF, "metadata count")
        .after(|m| m.gguf(|g| g.claimed_entries = Some(1 << 60))),
    class("a text longer than the file", Gguf)
        .names(GGUF, "general.name")
        .after(|m| m.gguf(|g| _ = g.set("general.name", TEXT, (1u64 << 50).to_le_bytes().into()))),
    class("lists within lists", Gguf)
        .names(GGUF, "deep")
        .after(|m| m.gguf(|g| _ = g.set("deep", ARRAY, array(ARRAY, &[array(U32, &[])])))),
    class("tensors that overlap in a GGUF file", Gguf)
        .names(GGUF, "overlaps")
        .after(|m| m.gguf(|g| g.tensor("blk.1.ffn_up.weight").claimed_offset = Some(0))),
    class("a tensor past the end", Gguf)
        .names(GGUF, "past the end")
        .after(|m| m.gguf(|g| g.tensor("blk.1.ffn_up.weight").claimed_offset = Some(1 << 40))),
    class("a tensor of a type that nobody knows", Gguf)
        .names(GGUF, "blk.1.ffn_up.weight")
        .after(|m| m.gguf(|g| g.tensor("blk.1.ffn_up.weight").kind = 99)),
    class("dimensions that overflow", Gguf)
        .names(GGUF, "blk.1.ffn_up.weight")
        .after(|m| m.gguf(|g| g.tensor("blk.1.ffn_up.weight").dimensions = vec![1 << 40, 1 << 40])),
    class("a block scale that is infinite", Gguf)
        .names(GGUF, "up_proj")
        .after(|m| {
            m.gguf(|g| {
                g.tensor("blk.1.ffn_up.weight").data[..2].copy_from_slice(&0x7c00u16.to_le_bytes())
            })
        }),
    class("a GGUF file that was cut off", Gguf)
        .names(GGUF, "")
        .after(|m| m.damage(GGUF, |b| b.truncate(b.len() / 2))),
    // compressed-tensors and LLM.int8.
    class("codes of four bits", CompressedTensors)
        .names(CONFIG, "weights.num_bits")
        .after(|m| scheme(m, "weights", "num_bits", json!(4))),
    class("scales for blocks", CompressedTensors)
        .names(CONFIG, "weights.strategy")
        .after(|m| scheme(m, "weights", "strategy", json!("block"))),
    class("an order of activations", CompressedTensors)
        .names(CONFIG, "weights.actorder")
        .after(|m| scheme(m, "weights", "actorder", json!("group"))),
    class("static activations", CompressedTensors)
        .names(CONFIG, "input_activations.dynamic")
        .after(|m| scheme(m, "input_activations", "dynamic", json!(false))),
    class("eight bits that are floats", CompressedTensors)
        .names(CONFIG, "weights.type")
        .after(|m| scheme(m, "weights", "type", json!("float"))),
    class("codes packed into words", CompressedTensors)
        .names(CONFIG, "quantization_config.format")
        .after(|m| {
            m.edit(CONFIG, |c| {
                c["quantization_config"]["format"] = json!("pack-quantized")
            })
        }),
    class("codes without scales", CompressedTensors)
        .names(WEIGHTS, DOWN_SCALE)
        .after(|m| {
            m.header(WEIGHTS, |h| {
                h.replace(DOWN_SCALE, "model.layers.1.mlp.down_proj.wait_scale")
            })
        }),
    class("a scale that is not a number", CompressedTensors)
        .names(WEIGHTS, DOWN_SCALE)
        .after(|m| m.tensor(WEIGHTS, DOWN_SCALE, first_bf16(0x7fc0))),
    class("a scale that is infinite", ZeroPoints)
        .names(WEIGHTS, "output_linear.weight_scale")
        .after(|m| {
            m.tensor(
                WEIGHTS,
                "model.layers.1.shared_mlp.output_linear.weight_scale",
                first_bf16(0x7f80),
            )
        }),
    class("scales for too few rows", CompressedTensors)
        .names(WEIGHTS, DOWN_SCALE)
        .after(|m| m.tensor(WEIGHTS, DOWN_SCALE, rows(255))),
    class("zero points for too few rows", ZeroPoints)
        .names(WEIGHTS, OUTPUT_POINT)
        .after(|m| m.tensor(WEIGHTS, OUTPUT_POINT, rows(255))),
    class(
        "codes of one matrix beside floats of another",
        CompressedTensors,
    )
    .names(WEIGHTS, "k_proj.weight")
    .after(|m| {
        let module = "model.layers.0.self_attn.k_proj.weight";
        m.tensor(WEIGHTS, module, |(_, shape, data)| {
            (safetensors::Dtype::BF16, shape, data.repeat(2))
        });
        m.damage(WEIGHTS, |bytes| {
            *bytes = without(bytes, &format!("{module}_scale"))
        });
    }),
    class("a row maximum that is negative", LlmInt8)
        .names(WEIGHTS, DOWN_MAXIMUM)
        .after(|m| m.tensor(WEIGHTS, DOWN_MAXIMUM, first_f32(-1.0))),
    class("codes in a GPU's order", LlmInt8)
        .names(WEIGHTS, "down_proj.weight_format")
        .after(|m| {
            m.tensor(
                WEIGHTS,
                "model.layers.1.mlp.down_proj.weight_format",
                |(t, s, _)| (t, s, vec![1]),
            )
        }),
    class("a float model that calls itself int8", Folder)
        .names(CONFIG, "load_in_8bit")
        .after(|m| {
            m.edit(CONFIG, |c| {
                c["quantization_config"] =
                    json!({"quant_method": "bitsandbytes", "load_in_4bit": false})
            })
        }),
    // Packed folders.
    class("no record of how it was packed", Packed)
        .names(QUANTIZATION, "")
        .after(|m| std::fs::remove_file(m.path(QUANTIZATION)).unwrap()),
    class("a format of the future", Packed)
        .names(QUANTIZATION, "format")
        .after(|m| m.edit(QUANTIZATION, |q| q["format"] = json!(99))),
    class("a packed scale that is not a number", Packed)
        .names(PACKED, PACKED_SCALES)
        .after(|m| m.tensor(PACKED, PACKED_SCALES, first_f32(f32::NAN))),
    class("a packed scale that changed", Packed)
        .names(PACKED, PACKED_SCALES)
        .after(|m| m.tensor(PACKED, PACKED_SCALES, first_f32(0.5))),
    class("packed weights that were cut off", Packed)
        .names(PACKED, "data")
        .after(|m| m.damage(PACKED, |b| b.truncate(b.len() - 1))),
    class("packed weights of another width", Packed)
        .names(PACKED, "model.embed_tokens")
        .after(|m| {
            m.edit(CONFIG, |c| c["vocab_size"] = json!(640));
        }),
    class("a rotation that nobody knows", Packed)
        .names(QUANTIZATION, "JSON")
        .after(|m| {
            m.edit(QUANTIZATION, |q| {
                q["matrices"]["model.layers.0.mlp.down_proj"]["rotation"] = json!("spiral")
            })
        }),
];

/// The file with a copy of the tensor `from` as `to`.
pub fn with_copy(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let views = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let copy = (to, views.tensor(from).unwrap());
    safetensors::serialize(views.iter().chain([copy]), None).unwrap()
}

/// The file without the tensor `name`.
pub fn without(bytes: &[u8], name: &str) -> Vec<u8> {
    let views = safetensors::SafeTensors::deserialize(bytes).unwrap();
    safetensors::serialize(views.iter().filter(|(other, _)| *other != name), None).unwrap()
}

#[test]
fn every_known_damage_is_refused_by_file_and_field() {
    let classes = [CLASSES, hybrids::CLASSES].concat();
    assert!(classes.len() >= 140);
    let mut wrong = Vec::new();
    for class in &classes {
        let Class {
            what, file, field, ..
        } = class;
        let model = Model::new(class.format);
        (class.change)(&model);
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| model.attempt()));
        match outcome {
            Err(_) => wrong.push(format!("{what}: see above")),
            Ok(Ok(())) => wrong.push(format!("{what}: was accepted")),
            Ok(Err(error)) => {
                let line = error.to_string();
                if !line.contains(file) || !line.contains(field) {
                    wrong.push(format!("{what}: {file:?} or {field:?} is not in {line:?}"));
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        classes.len(),
        wrong.join("\n")
    );
}
