"""The ladder as a picture: mean KL divergence over bits per value. Needs matplotlib, and only when it is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mikv_cpp.caches import PLAIN_BITS
from mikv_cpp.errors import ConfigError, MikvError

FORMATS = (".png", ".svg")
OWN, OURS, FRONT, INK = "#5a6b7b", "#c8501e", "#d9a38c", "#222222"
LABEL_PLACES = [(0, 7), (0, -15), (8, -4), (-8, -4), (8, 8), (-8, 8), (8, -14), (-8, -14), (0, 18), (0, -26), (8, 18), (8, -26)]


def check(paths: Sequence[str]) -> None:
    """Refuse, before anything is measured, what cannot be drawn.

    Raises ConfigError for a file that is neither .png nor .svg or whose folder is missing, MikvError without matplotlib.
    """
    for path in map(Path, paths):
        if path.suffix.lower() not in FORMATS:
            raise ConfigError(f"--plot {str(path)!r} is neither .png nor .svg: give one of these")
        if not path.parent.is_dir():
            raise ConfigError(f"--plot {str(path)!r} is in a folder that does not exist: make it first")
    if paths and not has_matplotlib():
        raise MikvError("--plot needs matplotlib, which is not installed: pip install matplotlib")


def has_matplotlib() -> bool:
    """Whether matplotlib can be imported."""
    try:
        return importlib.util.find_spec("matplotlib") is not None
    except ValueError:  # what stands in sys.modules is no module
        return False


def draw(rows: Sequence[dict[str, Any]], subtitle: str, paths: Sequence[str]) -> None:
    """Draw a ladder's rows into every file. Caches without any divergence, as f16 is, have no place on a log axis."""
    if not paths:
        return
    import matplotlib as mpl  # noqa: PLC0415 -- an extra, and slow to import
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    shown = [row for row in rows if row["mean_kl"] > 0]
    style: dict[str, Any] = {
        "svg.hashsalt": "mikv",
        "svg.fonttype": "none",
        "font.size": 9,
        "text.color": INK,
        "axes.labelcolor": INK,
    }
    with mpl.rc_context(style):
        figure = Figure(figsize=(8, 5), dpi=150, facecolor="white", layout="constrained")
        canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
        draw_axes(axes, subtitle)
        draw_points(axes, shown)
        figure.draw_without_rendering()  # labels are placed in pixels, which are known from here on
        draw_labels(canvas.get_renderer(), axes, shown)
        for path in paths:
            save(figure, path)


def save(figure: Any, path: str) -> None:
    """Write a figure; the same figure gives the same file. Raises MikvError when it cannot be written."""
    try:
        figure.savefig(path, metadata={"Date": None} if path.lower().endswith(".svg") else None)
    except OSError as error:
        raise MikvError(f"cannot write the plot {path!r} ({error.strerror}): give another file to --plot") from error


def draw_axes(axes: Any, subtitle: str) -> None:
    """Axes, grid and title."""
    from matplotlib.ticker import LogLocator  # noqa: PLC0415

    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2.0, 5.0)))
    for formatted in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        formatted(lambda value, _position: f"{value:g}")
    axes.set_xlabel("bits per value, all metadata included")
    axes.set_ylabel("mean KL divergence to f16 (nats)")
    axes.set_title(f"Quality of KV caches at their true size\n{subtitle}", loc="left", fontsize=10)
    axes.grid(True, which="both", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.1, y=0.12)


def draw_points(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """The caches, llama.cpp's own and ours in marks of their own, and the Pareto front: what so many bits buy at best."""
    front = [row for row in rows if row["pareto"]]
    if len(front) > 1:
        bits, kl = zip(*((row["bits_per_value"], row["mean_kl"]) for row in front))
        axes.plot(bits, kl, drawstyle="steps-post", color=FRONT, linewidth=1.5, zorder=1, label="Pareto front")
    for name, color, mark, own in (("llama.cpp's own types", OWN, "s", True), ("mikv_cpp", OURS, "o", False)):
        points = [(row["bits_per_value"], row["mean_kl"]) for row in rows if (row["cache"] in PLAIN_BITS) == own]
        if points:
            bits, kl = zip(*points)
            axes.scatter(bits, kl, s=36, marker=mark, color=color, edgecolor="white", linewidth=0.8, zorder=3, label=name)
    if rows:
        axes.legend(frameon=False, loc="upper right")


def draw_labels(renderer: Any, axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """A name at each point, at the first place where it covers neither a point nor another name."""
    points = [axes.transData.transform((row["bits_per_value"], row["mean_kl"])) for row in rows]
    legend = axes.get_legend()
    taken = [legend.get_window_extent(renderer)] if legend else []
    for row in rows:
        for x, y in LABEL_PLACES:
            label = axes.annotate(
                row["cache"],
                (row["bits_per_value"], row["mean_kl"]),
                xytext=(x, y),
                textcoords="offset points",
                ha="center" if x == 0 else "left" if x > 0 else "right",
                color=OWN if row["cache"] in PLAIN_BITS else OURS,
                fontsize=8,
                bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5},
            )
            label.set_in_layout(False)
            box = label.get_window_extent(renderer)
            if not any(box.overlaps(other) for other in taken) and not any(box.padded(4).contains(*point) for point in points):
                break
            if (x, y) != LABEL_PLACES[-1]:
                label.remove()
        taken.append(box)
