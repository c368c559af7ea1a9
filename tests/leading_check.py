"""What leading channels and their order have to do: native rows read back, value for value, as the definition has them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scenes import Scene, View

from mikv_cpp.reference.cache import ReferenceCache
from mikv_cpp.reference.layout import Config, Shape

SHAPE = Shape(n_head_kv=2, n_cells=120, head_dim_k=128, head_dim_v=64)
#: Nothing that rounds in another way on either side: neither rotated nor centred.
EXACT = Config(2, 3, 8, refined_share=0.3, policy="recent", lead_share=0.25, center_keys=False)


def check_leading(cache, config: Config) -> None:
    """Rows of a few micro-batches, refined and not, against the reference's; one rounding of the largest number apart."""
    reference, scene = ReferenceCache(config, SHAPE), Scene(SHAPE, View(gqa=2, k_offset=0.0))
    reach = np.random.default_rng(5).lognormal(0, 1, SHAPE.head_dim_k).astype(np.float32)
    for n in (60, 1, 9, 30):
        step = scene.step([0] * n)
        step = replace(step, k=(step.k * reach).astype(np.float16).astype(np.float32))
        cache.step(0, step)
        reference.step(0, step)
    for value in (0, 1):
        got, want = cache.read(0, value, 0, 0, 100), reference.read(0, value, 0, 0, 100)
        apart = np.abs(got - want) > 4 * np.spacing(np.abs(want).max())
        assert not apart.any(), f"{'values' if value else 'keys'} read back otherwise: {apart.mean():.1%} of them"
