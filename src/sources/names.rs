//! What the tensors of a Granite or Llama are called in each kind of file.

/// A tensor's name in each kind of file, without the `.weight` that all of them end with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorName {
    /// In a checkpoint of Hugging Face; of a layer's tensor what follows `model.layers.N.`.
    hugging_face: &'static str,
    /// In a GGUF file; of a layer's tensor what follows `blk.N.`. `None` where such files hold it in another form.
    gguf: Option<&'static str>,
    /// Whether every layer has one.
    of_layer: bool,
}

pub const EMBEDDING: TensorName = of_model("model.embed_tokens", "token_embd");
pub const FINAL_NORM: TensorName = of_model("model.norm", "output_norm");
pub const HEAD: TensorName = of_model("lm_head", "output");

pub const MIXER_NORM: TensorName = of_layer("input_layernorm", "attn_norm");
pub const QUERY: TensorName = of_layer("self_attn.q_proj", "attn_q");
pub const KEY: TensorName = of_layer("self_attn.k_proj", "attn_k");
pub const VALUE: TensorName = of_layer("self_attn.v_proj", "attn_v");
pub const OUTPUT: TensorName = of_layer("self_attn.o_proj", "attn_output");
pub const FEED_FORWARD_NORM: TensorName = of_layer("post_attention_layernorm", "ffn_norm");
pub const GATE: TensorName = of_layer("mlp.gate_proj", "ffn_gate");
pub const UP: TensorName = of_layer("mlp.up_proj", "ffn_up");
pub const DOWN: TensorName = of_layer("mlp.down_proj", "ffn_down");
/// Gate and up of a hybrid's shared feed-forward layer in one tensor, the gate's rows first.
pub const SHARED_GATE_UP: TensorName = TensorName {
    gguf: None,
    ..of_layer("shared_mlp.input_linear", "")
};
pub const SHARED_DOWN: TensorName = TensorName {
    gguf: None,
    ..of_layer("shared_mlp.output_linear", "")
};

/// Every name that can be found in a GGUF file.
pub const OF_GGUF: [TensorName; 12] = [
    EMBEDDING,
    FINAL_NORM,
    HEAD,
    MIXER_NORM,
    QUERY,
    KEY,
    VALUE,
    OUTPUT,
    FEED_FORWARD_NORM,
    GATE,
    UP,
    DOWN,
];

const fn of_model(hugging_face: &'static str, gguf: &'static str) -> TensorName {
    TensorName {
        hugging_face,
        gguf: Some(gguf),
        of_layer: false,
    }
}

const fn of_layer(hugging_face: &'static str, gguf: &'static str) -> TensorName {
    TensorName {
        of_layer: true,
        ..of_model(hugging_face, gguf)
    }
}

impl TensorName {
    /// Its whole name in a checkpoint of Hugging Face; `layer` matters only where every layer has one.
    pub fn in_layer(self, layer: usize) -> String {
        let name = self.hugging_face;
        if self.of_layer {
            format!("model.layers.{layer}.{name}.weight")
        } else {
            format!("{name}.weight")
        }
    }

    /// The name of a tensor that the model has once.
    pub fn whole(self) -> String {
        self.in_layer(0)
    }

    /// Which tensor a GGUF file calls `name`, and the layer that it belongs to, if it belongs to one.
    pub fn from_gguf(name: &str) -> Option<(Self, Option<usize>)> {
        let name = name.strip_suffix(".weight")?;
        let (layer, part) = match name.strip_prefix("blk.") {
            Some(rest) => {
                let (layer, part) = rest.split_once('.')?;
                (Some(layer.parse().ok()?), part)
            }
            None => (None, name),
        };
        let mut known = OF_GGUF.into_iter();
        let found =
            known.find(|known| known.gguf == Some(part) && known.of_layer == layer.is_some());
        Some((found?, layer))
    }
}
