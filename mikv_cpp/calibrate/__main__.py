"""`python -m mikv_cpp.calibrate model.gguf --budget 22%`: the best cache of these bytes for one model, as a profile.

Forward passes on a short text, scored by mean KL divergence to the f16 cache: first combinations of bits, each with the share
of refined tokens that the budget allows; then bits and shares by layer, as what each band of layers costs alone suggests. What
differs by layer is taken only if it also does better on a part of the text that nothing was chosen on. Ctrl-C keeps the best
so far.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from mikv_cpp.arguments import n_threads
from mikv_cpp.caches import CacheSpec
from mikv_cpp.calibrate import kvmix, outcome, rungs
from mikv_cpp.calibrate.runs import Runs
from mikv_cpp.calibrate.search import Search, Terms
from mikv_cpp.calibrate.sizes import Sizes, check_context
from mikv_cpp.config import DEFAULT_PRESET, PROFILE, named_config
from mikv_cpp.engine import Models
from mikv_cpp.errors import ConfigError, MikvError
from mikv_cpp.eval.archive import open_archive
from mikv_cpp.eval.command import Parser, add_keep
from mikv_cpp.plan import n_cells

INTERRUPTED = 130


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = Parser(
        prog="python -m mikv_cpp.calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="GGUF file")
    parser.add_argument(
        "--method",
        choices=("search", "kvmix"),
        default="search",
        help="search: the best cache of the budget; kvmix: bits by layer as KVmix has them (docs/methods.md), without a budget",
    )
    parser.add_argument("--budget", metavar="BYTES", help='bytes of the cache: "22%%" of f16, 1.5GiB, 800MB')
    parser.add_argument(
        "--ctx-size", type=int, default=8192, metavar="N", help="context that the budget is for, in tokens (%(default)s)"
    )
    parser.add_argument("-o", "--output", default="profile.toml", metavar="FILE", help="the profile (%(default)s)")
    parser.add_argument(
        "--bands", type=int, default=12, metavar="N", help="neighbouring layers are tried together, N times (%(default)s)"
    )
    parser.add_argument(
        "--kv",
        metavar="NAME",
        help=f"preset or profile whose policy, sinks and window are kept ({DEFAULT_PRESET}; for kvmix, {kvmix.PRESET})",
    )
    parser.add_argument(
        "--gradients", metavar="FILE", help="kvmix: gradient norms by layer, JSON or CSV, in place of measuring anything"
    )
    group = parser.add_argument_group("what is measured")
    group.add_argument("--text", action="append", metavar="FILE", help="in UTF-8 (default: the opening of Austen's Persuasion)")
    group.add_argument("-c", "--context", type=int, default=1024, metavar="N", help="tokens read at a time (%(default)s)")
    group.add_argument(
        "--chunks",
        type=int,
        default=1,
        metavar="N",
        help="chunks of -c tokens of each text to choose on, and as many held out (%(default)s)",
    )
    group.add_argument("-ub", "--ubatch", type=int, default=128, metavar="N", help="tokens in a micro-batch (%(default)s)")
    group.add_argument("-t", "--threads", type=int, default=0, metavar="N", help="0: every processor this process may use")
    add_keep(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; the exit status: 0, 1 if it failed, 2 for bad input, 130 after Ctrl-C."""
    try:
        return calibrate(build_parser().parse_args(argv))
    except MikvError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return INTERRUPTED


def check(args: argparse.Namespace) -> None:
    """Refuse what would fail only when all was measured.

    Raises:
        ConfigError: such an option.
    """
    check_context(args.ctx_size)
    if args.method == "kvmix" and args.budget:
        raise ConfigError("--method kvmix has its own number of bits: leave --budget out")
    if args.method == "search" and not args.budget:
        raise ConfigError("nothing says what the cache may take: give --budget, such as --budget 22%")
    if args.gradients and args.method != "kvmix":
        raise ConfigError(f"--gradients {args.gradients!r} ranks layers for KVmix: add --method kvmix")
    args.kv = args.kv or (kvmix.PRESET if args.method == "kvmix" else DEFAULT_PRESET)
    for name in ("bands", "chunks", "ubatch"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)} leaves nothing to measure: give at least 1")
    output = Path(args.output)
    if output.suffix != PROFILE or not output.parent.is_dir():
        raise ConfigError(f"-o {args.output!r} is no profile: name a file that ends in {PROFILE}, in a folder that is there")


def calibrate(args: argparse.Namespace) -> int:
    """Search, print what was tried, write the profile; the exit status."""
    check(args)
    if args.method == "kvmix":
        return rank_layers(args)
    start = named_config(args.kv)
    with open_archive(args.keep) as archive, Models(args.model, n_threads=n_threads(args)) as models:
        archive.keeps_tables = True  # the same reference serves every trial
        sizes = sizes_of(models, args)
        terms = Terms(
            start,
            sizes.bytes_of,
            sizes.bits_of,
            sizes.budget_bytes(args.budget, rungs.smallest(start)),
            sizes.n_ctx,
            n_cells(args.context),
        )
        with tqdm(total=0, unit="tok", desc="calibrating", disable=None) as progress:
            search = Search(terms, Runs(models, args, archive, progress), sizes.bands(args.bands, start))
            complete = run(search)
        named = outcome.Subject(models.file.name, models.file.size_bytes, args)
    if search.best is None:
        return INTERRUPTED
    result = outcome.result(named, search, complete)
    search.best.config().save(args.output, outcome.measured(result))
    sys.stdout.write((json.dumps(result) if args.json else outcome.table(result)) + "\n")
    return 0 if complete else INTERRUPTED


def rank_layers(args: argparse.Namespace) -> int:
    """KVmix: rank the layers, write the profile; the exit status."""
    start = named_config(args.kv)
    with open_archive(args.keep) as archive, Models(args.model, n_threads=n_threads(args)) as models:
        archive.keeps_tables = True
        sizes = sizes_of(models, args)
        if args.gradients:
            found = kvmix.read_importance(args.gradients, sizes.layers)
        else:
            with tqdm(total=0, unit="tok", desc="calibrating", disable=None) as progress:
                terms = Terms(start, sizes.bytes_of, sizes.bits_of, 0, sizes.n_ctx, n_cells(args.context))
                search = Search(terms, Runs(models, args, archive, progress), sizes.bands(len(sizes.layers), start))
                search.find_harms()
            found = {band.layers[0]: kvmix.Importance(harm.k, harm.v) for band, harm in search.harms.items()}
        name = models.file.name
    config = kvmix.profile(start, found)
    rows = [{"layer": layer, "s_k": own.k, "s_v": own.v} for layer, own in sorted(found.items())]
    config.save(args.output, {"model": name, "method": "kvmix", "from": args.gradients or "divergence", "layers": rows})
    said = json.dumps({"model": name, "profile": args.output, "layers": rows, "config": dataclasses.asdict(config)})
    sys.stdout.write(said + "\n" if args.json else f"{kvmix.table(found, config)}\n\nkvmix, written: {args.output}\n")
    return 0


def run(search: Search) -> bool:
    """Search until the end (True) or Ctrl-C (False)."""
    try:
        search.run()
    except KeyboardInterrupt:
        return False
    return True


def sizes_of(models: Models, args: argparse.Namespace) -> Sizes:
    """What the model's caches are, learnt from a context of the length that is measured."""
    engine = models.open(CacheSpec("smallest", rungs.smallest(named_config(args.kv)).config()), args.context, args.ubatch)
    try:
        return Sizes.of(models.file, engine, args.ctx_size)
    finally:
        engine.close()


if __name__ == "__main__":
    raise SystemExit(main())
