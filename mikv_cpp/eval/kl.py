"""KL divergence of a compressed cache to the f16 cache, as llama.cpp's perplexity tool defines it.

Each text is cut into chunks of the context's length. Where the model asks for a BOS token, it replaces the first token of each
chunk. Every position of a chunk's second half that has a next token in the chunk is scored:
KL(f16 || cache) = sum over the vocabulary of p * (ln p - ln q), in nats.

With --json, `rows` are over all texts and `texts` has the same for each; when one cache is asked for, its row's fields are on
the top level too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from mikv_cpp.caches import CacheSpec
from mikv_cpp.eval import passages
from mikv_cpp.eval.command import add_keep
from mikv_cpp.eval.footprint import size_text
from mikv_cpp.eval.scoring import F16, study

BUILT_IN = "the opening of Persuasion"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval kl` beyond those all measurements share."""
    passages.add_arguments(parser)
    add_keep(parser)
    parser.set_defaults(caches="q8_0,q4_0,mikv")


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Measure the caches and return what `--json` prints."""
    result = study(args, specs).result(args)
    asked = [row for row in result["rows"] if row["cache"] != F16]
    return {**(asked[0] if len(asked) == 1 else {}), **result}


def table(result: dict[str, Any]) -> str:
    """The result as a table for people: over all texts, then each."""
    parts = [score_table(result["rows"])]
    if len(result["texts"]) > 1:
        parts += [f"{part['text'] or BUILT_IN}\n{score_table(part['rows'])}" for part in result["texts"]]
    return "\n\n".join(parts)


def score_table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each cache; those that are Pareto-optimal, where the rows say so, are marked."""
    width = max(24, *(len(row["cache"]) + 3 for row in rows))
    head = f"{'cache':<{width}}{'bits':>7}{'size':>12}{'mean KL':>11}{'+-':>9}{'median':>10}{'99.9 %':>10}{'same top':>10}"
    lines = [f"{head}{'ppl':>10}"]
    for row in rows:
        name = row["cache"] + (" *" if row.get("pareto") else "")
        lines.append(
            f"{name:<{width}}{row['bits_per_value']:>7.2f}{size_text(row['bytes_total']):>12}{row['mean_kl']:>11.5f}"
            f"{row['mean_kl_error']:>9.5f}{row['median_kl']:>10.5f}{row['kl_999']:>10.4f}{row['same_top']:>10.2%}{row['ppl']:>10.3f}"
        )
    return "\n".join(lines)
