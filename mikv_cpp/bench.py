"""Speed of caches side by side: `python -m mikv_cpp.bench model.gguf --depths 0,4096`.

All caches are alive at once and take turns: slices of the prompt while prefilling, then rounds of short decode bursts, each
round in another order. What the machine does besides hits all alike, and a cache is compared with f16 within its round. After
each burst its tokens are removed, so every burst starts at the same depth.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mikv_cpp.caches import CacheSpec, parse_caches
from mikv_cpp.engine import Engine, Models, Tokens
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval import command
from mikv_cpp.eval.texts import read_text

SHALLOW_PROMPT = 512  # tokens of prefill timed for depth 0, and removed again
REFERENCE = "f16"


@dataclass
class Timing:
    """Seconds one cache took at one depth: for its prompt in all, and for each decode burst."""

    n_prefilled: int = 0
    prefill_s: float = 0.0
    bursts_s: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What to time at each depth."""

    burst: int  # tokens decoded in one turn
    rounds: int
    slice: int  # tokens prefilled in one turn


def prefill(engines: Sequence[Engine], timings: Sequence[Timing], tokens: Tokens, plan: Plan, progress: Any) -> None:
    """Append tokens to every cache, slice by slice in turns."""
    for start in range(0, len(tokens), plan.slice):
        part = tokens[start : start + plan.slice]
        for engine, timing in zip(engines, timings):
            began = time.perf_counter()
            engine.decode(part, first_logits=-1)
            timing.prefill_s += time.perf_counter() - began
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


def time_depth(engines: Sequence[Engine], text: Tokens, depth: int, plan: Plan, progress: Any) -> list[Timing]:
    """Time all engines at one depth, in tokens."""
    timings = [Timing() for _ in engines]
    for engine in engines:
        engine.clear()
    prefill(engines, timings, np.resize(text, depth or SHALLOW_PROMPT), plan, progress)
    tokens = np.resize(text, plan.burst)
    for engine in engines:
        engine.remove_from(depth)
        decode_burst(engine, tokens)  # untimed: first touches, and the graph that later bursts reuse
    for round_number in range(plan.rounds):
        for place in range(len(engines)):
            index = (place + round_number) % len(engines)
            timings[index].bursts_s.append(decode_burst(engines[index], tokens))
            progress.update(plan.burst)
    return timings


def ratio_with_interval(own_s: Sequence[float], reference_s: Sequence[float]) -> tuple[float, float, float]:
    """Speed relative to the reference, round by round: median, and the 95 % bootstrap interval of that median."""
    ratios: npt.NDArray[np.float64] = np.asarray(reference_s) / np.asarray(own_s)
    draws = np.random.default_rng(0).integers(0, len(ratios), size=(2000, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), (0.025, 0.975))
    return float(np.median(ratios)), float(low), float(high)


def rows_of(specs: Sequence[CacheSpec], timings: Sequence[Timing], depth: int, plan: Plan) -> list[dict[str, Any]]:
    """What `--json` prints for one depth."""
    reference = timings[[spec.name for spec in specs].index(REFERENCE)]
    rows = []
    for spec, timing in zip(specs, timings):
        ratio, low, high = ratio_with_interval(timing.bursts_s, reference.bursts_s)
        rows.append(
            {
                "cache": spec.name,
                "depth": depth,
                "prefill_tps": timing.n_prefilled / timing.prefill_s,
                "decode_tps": plan.burst / float(np.median(timing.bursts_s)),
                "ratio_to_f16": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "prefill_ratio_to_f16": reference.prefill_s / timing.prefill_s,
            }
        )
    return rows


def parse_depths(text: str) -> list[int]:
    """The depths of a comma-separated list, in tokens."""
    try:
        depths = [int(part) for part in text.split(",")]
    except ValueError:
        depths = []
    if not depths or min(depths) < 0:
        raise ConfigError(f"--depths {text!r} is not a list of token counts: say 0,4096")
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
        check_positive("burst", args.burst), check_positive("rounds", args.rounds), check_positive("ubatch", args.ubatch)
    )
    if REFERENCE not in [spec.name for spec in specs]:
        specs = parse_caches(REFERENCE) + list(specs)
    rows: list[dict[str, Any]] = []
    with Models(args.model, n_threads=args.threads) as models:
        text = models.vocabulary.tokenize(read_text(args.text))
        n_ctx = args.ctx_size or max(max(depths) + plan.burst, SHALLOW_PROMPT)
        engines = [models.open(spec, n_ctx=n_ctx, ubatch=args.ubatch) for spec in specs]
        n_tokens = sum((depth or SHALLOW_PROMPT) + plan.rounds * plan.burst for depth in depths) * len(engines)
        with tqdm(total=n_tokens, unit="tok", desc="timing", disable=None) as progress:
            for depth in depths:
                rows += rows_of(specs, time_depth(engines, text, depth, plan, progress), depth, plan)
        n_threads = models.n_threads
    return {
        "model": args.model,
        "n_ctx": n_ctx,
        "n_threads": n_threads,
        "ubatch": args.ubatch,
        "burst": plan.burst,
        "rounds": plan.rounds,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [f"{'depth':>7}  {'cache':<24}{'prefill t/s':>12}{'decode t/s':>12}{'of f16':>9}  95 % interval"]
    lines += [
        f"{row['depth']:>7}  {row['cache']:<24}{row['prefill_tps']:>12.1f}{row['decode_tps']:>12.1f}"
        f"{row['ratio_to_f16']:>9.3f}  {row['ratio_low']:.3f} .. {row['ratio_high']:.3f}"
        for row in result["rows"]
    ]
    return "\n".join(lines)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `bench` beyond those all measurements share."""
    parser.add_argument(
        "--depths", default="0,4096", metavar="N,N", help="tokens in the cache when decoding is timed (%(default)s)"
    )
    parser.add_argument("--burst", type=int, default=16, metavar="N", help="tokens decoded in one turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of every cache (%(default)s)")
    parser.add_argument("--text", metavar="FILE", help="text to decode (default: the opening of Austen's Persuasion)")
    parser.set_defaults(ctx_size=0, ubatch=512, caches="mikv,f16,q8_0,q4_0")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    parser = command.Parser(prog="python -m mikv_cpp.bench", description=(__doc__ or "").partition("\n")[0])
    command.add_arguments(parser, sys.modules[__name__])
    return command.execute(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
