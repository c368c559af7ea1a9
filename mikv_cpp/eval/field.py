"""The methods of the field side by side at the same true bytes: KL divergence, retrieval, decode speed, memory.

Every cache of the list is given --bits for each value, metadata and all, and spends them its own way: a method that drops
tokens on how many it keeps, one that keeps them all on how many it refines. A budget sets memory aside for micro-batches of 512
tokens; what smaller ones leave of it is given back to the method, so that what it really takes is what was asked for. A method
whose base alone takes more is left out, and the result says so; llama.cpp's own types have the bits that they have.
docs/methods.md says what each method is.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from mikv_cpp.bench.decode import Plan, time_depth
from mikv_cpp.bench.ratio import ratio_with_interval
from mikv_cpp.caches import CacheSpec
from mikv_cpp.config import PRESETS
from mikv_cpp.engine import Engine, Models
from mikv_cpp.errors import BudgetError, ConfigError
from mikv_cpp.eval import lines, methods_plot, passages, plot
from mikv_cpp.eval.archive import Archive, open_archive
from mikv_cpp.eval.command import add_keep
from mikv_cpp.eval.footprint import Footprint, size_text
from mikv_cpp.eval.identity import identify_cache, identify_model
from mikv_cpp.eval.retrieval import Group, Interview
from mikv_cpp.eval.scoring import F16, study
from mikv_cpp.eval.texts import read_text

BURST = 8  # tokens decoded in one turn
ROUNDS = 9  # turns of a cache, and of f16 beside it
TOLERANCE = 0.05  # bits by which a method may miss what it was given
MOST_BITS = 16.0  # what a budget may be
ANSWER = 24  # tokens of an answer, at most


@dataclass(frozen=True)
class Entry:
    """A method at a number of bits. spec: its name in the study is METHOD@BITS; of llama.cpp's own types just the type."""

    method: str
    spec: CacheSpec
    bits: float = 0.0  # of each value; 0 for llama.cpp's own types

    def given(self, bits: float) -> Entry:
        """The entry with a budget of so many bits for each value."""
        assert self.spec.config is not None
        config = dataclasses.replace(self.spec.config, budget=f"{100 * bits / 16:.4f}%")
        return dataclasses.replace(self, spec=CacheSpec(self.spec.name, config))


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
    parser.add_argument(
        "--questions",
        type=int,
        default=1,
        metavar="N",
        help="of them those that share a list, which is read once (%(default)s)",
    )
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
        entries += [Entry(spec.name, CacheSpec(f"{spec.name}@{one:g}", spec.config), one).given(one) for one in bits]
    return entries


def within_bits(
    models: Models, args: argparse.Namespace, entries: Sequence[Entry], n_ctx: int, archive: Archive
) -> tuple[list[Entry], list[dict[str, str]]]:
    """The entries that a context of n_ctx tokens can hold, each with the budget that comes to its bits; the others and why."""
    kept, left_out = [], []
    for entry in tqdm(entries, unit="cache", desc="fitting", leave=False, disable=None):
        try:
            kept.append(entry if entry.spec.config is None else known_budget(models, args.ubatch, entry, n_ctx, archive))
        except BudgetError as error:  # noqa: PERF203 - each entry has its own
            left_out.append({"cache": entry.spec.name, "n_ctx": str(n_ctx), "reason": str(error)})
    return kept, left_out


def known_budget(models: Models, ubatch: int, entry: Entry, n_ctx: int, archive: Archive) -> Entry:
    """The entry as fit_budget makes it; the budget is kept in the archive."""
    key = {"model": identify_model(models.file.path), "cache": identify_cache(entry.spec), "n_ctx": n_ctx, "ubatch": ubatch}
    found = archive.load("budget", key)
    if found is None:
        found = {"bits": np.asarray([fit_budget(models, ubatch, entry, n_ctx)])}
        archive.save("budget", key, found)
    return entry.given(float(found["bits"][0]))


def fit_budget(models: Models, ubatch: int, entry: Entry, n_ctx: int) -> float:
    """The budget, in bits for each value, for which the entry's cache takes entry.bits.

    Raises:
        BudgetError: the method takes more than that whatever it leaves.
    """
    low, high, given, step = 0.0, MOST_BITS, entry.bits, 0.25  # too little; enough
    refused = BudgetError(f"{entry.spec.name} cannot be brought to {entry.bits:g} bits for each value")
    for _ in range(12):
        try:
            surplus = true_bits(models, ubatch, entry.given(given).spec, n_ctx) - entry.bits
        except BudgetError as error:  # perhaps for what is set aside for micro-batches alone
            low, refused = given, error
            given, step = min(given + step, (low + high) / 2), 2 * step
            continue
        if abs(surplus) <= TOLERANCE or (surplus < 0 and given >= MOST_BITS):
            return given
        if surplus > given - low:  # even with the least budget
            raise refused
        high = given if surplus > 0 else high
        given = min(MOST_BITS, max(given - surplus, (low + given) / 2))
    raise refused


def true_bits(models: Models, ubatch: int, spec: CacheSpec, n_ctx: int) -> float:
    """Bits for each value that a cache takes once it has met a micro-batch."""
    engine = models.open(spec, n_ctx, ubatch)
    engine.decode(np.resize(models.vocabulary.tokenize(read_text()), min(ubatch, n_ctx)), first_logits=-1)
    bits = Footprint.of(models, engine).bits_per_value
    engine.close()
    return bits


def asking(args: argparse.Namespace) -> argparse.Namespace:
    """The options as `eval lines` has them."""
    own = argparse.Namespace(**{**vars(args), "ctx_size": args.length + ANSWER, "lengths": [args.length]})
    own.prompts_file, own.answer_tokens = None, ANSWER
    return own


def ask(
    models: Models, args: argparse.Namespace, entries: Sequence[Entry], group: Group, archive: Archive
) -> dict[str, dict[str, Any]]:
    """Line retrieval: for each cache its row, as `eval lines` has it."""
    with tqdm(total=len(entries) * args.prompts, unit="prompt", desc="asking", disable=None) as progress:
        interview = Interview(models, asking(args), archive, progress)
        return {entry.spec.name: interview.ask(entry.spec, group) for entry in entries}


def speed(models: Models, args: argparse.Namespace, spec: CacheSpec, archive: Archive) -> dict[str, float]:
    """Decoding behind args.depth tokens, in turns with f16: tokens per second, and the ratio to f16 with its interval."""
    key = {
        "model": identify_model(models.file.path),
        "caches": [identify_cache(one) for one in (spec, CacheSpec(F16))],
        "depth": args.depth,
        "threads": args.threads,
        "ubatch": args.ubatch,
    }
    found = archive.load("pace", key)
    if found is None:
        pair = [models.open(one, args.depth + BURST, args.ubatch) for one in (spec, CacheSpec(F16))]
        own, reference = turns(models, args, pair)
        found = {"own_s": np.asarray(own), "reference_s": np.asarray(reference)}
        archive.save("pace", key, found)
    ratio, low, high = ratio_with_interval(found["own_s"].tolist(), found["reference_s"].tolist())
    return {"decode_tps": BURST / float(np.median(found["own_s"])), "ratio_to_f16": ratio, "ratio_low": low, "ratio_high": high}


def turns(models: Models, args: argparse.Namespace, pair: Sequence[Engine]) -> tuple[list[float], list[float]]:
    """Seconds of the bursts of two caches that take turns; the caches are closed."""
    text = models.vocabulary.tokenize(read_text())
    with tqdm(
        total=2 * (args.depth + ROUNDS * BURST), unit="tok", desc=pair[0].spec.name, leave=False, disable=None
    ) as progress:
        own, reference = time_depth(pair, text, args.depth, Plan(BURST, ROUNDS, args.ubatch), progress)
    for engine in pair:
        engine.close()
    return own.bursts_s, reference.bursts_s


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Measure every method and return what `--json` prints."""
    plot.check(args.plot)
    for name in ("prompts", "depth"):
        if getattr(args, name) < 0:
            raise ConfigError(f"--{name} {getattr(args, name)} is below 0: give 0 to leave it out")
    with open_archive(args.keep) as archive, Models(args.model, n_threads=args.threads) as models:
        groups = lines.make_groups(asking(args), models.vocabulary) if args.prompts else []  # refused before hours are spent
        entries, left_out = within_bits(models, args, entries_of(specs, args.bits), args.ctx_size, archive)
    result = study(args, [entry.spec for entry in entries]).result(args)
    asked: dict[str, dict[str, Any]] = {}
    speeds: dict[str, dict[str, float]] = {}
    with open_archive(args.keep) as archive, Models(args.model, n_threads=args.threads) as models:
        for group in groups:
            fitted, more = within_bits(models, args, entries, args.length + ANSWER, archive)
            asked, left_out = ask(models, args, [Entry(F16, CacheSpec(F16)), *fitted], group, archive), left_out + more
        if args.depth:
            fitted, more = within_bits(models, args, entries, args.depth + BURST, archive)
            left_out += more
            for entry in tqdm(fitted, unit="cache", desc="timing", disable=None):
                speeds[entry.spec.name] = speed(models, args, entry.spec, archive)
    methods = {entry.spec.name: entry.method for entry in entries}
    rows = [
        {
            **row,
            "method": methods.get(row["cache"], row["cache"]),
            "right": asked.get(row["cache"], {}).get("right"),
            **speeds.get(row["cache"], dict.fromkeys(("decode_tps", "ratio_to_f16", "ratio_low", "ratio_high"))),
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
        f"{'same top':>10}{'lines':>9}{'x f16':>9}"
    ]
    for row in result["rows"]:
        right = "-" if row["right"] is None else f"{row['right']}/{result['n_prompts']}"
        pace = "-" if row["ratio_to_f16"] is None else f"{row['ratio_to_f16']:.2f}"
        lines_of.append(
            f"{row['cache']:<{width}}{row['bits_per_value']:>7.2f}{size_text(row['bytes_total']):>12}{row['mean_kl']:>11.5f}"
            f"{row['mean_kl_error']:>9.5f}{row['kl_999']:>10.4f}{row['same_top']:>10.2%}{right:>9}{pace:>9}"
        )
    lines_of += [f"left out: {row['cache']} in {row['n_ctx']} tokens: {row['reason']}" for row in result["left_out"]]
    return "\n".join([*lines_of, *(f"drawn: {path}" for path in result["plots"])])
