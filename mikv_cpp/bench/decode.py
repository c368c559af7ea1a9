"""Speed of whole models with caches side by side: `python -m mikv_cpp.bench model.gguf --depths 0,4096`.

All caches are alive at once and take turns: slices of the prompt while prefilling, then rounds of short decode bursts, each
round in another order. What the machine does besides hits all alike, and a cache is compared with f16 within its round. After
each burst its tokens are removed, so every burst starts at the same depth. A depth of 0 times the prefill of 512 tokens.
`--fill repeat` prefills 1024 tokens and repeats them to the depth (`mikv_cpp.bench.fill`), which takes a fraction of the time.

What a token reads from memory, at least: the model's file and what the cache holds. Its rate is to be compared with the
machine's own for copies.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
from tqdm import tqdm

from mikv_cpp.bench import plot
from mikv_cpp.bench.fill import STRETCH, repeat_to
from mikv_cpp.bench.machine import copy_gb_per_s, peak_bytes
from mikv_cpp.bench.ratio import ratio_with_interval
from mikv_cpp.caches import PLAIN_BITS, CacheSpec, parse_caches
from mikv_cpp.config import KVConfig
from mikv_cpp.engine import Engine, Models, Tokens
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval import command
from mikv_cpp.eval.plot import check as check_plots
from mikv_cpp.eval.texts import read_text
from mikv_cpp.plan import plan_cache
from mikv_cpp.plugin import native_library

SHALLOW_PROMPT = 512  # tokens of prefill timed for depth 0, and removed again
REFERENCE = "f16"


@dataclass
class Timing:
    """Seconds one cache took at one depth: for each slice of its prompt, and for each decode burst."""

    n_prefilled: int = 0
    slices_s: list[float] = field(default_factory=list)  # of the prefill
    bursts_s: list[float] = field(default_factory=list)
    kv_bytes: Optional[int] = None  # of the tokens held at this depth


@dataclass(frozen=True)
class Plan:
    """What to time at each depth."""

    burst: int  # tokens decoded in one turn
    rounds: int
    slice: int  # tokens prefilled in one turn
    fill: str = "prefill"  # or "repeat": how a depth beyond STRETCH is reached


def prefill(engines: Sequence[Engine], timings: Sequence[Timing], tokens: Tokens, plan: Plan, progress: Any) -> None:
    """Append tokens to every cache, slice by slice in turns."""
    for start in range(0, len(tokens), plan.slice):
        part = tokens[start : start + plan.slice]
        for engine, timing in zip(engines, timings):
            began = time.perf_counter()
            engine.decode(part, first_logits=-1)
            timing.slices_s.append(time.perf_counter() - began)
            timing.n_prefilled += len(part)
            progress.update(len(part))


def decode_burst(engine: Engine, tokens: Tokens) -> float:
    """Seconds to decode tokens one at a time; they are removed again afterwards."""
    depth = engine.n_past
    began = time.perf_counter()
    for index in range(len(tokens)):
        engine.decode(tokens[index : index + 1])
    took = time.perf_counter() - began
    engine.remove_from(depth)
    return took


def time_depth(
    engines: Sequence[Engine], text: Tokens, depth: int, plan: Plan, progress: Any, values_per_token: Optional[int] = None
) -> list[Timing]:
    """Time all engines at one depth, in tokens."""
    timings = [Timing() for _ in engines]
    for engine in engines:
        engine.clear()
    repeats = plan.fill == "repeat" and depth > STRETCH
    prefill(engines, timings, np.resize(text, STRETCH if repeats else depth or SHALLOW_PROMPT), plan, progress)
    tokens = np.resize(text, plan.burst)
    for engine, timing in zip(engines, timings):
        repeat_to(engine, depth) if repeats else engine.remove_from(depth)
        timing.kv_bytes = held_bytes(engine, values_per_token)
        decode_burst(engine, tokens)  # untimed: first touches, and the graph that later bursts reuse
    for round_number in range(plan.rounds):
        for place in range(len(engines)):
            index = (place + round_number) % len(engines)
            timings[index].bursts_s.append(decode_burst(engines[index], tokens))
            progress.update(plan.burst)
    return timings


def held_bytes(engine: Engine, values_per_token: Optional[int]) -> Optional[int]:
    """Bytes of the tokens that a cache holds: what a decoded token reads of it. None if that is not known."""
    if engine.kv is not None and engine.n_past:  # it is not told of tokens that are removed
        return engine.kv.stats().bytes_used
    if values_per_token is None or engine.n_past == 0:
        return 0 if engine.n_past == 0 else None
    return int(engine.n_past * values_per_token * PLAIN_BITS[engine.spec.name] / 8)


def rows_of(
    specs: Sequence[CacheSpec], timings: Sequence[Timing], depth: int, plan: Plan, weights_bytes: int = 0
) -> list[dict[str, Any]]:
    """What `--json` prints for one depth."""
    reference = timings[[spec.name for spec in specs].index(REFERENCE)]
    rows = []
    for spec, timing in zip(specs, timings):
        ratio, low, high = ratio_with_interval(timing.bursts_s, reference.bursts_s)
        _, prefill_low, prefill_high = ratio_with_interval(timing.slices_s, reference.slices_s)
        decode_tps = plan.burst / float(np.median(timing.bursts_s))
        read = None if timing.kv_bytes is None else weights_bytes + timing.kv_bytes
        rows.append(
            {
                "cache": spec.name,
                "depth": depth,
                "n_prefilled": timing.n_prefilled,
                "prefill_tps": timing.n_prefilled / sum(timing.slices_s),
                "decode_tps": decode_tps,
                "decode_tps_low": plan.burst / float(np.quantile(timing.bursts_s, 0.75)),
                "decode_tps_high": plan.burst / float(np.quantile(timing.bursts_s, 0.25)),
                "ratio_to_f16": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "prefill_ratio_to_f16": sum(reference.slices_s) / sum(timing.slices_s),
                "prefill_ratio_low": prefill_low,
                "prefill_ratio_high": prefill_high,
                "kv_bytes": timing.kv_bytes,
                "bytes_per_token": read,
                "gb_per_s": None if read is None else read * decode_tps / 1e9,
            }
        )
    return rows


def parse_depths(text: str, least: int = 0) -> list[int]:
    """The depths of a comma-separated list, in tokens, none below `least`."""
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = []
    if not depths or min(depths) < least:
        raise ConfigError(f"--depths {text!r} is not a list of token counts from {least} on: say 1024,4096")
    return depths


def check_positive(name: str, value: int) -> int:
    """The value, if it is at least 1."""
    if value < 1:
        raise ConfigError(f"--{name} {value} leaves nothing to measure: give at least 1")
    return value


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Time every cache at every depth and return what `--json` prints."""
    depths = parse_depths(args.depths)
    plan = Plan(
        check_positive("burst", args.burst),
        check_positive("rounds", args.rounds),
        check_positive("ubatch", args.ubatch),
        args.fill,
    )
    if REFERENCE not in [spec.name for spec in specs]:
        specs = parse_caches(REFERENCE) + list(specs)
    check_plots(args.plot)
    rows: list[dict[str, Any]] = []
    bandwidth = copy_gb_per_s(args.threads)
    with Models(args.model, n_threads=args.threads) as models:
        text = models.vocabulary.tokenize(read_text(args.text))
        n_ctx = args.ctx_size or max(max(depths) + plan.burst, SHALLOW_PROMPT)
        engines = [models.open(spec, n_ctx=n_ctx, ubatch=args.ubatch) for spec in specs]
        shape = plan_cache(native_library(), models.file, KVConfig(), n_ctx).shape
        n_values = None if shape is None else shape.n_layer * shape.n_head_kv * (shape.head_dim_k + shape.head_dim_v)
        n_tokens = sum((depth or SHALLOW_PROMPT) + plan.rounds * plan.burst for depth in depths) * len(engines)
        with tqdm(total=n_tokens, unit="tok", desc="timing", disable=None) as progress:
            for depth in depths:
                timings = time_depth(engines, text, depth, plan, progress, n_values)
                rows += rows_of(specs, timings, depth, plan, Path(args.model).stat().st_size)
        n_threads = models.n_threads
    plot.draw(rows, Path(args.model).name, args.plot)
    return {
        "model": args.model,
        "n_ctx": n_ctx,
        "n_threads": n_threads,
        "ubatch": args.ubatch,
        "burst": plan.burst,
        "rounds": plan.rounds,
        "fill": plan.fill,
        "copy_gb_per_s": bandwidth,
        "peak_bytes": peak_bytes(),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [
        f"{'depth':>7}  {'cache':<24}{'prefill t/s':>12}{'of f16':>8}{'decode t/s':>12}{'of f16':>8}  95 % interval"
        f"{'KV MB':>9}{'GB/s':>7}"
    ]
    for row in result["rows"]:
        read = "" if row["gb_per_s"] is None else f"{row['kv_bytes'] / 1e6:>8.1f}{row['gb_per_s']:>7.1f}"
        lines.append(
            f"{row['depth']:>7}  {row['cache']:<24}{row['prefill_tps']:>12.1f}{row['prefill_ratio_to_f16']:>8.3f}"
            f"{row['decode_tps']:>12.1f}{row['ratio_to_f16']:>8.3f}  {row['ratio_low']:.3f} .. {row['ratio_high']:.3f}{read}"
        )
    peak = "" if result["peak_bytes"] is None else f"; this process held at most {result['peak_bytes'] / 1e6:.0f} MB"
    lines.append(f"copies run at {result['copy_gb_per_s']:.1f} GB/s with {result['n_threads']} threads{peak}")
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench` beyond those all measurements share."""
    parser.add_argument(
        "--depths", default="0,4096", metavar="N,N", help="tokens in the cache when decoding is timed (%(default)s)"
    )
    parser.add_argument("--burst", type=int, default=16, metavar="N", help="tokens decoded in one turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of every cache (%(default)s)")
    parser.add_argument(
        "--fill",
        choices=("prefill", "repeat"),
        default="prefill",
        help=f"reach depths beyond {STRETCH} by a prefill, or repeat what a prefill of {STRETCH} left (%(default)s)",
    )
    parser.add_argument("--text", metavar="FILE", help="text to decode (default: the opening of Austen's Persuasion)")
    parser.add_argument(
        "--plot", action="append", default=[], metavar="FILE", help="draw decode speed over depth, as .svg or .png"
    )
    parser.set_defaults(ctx_size=0, ubatch=512, caches="mikv,f16,q8_0,q4_0")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    parser = command.Parser(prog="python -m mikv_cpp.bench", description=(__doc__ or "").partition("\n")[0])
    command.add_arguments(parser, sys.modules[__name__])
    return command.execute(parser, argv)
