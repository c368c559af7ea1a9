"""Small GGUF models with random weights, for tests that need a llama.cpp model but not its knowledge.

`write_tiny_model(path, TinyModel(...))` writes a few hundred kilobytes that llama.cpp loads in milliseconds. Any head size,
number of heads and number of layers can be asked for. Four architectures cover what a KV cache can meet:

- "llama":  rotary positions, grouped-query or multi-query heads
- "gemma2": attention logit soft-capping, sliding windows in every second layer (two caches)
- "gemma3": normalised queries and keys, sliding windows in all but every sixth layer (two caches)
- "mpt":    ALiBi, no rotary positions; embedding size is n_head * head_dim

The vocabulary is the 256 bytes plus three control tokens, so every text can be tokenized, one token per byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import gguf
import numpy as np
from numpy.typing import NDArray

N_VOCAB = 256 + 3
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class TinyModel:
    """What to write. Sizes are in values; keys and values have the same head size."""

    arch: str = "llama"
    head_dim: int = 64
    n_head: int = 4
    n_head_kv: int = 2
    n_layer: int = 2
    n_embd: int = 64
    n_ff: int = 96
    n_ctx_train: int = 4096
    sliding_window: int = 64  # gemma2 and gemma3 only
    logit_softcap: float = 30.0  # gemma2 only
    query_gain: float = 3.0  # standard deviation of the attention logits: above 1, attention picks a few tokens
    chat_template: bool = False
    seed: int = 0


def _byte_vocabulary() -> list[str]:
    """The GPT-2 spelling of the 256 bytes: printable ones stand for themselves, the others for code points from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    spelling = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        spelling.setdefault(byte, chr(256 + len(spelling) - len(printable)))
    return [spelling[byte] for byte in range(256)]


def _write_vocabulary(writer: gguf.GGUFWriter, model: TinyModel) -> None:
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL] * len(control)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(_byte_vocabulary() + control)
    writer.add_token_types([int(kind) for kind in kinds])
    # llama.cpp wants at least one merge; this one is of two bytes that no UTF-8 text holds, so it is never used.
    writer.add_token_merges([_byte_vocabulary()[0xFE] + " " + _byte_vocabulary()[0xFF]])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(256)
    writer.add_add_bos_token(False)
    if model.chat_template:
        writer.add_chat_template(CHAT_TEMPLATE)


def _write_sizes(writer: gguf.GGUFWriter, model: TinyModel, n_embd: int) -> None:
    writer.add_context_length(model.n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(model.n_layer)
    writer.add_feed_forward_length(model.n_ff)
    writer.add_head_count(model.n_head)
    writer.add_head_count_kv(model.n_head_kv)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_vocab_size(N_VOCAB)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


class _Weights:
    """Writes random matrices whose products keep the variance of what they are multiplied with."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer = writer
        self._random = np.random.default_rng(seed)

    def matrix(self, name: str, n_out: int, n_in: int, gain: float = 1.0) -> None:
        values: NDArray[np.float32] = self._random.standard_normal((n_out, n_in), dtype=np.float32)
        self._writer.add_tensor(f"{name}.weight", values * np.float32(gain / np.sqrt(n_in)))

    def norm(self, name: str, n: int, gain: float = 1.0) -> None:
        self._writer.add_tensor(f"{name}.weight", np.full(n, gain, dtype=np.float32))


def _attention(weights: _Weights, model: TinyModel, block: str) -> None:
    weights.matrix(f"{block}.attn_q", model.n_head * model.head_dim, model.n_embd, model.query_gain)
    weights.matrix(f"{block}.attn_k", model.n_head_kv * model.head_dim, model.n_embd)
    weights.matrix(f"{block}.attn_v", model.n_head_kv * model.head_dim, model.n_embd)
    weights.matrix(f"{block}.attn_output", model.n_embd, model.n_head * model.head_dim)


def _feed_forward(weights: _Weights, model: TinyModel, block: str) -> None:
    weights.norm(f"{block}.ffn_norm", model.n_embd)
    weights.matrix(f"{block}.ffn_gate", model.n_ff, model.n_embd)
    weights.matrix(f"{block}.ffn_up", model.n_ff, model.n_embd)
    weights.matrix(f"{block}.ffn_down", model.n_embd, model.n_ff)


def _llama(writer: gguf.GGUFWriter, weights: _Weights, model: TinyModel) -> None:
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_layer_norm_rms_eps(1e-5)
    for layer in range(model.n_layer):
        block = f"blk.{layer}"
        weights.norm(f"{block}.attn_norm", model.n_embd)
        _attention(weights, model, block)
        _feed_forward(weights, model, block)


def _gemma(writer: gguf.GGUFWriter, weights: _Weights, model: TinyModel) -> None:
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_sliding_window(model.sliding_window)
    if model.arch == "gemma2":
        writer.add_attn_logit_softcapping(model.logit_softcap)
        writer.add_final_logit_softcapping(30.0)
    for layer in range(model.n_layer):
        block = f"blk.{layer}"
        for norm in ("attn_norm", "post_attention_norm", "post_ffw_norm"):
            weights.norm(f"{block}.{norm}", model.n_embd)
        if model.arch == "gemma3":
            weights.norm(f"{block}.attn_q_norm", model.head_dim, model.query_gain)
            weights.norm(f"{block}.attn_k_norm", model.head_dim)
        _attention(weights, model, block)
        _feed_forward(weights, model, block)


def _mpt(writer: gguf.GGUFWriter, weights: _Weights, model: TinyModel) -> None:
    n_embd = model.n_head * model.head_dim
    writer.add_layer_norm_eps(1e-5)
    writer.add_max_alibi_bias(8.0)
    for layer in range(model.n_layer):
        block = f"blk.{layer}"
        weights.norm(f"{block}.attn_norm", n_embd)
        weights.matrix(f"{block}.attn_qkv", n_embd + 2 * model.n_head_kv * model.head_dim, n_embd, np.sqrt(model.query_gain))
        weights.matrix(f"{block}.attn_output", n_embd, n_embd)
        weights.norm(f"{block}.ffn_norm", n_embd)
        weights.matrix(f"{block}.ffn_up", model.n_ff, n_embd)
        weights.matrix(f"{block}.ffn_down", n_embd, model.n_ff)


_ARCHITECTURES: dict[str, Callable[[gguf.GGUFWriter, _Weights, TinyModel], None]] = {
    "llama": _llama,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "mpt": _mpt,
}


def write_tiny_model(path: Path, model: TinyModel = TinyModel()) -> Path:
    """Write `model` to `path` (GGUF, f32 weights) and return the path.

    Raises KeyError for an architecture that is not in the list above.
    """
    architecture = _ARCHITECTURES[model.arch]
    n_embd = model.n_head * model.head_dim if model.arch == "mpt" else model.n_embd
    writer = gguf.GGUFWriter(str(path), model.arch)
    _write_sizes(writer, model, n_embd)
    _write_vocabulary(writer, model)
    weights = _Weights(writer, model.seed)
    weights.matrix("token_embd", N_VOCAB, n_embd, 2.0)  # also the output matrix: logits have a standard deviation near 2
    weights.norm("output_norm", n_embd)
    architecture(writer, weights, model)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
