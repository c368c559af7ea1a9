"""A snapshot for the terminal, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.cache import KVStats
from mikv_cpp.snapshot import Snapshot

_WIDTH = 64  # columns of the map
_SHADES = " ░▒▓█"
_HEIGHTS = "▁▂▃▄▅▆▇█"
_N_NAMED = 8  # tokens named for their importance


def terminal_summary(shot: Snapshot, stats: KVStats, pieces: Sequence[str]) -> str:
    """The map by layer, importance over positions, and the tokens that matter most."""
    share = (shot.exact | shot.refined).astype(np.float64)
    layers = [layer for layer, _ in shot.rows]
    head = f"{'tokens from the first to the last; darker: more of them refined':<{_WIDTH}}"
    lines = [f"{'layer':>5}  {head}  attention on exact/refined/base"]
    for row in stats.by_layer:
        cells = _binned(share[[index for index, layer in enumerate(layers) if layer == row.layer]].mean(axis=0))
        shades = "".join(_SHADES[min(round(4 * value), 4)] for value in cells)
        lines.append(f"{row.layer:>5}  {shades:<{_WIDTH}}  {row.mass_exact:.3f} / {row.mass_refined:.3f} / {row.mass_base:.3f}")
    importance = shot.scores.mean(axis=0)
    heights = _binned(importance)
    top = float(heights.max()) if heights.size else 0.0
    lines.append(f"{'':>5}  {''.join(_HEIGHTS[int(7 * np.sqrt(value / top))] if top else ' ' for value in heights)}")
    lines.append(f"{'':>5}  importance (mean attention mass; its root is drawn)")
    order = np.argsort(-importance)[:_N_NAMED]
    named = ", ".join(f"{pieces[index]!r} at {index} ({importance[index]:.2f})" for index in order)
    lines.append(f"most important: {named}")
    return "\n".join(lines)


def _binned(values: NDArray[Any]) -> NDArray[np.float64]:
    """Means of at most _WIDTH neighbouring parts of nearly the same size."""
    if values.size <= _WIDTH:
        return values.astype(np.float64)
    return np.array([part.mean() for part in np.array_split(values, _WIDTH)])


def as_json(shot: Snapshot, stats: KVStats, pieces: Sequence[str], model: str) -> dict[str, Any]:
    """Everything, for programs."""
    return {
        "model": model,
        "tokens": list(pieces),
        "kv": stats.to_dict(),
        "rows": [
            {
                "layer": layer,
                "head": head,
                "bits": shot.bits[index].tolist(),
                "importance": [round(float(score), 5) for score in shot.scores[index]],
            }
            for index, (layer, head) in enumerate(shot.rows)
        ],
    }
