"""Is one cache better than another? Both read the same text, and the answer says how sure it is.

Mean KL, its 99.9 % quantile and the share of the same top token are compared at the same positions; 95 % intervals come from
2000 samples of blocks of consecutive positions. The verdict is that of the mean KL.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from mikv_cpp.caches import CacheSpec
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval import bootstrap, passages
from mikv_cpp.eval.bootstrap import Estimate, Pairs
from mikv_cpp.eval.command import add_keep
from mikv_cpp.eval.divergence import Scores
from mikv_cpp.eval.kl import score_table
from mikv_cpp.eval.scoring import F16, Study, study

FEWEST_BLOCKS = 10  # with fewer the drawn samples are too much alike for an interval to mean anything


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval compare` beyond those all measurements share."""
    parser.add_argument("caches", nargs=2, metavar="CACHE", help="A and B, named as `eval kl` names them in --kv")
    parser.add_argument(
        "--block", type=int, default=bootstrap.BLOCK, metavar="N", help="consecutive positions drawn together (%(default)s)"
    )
    passages.add_arguments(parser)
    add_keep(parser)


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Measure both caches and return what `--json` prints."""
    if len(specs) != 2 or (specs[0].config == specs[1].config and specs[0].config is not None):
        raise ConfigError(f"{' and '.join(args.caches)} are not two different caches: name two that differ")
    if args.block < 1:
        raise ConfigError(f"--block {args.block} is no length: give at least 1 position")
    found = study(args, specs)
    a, b = (found.scores(spec.name) for spec in specs)
    blocks = bootstrap.cut_blocks([len(passage.targets) for passage in found.passages], args.block)
    n_blocks = int(blocks.max()) + 1
    if n_blocks < FEWEST_BLOCKS:
        raise ConfigError(
            f"{len(blocks)} positions are only {n_blocks} blocks of {args.block}, too few to say how sure a difference is: "
            f"give more --chunks, or a smaller --block, for at least {FEWEST_BLOCKS}"
        )
    compared = compare(a, b, blocks)
    names = {"a": specs[0].name, "b": specs[1].name}
    return {**found.result(args), **names, "rows": rows_of(found, specs), "block": args.block, "n_blocks": n_blocks, **compared}


def rows_of(found: Study, specs: Sequence[CacheSpec]) -> list[dict[str, Any]]:
    """The rows of A and B; f16's too if it was not named."""
    names = [spec.name for spec in specs]
    rows = {row["cache"]: row for row in found.rows()}
    return [rows[name] for name in ([] if F16 in names else [F16]) + names]


def compare(a: Scores, b: Scores, blocks: bootstrap.Counts) -> dict[str, Any]:
    """A against B at the same positions; `blocks` has the block of each."""
    kl = Pairs(a.kl, b.kl, blocks)
    means, tails = kl.means(), kl.tails()
    same = Pairs(a.same_top.astype(np.float64), b.same_top.astype(np.float64), blocks).means()
    mean_difference = bootstrap.difference(*means)
    estimates = {
        "mean_kl_ratio": bootstrap.ratio(*means),
        "mean_kl_difference": mean_difference,
        "kl_999_ratio": bootstrap.ratio(*tails),
        "kl_999_difference": bootstrap.difference(*tails),
        "same_top_difference": bootstrap.difference(*same),
    }
    fields = {name: None if estimate is None else estimate.to_dict() for name, estimate in estimates.items()}
    return {**fields, "verdict": verdict(mean_difference)}


def verdict(difference: Estimate) -> str:
    """What the difference of the mean KL, A - B, says: less divergence is better."""
    if difference.high < 0:
        return "A is better"
    if difference.low > 0:
        return "B is better"
    return "no difference shown"


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    lines = [
        score_table(result["rows"]),
        "",
        f"A = {result['a']}, B = {result['b']}: {result['n_positions']} positions in {result['n_blocks']} blocks of "
        f"{result['block']}, 95 % intervals",
        line("mean KL, A / B", result["mean_kl_ratio"], ".3f"),
        line("mean KL, A - B", result["mean_kl_difference"], "+.5f"),
        line("99.9 % KL, A / B", result["kl_999_ratio"], ".3f"),
        line("99.9 % KL, A - B", result["kl_999_difference"], "+.4f"),
        line("same top, A - B", result["same_top_difference"], "+.2%"),
        f"{result['verdict']} (by mean KL)",
    ]
    return "\n".join(lines)


def line(name: str, estimate: Optional[dict[str, float]], form: str) -> str:
    """One estimate with its interval."""
    if estimate is None:
        return f"{name:<18}{'-':>10}"
    return f"{name:<18}{format(estimate['value'], form):>10}   {estimate['low']:{form}} to {estimate['high']:{form}}"
