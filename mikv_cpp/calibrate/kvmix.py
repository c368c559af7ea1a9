"""KVmix (arXiv 2506.08018): which layers' keys, and which layers' values, deserve more bits; each ranked on its own.

The paper ranks layers by the gradient norms of their key and value projections. Here the importance is what 2-bit keys, or
2-bit values, in one layer alone add to the divergence (forward passes only), or norms that were computed elsewhere: see
scripts/kvmix_gradients.py.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mikv_cpp.config import KVConfig
from mikv_cpp.errors import ConfigError
from mikv_cpp.spread import KVMIX_HIGH, kvmix_row

PRESET = "kvmix"
_FORMS = '{"layers": [{"layer": 0, "s_k": 1.2, "s_v": 0.4}, ...]} as JSON, or CSV with the columns layer, s_k, s_v'


@dataclass(frozen=True)
class Importance:
    """How much the loss depends on a layer's keys and on its values; only the order counts."""

    k: float
    v: float


def high_layers(scores: Mapping[int, float], share: float = KVMIX_HIGH) -> set[int]:
    """The most important share of the layers, at least one; of equals the earlier."""
    n_high = max(1, int(share * len(scores) + 0.5))
    return set(sorted(scores, key=lambda layer: (-scores[layer], layer))[:n_high])


def profile(start: KVConfig, layers: Mapping[int, Importance], share: float = KVMIX_HIGH) -> KVConfig:
    """`start` with the high bits where they are deserved, in place of its spread."""
    k = high_layers({layer: own.k for layer, own in layers.items()}, share)
    v = high_layers({layer: own.v for layer, own in layers.items()}, share)
    rows = [f"{layer}:{kvmix_row(layer in k, layer in v, start.refined_share)}" for layer in sorted(k | v)]
    return replace(start, spread="uniform", layers="").with_layers(rows)


def read_importance(path: str, layers: Iterable[int]) -> dict[int, Importance]:
    """Gradient norms that were computed elsewhere, of these layers.

    Raises:
        ConfigError: the file cannot be read, is neither form, or says nothing of one of the layers.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--gradients {path!r} cannot be read ({error}): give {_FORMS}") from error
    try:
        rows = json.loads(text)["layers"] if path.endswith(".json") else list(csv.DictReader(text.splitlines()))
        found = {int(row["layer"]): Importance(_norm(row["s_k"]), _norm(row["s_v"])) for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"--gradients {path!r} is not understood ({error!r}): give {_FORMS}") from error
    wanted = sorted(layers)
    missing = [layer for layer in wanted if layer not in found]
    if missing:
        raise ConfigError(
            f"--gradients {path!r} says nothing of layer {missing[0]}: it should name {wanted[0]} to {wanted[-1]} of this model"
        )
    return {layer: found[layer] for layer in wanted}


def _norm(value: Any) -> float:
    number = float(value)
    if not 0 <= number < float("inf"):
        raise ValueError(value)
    return number


def table(layers: Mapping[int, Importance], config: KVConfig) -> str:
    """What was found, for people."""
    rows = dict(row.split(":") for row in config.layers.split(","))
    lines = [f"{'layer':<8}{'keys':>12}{'values':>12}  more than K{config.k_bits} V{config.v_bits}"]
    lines += [f"{layer:<8}{own.k:>12.5g}{own.v:>12.5g}  {rows.get(str(layer), '')}" for layer, own in sorted(layers.items())]
    return "\n".join(line.rstrip() for line in lines)
