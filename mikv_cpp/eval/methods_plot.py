"""The field as a picture: mean KL divergence over true bits per value, a line for each method."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mikv_cpp.caches import PLAIN_BITS
from mikv_cpp.eval import plot

MARKS = "osD^vPX*<>hd"


def draw(rows: Sequence[dict[str, Any]], subtitle: str, paths: Sequence[str]) -> None:
    """Draw the rows of `eval field` into every file; caches without any divergence have no place on a log axis."""
    if not paths:
        return
    import matplotlib as mpl  # noqa: PLC0415 -- an extra, and slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context({"svg.hashsalt": "mikv", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(8, 5), dpi=150, facecolor="white", layout="constrained")
        axes = figure.add_subplot()
        plot.draw_axes(axes, subtitle)
        axes.set_title(f"Methods of the field at their true size\n{subtitle}", loc="left", fontsize=10)
        for i, (name, points) in enumerate(by_method(rows).items()):
            bits, kl = zip(*points)
            own = name in PLAIN_BITS
            axes.plot(
                bits,
                kl,
                marker=MARKS[i % len(MARKS)],
                color=plot.OWN if own else f"C{i % 10}",
                linewidth=1.2,
                markersize=5,
                label=name,
            )
        if rows:
            axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), fontsize=8)
        for path in paths:
            plot.save(figure, path)


def by_method(rows: Sequence[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The points (bits, mean KL) of each method, by bits."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["mean_kl"] > 0:
            points.setdefault(row["method"], []).append((row["bits_per_value"], row["mean_kl"]))
    return {name: sorted(own) for name, own in sorted(points.items())}
