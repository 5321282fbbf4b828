//! What the tensors of a Granite or Llama are called in each kind of file.

/// A tensor's name in each kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TensorName {
    /// In a checkpoint of Hugging Face; of a layer's tensor what follows `model.layers.N.`.
    hugging_face: &'static str,
    /// In a GGUF file the tensors whose rows make it, in order; of a layer's tensor what follows `blk.N.`. Empty where
    /// such files hold it in another form.
    gguf: &'static [&'static str],
    /// Whether every layer has one.
    of_layer: bool,
}

pub const EMBEDDING: TensorName = of_model("model.embed_tokens.weight", &["token_embd.weight"]);
pub const FINAL_NORM: TensorName = of_model("model.norm.weight", &["output_norm.weight"]);
pub const HEAD: TensorName = of_model("lm_head.weight", &["output.weight"]);

pub const MIXER_NORM: TensorName = of_layer("input_layernorm.weight", &["attn_norm.weight"]);
pub const QUERY: TensorName = of_layer("self_attn.q_proj.weight", &["attn_q.weight"]);
pub const KEY: TensorName = of_layer("self_attn.k_proj.weight", &["attn_k.weight"]);
pub const VALUE: TensorName = of_layer("self_attn.v_proj.weight", &["attn_v.weight"]);
pub const OUTPUT: TensorName = of_layer("self_attn.o_proj.weight", &["attn_output.weight"]);
pub const FEED_FORWARD_NORM: TensorName =
    of_layer("post_attention_layernorm.weight", &["ffn_norm.weight"]);
pub const GATE: TensorName = of_layer("mlp.gate_proj.weight", &["ffn_gate.weight"]);
pub const UP: TensorName = of_layer("mlp.up_proj.weight", &["ffn_up.weight"]);
pub const DOWN: TensorName = of_layer("mlp.down_proj.weight", &["ffn_down.weight"]);
/// Gate and up of a shared feed-forward layer in one tensor, the gate's rows first.
pub const SHARED_GATE_UP: TensorName = of_layer(
    "shared_mlp.input_linear.weight",
    &["ffn_gate_shexp.weight", "ffn_up_shexp.weight"],
);
pub const SHARED_DOWN: TensorName = of_layer(
    "shared_mlp.output_linear.weight",
    &["ffn_down_shexp.weight"],
);
/// The shared layer of a model without experts, which GGUF files call as that of a dense one.
const ONLY_GATE_UP: TensorName = TensorName {
    gguf: &["ffn_gate.weight", "ffn_up.weight"],
    ..SHARED_GATE_UP
};
const ONLY_DOWN: TensorName = TensorName {
    gguf: DOWN.gguf,
    ..SHARED_DOWN
};

pub const ROUTER: TensorName = of_layer(
    "block_sparse_moe.router.layer.weight",
    &["ffn_gate_inp.weight"],
);
/// Gate and up of every expert in one tensor, `[experts][2 · width][hidden]`, the gate's rows of an expert first.
pub const EXPERTS_GATE_UP: TensorName = of_layer(
    "block_sparse_moe.input_linear.weight",
    &["ffn_gate_exps.weight", "ffn_up_exps.weight"],
);
/// `[experts][hidden][width]`.
pub const EXPERTS_DOWN: TensorName = of_layer(
    "block_sparse_moe.output_linear.weight",
    &["ffn_down_exps.weight"],
);

pub const MAMBA_IN: TensorName = of_layer("mamba.in_proj.weight", &["ssm_in.weight"]);
pub const MAMBA_CONVOLUTION: TensorName = of_layer("mamba.conv1d.weight", &["ssm_conv1d.weight"]);
pub const MAMBA_CONVOLUTION_BIAS: TensorName = of_layer("mamba.conv1d.bias", &["ssm_conv1d.bias"]);
/// The logarithm of a head's decay rate.
pub const MAMBA_RATE_LOGARITHM: TensorName = of_layer("mamba.A_log", &[]);
/// A head's decay rate itself, which is negative. Checkpoints have its logarithm.
pub const MAMBA_RATE: TensorName = of_layer("mamba.A", &["ssm_a"]);
pub const MAMBA_SKIP: TensorName = of_layer("mamba.D", &["ssm_d"]);
pub const MAMBA_STEP_BIAS: TensorName = of_layer("mamba.dt_bias", &["ssm_dt.bias"]);
pub const MAMBA_NORM: TensorName = of_layer("mamba.norm.weight", &["ssm_norm.weight"]);
pub const MAMBA_OUT: TensorName = of_layer("mamba.out_proj.weight", &["ssm_out.weight"]);

/// What a GGUF file can hold, by the part of the model that it belongs to.
pub mod in_gguf {
    use super::*;

    /// Outside of the layers.
    pub const MODEL: &[TensorName] = &[EMBEDDING, FINAL_NORM, HEAD];
    /// In every layer.
    pub const NORMS: &[TensorName] = &[MIXER_NORM, FEED_FORWARD_NORM];
    /// In a layer with attention.
    pub const ATTENTION: &[TensorName] = &[QUERY, KEY, VALUE, OUTPUT];
    /// In a Mamba-2 layer.
    pub const MAMBA: &[TensorName] = &[
        MAMBA_IN,
        MAMBA_CONVOLUTION,
        MAMBA_CONVOLUTION_BIAS,
        MAMBA_RATE,
        MAMBA_SKIP,
        MAMBA_STEP_BIAS,
        MAMBA_NORM,
        MAMBA_OUT,
    ];
    /// In a layer of a dense Granite or Llama.
    pub const DENSE: &[TensorName] = &[GATE, UP, DOWN];
    /// In a layer of a hybrid without experts.
    pub const DENSE_OF_HYBRID: &[TensorName] = &[ONLY_GATE_UP, ONLY_DOWN];
    /// In a layer with experts.
    pub const EXPERTS: &[TensorName] = &[
        ROUTER,
        EXPERTS_GATE_UP,
        EXPERTS_DOWN,
        SHARED_GATE_UP,
        SHARED_DOWN,
    ];
}

const fn of_model(hugging_face: &'static str, gguf: &'static [&'static str]) -> TensorName {
    TensorName {
        hugging_face,
        gguf,
        of_layer: false,
    }
}

const fn of_layer(hugging_face: &'static str, gguf: &'static [&'static str]) -> TensorName {
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
            format!("model.layers.{layer}.{name}")
        } else {
            name.into()
        }
    }

    /// The name of a tensor that the model has once.
    pub fn whole(self) -> String {
        self.in_layer(0)
    }

    /// The whole names of the tensors of a GGUF file whose rows make it; `layer` matters only where every layer has one.
    pub fn pieces_in_gguf(self, layer: usize) -> impl Iterator<Item = String> {
        self.gguf.iter().map(move |name| match self.of_layer {
            true => format!("blk.{layer}.{name}"),
            false => (*name).into(),
        })
    }
}
