"""A snapshot as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mikv_cpp.cache import KVStats
from mikv_cpp.errors import ConfigError
from mikv_cpp.snapshot import EXACT, Snapshot

_COLOURS = {2: "#d3e3f5", 3: "#b3d0ee", 4: "#8fb8e2", 5: "#f4b26a", 6: "#e58a2f", 8: "#c4560f", EXACT: "#7b1f63"}
_TIERS = {"exact": "#7b1f63", "refined": "#e58a2f", "base": "#8fb8e2"}


def save_plot(path: str, shot: Snapshot, stats: KVStats, title: str) -> None:
    """Draw the map, importance over positions and attention by precision to a PNG, SVG or PDF file.

    Raises:
        ConfigError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise ConfigError("--plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(11, 9), layout="constrained")
    above, middle, below = figure.subplots(3, 1, height_ratios=[5, 2, 2])
    figure.suptitle(title)
    _draw_map(above, shot)
    _draw_importance(middle, shot)
    _draw_attention(below, stats)
    try:
        figure.savefig(Path(path), dpi=120)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--plot {path!r} cannot be written ({error}): name a .png, .svg or .pdf file") from error


def _draw_map(axes: Any, shot: Snapshot) -> None:
    from matplotlib.colors import to_rgb  # noqa: PLC0415 - as above
    from matplotlib.patches import Patch  # noqa: PLC0415 - as above

    image = np.ones((*shot.bits.shape, 3))
    there = sorted(set(np.unique(shot.bits)) - {0})
    for bits in there:
        image[shot.bits == bits] = to_rgb(_COLOURS.get(int(bits), "#888888"))
    axes.imshow(image, aspect="auto", interpolation="nearest")
    firsts = [index for index, (_, head) in enumerate(shot.rows) if head == 0]
    shown = firsts[:: max(1, len(firsts) // 16)]
    axes.set_yticks(shown, [str(shot.rows[index][0]) for index in shown])
    axes.set_ylabel("layer, its KV heads")
    labels = {EXACT: "exact"}
    patches = [Patch(color=_COLOURS.get(int(bits), "#888888"), label=labels.get(int(bits), f"{bits} bits")) for bits in there]
    axes.legend(handles=patches, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(patches), frameon=False)


def _draw_importance(axes: Any, shot: Snapshot) -> None:
    mean = shot.scores.mean(axis=0)
    axes.fill_between(np.arange(mean.size), shot.scores.max(axis=0), color="#f4d9b8", label="largest of all heads", linewidth=0)
    axes.plot(mean, color="#c4560f", linewidth=1, label="mean over heads")
    axes.set_yscale("symlog", linthresh=max(float(mean.max()) / 1000, 1e-6))
    axes.set_xlim(-0.5, mean.size - 0.5)
    axes.set_ylabel("attention mass")
    axes.set_xlabel("position")
    axes.legend(frameon=False)


def _draw_attention(axes: Any, stats: KVStats) -> None:
    layers = np.arange(len(stats.by_layer))
    bottom = np.zeros(layers.size)
    for tier, colour in _TIERS.items():
        share = np.array([getattr(row, f"mass_{tier}") for row in stats.by_layer])
        axes.bar(layers, share, bottom=bottom, color=colour, label=tier, width=0.9)
        bottom += share
    axes.set_ylabel("attention by precision")
    axes.set_xlabel("layer")
    axes.set_xticks(layers, [str(row.layer) for row in stats.by_layer], fontsize="small")
    axes.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
