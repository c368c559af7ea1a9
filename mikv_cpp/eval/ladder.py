"""Many caches at their true bytes: which quality costs how much, and which caches nothing beats.

The rows are those of `eval kl`, sorted by bits per value. One is Pareto-optimal, and marked *, if no other has at most its bits
and at most its mean KL divergence, and less of one of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mikv_cpp.caches import CacheSpec
from mikv_cpp.config import PRESETS
from mikv_cpp.eval import passages, plot
from mikv_cpp.eval.command import add_keep
from mikv_cpp.eval.kl import score_table
from mikv_cpp.eval.scoring import study

OWN_TYPES = ("f16", "q8_0", "q5_1", "q5_0", "q4_0")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval ladder` beyond those all measurements share."""
    passages.add_arguments(parser)
    add_keep(parser)
    parser.add_argument(
        "--plot",
        action="append",
        default=[],
        metavar="FILE",
        help="draw mean KL over bits per value into a .png or .svg; may be given twice (needs the extra `plots`)",
    )
    parser.set_defaults(caches=",".join([*OWN_TYPES, *PRESETS]))


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Measure the caches, draw the plots and return what `--json` prints."""
    plot.check(args.plot)
    result = study(args, specs).result(args)
    result["rows"] = ladder(result["rows"])
    for text in result["texts"]:
        text["rows"] = ladder(text["rows"])
    plot.draw(result["rows"], f"{result['n_positions']} positions, context {result['n_ctx']}", args.plot)
    return {**result, "plots": args.plot}


def ladder(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows sorted by bits, each told whether it is Pareto-optimal."""
    ordered = sorted(rows, key=lambda row: (row["bits_per_value"], row["mean_kl"]))
    points = [(row["bits_per_value"], row["mean_kl"]) for row in ordered]
    return [{**row, "pareto": optimal} for row, optimal in zip(ordered, pareto(points))]


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """For each point whether no other is at most as large in both and smaller in one. Equal points are optimal together."""
    return [not any(x <= own_x and y <= own_y and (x, y) != (own_x, own_y) for x, y in points) for own_x, own_y in points]


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [score_table(result["rows"]), "* nothing here is better at no more bits"]
    return "\n".join([*lines, *(f"drawn: {path}" for path in result["plots"])])
