#!/usr/bin/env python3
"""Write a GGUF model of a real model's shape with random 4-bit weights: for speed, which does not depend on what weights mean.

    random_model.py 8b.gguf                       an 8B Llama: 32 layers, 8 KV heads of 128 values, 4.5 GB, and so much memory
    random_model.py small.gguf --layers 2 --embd 256 --heads 4 --kv-heads 2 --ff 512 --vocab 1000

Needs the package gguf.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

BLOCK, BLOCK_BYTES = 32, 18  # of q4_0: a scale in f16, then 32 codes of 4 bits around 8
PATTERN_BLOCKS = 1 << 20  # random blocks that the matrices take their bytes from, in turns


class Weights:
    """Random matrices in q4_0, all out of one block of random bytes. They wait in memory until the file is written."""

    def __init__(self, writer: gguf.GGUFWriter, seed: int) -> None:
        self._writer = writer
        random = np.random.default_rng(seed)
        self._codes = random.integers(0, 256, (PATTERN_BLOCKS, BLOCK_BYTES), dtype=np.uint8)
        self._random = random

    def matrix(self, name: str, n_out: int, n_in: int) -> None:
        """Products keep about the size of what they are multiplied with: codes have a standard deviation of 4.6."""
        n_blocks = n_out * n_in // BLOCK
        scale = np.array([1.0 / (4.6 * math.sqrt(n_in))], dtype=np.float16)
        pattern = self._codes.copy()
        pattern[:, :2] = scale.view(np.uint8)
        first = int(self._random.integers(0, PATTERN_BLOCKS))
        blocks: NDArray[np.uint8] = np.take(pattern, np.arange(first, first + n_blocks), axis=0, mode="wrap")
        rows = blocks.reshape(n_out, n_in // BLOCK * BLOCK_BYTES)
        self._writer.add_tensor(f"{name}.weight", rows, raw_dtype=gguf.GGMLQuantizationType.Q4_0)

    def norm(self, name: str, n: int) -> None:
        """All ones."""
        self._writer.add_tensor(f"{name}.weight", np.ones(n, dtype=np.float32))


def write_sizes(writer: gguf.GGUFWriter, args: argparse.Namespace) -> None:
    """What llama.cpp wants to know of a Llama."""
    writer.add_context_length(131072)
    writer.add_embedding_length(args.embd)
    writer.add_block_count(args.layers)
    writer.add_feed_forward_length(args.ff)
    writer.add_head_count(args.heads)
    writer.add_head_count_kv(args.kv_heads)
    writer.add_rope_dimension_count(args.embd // args.heads)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(args.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)


def write_vocabulary(writer: gguf.GGUFWriter, n: int) -> None:
    """Every byte, spelled as GPT-2 does, so that any text can be tokenized; then tokens that no text has."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    spelling = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    tokens = spelling + [f"<{i}>" for i in range(n - len(spelling))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(gguf.TokenType.NORMAL)] * 256 + [int(gguf.TokenType.CONTROL)] * (n - 256))
    writer.add_token_merges([spelling[-1] + " " + spelling[-2]])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)
    writer.add_add_bos_token(False)


def write_model(path: Path, args: argparse.Namespace) -> None:
    """The whole file."""
    writer = gguf.GGUFWriter(str(path), "llama", use_temp_file=False)
    write_sizes(writer, args)
    write_vocabulary(writer, args.vocab)
    weights = Weights(writer, args.seed)
    weights.matrix("token_embd", args.vocab, args.embd)
    weights.norm("output_norm", args.embd)
    weights.matrix("output", args.vocab, args.embd)
    kv = args.embd // args.heads * args.kv_heads
    for layer in range(args.layers):
        block = f"blk.{layer}"
        weights.norm(f"{block}.attn_norm", args.embd)
        for name, n_out in (("attn_q", args.embd), ("attn_k", kv), ("attn_v", kv), ("attn_output", args.embd)):
            weights.matrix(f"{block}.{name}", n_out, args.embd)
        weights.norm(f"{block}.ffn_norm", args.embd)
        weights.matrix(f"{block}.ffn_gate", args.ff, args.embd)
        weights.matrix(f"{block}.ffn_up", args.ff, args.embd)
        weights.matrix(f"{block}.ffn_down", args.embd, args.ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> int:
    """Write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    for name, default in (("layers", 32), ("embd", 4096), ("heads", 32), ("kv-heads", 8), ("ff", 14336), ("vocab", 128256)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    args = parser.parse_args()
    write_model(args.path, args)
    print(f"{args.path}: {args.path.stat().st_size / 1e9:.2f} GB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
