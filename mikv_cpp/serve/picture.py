"""The cache as JSON: what /kv answers and the page draws."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.answer import context_size
from mikv_cpp.llama import Llama
from mikv_cpp.snapshot import Snapshot, take_snapshot, token_pieces

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
    stats, shot = llm.kv_stats(), take_snapshot(llm)
    n_tokens = int(llm.n_tokens)
    return {
        "model": llm.model_file.name,
        "context": context_size(llm),
        "tokens": n_tokens,
        "kv": stats.to_dict(),
        "held": _held(shot, stats.tokens - n_tokens) if shot.rows else None,
        "map": _map(shot, window.columns) if shot.rows else None,
        "text": _text(llm, shot, window),
    }


def _held(shot: Snapshot, n_taken_back: int) -> dict[str, float]:
    by_tier = {"exact": shot.exact, "refined": shot.refined, "base": ~(shot.exact | shot.refined)}
    means = {name: round(float(rows.sum()) / len(shot.rows), 2) for name, rows in by_tier.items()}
    return {**means, "taken_back": max(n_taken_back, 0)}


def _map(shot: Snapshot, columns: int) -> dict[str, Any]:
    n_rows, n_tokens = shot.bits.shape
    per_column = max(1, -(-n_tokens // columns))
    n_columns = -(-n_tokens // per_column)
    padded = np.pad(shot.bits.astype(np.float32), ((0, 0), (0, n_columns * per_column - n_tokens)))
    cells = padded.reshape(n_rows, n_columns, per_column)
    filled = np.maximum((cells > 0).sum(axis=2), 1)
    levels = np.rint(LEVELS_PER_BIT * cells.sum(axis=2) / filled).astype(np.uint8)
    return {
        "rows": shot.rows,
        "columns": n_columns,
        "tokens_per_column": per_column,
        "levels_per_bit": LEVELS_PER_BIT,
        "levels": base64.b64encode(levels.tobytes()).decode("ascii"),
    }


def _text(llm: Llama, shot: Snapshot, window: Window) -> dict[str, Any]:
    n_tokens = int(llm.n_tokens)
    first = max(n_tokens - window.n_text, 0) if window.first is None else min(window.first, n_tokens)
    tokens = llm.input_ids[first : min(first + window.n_text, n_tokens)].tolist()
    part = slice(first, first + len(tokens))
    pieces, control = token_pieces(llm, tokens)
    out: dict[str, Any] = {"first": first, "pieces": pieces, "control": control}
    if shot.rows:
        out["bits"] = _rounded(shot.bits[:, part].mean(axis=0), 2)
        out["exact"] = _rounded(shot.exact[:, part].mean(axis=0), 3)
        out["refined"] = _rounded(shot.refined[:, part].mean(axis=0), 3)
        out["importance"] = _rounded(shot.scores[:, part].mean(axis=0), 5)
    return out


def _rounded(values: NDArray[Any], digits: int) -> list[float]:
    return [round(float(value), digits) for value in values]
