"""What an NVIDIA GPU is hoped to reach, and what `gpu_check.py` measured of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

KL_APART = 0.02  # of the CPU's
Answers = dict[str, dict[str, Any]]  # what the steps printed as JSON, by the step's name


@dataclass
class Bar:
    """One number that is hoped for: at least `least`, at most `most`."""

    name: str
    found: Optional[float]
    least: float = 0.0
    most: Optional[float] = None

    @property
    def verdict(self) -> str:
        """In one word or two."""
        if self.found is None:
            return "not measured"
        good = self.found >= self.least and (self.most is None or self.found <= self.most)
        return "reached" if good else "not reached"


def _row(answers: Answers, step: str, cache: str, depth: int) -> dict[str, Any]:
    rows = answers.get(step, {}).get("rows", [])
    return next((row for row in rows if row["cache"] == cache and row.get("depth") == depth), {})


def _decode(answers: Answers, step: str, depth: int, other: str) -> Optional[float]:
    ours, theirs = (_row(answers, step, cache, depth).get("decode_tps") for cache in ("mikv", other))
    return ours / theirs if ours and theirs else None


def _divergence(answers: Answers, step: str) -> Optional[float]:
    rows = [row for row in answers.get(step, {}).get("rows", []) if row["cache"] == "mikv"]
    return float(rows[0]["mean_kl"]) if rows else None


def _saved(answers: Answers, step: str) -> Optional[float]:
    rows = {row["cache"]: row for row in answers.get(step, {}).get("rows", [])}
    ours, theirs = (rows.get(cache, {}).get("device_delta") for cache in ("mikv", "f16"))
    if ours is None or theirs is None:
        return None
    counted = rows["mikv"]["kv"]["bytes_f16"] - rows["mikv"]["kv"]["bytes_total"]
    return float(theirs - ours) / float(counted)


def bars(answers: Answers, shallow: str, deep: str, attention: str, divergences: tuple[str, str], memory: str) -> list[Bar]:
    """All of them. shallow, deep: the steps that timed decode at 0 and 32k, and at 128k; divergences: CPU's and device's."""
    cpu, gpu = (_divergence(answers, step) for step in divergences)
    return [
        Bar("decode at depth 0, of f16", _decode(answers, shallow, 0, "f16"), 0.95),
        Bar("decode at 32k, of f16", _decode(answers, shallow, 32768, "f16"), 1.2),
        Bar("decode at 32k, of q8_0", _decode(answers, shallow, 32768, "q8_0"), 1.1),
        Bar("decode at 32k, of q4_0", _decode(answers, shallow, 32768, "q4_0"), 1.1),
        Bar("decode at 128k, of f16", _decode(answers, deep, 131072, "f16"), 1.5),
        Bar("prefill of 32k, of f16", _row(answers, shallow, "mikv", 32768).get("prefill_ratio_to_f16"), 0.9),
        Bar("attention at 128k, of the copy bandwidth", answers.get(attention, {}).get("fast_of_copy"), 0.6),
        Bar("device memory saved, of what the byte count says", _saved(answers, memory), 0.9, 1.1),
        Bar("divergence, of the CPU's", gpu / cpu if gpu and cpu else None, 1 - KL_APART, 1 + KL_APART),
    ]
