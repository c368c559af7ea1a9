"""What a cache has to do in a step, as a function over any cache, so that a broken one can be tried too."""

from __future__ import annotations

from dataclasses import replace
from typing import Optional

import numpy as np
from bounds import Visible, attention_bound
from scenes import Scene

from mikv_cpp.reference import codec, transform
from mikv_cpp.reference.cache import Step
from mikv_cpp.reference.layout import leading_groups


def check_step(cache, layer: int, step: Step, kernel: str, name: str = "", drift: float = 0.0) -> np.ndarray:
    """Runs a step and holds its output against float64 attention; returns the output.

    Which rows are refined does not matter: what the cache believes of its committed rows is read back from it, and
    the step's own rows replace their cells', exactly. drift: see bounds.py.
    """
    before = [replace(visible_rows(cache, layer, step, i), drift=drift) for i in range(step.cells.shape[0])]
    balancers = [balancer(cache, layer, step, i) for i in range(step.cells.shape[0])]
    out = np.asarray(cache.step(layer, step))
    for i, rows in enumerate(before):
        want, bound = in_cache_space(cache.config, step, i, rows, balancers[i], kernel)
        excess = np.abs(out[i] - want) - bound
        excess = np.where(np.isfinite(out[i]), excess, np.inf)
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        assert excess[worst] <= 0, (
            f"{name}: stream {i}, token {worst[0]}, head {worst[1]}, value {worst[2]}: {out[i][worst]!r}, should be "
            f"{want[worst]!r} within {bound[worst]:.3g} ({(excess > 0).mean():.1%} of the values are off)"
        )
    return out


def balancer(cache, layer: int, step: Step, i: int) -> Optional[list[transform.Settled]]:
    """What the KV heads of the step's i-th stream settled on, [n_head_kv], or None; noted beside the cache when decided."""
    place, noted = (layer, step.first_stream + i), vars(cache).setdefault("balancers", {})
    n, n_head_kv = step.k[i].shape[:2]
    if not cache.precision(*place).any():
        noted[place] = None
        if cache.config.balance != "off" and n >= transform.ENOUGH_TOKENS:
            q = step.q[i].reshape(n, n_head_kv, -1, step.q.shape[-1])
            noted[place] = [
                transform.settle(cache.config.balance, q[:, h].reshape(-1, q.shape[-1]), step.k[i][:, h])
                for h in range(n_head_kv)
            ]
    return noted.get(place)


def in_cache_space(
    config, step: Step, i: int, rows: Visible, b: Optional[list[transform.Settled]], kernel: str
) -> tuple[np.ndarray, np.ndarray]:
    """Output and bound, as attention_bound in the cache's space says, back in the model's (bounds.py, point 7)."""
    dim_k, dim_v = rows.k.shape[-1], rows.v.shape[-1]
    if b is None and not config.rotate and dim_k % 32 == 0 and dim_v % 32 == 0:
        return attention_bound(step, i, rows, kernel)
    group = codec.resolve_group((dim_k, dim_v), 32 if config.lead_share and not config.group else config.group)
    lead = leading_groups(config, transform.row_dim(dim_k), group) * group
    per_head = step.q.shape[2] // step.k.shape[2]
    q = np.zeros((*step.q.shape[:3], transform.row_dim(dim_k)))
    q[i] = transform.enter_query(step.q[i], config.rotate, None if b is None else transform.stacked(b, per_head), lead)
    inside = replace(
        rows,
        k=transform.enter(rows.k, config.rotate, None if b is None else transform.stacked(b), lead),
        v=transform.enter(rows.v, config.rotate),
        passes=np.log2(max(q.shape[-1], transform.row_dim(dim_v))) + 3 + (dim_k if config.balance == "basis" else 0),
    )
    want, bound = attention_bound(replace(step, q=q), i, inside, kernel)
    spread = np.abs(transform.hadamard(want.shape[-1])) if config.rotate else np.eye(want.shape[-1])
    return transform.leave(want, dim_v, config.rotate), (bound @ spread)[..., :dim_v]


def visible_rows(cache, layer: int, step: Step, i: int) -> Visible:
    """What the step's i-th stream shows: committed rows as they read back, the step's own rows exactly."""
    stream, n_kv = step.first_stream + i, step.mask.shape[-1]
    k = cache.read(layer, 0, stream, 0, n_kv)
    v = cache.read(layer, 1, stream, 0, n_kv)
    bits = cache.precision(layer, stream)[:, :n_kv]
    k[bits.T == 0], v[bits.T == 0] = np.nan, np.nan  # nobody may look at these
    packed = (bits > 0) & (bits < 16)
    inside = step.cells[i] < n_kv
    own = step.cells[i][inside]
    k[own], v[own], packed[:, own] = step.k[i][inside], step.v[i][inside], False
    dropped = bits == 0
    dropped[:, own] = False
    config = cache.config
    group = codec.resolve_group((k.shape[-1], v.shape[-1]), 32 if config.lead_share and not config.group else config.group)
    return Visible(k, v, packed, group, cache.config.center_keys, dropped=dropped)


def check_scene(cache, scene: Scene, batches: tuple[int, ...], kernel: str, name: str = "") -> None:
    """Micro-batches of one sequence, each one checked."""
    for n in batches:
        check_step(cache, 0, scene.step([0] * n), kernel, name)
