"""What a cache holds at one moment, row by row: a row is one KV head of one layer."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.llama import Llama

EXACT = 16  #: bits of a token that is kept exact


@dataclass(frozen=True)
class Snapshot:
    """Arrays are [n_rows, n_tokens]; with llama.cpp's own cache there are no rows.

    Attributes:
        rows: layer and KV head of each row.
        bits: uint8, bits of each token's key.
        scores: float32, attention mass accumulated by tokens that are exact or refined; those at base precision keep none.
        base_bits: uint8 [n_rows, 1], bits of a key that is not refined.
    """

    rows: list[tuple[int, int]]
    bits: NDArray[np.uint8]
    scores: NDArray[np.float32]
    base_bits: NDArray[np.uint8]

    @property
    def exact(self) -> NDArray[np.bool_]:
        """Which tokens are kept in f16."""
        return np.equal(self.bits, EXACT)

    @property
    def refined(self) -> NDArray[np.bool_]:
        """Which are kept at more than base precision, but not exact."""
        return (self.bits > self.base_bits) & ~self.exact


def take_snapshot(llm: Llama) -> Snapshot:
    """The tokens that the model has now. Not to be asked while llama_decode works."""
    n_tokens = int(llm.n_tokens)
    rows: list[tuple[int, int]] = []
    bits = [np.zeros((0, n_tokens), np.uint8)]
    scores = [np.zeros((0, n_tokens), np.float32)]
    base = [np.zeros((0, 1), np.uint8)]
    by_layer = {row.layer: row.k_bits for row in llm.kv_stats().by_layer}
    for layer, k_bits in by_layer.items():
        of_heads = llm.kv.precision_map(layer)[:, :n_tokens]
        pad = ((0, 0), (0, n_tokens - of_heads.shape[1]))
        bits.append(np.pad(of_heads, pad))
        scores.append(np.pad(llm.kv.scores(layer)[:, :n_tokens], pad))
        base.append(np.full((of_heads.shape[0], 1), k_bits, np.uint8))
        rows += [(layer, head) for head in range(of_heads.shape[0])]
    return Snapshot(rows, np.concatenate(bits), np.concatenate(scores), np.concatenate(base))


def token_pieces(llm: Llama, tokens: Sequence[int]) -> tuple[list[str], list[int]]:
    """Text of each token, that of a character in several tokens with the last of them; and which are control tokens."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    pieces, control = [], []
    for index, token in enumerate(tokens):
        data = llm.token_bytes(token)
        if data:
            pieces.append(decoder.decode(data))
        else:
            pieces.append(llm.token_text(token))
            control.append(index)
    return pieces, control
