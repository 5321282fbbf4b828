//! The forward pass in f32, written to be obviously correct. Every other path is compared with it.
//!
//! It reads from top to bottom like the model's description: there is no cache, no batching and no folding of
//! constants. Only the arithmetic of the linear layers can be exchanged, see [`Arithmetic`].

use candle_core::{D, Device, Tensor};

use super::evaluate::most_likely;
use super::experts::{Experts, SwiGlu};
use super::functions::{Look, rms_norm, softmax};
use super::linear::{FloatWeights, Linear, internal};
use super::mamba::Mamba;
use crate::error::Result;
use crate::model::ModelConfig;
use crate::model::blueprint::{Input, MatrixPart, VectorPart, blueprint};
use crate::model::weights;
use crate::sources::Tensors;

pub use super::linear::Arithmetic;

/// A Granite in f32, on the CPU, with all its weights in memory.
pub struct Reference {
    config: ModelConfig,
    arithmetic: Arithmetic,
    /// `[vocab, hidden]`.
    embedding: Tensor,
    layers: Vec<Layer>,
    /// `[hidden]`.
    norm: Tensor,
    head: Linear,
}

/// One layer.
pub struct Layer {
    /// `[hidden]`.
    mixer_norm: Tensor,
    mixer: Mixer,
    /// `[hidden]`.
    feed_forward_norm: Tensor,
    feed_forward: FeedForward,
}

/// The part of a layer in which a token depends on earlier tokens.
enum Mixer {
    Attention(Attention),
    Mamba(Mamba),
}

/// Grouped-query attention.
struct Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
}

/// The part of a layer that processes each token by itself.
enum FeedForward {
    Dense(SwiGlu),
    Experts(Experts),
}

impl Reference {
    /// Reads all weights, four bytes per value.
    ///
    /// # Errors
    /// [`crate::error::Error::BadModel`] if a tensor is missing, its shape does not match `config`, or a value is not finite.
    pub fn load(
        config: &ModelConfig,
        tensors: &dyn Tensors,
        arithmetic: Arithmetic,
    ) -> Result<Self> {
        let weights = FloatWeights {
            tensors,
            arithmetic,
        };
        let blueprint = blueprint(config);
        let [embedding] = weights.matrices(&blueprint.embedding)?;
        let head = match &blueprint.head {
            Some(head) => weights.linear(head)?,
            None => Linear::new(embedding.clone(), arithmetic),
        };
        let layers = blueprint.layers.iter();
        Ok(Self {
            layers: layers
                .map(|layer| Layer::load(&weights, layer))
                .collect::<Result<_>>()?,
            norm: weights.vector(&blueprint.final_norm)?,
            config: config.clone(),
            arithmetic,
            embedding,
            head,
        })
    }

    /// The arithmetic of the linear layers.
    pub fn arithmetic(&self) -> Arithmetic {
        self.arithmetic
    }

    /// The logits after each token of a sequence that starts at position 0: `[ids.len()][vocab]`, row by row.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] if an id is not below the vocabulary size.
    pub fn logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        if ids.is_empty() {
            return Ok(Vec::new());
        }
        self.forward(ids, 0).map_err(internal)
    }

    /// The logits after the last token of a sequence that starts at position 0; `ids` is never empty.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] if an id is not below the vocabulary size.
    pub fn next_logits(&self, ids: &[u32]) -> Result<Vec<f32>> {
        self.forward(ids, ids.len() - 1).map_err(internal)
    }

    /// The `count` tokens that follow `ids` (never empty) if the most likely token is always taken; among equally
    /// likely ones, the lowest id.
    ///
    /// # Errors
    /// [`crate::error::Error::Internal`] if an id is not below the vocabulary size.
    pub fn greedy(&self, ids: &[u32], count: usize) -> Result<Vec<u32>> {
        let mut sequence = ids.to_vec();
        for _ in 0..count {
            let logits = self.next_logits(&sequence)?;
            let next = most_likely(&logits, f32::total_cmp);
            sequence.push(next.unwrap_or(0) as u32);
        }
        Ok(sequence.split_off(ids.len()))
    }

    /// Runs the whole model on token ids; returns the logits after positions `first..`, flat.
    fn forward(&self, ids: &[u32], first: usize) -> candle_core::Result<Vec<f32>> {
        let config = &self.config;
        let ids = Tensor::new(ids, &Device::Cpu)?;
        let len = ids.elem_count();
        let rotary = Rotary::of(config, len)?;

        let embedded = self.embedding.index_select(&ids, 0)?;
        let mut x = (embedded * f64::from(config.embedding_multiplier))?;
        for layer in &self.layers {
            x = layer.forward(config, rotary.as_ref(), x, &mut |_, _| Ok(()))?;
        }
        let h = rms_norm(config, &x.narrow(0, first, len - first)?, &self.norm)?;
        let logits = (self.head.forward(&h)? / f64::from(config.logits_scaling))?;
        logits.flatten_all()?.to_vec1()
    }
}

impl Layer {
    /// Reads the weights of a layer.
    ///
    /// # Errors
    /// As [`Reference::load`].
    pub fn load(
        weights: &FloatWeights<'_>,
        parts: &weights::Layer<MatrixPart, VectorPart>,
    ) -> Result<Self> {
        Ok(Self {
            mixer_norm: weights.vector(&parts.mixer_norm)?,
            mixer: match &parts.mixer {
                weights::Mixer::Attention(weights::Attention { qkv, output }) => {
                    let [q, k, v] = weights.linears(qkv)?;
                    let o = weights.linear(output)?;
                    Mixer::Attention(Attention { q, k, v, o })
                }
                weights::Mixer::Mamba(parts) => Mixer::Mamba(Mamba::load(weights, parts)?),
            },
            feed_forward_norm: weights.vector(&parts.feed_forward_norm)?,
            feed_forward: match &parts.feed_forward {
                weights::FeedForward::Dense(parts) => {
                    FeedForward::Dense(SwiGlu::load(weights, parts)?)
                }
                weights::FeedForward::Experts(parts) => {
                    FeedForward::Experts(Experts::load(weights, parts)?)
                }
            },
        })
    }

    /// Applies the layer to the residual stream `x` `[len, hidden]`. Attention has positions if there is a `rotary`.
    ///
    /// # Errors
    /// The errors of the tensor operations.
    pub fn forward(
        &self,
        config: &ModelConfig,
        rotary: Option<&Rotary>,
        x: Tensor,
        look: &mut Look<'_>,
    ) -> candle_core::Result<Tensor> {
        let residual = f64::from(config.residual_multiplier);
        let h = rms_norm(config, &x, &self.mixer_norm)?;
        look(Input::Mixer, &h)?;
        let mixed = match &self.mixer {
            Mixer::Attention(attention) => attention.forward(config, rotary, &h, look)?,
            Mixer::Mamba(mamba) => mamba.forward(config, &h, look)?,
        };
        let x = (x + (mixed * residual)?)?;
        let h = rms_norm(config, &x, &self.feed_forward_norm)?;
        look(Input::FeedForward, &h)?;
        let processed = match &self.feed_forward {
            FeedForward::Dense(dense) => dense.forward(&h, Input::Down, look)?,
            FeedForward::Experts(experts) => experts.forward(config, &h, look)?,
        };
        x + (processed * residual)?
    }
}

impl Attention {
    /// Causal attention of `h` `[len, hidden]` over itself.
    fn forward(
        &self,
        config: &ModelConfig,
        rotary: Option<&Rotary>,
        h: &Tensor,
        look: &mut Look<'_>,
    ) -> candle_core::Result<Tensor> {
        let len = h.dim(0)?;
        let (heads, kv_heads) = (config.num_heads, config.num_kv_heads);
        let split = |x: Tensor, heads| {
            x.reshape((len, heads, config.head_dim))?
                .transpose(0, 1)?
                .contiguous()
        };
        let rotate = |x: Tensor| match rotary {
            Some(rotary) => rotary.rotate(&x),
            None => Ok(x),
        };
        // KV head j serves the query heads j·group .. (j+1)·group.
        let shared = |x: Tensor| {
            let group = heads / kv_heads;
            x.unsqueeze(1)?
                .broadcast_as((kv_heads, group, len, config.head_dim))?
                .reshape((heads, len, config.head_dim))
        };
        let q = rotate(split(self.q.forward(h)?, heads)?)?;
        let k = shared(rotate(split(self.k.forward(h)?, kv_heads)?)?)?;
        let v = shared(split(self.v.forward(h)?, kv_heads)?)?;

        let scores = (q.matmul(&k.t()?)? * f64::from(config.attention_multiplier))?;
        let weights = softmax(&scores.broadcast_add(&causal_mask(len)?)?)?;
        let mixed = weights.matmul(&v)?.transpose(0, 1)?;
        let mixed = mixed.reshape((len, heads * config.head_dim))?;
        look(Input::Output, &mixed)?;
        self.o.forward(&mixed)
    }
}

/// Cosines and sines of every position's angles, `[len, head_dim / 2]` each.
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// The angles of `len` positions, if attention knows positions.
    ///
    /// # Errors
    /// The errors of the tensor operations.
    pub fn of(config: &ModelConfig, len: usize) -> candle_core::Result<Option<Self>> {
        let rotary = config.rope_theta;
        let rotary = rotary.map(|theta| Self::new(len, config.head_dim, theta));
        rotary.transpose()
    }

    /// The angles of positions `0 .. len`.
    ///
    /// # Errors
    /// The errors of the tensor operations.
    fn new(len: usize, head_dim: usize, theta: f64) -> candle_core::Result<Self> {
        let half = head_dim / 2;
        let frequency = |pair: usize| theta.powf(-2.0 * pair as f64 / head_dim as f64) as f32;
        let angles: Vec<f32> = (0..len)
            .flat_map(|position| (0..half).map(move |pair| position as f32 * frequency(pair)))
            .collect();
        let angles = Tensor::from_vec(angles, (len, half), &Device::Cpu)?;
        Ok(Self {
            cos: angles.cos()?,
            sin: angles.sin()?,
        })
    }

    /// Rotates each pair of value `i` and value `i + head_dim / 2` in every head of `x` `[heads, len, head_dim]`.
    fn rotate(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let halves = x.chunk(2, D::Minus1)?;
        let (a, b) = (&halves[0], &halves[1]);
        let times = |half: &Tensor, table: &Tensor| half.broadcast_mul(table);
        let first = (times(a, &self.cos)? - times(b, &self.sin)?)?;
        let second = (times(b, &self.cos)? + times(a, &self.sin)?)?;
        Tensor::cat(&[first, second], D::Minus1)
    }
}

/// `[len, len]`: 0 if the key is not after the query, −∞ otherwise.
fn causal_mask(len: usize) -> candle_core::Result<Tensor> {
    let mask: Vec<f32> = (0..len)
        .flat_map(|query| {
            (0..len).map(move |key| if key > query { f32::NEG_INFINITY } else { 0.0 })
        })
        .collect();
    Tensor::from_vec(mask, (len, len), &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::path::PathBuf;

    use serde_json::json;

    use super::*;

    /// Tensors of the given shapes, filled with ones.
    struct Ones(Vec<(String, Vec<usize>)>);

    impl Tensors for Ones {
        fn file(&self, _: &str) -> PathBuf {
            "model.safetensors".into()
        }
        fn shape(&self, name: &str) -> Option<Vec<usize>> {
            let found = self.0.iter().find(|(known, _)| known == name);
            found.map(|(_, shape)| shape.clone())
        }
        fn read_rows(&self, _: &str, _: Range<usize>, out: &mut [f32]) -> Result<()> {
            out.fill(1.0);
            Ok(())
        }
        fn names(&self) -> Vec<String> {
            self.0.iter().map(|(name, _)| name.clone()).collect()
        }
        fn stored_bytes(&self) -> u64 {
            0
        }
    }

    /// A Llama of one layer with an untied head.
    fn load(change: impl Fn(&mut Vec<(String, Vec<usize>)>)) -> Result<Reference> {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 2,
            "num_key_value_heads": 1, "num_hidden_layers": 1, "rms_norm_eps": 1e-5, "max_position_embeddings": 16,
            "vocab_size": 5
        });
        let config = ModelConfig::from_json("config.json".as_ref(), &config)?;
        let mut tensors: Vec<(String, Vec<usize>)> = [
            ("model.embed_tokens", vec![5, 8]),
            ("model.norm", vec![8]),
            ("lm_head", vec![5, 8]),
            ("model.layers.0.input_layernorm", vec![8]),
            ("model.layers.0.post_attention_layernorm", vec![8]),
            ("model.layers.0.self_attn.q_proj", vec![8, 8]),
            ("model.layers.0.self_attn.k_proj", vec![4, 8]),
            ("model.layers.0.self_attn.v_proj", vec![4, 8]),
            ("model.layers.0.self_attn.o_proj", vec![8, 8]),
            ("model.layers.0.mlp.gate_proj", vec![12, 8]),
            ("model.layers.0.mlp.up_proj", vec![12, 8]),
            ("model.layers.0.mlp.down_proj", vec![8, 12]),
        ]
        .map(|(name, shape)| (format!("{name}.weight"), shape))
        .into();
        change(&mut tensors);
        Reference::load(&config, &Ones(tensors), Arithmetic::F32)
    }

    #[test]
    fn an_untied_head_is_read_from_its_own_tensor() {
        // Every value is 1, so the final norm gives ones and each logit is a sum of eight ones.
        let logits = load(|_| ()).unwrap().logits(&[0, 4]).unwrap();
        assert_eq!(logits.len(), 2 * 5);
        assert!(logits.iter().all(|logit| (logit - 8.0).abs() < 1e-3));
    }

    #[test]
    fn every_tensor_is_required_in_its_shape() {
        for index in 0..12 {
            let absent = load(|tensors| drop(tensors.remove(index)));
            let misshapen = load(|tensors| tensors[index].1.insert(0, 1));
            for (result, expected) in [(absent, "is missing"), (misshapen, "has shape [1, ")] {
                let message = result.err().expect("a refusal").to_string();
                assert!(message.starts_with("model.safetensors: "), "{message}");
                assert!(message.contains(expected), "{message}");
            }
        }
    }
}
