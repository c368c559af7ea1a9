"""Resident memory of a context, cache by cache, each in a fresh process.

The process loads the model and decodes with a short context once, so that the mapped weights are resident, and drops that
context: this is the zero. Then it makes the context under test and fills it. What the resident set has grown by is what the
context costs: cache, compute buffers and logits. How far it had grown at its largest says what was there only for a while. On a
GPU, `device_delta` of the JSON is how much less its driver says is free since then; elsewhere it is null.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from tqdm import tqdm

from mikv_cpp.caches import CacheSpec
from mikv_cpp.config import KVConfig
from mikv_cpp.engine import Engine, Models, Tokens
from mikv_cpp.errors import ConfigError, MikvError
from mikv_cpp.eval.texts import read_text
from mikv_cpp.plan import in_mib
from mikv_cpp.plugin import gpu_free_bytes

STATUS = Path("/proc/self/status")
FORGET_PEAK = Path("/proc/self/clear_refs")  # "5": the largest resident set counts from now on
WARMING = 256  # tokens of the short context


def resident_bytes() -> dict[str, Optional[int]]:
    """This process's resident set: `rss`; `anonymous`, the part that is not mapped files, and `peak`, the largest it has been
    since forget_peak() (both None where only Linux tells).

    Elsewhere `rss` is the largest it has been. Raises MikvError on a system that tells neither.
    """
    if STATUS.exists():
        fields = dict(
            line.split(":", 1) for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines() if ":" in line
        )
        names = {"rss": "VmRSS", "anonymous": "RssAnon", "peak": "VmHWM"}
        return {name: kib_field(fields, field) for name, field in names.items()}
    try:
        import resource  # noqa: PLC0415 -- not there on Windows
    except ImportError as error:
        raise MikvError("this system does not tell a process's resident memory: measure on Linux or macOS") from error
    unit = 1 if sys.platform == "darwin" else 1024
    return {"rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "anonymous": None, "peak": None}


def forget_peak() -> bool:
    """Have the largest resident set count from now on; False where that cannot be."""
    try:
        FORGET_PEAK.write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


def kib_field(fields: dict[str, str], name: str) -> Optional[int]:
    """A field of /proc/self/status such as "  1234 kB", in bytes; None where the kernel does not give it."""
    return int(fields[name].split()[0]) * 1024 if name in fields else None


def return_freed_memory() -> None:
    """Have glibc give freed memory back: it keeps tens of MiB, which the next context would then seem not to take."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def fill(engine: Engine, text: Tokens, n_tokens: int) -> None:
    """Decode n_tokens of text, repeated as needed, with no logits but the last token's."""
    tokens = np.resize(text, n_tokens)
    with tqdm(total=n_tokens, unit="tok", desc=f"filling {engine.spec.name}", disable=None) as progress:
        for start in range(0, n_tokens, 512):
            part = tokens[start : start + 512]
            engine.decode(part, first_logits=-1)
            progress.update(len(part))


def measure_here(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one cache in this process, which must be fresh."""
    spec = CacheSpec(job["cache"], KVConfig(**job["config"]) if job["config"] else None)
    with Models(job["model"], n_threads=job["threads"]) as models:
        warming = models.open(spec, n_ctx=WARMING, ubatch=job["ubatch"])
        text = models.vocabulary.tokenize(read_text())
        fill(warming, text, WARMING)
        warming.close()
        return_freed_memory()
        loaded, free = resident_bytes(), gpu_free_bytes()
        peak_known = forget_peak()
        engine = models.open(spec, n_ctx=job["n_ctx"], ubatch=job["ubatch"])
        fill(engine, text, job["fill"])
        filled = resident_bytes()
        on_device = difference(free, gpu_free_bytes())
        kv = engine.kv.stats().to_dict() if engine.kv else None
    grown = {name: difference(filled[name], loaded[name]) for name in filled}
    return {
        "cache": spec.name,
        "rss_loaded": loaded["rss"],
        "rss_filled": filled["rss"],
        "rss_delta": grown["rss"],
        "anonymous_delta": grown["anonymous"],
        "peak_delta": difference(filled["peak"], loaded["rss"]) if peak_known else None,
        "device_delta": on_device,
        "kv": kv,
    }


def difference(after: Optional[int], before: Optional[int]) -> Optional[int]:
    """After - before, where both are known."""
    return None if after is None or before is None else after - before


def measure_apart(job: dict[str, Any]) -> dict[str, Any]:
    """Measure one cache in a fresh process; its progress bar and its errors go to this one's stderr."""
    child = subprocess.run(
        [sys.executable, "-m", "mikv_cpp.eval.memory"], input=json.dumps(job), stdout=subprocess.PIPE, text=True, check=False
    )
    if child.returncode != 0:
        raise MikvError(
            f"the process that measured the cache {job['cache']} ended with status {child.returncode}: see its message above"
        )
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval memory` beyond those all measurements share."""
    parser.add_argument(
        "--fill",
        type=int,
        default=2048,
        metavar="N",
        help="tokens to decode before measuring; 0: the whole context (%(default)s)",
    )
    parser.set_defaults(ctx_size=32768, ubatch=512, caches="f16,mikv")


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Measure every cache in its own process and return what `--json` prints."""
    n_fill = args.fill or args.ctx_size
    if not 1 <= n_fill <= args.ctx_size:
        raise ConfigError(f"--fill {args.fill} is not between 1 and the context's {args.ctx_size} tokens (0 fills it)")
    rows = []
    for spec in specs:
        job = {
            "model": args.model,
            "threads": args.threads,
            "cache": spec.name,
            "config": dataclasses.asdict(spec.config) if spec.config else None,
            "n_ctx": args.ctx_size,
            "ubatch": args.ubatch,
            "fill": n_fill,
        }
        rows.append(measure_apart(job))
    base = next((row["rss_delta"] for row in rows if row["cache"] == "f16"), None)
    for row in rows:
        row["ratio_to_f16"] = row["rss_delta"] / base if base else None
    return {"model": args.model, "n_ctx": args.ctx_size, "filled": n_fill, "ubatch": args.ubatch, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    names = ("at its peak", "not mapped", "cache alone", "f16 alone")
    lines = [f"{'cache':<24}{'RSS grown by':>14}{'of f16':>9}" + "".join(f"{name:>14}" for name in names)]
    for row in result["rows"]:
        ratio = "-" if row["ratio_to_f16"] is None else f"{row['ratio_to_f16']:.1%}"
        kv = row["kv"] or {}
        sizes = [row["peak_delta"], row["anonymous_delta"], kv.get("bytes_total"), kv.get("bytes_f16")]
        columns = "".join(f"{'-' if size is None else in_mib(size):>14}" for size in sizes)
        lines.append(f"{row['cache']:<24}{in_mib(row['rss_delta']):>14}{ratio:>9}{columns}")
    return "\n".join(lines)


def main() -> int:
    """The child's side: a job as JSON on stdin, its result on stdout."""
    try:
        sys.stdout.write(json.dumps(measure_here(json.load(sys.stdin))) + "\n")
    except MikvError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
