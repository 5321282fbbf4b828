#!/usr/bin/env python3
"""Writes a published Granite shape with random weights as a GGUF file in Q8_0, for measuring llama.cpp.

    python shape_gguf.py SHAPE FILE.gguf

Each weight costs llama.cpp the same bytes and the same arithmetic as the published model's, but the file has no tokenizer and its
answers are noise. The router's outputs differ from token to token, so tokens take different experts, as in a trained model.
"""

import sys

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter

# hidden, layers, heads, key/value heads, head width, feed-forward (of each expert, if there are experts), vocabulary: the same as in
# `microgranite bench --shape`.
DENSE = {
    "granite-3.3-2b": (2048, 40, 32, 8, 64, 8192, 49159),
    "granite-4.0-micro": (2560, 40, 40, 8, 64, 8192, 100352),
}
# Layers 5, 15, 25 and 35 have attention. Behind the vocabulary: Mamba heads; experts, how many a token takes, width of the shared layer.
HYBRID = {
    "granite-4.0-h-1b": (1536, 40, 12, 4, 128, 4096, 100352, 48),
    "granite-4.0-h-micro": (2048, 40, 32, 8, 64, 8192, 100352, 64),
    "granite-4.0-h-tiny": (1536, 40, 12, 4, 128, 512, 100352, 48, 64, 6, 1024),
}
ATTENTION_AT = (5, 15, 25, 35)
STATE, TAPS = 128, 4
Q8_0, BLOCK, BLOCK_BYTES = GGMLQuantizationType.Q8_0, 32, 34


class File:
    """Tensors are described first and made one at a time while they are written, so that one is in memory."""

    def __init__(self, path, architecture):
        self.writer = GGUFWriter(path, architecture)
        self.random = np.random.default_rng(0)
        self.makers = []

    def floats(self, name, shape, make):
        self.writer.add_tensor_info(name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
        self.makers.append(make)

    def constant(self, name, *shape, value=1.0):
        self.floats(name, shape, lambda: np.full(shape, value, np.float32))

    def uniform(self, name, *shape):
        self.floats(name, shape, lambda: self.random.uniform(-1, 1, shape).astype(np.float32))

    def matrix(self, name, *shape):
        """Blocks of 32 codes with one scale: weights with a deviation of about the inverse root of the depth."""
        depth = shape[-1]
        scale = np.float16(1.7 / 127 / depth**0.5)

        def make():
            blocks = np.empty((np.prod(shape) // BLOCK, BLOCK_BYTES), np.uint8)
            blocks[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
            codes = self.random.bytes(len(blocks) * BLOCK)
            blocks[:, 2:] = np.frombuffer(codes, np.uint8).reshape(-1, BLOCK)
            return blocks.reshape(*shape[:-1], depth // BLOCK * BLOCK_BYTES)

        stored = (*shape[:-1], depth // BLOCK * BLOCK_BYTES)
        self.writer.add_tensor_info(name, stored, np.dtype(np.uint8), int(np.prod(stored)), raw_dtype=Q8_0)
        self.makers.append(make)

    def write(self):
        self.writer.write_header_to_file()
        self.writer.write_kv_data_to_file()
        self.writer.write_ti_data_to_file()
        for make in self.makers:
            self.writer.write_tensor_data(make())
        self.writer.close()


def describe(file, shape, is_hybrid):
    hidden, layers, heads, kv_heads, head_dim, width, vocabulary, *rest = shape
    mamba_heads, experts, taken, shared = (*rest, 0, 0, 0, 0)[:4]
    writer = file.writer
    writer.add_context_length(131072)
    writer.add_embedding_length(hidden)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(width)
    writer.add_head_count(heads)
    has_attention = [not is_hybrid or layer in ATTENTION_AT for layer in range(layers)]
    writer.add_head_count_kv([kv_heads * attention for attention in has_attention] if is_hybrid else kv_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(1e4 if is_hybrid else 1e7)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")
    writer.add_embedding_scale(12.0)
    writer.add_residual_scale(0.22)
    writer.add_logit_scale(8.0)
    writer.add_attention_scale(1 / head_dim)
    writer.add_file_type(7)
    if is_hybrid:
        writer.add_rope_scaling_finetuned(False)
        writer.add_ssm_conv_kernel(TAPS)
        writer.add_ssm_state_size(STATE)
        writer.add_ssm_group_count(1)
        writer.add_ssm_inner_size(2 * hidden)
        writer.add_ssm_time_step_rank(mamba_heads)
    if experts:
        writer.add_expert_count(experts)
        writer.add_expert_used_count(taken)
        writer.add_expert_shared_feed_forward_length(shared)

    file.matrix("token_embd.weight", vocabulary, hidden)
    file.constant("output_norm.weight", hidden)
    for layer, attention in enumerate(has_attention):
        at = f"blk.{layer}."
        file.constant(at + "attn_norm.weight", hidden)
        file.constant(at + "ffn_norm.weight", hidden)
        if attention:
            file.matrix(at + "attn_q.weight", heads * head_dim, hidden)
            file.matrix(at + "attn_k.weight", kv_heads * head_dim, hidden)
            file.matrix(at + "attn_v.weight", kv_heads * head_dim, hidden)
            file.matrix(at + "attn_output.weight", hidden, heads * head_dim)
        else:
            inner, convolved = 2 * hidden, 2 * hidden + 2 * STATE
            file.matrix(at + "ssm_in.weight", inner + convolved + mamba_heads, hidden)
            file.constant(at + "ssm_conv1d.weight", convolved, TAPS, value=0.25)
            file.constant(at + "ssm_conv1d.bias", convolved, value=0.0)
            file.constant(at + "ssm_dt.bias", mamba_heads)
            file.constant(at + "ssm_a", mamba_heads, 1, value=-1.0)
            file.constant(at + "ssm_d", mamba_heads, 1)
            file.constant(at + "ssm_norm.weight", 1, inner)
            file.matrix(at + "ssm_out.weight", hidden, inner)
        if experts:
            file.uniform(at + "ffn_gate_inp.weight", experts, hidden)
            feed_forward(file, at, "_exps", hidden, width, (experts,))
            feed_forward(file, at, "_shexp", hidden, shared)
        else:
            feed_forward(file, at, "", hidden, width)


def feed_forward(file, at, kind, hidden, width, count=()):
    file.matrix(f"{at}ffn_gate{kind}.weight", *count, width, hidden)
    file.matrix(f"{at}ffn_up{kind}.weight", *count, width, hidden)
    file.matrix(f"{at}ffn_down{kind}.weight", *count, hidden, width)


def main(name, path):
    is_hybrid = name in HYBRID
    file = File(path, "granitehybrid" if is_hybrid else "granite")
    describe(file, (HYBRID if is_hybrid else DENSE)[name], is_hybrid)
    file.write()


if __name__ == "__main__":
    main(*sys.argv[1:3])
