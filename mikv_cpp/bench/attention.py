"""Attention alone, for each kernel set: one query token of one layer, without a model around it.

Ours is the whole step of a decoded token as llama.cpp's scheduler runs it: its row stored, attention, scores, selection,
commit. llama.cpp's is its FLASH_ATTN_EXT without the storing. Both run on ggml's own threads. All take turns, as in
`mikv_cpp.bench.decode`. Rows are normal random numbers, so that attention is spread over all tokens: nothing can be skipped.
Refined rows lie scattered over the whole context (`mikv_cpp.bench.fill`).
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional, Protocol

import numpy as np
from numpy.typing import NDArray

from mikv_cpp.bench.decode import check_positive, parse_depths
from mikv_cpp.bench.fill import store_scattered
from mikv_cpp.bench.machine import copy_gb_per_s
from mikv_cpp.bench.node import LayerNode
from mikv_cpp.bench.ratio import ratio_with_interval
from mikv_cpp.bench.upstream import UpstreamAttention
from mikv_cpp.caches import CacheSpec, parse_caches
from mikv_cpp.config import KVConfig
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval import command
from mikv_cpp.native import Library, Shape
from mikv_cpp.plugin import native_library, silence_log

REFERENCE = "f16"
PADDING = 256  # attention looks at a multiple of so many cells, as llama.cpp has it
_SHAPE = re.compile(r"(\d+)x(\d+)x(\d+)")


@dataclass(frozen=True)
class Heads:
    """A layer's shape: head size, KV heads, and query heads of each."""

    head_dim: int
    n_head_kv: int
    group: int

    @property
    def n_head(self) -> int:
        """Query heads."""
        return self.n_head_kv * self.group

    def __str__(self) -> str:
        return f"{self.head_dim}x{self.n_head_kv}x{self.group}"


def parse_heads(text: str) -> list[Heads]:
    """The shapes of a comma-separated list. Raises ConfigError."""
    matches = [_SHAPE.fullmatch(part) for part in text.split(",")]
    heads = [Heads(*map(int, match.groups())) for match in matches if match]
    if len(heads) < len(matches) or any(h.head_dim % 32 or not h.head_dim or not h.n_head for h in heads):
        raise ConfigError(f"--heads {text!r} cannot be used: say 128x2x6, a head size in multiples of 32, KV heads, group")
    return heads


class Attention(Protocol):
    """A cache at some depth."""

    size_bytes: int  # that one step reads of keys and values

    def burst(self, n: int) -> None:
        """Attend for n tokens, one after another, and be as before."""

    def close(self) -> None:
        """Free it."""


class Upstream:
    """llama.cpp's, with a cache of one of its types."""

    def __init__(self, name: str, rows: Rows, n_threads: int) -> None:
        self._attention = UpstreamAttention(name, rows.k, rows.v, rows.q, n_threads)
        self.size_bytes = self._attention.size_bytes
        self.close = self._attention.close

    def burst(self, n: int) -> None:
        """See Attention."""
        for _ in range(n):
            self._attention.step()


@dataclass(frozen=True)
class Rows:
    """What attention works on: k, v float32 [depth, n_head_kv, head_dim], q float32 [n_head, head_dim]."""

    k: NDArray[np.float32]
    v: NDArray[np.float32]
    q: NDArray[np.float32]

    @classmethod
    def random(cls, heads: Heads, depth: int) -> Rows:
        """Normal random numbers, logits of standard deviation 1."""
        draw = np.random.default_rng(depth)
        k, v = (draw.standard_normal((depth, heads.n_head_kv, heads.head_dim), np.float32) for _ in range(2))
        return cls(k, v, draw.standard_normal((heads.n_head, heads.head_dim), np.float32))


class Own:
    """A MIKV cache of one layer, on one kernel set."""

    def __init__(self, config: KVConfig, kernel: str, heads: Heads, rows: Rows, n_threads: int, room: int) -> None:
        self._library: Library = native_library()
        self._kernel, self._depth = kernel, len(rows.k)
        n_cells = -(-(self._depth + room) // PADDING) * PADDING
        shape = Shape(1, heads.n_head_kv, n_cells, 1, heads.head_dim, heads.head_dim)
        self._node = LayerNode(config, shape, heads.n_head, n_threads)
        self._library.select_kernel(kernel)
        store_scattered(self._library, self._node.cache_id, 0, shape, (rows.k, rows.v), self._depth)
        self.size_bytes = int(self._library.stats(self._node.cache_id)["bytes_used"])
        self._node.q[:] = rows.q
        self._node.k[:], self._node.v[:] = rows.k[0].ravel(), rows.v[0].ravel()
        self._node.mask[:] = -np.inf
        self._node.mask[: self._depth] = 0

    def burst(self, n: int) -> None:
        """See Attention."""
        self._library.select_kernel(self._kernel)
        for cell in range(self._depth, self._depth + n):
            self._node.cell[0] = cell
            self._node.mask[cell] = 0
            self._node.step()
        self._node.mask[self._depth :] = -np.inf

    def result(self) -> NDArray[np.float32]:
        """What the last token got: [n_head, head_dim]."""
        return np.array(self._node.out)

    def close(self) -> None:
        """Free the cache."""
        self._node.close()


@dataclass
class Contender:
    """One cache, on one kernel set, and the seconds its bursts took."""

    cache: str
    kernel: str  # "" for llama.cpp's own
    attention: Attention
    bursts_s: list[float] = field(default_factory=list)


def contenders(specs: Sequence[CacheSpec], kernels: Sequence[str], heads: Heads, depth: int, args: Any) -> list[Contender]:
    """Every cache at this depth, ours once for each kernel set."""
    rows = Rows.random(heads, depth)
    made: list[Contender] = []
    for spec in specs:
        if spec.config is None:
            made.append(Contender(spec.name, "", Upstream(spec.name, rows, args.threads)))
            continue
        for kernel in kernels:
            own = Own(spec.config, kernel, heads, rows, args.threads, args.burst)
            made.append(Contender(spec.name, kernel, own))
    return made


def time_bursts(all_of_them: Sequence[Contender], burst: int, rounds: int) -> None:
    """Let them take turns, each round in another order."""
    for contender in all_of_them:
        contender.attention.burst(burst)  # untimed: first touches
    for round_number in range(rounds):
        for place in range(len(all_of_them)):
            contender = all_of_them[(place + round_number) % len(all_of_them)]
            began = time.perf_counter()
            contender.attention.burst(burst)
            contender.bursts_s.append(time.perf_counter() - began)


def rows_of(all_of_them: Sequence[Contender], heads: Heads, depth: int, burst: int) -> list[dict[str, Any]]:
    """What `--json` prints of one shape and depth."""
    reference = next(c for c in all_of_them if c.cache == REFERENCE)
    rows = []
    for contender in all_of_them:
        ratio, low, high = ratio_with_interval(contender.bursts_s, reference.bursts_s)
        step_s = float(np.median(contender.bursts_s)) / burst
        rows.append(
            {
                "heads": str(heads),
                "depth": depth,
                "cache": contender.cache,
                "kernel": contender.kernel,
                "step_us": step_s * 1e6,
                "bytes_read": contender.attention.size_bytes,
                "gb_per_s": contender.attention.size_bytes / step_s / 1e9,
                "ratio_to_f16": ratio,
                "ratio_low": low,
                "ratio_high": high,
            }
        )
    return rows


def chosen_kernels(library: Library, text: str) -> list[str]:
    """The kernel sets that `--kernels` names."""
    if text in ("auto", "all"):
        return [library.kernel()] if text == "auto" else library.kernels()
    return text.split(",")


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Time attention for every shape and depth; what `--json` prints."""
    silence_log()
    library = native_library()
    chosen, shapes, depths = library.kernel(), parse_heads(args.heads), parse_depths(args.depths, least=1)
    kernels = chosen_kernels(library, args.kernels)
    check_positive("burst", args.burst), check_positive("rounds", args.rounds)
    if REFERENCE not in [spec.name for spec in specs]:
        specs = parse_caches(REFERENCE) + list(specs)
    bandwidth = copy_gb_per_s(args.threads)
    rows: list[dict[str, Any]] = []
    try:
        for heads in shapes:
            for depth in depths:
                made = contenders(specs, kernels, heads, depth, args)
                time_bursts(made, args.burst, args.rounds)
                rows += rows_of(made, heads, depth, args.burst)
                for contender in made:
                    contender.attention.close()
    finally:
        library.select_kernel(chosen)
    return {"n_threads": args.threads, "burst": args.burst, "rounds": args.rounds, "copy_gb_per_s": bandwidth, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [f"{'heads':>10}{'depth':>8}  {'cache':<16}{'kernels':<9}{'us a step':>10}{'GB/s':>7}{'of f16':>8}  95 % interval"]
    lines += [
        f"{row['heads']:>10}{row['depth']:>8}  {row['cache']:<16}{row['kernel']:<9}{row['step_us']:>10.1f}"
        f"{row['gb_per_s']:>7.2f}{row['ratio_to_f16']:>8.2f}  {row['ratio_low']:.2f} .. {row['ratio_high']:.2f}"
        for row in result["rows"]
    ]
    lines.append(f"copies run at {result['copy_gb_per_s']:.1f} GB/s with {result['n_threads']} threads")
    return "\n".join(lines)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    parser = command.Parser(prog="python -m mikv_cpp.bench attention", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--heads",
        default="128x2x6,64x3x3",
        metavar="LIST",
        help="shapes of a layer: head size x KV heads x query heads of each (%(default)s)",
    )
    parser.add_argument("--depths", default="4096,32768", metavar="N,N", help="tokens in the cache (%(default)s)")
    parser.add_argument("--kernels", default="auto", metavar="LIST", help='kernel sets, or "all" (default: the fastest)')
    parser.add_argument("--kv", "--caches", dest="caches", default="mikv,f16", metavar="LIST", help=command.CACHES_HELP)
    parser.add_argument("-t", "--threads", type=int, default=0, metavar="N", help="0: every processor this process may use")
    parser.add_argument("--burst", type=int, default=20, metavar="N", help="steps in one turn (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of every cache (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    command.add_fields(parser)
    parser.set_defaults(run=run, table=table)
    return command.execute(parser, argv)
