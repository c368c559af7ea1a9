"""`python -m mikv_cpp.plan model.gguf`: what caches would take, and what fits, without loading the model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Optional

from mikv_cpp import arguments
from mikv_cpp.config import KVConfig, parse_budget
from mikv_cpp.errors import BudgetError, ConfigError, MikvError
from mikv_cpp.loading import find_model
from mikv_cpp.model_file import ModelFile
from mikv_cpp.native import Library
from mikv_cpp.plan import cache_shapes, in_mib, kv_bytes, n_cells, plain_bytes
from mikv_cpp.plan.choice import PLAIN_KL, TIERS, choose, free_bytes, room_for_cache

_DEFAULT_CONTEXT = 32768


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m mikv_cpp.plan`."""
    parser = arguments.Parser(
        prog="python -m mikv_cpp.plan",
        description="What the KV cache of a model would take, preset by preset and context by context, what of it fits, and "
        "the quality to expect. Reads the file's header only.",
        epilog="The exit status is 1 when nothing fits the context that was asked for.",
    )
    arguments.add_model(parser)
    parser.add_argument(
        "-c", "--context", type=int, default=0, metavar="N", help="tokens; 0: the model's own context, at most 32768"
    )
    parser.add_argument(
        "--memory",
        metavar="BYTES",
        help="memory for model and cache, such as 8GiB; default: what is free now, on the GPU if there is one",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; the exit status: 0, 1 if nothing fits, 2 for bad input."""
    try:
        return _plan(build_parser().parse_args(argv))
    except BudgetError as error:
        return _fail(str(error), 1)
    except MikvError as error:
        return _fail(str(error), 2 if isinstance(error, ValueError) else 1)


def _plan(options: argparse.Namespace) -> int:
    memory = _memory(options.memory) if options.memory is not None else None
    if not 0 <= options.context < 2**31:
        raise ConfigError(f"--context {options.context} is not possible: use 0 or more")
    model = find_model(options)
    n_ctx = n_cells(options.context or min(model.n_ctx_train or _DEFAULT_CONTEXT, _DEFAULT_CONTEXT))
    if not cache_shapes(model, n_ctx):
        raise ConfigError(f"model {model.name!r} has a cache of another kind (MLA): its size is not known here")
    from mikv_cpp.plugin import native_library  # noqa: PLC0415 - help and bad options are answered without llama.cpp

    library = native_library()
    memory = memory if memory is not None else _free_bytes()
    table = plan_table(library, model, n_ctx, memory)
    try:
        chosen = choose(library, model, n_ctx, memory)
        table["choice"] = {"preset": chosen.tier.preset, "context": n_ctx, "bytes": chosen.size_bytes}
        closing, status = f"--budget auto takes {chosen.sentence()}", 0
    except BudgetError as error:
        table["choice"] = None
        closing, status = f"error: {error}", 1
    if options.json:
        print(json.dumps(table))
    else:
        print(_as_text(table))
        print(closing, file=sys.stderr if status else sys.stdout)
    return status


def _free_bytes() -> int:
    free = free_bytes()
    if free is None:
        raise ConfigError("how much memory is free is not known on this system: say it with --memory 8GiB")
    return free


def _memory(given: str) -> int:
    size = parse_budget(given).size_bytes
    if size is None:
        raise ConfigError(f"--memory {given} is a share: give bytes, such as 8GiB")
    return size


def plan_table(library: Library, model: ModelFile, n_ctx: int, memory_bytes: int) -> dict[str, Any]:
    """Presets by contexts: bytes, and whether they fit."""
    contexts = sorted({n_cells(max(n_ctx // part, 1)) for part in (8, 4, 2, 1)})
    room = room_for_cache(model, memory_bytes)
    rows: list[dict[str, Any]] = [
        {"cache": "f16", "mean_kl": 0.0, "same_top": 1.0, "bytes": [plain_bytes(model, n) for n in contexts]}
    ]
    for tier in TIERS:
        config = KVConfig.preset(tier.preset)
        sizes = [kv_bytes(library, model, config, n) for n in contexts]
        rows.append({"cache": tier.preset, "mean_kl": tier.mean_kl, "same_top": tier.same_top, "bytes": sizes})
    for row in rows:
        row["fits"] = [size <= room for size in row["bytes"]]
    return {
        "model": model.name,
        "model_bytes": model.size_bytes,
        "memory_bytes": memory_bytes,
        "room_bytes": room,
        "upper_bound": model.windowed_layers is None,
        "contexts": contexts,
        "rows": rows,
    }


def _as_text(table: dict[str, Any]) -> str:
    head = f"{'cache':<12}" + "".join(f"{n:>14,}" for n in table["contexts"]) + f"{'KL to f16':>12}{'same top':>10}"
    lines = [
        f"{table['model']}: {in_mib(table['model_bytes'])}; of {in_mib(table['memory_bytes'])}, "
        f"{in_mib(table['room_bytes'])} are left for the cache (* fits)",
        "",
        head,
    ]
    for row in table["rows"]:
        cells = "".join(f"{in_mib(size) + (' *' if fits else '  '):>14}" for size, fits in zip(row["bytes"], row["fits"]))
        quality = f"{row['mean_kl']:>12.4f}{100 * row['same_top']:>8.1f} %" if row["mean_kl"] else f"{'-':>12}{'-':>10}"
        lines.append(f"{row['cache']:<12}{cells}{quality}")
    plain = ", ".join(f"{name} {kl:.4f}" for name, kl in PLAIN_KL.items())
    lines += ["", f"KL as measured on SmolLM2-135M (docs/quality.md), where llama.cpp's own have {plain}: other models differ."]
    if table["upper_bound"]:
        lines.append("This model has layers with a sliding window, but which is not known here: these are upper bounds.")
    return "\n".join(lines)


def _fail(sentence: str, status: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
