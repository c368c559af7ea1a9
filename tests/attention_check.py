"""What a cache has to do in a step, as a function over any cache, so that a broken one can be tried too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from bounds import Visible, attention_bound
from scenes import Scene

from mikv_cpp.reference import codec
from mikv_cpp.reference.cache import Step


def check_step(cache, layer: int, step: Step, kernel: str, name: str = "", drift: float = 0.0) -> np.ndarray:
    """Runs a step and holds its output against float64 attention; returns the output.

    Which rows are refined does not matter: what the cache believes of its committed rows is read back from it, and
    the step's own rows replace their cells', exactly. drift: see bounds.py.
    """
    before = [replace(visible_rows(cache, layer, step, i), drift=drift) for i in range(step.cells.shape[0])]
    out = np.asarray(cache.step(layer, step))
    for i, rows in enumerate(before):
        want, bound = attention_bound(step, i, rows, kernel)
        excess = np.abs(out[i] - want) - bound
        excess = np.where(np.isfinite(out[i]), excess, np.inf)
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        assert excess[worst] <= 0, (
            f"{name}: stream {i}, token {worst[0]}, head {worst[1]}, value {worst[2]}: {out[i][worst]!r}, should be "
            f"{want[worst]!r} within {bound[worst]:.3g} ({(excess > 0).mean():.1%} of the values are off)"
        )
    return out


def visible_rows(cache, layer: int, step: Step, i: int) -> Visible:
    """What the step's i-th stream shows: committed rows as they read back, the step's own rows exactly."""
    stream, n_kv = step.first_stream + i, step.mask.shape[-1]
    k = cache.read(layer, 0, stream, 0, n_kv)
    v = cache.read(layer, 1, stream, 0, n_kv)
    bits = cache.precision(layer, stream)[:, :n_kv]
    k[bits[0] == 0], v[bits[0] == 0] = np.nan, np.nan  # nobody may look at these
    packed = (bits > 0) & (bits < 16)
    inside = step.cells[i] < n_kv
    own = step.cells[i][inside]
    k[own], v[own], packed[:, own] = step.k[i][inside], step.v[i][inside], False
    group = codec.resolve_group((k.shape[-1], v.shape[-1]), cache.config.group)
    return Visible(k, v, packed, group, cache.config.center_keys)


def check_scene(cache, scene: Scene, batches: tuple[int, ...], kernel: str, name: str = "") -> None:
    """Micro-batches of one sequence, each one checked."""
    for n in batches:
        check_step(cache, 0, scene.step([0] * n), kernel, name)
