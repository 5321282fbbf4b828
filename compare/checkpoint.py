"""Makes the checkpoint that every engine reads, and the two int8 folders that are made from it.

    python checkpoint.py from-gguf FILE.gguf FOLDER              the weights of a GGUF file, as bf16
    python checkpoint.py random SHAPE FOLDER TOKENIZER.json      a published Granite shape with random weights, as bf16
    python checkpoint.py llm-int8 FOLDER OUTPUT                  bitsandbytes' LLM.int8, as transformers saves it
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GgufConfig, GraniteConfig, LlamaConfig

# hidden, layers, heads, key/value heads, feed-forward, vocabulary: the same as in `microgranite bench
# --shape`.
SHAPES = {
    "granite-3.3-2b": (2048, 40, 32, 8, 8192, 49159),
    "granite-4.0-350m": (1024, 28, 16, 4, 2048, 100352),
    "granite-4.0-1b": (2048, 40, 16, 4, 4096, 100352),
}


def from_gguf(file, folder):
    """A Llama is a Granite whose multipliers change nothing; written as one, it runs through every engine's Granite."""
    file = Path(file)
    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    llama = AutoModelForCausalLM.from_pretrained(
        **where, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    config = llama.config
    assert isinstance(config, LlamaConfig), f"{file}: expected a Llama, found {config.model_type}"
    head_dim = config.hidden_size // config.num_attention_heads
    neutral = {
        "attention_multiplier": head_dim**-0.5,
        "embedding_multiplier": 1.0,
        "residual_multiplier": 1.0,
        "logits_scaling": 1.0,
    }
    of_the_file = ("architectures", "model_type", "quantization_config", "_name_or_path", "_model_name_or_path")
    plain = {key: value for key, value in config.to_dict().items() if key not in of_the_file}
    granite = AutoModelForCausalLM.from_config(GraniteConfig(**plain | neutral), dtype=torch.bfloat16)
    granite.load_state_dict(llama.state_dict())
    granite.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def random(shape, folder, tokenizer):
    """Random weights: as fast and as large as the published model of that shape, but its answers are meaningless."""
    hidden, layers, heads, kv_heads, feed_forward, vocabulary = SHAPES[shape]
    torch.manual_seed(0)
    config = GraniteConfig(
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=feed_forward,
        vocab_size=vocabulary,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        embedding_multiplier=12.0,
        attention_multiplier=heads / hidden,
        residual_multiplier=0.22,
        logits_scaling=8.0,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    shutil.copy(tokenizer, folder)


def llm_int8(folder, output):
    """Linear layers in int8; the embedding, which is also the output head, stays bf16."""
    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config, device_map="cpu"
    )
    model.save_pretrained(output)


what, *arguments = sys.argv[1:]
{"from-gguf": from_gguf, "random": random, "llm-int8": llm_int8}[what](*arguments)
