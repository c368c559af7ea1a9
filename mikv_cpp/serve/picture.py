"""The cache as JSON: what /kv answers and the page draws."""

from __future__ import annotations

import base64
import codecs
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.answer import context_size
from mikv_cpp.llama import Llama

EXACT = 16  #: bits of a row that is kept exact
LEVELS_PER_BIT = 10  #: levels of the map are tenths of a bit


@dataclass(frozen=True)
class Window:
    """What of the cache to show: so many columns of the map over all tokens, and the text of some of them.

    first: the text's first token; None for the last `n_text` ones.
    """

    columns: int = 512
    n_text: int = 1024
    first: Optional[int] = None


def picture(llm: Llama, window: Window) -> dict[str, Any]:
    """What the cache holds now. Not to be asked while llama_decode works.

    held: tokens by precision, means over layers and heads, and how many cells hold tokens that were taken back (an answer that
        was regenerated): `kv` counts these until they are overwritten.
    map: levels as base64 of uint8 [rows, columns], 10 for each bit of a token's key, the mean where a column has several
        tokens, 0 where it has none; `rows` says the (layer, KV head) of each. None with llama.cpp's own cache.
    text: of each token from `first` on: its piece of text, whether it is a control token, the mean bits of its keys over
        layers and heads, the shares of these that keep it exact or refined, and the mean attention mass that they measured
        (of refined rows; those at base precision keep none).
    """
    stats = llm.kv_stats()
    bits, scores, rows = _rows(llm)
    n_tokens = int(llm.n_tokens)
    return {
        "model": llm.model_file.name,
        "context": context_size(llm),
        "tokens": n_tokens,
        "kv": stats.to_dict(),
        "held": _held(llm, bits, stats.tokens - n_tokens) if rows else None,
        "map": _map(bits, rows, window.columns) if rows else None,
        "text": _text(llm, bits, scores, window),
    }


def _rows(llm: Llama) -> tuple[NDArray[np.uint8], NDArray[np.float32], list[tuple[int, int]]]:
    """uint8 and float32 [n_rows, n_tokens], bits and scores by (layer, KV head), and these."""
    n_tokens = int(llm.n_tokens)
    bits: list[NDArray[np.uint8]] = []
    scores: list[NDArray[np.float32]] = []
    rows: list[tuple[int, int]] = []
    layers = llm.kv.layers if llm.kv_config is not None else []
    for layer in layers:
        of_heads = llm.kv.precision_map(layer)[:, :n_tokens]
        pad = ((0, 0), (0, n_tokens - of_heads.shape[1]))
        bits += list(np.pad(of_heads, pad))
        scores += list(np.pad(llm.kv.scores(layer)[:, :n_tokens], pad))
        rows += [(layer, head) for head in range(of_heads.shape[0])]
    if not rows:
        return np.zeros((0, n_tokens), np.uint8), np.zeros((0, n_tokens), np.float32), []
    return np.stack(bits), np.stack(scores), rows


def _held(llm: Llama, bits: NDArray[np.uint8], n_taken_back: int) -> dict[str, float]:
    exact = bits == EXACT
    refined = (bits > _base_bits(llm)) & ~exact
    by_tier = {"exact": exact, "refined": refined, "base": ~(exact | refined)}
    means = {name: round(float(rows.sum()) / bits.shape[0], 2) for name, rows in by_tier.items()}
    return {**means, "taken_back": max(n_taken_back, 0)}


def _map(bits: NDArray[np.uint8], rows: list[tuple[int, int]], columns: int) -> dict[str, Any]:
    n_rows, n_tokens = bits.shape
    per_column = max(1, -(-n_tokens // columns))
    n_columns = -(-n_tokens // per_column)
    padded = np.pad(bits.astype(np.float32), ((0, 0), (0, n_columns * per_column - n_tokens)))
    cells = padded.reshape(n_rows, n_columns, per_column)
    filled = np.maximum((cells > 0).sum(axis=2), 1)
    levels = np.rint(LEVELS_PER_BIT * cells.sum(axis=2) / filled).astype(np.uint8)
    return {
        "rows": rows,
        "columns": n_columns,
        "tokens_per_column": per_column,
        "levels_per_bit": LEVELS_PER_BIT,
        "levels": base64.b64encode(levels.tobytes()).decode("ascii"),
    }


def _text(llm: Llama, bits: NDArray[np.uint8], scores: NDArray[np.float32], window: Window) -> dict[str, Any]:
    n_tokens = int(llm.n_tokens)
    first = max(n_tokens - window.n_text, 0) if window.first is None else min(window.first, n_tokens)
    tokens = llm.input_ids[first : min(first + window.n_text, n_tokens)].tolist()
    part = slice(first, first + len(tokens))
    pieces, control = _pieces(llm, tokens)
    out: dict[str, Any] = {"first": first, "pieces": pieces, "control": control}
    if bits.shape[0]:
        base = _base_bits(llm)
        shown = bits[:, part]
        out["bits"] = _rounded(shown.mean(axis=0), 2)
        out["exact"] = _rounded((shown == EXACT).mean(axis=0), 3)
        out["refined"] = _rounded(((shown > base) & (shown < EXACT)).mean(axis=0), 3)
        out["importance"] = _rounded(scores[:, part].mean(axis=0), 5)
    return out


def _base_bits(llm: Llama) -> NDArray[np.uint8]:
    """uint8 [n_rows, 1]: bits of a key that is not refined. A layer refined by nothing has no refined tokens."""
    by_layer = {row.layer: row.k_bits for row in llm.kv_stats().by_layer}
    heads = [by_layer[layer] for layer in llm.kv.layers for _ in range(llm.kv.precision_map(layer).shape[0])]
    return np.array(heads, dtype=np.uint8)[:, None]


def _pieces(llm: Llama, tokens: list[int]) -> tuple[list[str], list[int]]:
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


def _rounded(values: NDArray[Any], digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]
