"""What a search found: as JSON, as the [measured] part of a profile, as a table."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mikv_cpp.calibrate.search import Search, Trial
from mikv_cpp.eval.kl import BUILT_IN

SCORES = ("mean_kl", "kl_999", "same_top")


@dataclass(frozen=True)
class Subject:
    """The model, and the options that the search was asked for with."""

    model: str
    model_bytes: int
    options: argparse.Namespace


def result(subject: Subject, search: Search, complete: bool) -> dict[str, Any]:
    """What `--json` prints. complete: whether nothing stopped the search."""
    assert search.best is not None, "the ladder came first"
    options = subject.options
    return {
        "model": subject.model,
        "model_bytes": subject.model_bytes,
        "budget": options.budget,
        "ctx_size": options.ctx_size,
        "text": ", ".join(Path(text).name for text in options.text or []) or BUILT_IN,
        "context": options.context,
        "chunks": options.chunks,
        "best": search.best_name,
        "complete": complete,
        "profile": options.output,
        "config": dataclasses.asdict(search.best.config()),
        "held_out": None if search.held_out is None else search.held_out.to_dict(),
        "trials": [_row(trial) for trial in search.trials],
        "bands": [{"layers": band.name, "k_harm": harm.k, "v_harm": harm.v} for band, harm in search.harms.items()],
    }


def _row(trial: Trial) -> dict[str, Any]:
    scores = trial.scores.summary()
    row = {"stage": trial.stage, "cache": trial.name, "bits_per_value": trial.bits_per_value}
    return {**row, **{name: scores[name] for name in SCORES}}


def measured(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a profile says of where it comes from; figures with four digits."""
    short = {key: [_short(row) for row in found[key]] for key in ("trials", "bands")}
    left_out = ("config", "profile", "held_out", *short)
    return {**{key: value for key, value in found.items() if key not in left_out}, **short}


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


def table(found: Mapping[str, Any]) -> str:
    """The same for people."""
    width = max(len(trial["cache"]) for trial in found["trials"]) + 2
    lines = [f"{'':<10}{'cache':<{width}}{'bits':>6}{'mean KL':>10}{'99.9 %':>9}{'same top':>10}"]
    for trial in found["trials"]:
        bits, mean_kl, kl_999, same_top = (trial[name] for name in ("bits_per_value", *SCORES))
        lines.append(
            f"{trial['stage']:<10}{trial['cache']:<{width}}{bits:>6.2f}{mean_kl:>10.5f}{kl_999:>9.4f}{same_top:>10.2%}"
        )
    if found["bands"]:
        lines += ["", f"{'layers':<10}{'KL added by 2-bit keys':>24}{'2-bit values':>14}"]
        lines += [f"{band['layers']:<10}{band['k_harm']:>24.5f}{band['v_harm']:>14.5f}" for band in found["bands"]]
    if found["held_out"]:
        ratio = found["held_out"]
        lines += [
            "",
            f"by layer over uniform, held out: {ratio['value']:.3f} of its mean KL, 95 % interval "
            f"{ratio['low']:.3f} to {ratio['high']:.3f}",
        ]
    stopped = "" if found["complete"] else " (stopped: the best so far)"
    return "\n".join([*lines, "", f"{found['best']}{stopped}, written: {found['profile']}"])
