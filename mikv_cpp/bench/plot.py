"""Decode speed over depth as a picture. Needs matplotlib, and only when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mikv_cpp.caches import PLAIN_BITS
from mikv_cpp.eval.plot import INK, OURS, OWN, save

_DASHES = ("-", "--", ":", "-.")


def draw(rows: Sequence[dict[str, Any]], subtitle: str, paths: Sequence[str]) -> None:
    """Draw the rows of a measurement into every file."""
    if not paths:
        return
    import matplotlib as mpl  # noqa: PLC0415 - an extra, and slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    style: dict[str, Any] = {"svg.hashsalt": "mikv", "svg.fonttype": "none", "font.size": 9, "text.color": INK}
    with mpl.rc_context(style):
        figure = Figure(figsize=(8, 5), dpi=150, facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        drawn = {True: 0, False: 0}
        for cache in dict.fromkeys(row["cache"] for row in rows):
            own = cache in PLAIN_BITS
            depths, speeds = zip(*((row["depth"], row["decode_tps"]) for row in rows if row["cache"] == cache))
            dash = _DASHES[drawn[own] % len(_DASHES)]
            drawn[own] += 1
            axes.plot(depths, speeds, marker="o", linestyle=dash, color=OWN if own else OURS, label=cache)
        axes.set_xlabel("tokens in the cache")
        axes.set_ylabel("decoded tokens per second")
        axes.set_ylim(bottom=0)
        axes.set_title(f"Decode speed by depth\n{subtitle}", loc="left", fontsize=10)
        axes.grid(True, color="#e3e3e3", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        for path in paths:
            save(figure, path)
