"""The methods of the field side by side at the same true bytes: KL divergence, retrieval, decode speed, memory.

Every cache of the list is given a budget of --bits for each value, metadata and all, and spends it its own way: a method that
drops tokens on how many it keeps, one that keeps them all on how many it refines. A method whose base alone takes more is left
out, and the result says so; llama.cpp's own types have the bits that they have. docs/methods.md says what each method is.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from tqdm import tqdm

from mikv_cpp.bench.decode import decode_burst
from mikv_cpp.caches import CacheSpec
from mikv_cpp.config import PRESETS
from mikv_cpp.engine import Models
from mikv_cpp.errors import BudgetError, ConfigError
from mikv_cpp.eval import lines, methods_plot, passages, plot
from mikv_cpp.eval.archive import Archive, open_archive
from mikv_cpp.eval.command import add_keep
from mikv_cpp.eval.footprint import size_text
from mikv_cpp.eval.identity import identify_cache, identify_model
from mikv_cpp.eval.retrieval import Interview
from mikv_cpp.eval.scoring import F16, study
from mikv_cpp.eval.texts import read_text
from mikv_cpp.plan import plan_cache
from mikv_cpp.plugin import native_library

BURST = 32  # tokens of one timing
BURSTS = 5


@dataclass(frozen=True)
class Entry:
    """A method at a number of bits. spec: its name in the study is METHOD@BITS; of llama.cpp's own types just the type."""

    method: str
    spec: CacheSpec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval field` beyond those all measurements share."""
    passages.add_arguments(parser)
    add_keep(parser)
    parser.add_argument(
        "--bits",
        type=parse_bits,
        default=[3.0],
        metavar="LIST",
        help="true bits per value that each method may take, separated by commas (3.0)",
    )
    parser.add_argument("--prompts", type=int, default=8, metavar="N", help="retrieval prompts; 0: none (%(default)s)")
    parser.add_argument("--length", type=int, default=500, metavar="N", help="their length in tokens (%(default)s)")
    parser.add_argument(
        "--depth", type=int, default=1024, metavar="N", help="tokens held while decoding is timed; 0: not timed (%(default)s)"
    )
    parser.add_argument(
        "--plot",
        action="append",
        default=[],
        metavar="FILE",
        help="draw mean KL over bits, a line for each method, into a .png or .svg (needs the extra `plots`)",
    )
    parser.set_defaults(ctx_size=2048, ubatch=512, caches=",".join(["q8_0", "q4_0", *PRESETS]))


def parse_bits(text: str) -> list[float]:
    """Bits per value, separated by commas."""
    try:
        bits = [float(part) for part in text.split(",")]
    except ValueError:
        bits = []
    if not bits or not all(0 < one <= 16 for one in bits):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of bits per value such as 2.5,3,4")
    return list(dict.fromkeys(bits))


def entries_of(specs: Sequence[CacheSpec], bits: Sequence[float]) -> list[Entry]:
    """Every method at every number of bits."""
    entries = [Entry(spec.name, spec) for spec in specs if spec.config is None and spec.name != F16]
    for spec in specs:
        if spec.config is None:
            continue
        for one in bits:
            config = dataclasses.replace(spec.config, budget=f"{100 * one / 16:.4f}%")
            entries.append(Entry(spec.name, CacheSpec(f"{spec.name}@{one:g}", config)))
    return entries


def within_budget(models: Models, entries: Sequence[Entry], n_ctx: int) -> tuple[list[Entry], list[dict[str, str]]]:
    """The entries whose budget can be kept in a context of n_ctx tokens; and the others, each with the reason."""
    kept, left_out = [], []
    for entry in entries:
        try:
            if entry.spec.config is not None:
                plan_cache(native_library(), models.file, entry.spec.config, n_ctx)
            kept.append(entry)
        except BudgetError as error:  # noqa: PERF203 - each entry has its own
            left_out.append({"cache": entry.spec.name, "reason": str(error)})
    return kept, left_out


def ask(models: Models, args: argparse.Namespace, entries: Sequence[Entry], archive: Archive) -> dict[str, dict[str, Any]]:
    """Line retrieval: for each cache its row, as `eval lines` has it."""
    own = argparse.Namespace(**{**vars(args), "ctx_size": 0, "questions": 1, "lengths": [args.length], "prompts_file": None})
    own.answer_tokens = 24
    (group,) = lines.make_groups(own, models.vocabulary)
    with tqdm(total=len(entries) * args.prompts, unit="prompt", desc="asking", disable=None) as progress:
        interview = Interview(models, own, archive, progress)
        return {entry.spec.name: interview.ask(entry.spec, group) for entry in entries}


def speed(models: Models, args: argparse.Namespace, spec: CacheSpec, archive: Archive) -> float:
    """Tokens per second, decoded one at a time behind args.depth tokens: the median of BURSTS timings, kept in the archive."""
    key = {
        "model": identify_model(models.file.path),
        "cache": identify_cache(spec),
        "depth": args.depth,
        "threads": args.threads,
        "ubatch": args.ubatch,
    }
    found = archive.load("speed", key)
    if found is None:
        engine = models.open(spec, args.depth + BURST, args.ubatch)
        text = models.vocabulary.tokenize(read_text())
        engine.decode(np.resize(text, args.depth), first_logits=-1)
        burst = np.resize(text, BURST)
        decode_burst(engine, burst)  # untimed: first touches
        found = {"seconds": np.asarray([decode_burst(engine, burst) for _ in range(BURSTS)])}
        engine.close()
        archive.save("speed", key, found)
    return BURST / float(np.median(found["seconds"]))


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Measure every method and return what `--json` prints."""
    plot.check(args.plot)
    for name in ("prompts", "depth"):
        if getattr(args, name) < 0:
            raise ConfigError(f"--{name} {getattr(args, name)} is below 0: give 0 to leave it out")
    with Models(args.model, n_threads=args.threads) as models:
        shortest = min([args.ctx_size, *([args.depth + BURST] if args.depth else []), *([args.length] if args.prompts else [])])
        entries, left_out = within_budget(models, entries_of(specs, args.bits), shortest)
    result = study(args, [entry.spec for entry in entries]).result(args)
    asked: dict[str, dict[str, Any]] = {}
    speeds: dict[str, Optional[float]] = {}
    with open_archive(args.keep) as archive, Models(args.model, n_threads=args.threads) as models:
        everything = [Entry(F16, CacheSpec(F16)), *entries]
        if args.prompts:
            asked = ask(models, args, everything, archive)
        for entry in tqdm(everything if args.depth else [], unit="cache", desc="timing", disable=None):
            speeds[entry.spec.name] = speed(models, args, entry.spec, archive)
    methods = {entry.spec.name: entry.method for entry in entries}
    rows = [
        {
            **row,
            "method": methods.get(row["cache"], row["cache"]),
            "right": asked.get(row["cache"], {}).get("right"),
            "decode_tps": speeds.get(row["cache"]),
        }
        for row in result["rows"]
    ]
    rows.sort(key=lambda row: (round(row["bits_per_value"], 1), row["mean_kl"]))
    methods_plot.draw(rows, f"{result['n_positions']} positions, context {args.ctx_size}", args.plot)
    asked_of = {"bits": args.bits, "n_prompts": args.prompts, "length": args.length, "depth": args.depth}
    return {**result, **asked_of, "rows": rows, "left_out": left_out, "plots": args.plot}


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    width = max(24, *(len(row["cache"]) + 2 for row in result["rows"]))
    lines_of = [
        f"{'cache':<{width}}{'bits':>7}{'size':>12}{'mean KL':>11}{'+-':>9}{'99.9 %':>10}"
        f"{'same top':>10}{'lines':>9}{'tok/s':>9}"
    ]
    for row in result["rows"]:
        right = "-" if row["right"] is None else f"{row['right']}/{result['n_prompts']}"
        pace = "-" if row["decode_tps"] is None else f"{row['decode_tps']:.1f}"
        lines_of.append(
            f"{row['cache']:<{width}}{row['bits_per_value']:>7.2f}{size_text(row['bytes_total']):>12}{row['mean_kl']:>11.5f}"
            f"{row['mean_kl_error']:>9.5f}{row['kl_999']:>10.4f}{row['same_top']:>10.2%}{right:>9}{pace:>9}"
        )
    lines_of += [f"left out: {row['cache']}: {row['reason']}" for row in result["left_out"]]
    return "\n".join([*lines_of, *(f"drawn: {path}" for path in result["plots"])])
