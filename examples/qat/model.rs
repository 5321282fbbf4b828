//! A small Granite whose weights can be trained: the forward pass of `src/model/reference.rs` for batches of sequences.

use std::collections::BTreeMap;

use candle_core::{D, Device, Result, Tensor, Var};
use candle_nn::{ops, rotary_emb};
use microgranite::int8::scheme::Scheme;
use microgranite::model::ModelConfig;
use microgranite::study::functions::rms_norm;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

use crate::fake_quant;
use crate::text::{CONTEXT, VOCABULARY};

/// `config.json`: the shape of a Granite 3 with its multipliers, as narrow as a few minutes of training allow.
pub fn config() -> Value {
    json!({
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "attention_bias": false,
        "attention_multiplier": 0.0625,
        "bos_token_id": 0,
        "embedding_multiplier": 12.0,
        "eos_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 160,
        "logits_scaling": 8.0,
        "max_position_embeddings": CONTEXT,
        "mlp_bias": false,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "residual_multiplier": 0.22,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "vocab_size": VOCABULARY,
    })
}

/// The model: its weights under the names that a checkpoint has them.
pub struct Granite {
    pub config: ModelConfig,
    weights: BTreeMap<String, Var>,
}

/// How matrices are multiplied.
#[derive(Clone, Copy)]
pub enum Arithmetic {
    /// In f32.
    Float,
    /// With weights and activations rounded to eight bits, in f32 otherwise.
    FakeQuantized(Scheme),
}

impl Arithmetic {
    /// The values of a matrix in this arithmetic.
    fn weights(&self, weight: &Tensor) -> Result<Tensor> {
        match self {
            Self::Float => Ok(weight.clone()),
            Self::FakeQuantized(scheme) => fake_quant::weights(scheme, weight),
        }
    }

    /// `x·Wᵀ`, where `weight` is the result of [`Self::weights`].
    fn multiply(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        let x = match self {
            Self::Float => x.clone(),
            Self::FakeQuantized(scheme) => fake_quant::activations(scheme, x)?,
        };
        x.matmul(&weight.t()?)
    }

    fn linear(&self, x: &Tensor, weight: &Tensor) -> Result<Tensor> {
        self.multiply(x, &self.weights(weight)?)
    }
}

impl Granite {
    /// Random weights, the same for the same seed.
    pub fn new(seed: u64) -> Result<Self> {
        let config = ModelConfig::from_json("config.json".as_ref(), &config())
            .map_err(candle_core::Error::wrap)?;
        let mut random = Pcg64::seed_from_u64(seed);
        let mut weights = BTreeMap::new();
        for (name, shape) in shapes(&config) {
            let count: usize = shape.iter().product();
            let values = match shape[..] {
                [_, depth] => {
                    // Uniform values with variance 1/depth keep the magnitude of what they multiply.
                    let most = (3.0 / depth as f32).sqrt();
                    (0..count)
                        .map(|_| random.random_range(-most..most))
                        .collect()
                }
                _ => vec![1.0; count],
            };
            let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
            weights.insert(name, Var::from_tensor(&tensor)?);
        }
        Ok(Self { config, weights })
    }

    /// A copy of the weights, to be trained separately.
    pub fn copy(&self) -> Result<Self> {
        let copy = |(name, var): (&String, &Var)| {
            Ok((name.clone(), Var::from_tensor(&var.as_tensor().copy()?)?))
        };
        Ok(Self {
            config: self.config.clone(),
            weights: self.weights.iter().map(copy).collect::<Result<_>>()?,
        })
    }

    /// Makes some channels of the layers' norms `factor` times smaller, and the weights that multiply them `factor`
    /// times larger: the same function in f32.
    pub fn move_into_weights(&self, channels: &[usize], factor: f32) -> Result<()> {
        let hidden = self.config.hidden_size;
        let factor_of = |channel| {
            if channels.contains(&channel) {
                factor
            } else {
                1.0
            }
        };
        let factors = Tensor::from_iter((0..hidden).map(factor_of), &Device::Cpu)?;
        for layer in 0..self.config.num_layers() {
            for (norm, matrices) in [
                (
                    "input_layernorm",
                    &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"][..],
                ),
                (
                    "post_attention_layernorm",
                    &["mlp.gate_proj", "mlp.up_proj"],
                ),
            ] {
                let var =
                    |part: &str| &self.weights[&format!("model.layers.{layer}.{part}.weight")];
                let norm = var(norm);
                norm.set(&norm.div(&factors)?)?;
                for matrix in matrices {
                    let matrix = var(matrix);
                    matrix.set(&matrix.broadcast_mul(&factors)?)?;
                }
            }
        }
        Ok(())
    }

    /// The weights by name.
    pub fn weights(&self) -> &BTreeMap<String, Var> {
        &self.weights
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.weights[name].as_tensor()
    }

    /// The logits after each token of sequences `[batch, len]` that start at position 0: `[batch · len, vocab]`.
    pub fn logits(&self, ids: &Tensor, arithmetic: Arithmetic) -> Result<Tensor> {
        let config = &self.config;
        let (batch, len) = ids.dims2()?;
        let rotary = angles(config, len)?;
        let embedding = arithmetic.weights(self.weight("model.embed_tokens.weight"))?;
        let mut x = (embedding.index_select(&ids.flatten_all()?, 0)?
            * f64::from(config.embedding_multiplier))?;
        let residual = f64::from(config.residual_multiplier);
        for layer in 0..config.num_layers() {
            let weight = |part: &str| self.weight(&format!("model.layers.{layer}.{part}.weight"));
            let h = rms_norm(config, &x, weight("input_layernorm"))?;
            // Stacked as they are packed: with a scale per tensor, all three share one.
            let qkv = Tensor::cat(
                &[
                    weight("self_attn.q_proj"),
                    weight("self_attn.k_proj"),
                    weight("self_attn.v_proj"),
                ],
                0,
            )?;
            let qkv = arithmetic.linear(&h, &qkv)?;
            let mixed = attention(config, &rotary, &qkv, batch, len)?;
            x = (x + (arithmetic.linear(&mixed, weight("self_attn.o_proj"))? * residual)?)?;

            let h = rms_norm(config, &x, weight("post_attention_layernorm"))?;
            let gate_up = Tensor::cat(&[weight("mlp.gate_proj"), weight("mlp.up_proj")], 0)?;
            let gate_up = arithmetic.linear(&h, &gate_up)?;
            let gated = ops::swiglu(&gate_up)?;
            x = (x + (arithmetic.linear(&gated, weight("mlp.down_proj"))? * residual)?)?;
        }
        let h = rms_norm(config, &x, self.weight("model.norm.weight"))?;
        arithmetic.multiply(&h, &embedding)? / f64::from(config.logits_scaling)
    }

    /// [`Self::logits`] of one sequence: `[ids.len()][vocab]`, row by row.
    pub fn logits_of(&self, ids: &[u32], arithmetic: Arithmetic) -> Result<Vec<f32>> {
        let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        self.logits(&ids, arithmetic)?.flatten_all()?.to_vec1()
    }
}

/// Every tensor of the checkpoint.
fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
    let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (
        config.num_heads * config.head_dim,
        config.num_kv_heads * config.head_dim,
    );
    let mut list = vec![
        (
            "model.embed_tokens.weight".to_owned(),
            vec![config.vocab_size, hidden],
        ),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..config.num_layers() {
        for (part, shape) in [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![ffn, hidden]),
            ("mlp.up_proj", vec![ffn, hidden]),
            ("mlp.down_proj", vec![hidden, ffn]),
        ] {
            list.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    list
}

/// Cosines and sines of the rotary angles, `[len, head_dim / 2]` each.
fn angles(config: &ModelConfig, len: usize) -> Result<(Tensor, Tensor)> {
    let half = config.head_dim / 2;
    let theta = config.rope_theta.expect("rotary positions");
    let frequency = |pair: usize| theta.powf(-(pair as f64) / half as f64) as f32;
    let angles =
        (0..len).flat_map(|position| (0..half).map(move |pair| position as f32 * frequency(pair)));
    let angles = Tensor::from_iter(angles, &Device::Cpu)?.reshape((len, half))?;
    Ok((angles.cos()?, angles.sin()?))
}

/// Causal attention of each sequence over itself; `qkv` is `[batch · len, (heads + 2 · kv_heads) · head_dim]`.
fn attention(
    config: &ModelConfig,
    (cos, sin): &(Tensor, Tensor),
    qkv: &Tensor,
    batch: usize,
    len: usize,
) -> Result<Tensor> {
    let (heads, kv_heads, head_dim) = (config.num_heads, config.num_kv_heads, config.head_dim);
    let qkv = qkv
        .reshape((batch, len, heads + 2 * kv_heads, head_dim))?
        .transpose(1, 2)?;
    let part = |first, count| qkv.narrow(1, first, count)?.contiguous();
    let rotated = |x: Tensor| rotary_emb::rope_slow(&x, cos, sin);
    // KV head j serves the query heads j·group .. (j+1)·group.
    let shared = |x: Tensor| {
        let group = heads / kv_heads;
        let x = x
            .unsqueeze(2)?
            .broadcast_as((batch, kv_heads, group, len, head_dim))?;
        x.reshape((batch, heads, len, head_dim))
    };
    let q = rotated(part(0, heads)?)?;
    let k = shared(rotated(part(heads, kv_heads)?)?)?;
    let v = shared(part(heads + kv_heads, kv_heads)?)?;
    let scores = (q.matmul(&k.t()?)? * f64::from(config.attention_multiplier))?;
    let mask = (0..len).flat_map(|query| {
        (0..len).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 })
    });
    let mask = Tensor::from_iter(mask, &Device::Cpu)?.reshape((len, len))?;
    let weights = ops::softmax(&scores.broadcast_add(&mask)?, D::Minus1)?;
    weights
        .matmul(&v)?
        .transpose(1, 2)?
        .reshape((batch * len, heads * head_dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDS: [u32; 12] = [65, 108, 105, 99, 101, 32, 119, 97, 115, 32, 98, 101];

    fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
        differences.fold(0.0, f32::max)
    }

    #[test]
    fn sequences_of_a_batch_do_not_see_each_other_nor_what_follows() {
        let model = Granite::new(1).unwrap();
        let alone = model.logits_of(&IDS, Arithmetic::Float).unwrap();
        let mut both = IDS.to_vec();
        both.extend(IDS.iter().rev());
        let both = Tensor::from_vec(both, (2, IDS.len()), &Device::Cpu).unwrap();
        let both = model.logits(&both, Arithmetic::Float).unwrap();
        let both: Vec<f32> = both.flatten_all().unwrap().to_vec1().unwrap();
        assert!(largest_difference(&both[..alone.len()], &alone) < 1e-4);
        let first = model.logits_of(&IDS[..5], Arithmetic::Float).unwrap();
        assert!(largest_difference(&alone[..first.len()], &first) < 1e-4);
    }

    #[test]
    fn outliers_leave_the_function_in_f32_as_it_was() {
        let model = Granite::new(2).unwrap();
        let before = model.logits_of(&IDS, Arithmetic::Float).unwrap();
        let norm = |model: &Granite| {
            model
                .weight("model.layers.1.input_layernorm.weight")
                .to_vec1::<f32>()
                .unwrap()
        };
        model.move_into_weights(&[5, 40], 32.0).unwrap();
        assert_eq!((norm(&model)[4], norm(&model)[5]), (1.0, 1.0 / 32.0));
        let after = model.logits_of(&IDS, Arithmetic::Float).unwrap();
        // Powers of two change only exponents.
        assert_eq!(before, after);
    }
}
