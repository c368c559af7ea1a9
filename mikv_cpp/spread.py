"""How refined tokens are spread over the layers: rows for KVConfig's `layers`, from the number of layers and the mean share.

Another way is a function here and its row in SPREADS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

ENDS = 2  # layers at each end that "ends" protects
PYRAMID_BETA = 20.0  # mean share over the last layer's (PyramidKV, arXiv 2406.02069)
KVMIX_HIGH = 0.2  # share of layers with more bits (KVmix, arXiv 2506.08018, section 4: the best trade-off)
_MOST = 0.9999  # with a budget, a share of 1 would be kept whatever it costs


def uniform(_n_layer: int, _share: float) -> list[str]:
    """The same share everywhere: no rows."""
    return []


def ends(n_layer: int, share: float) -> list[str]:
    """The first and last two layers wholly at 8 bits; the others share what is left of the mean, as far as anything is."""
    if n_layer <= 2 * ENDS:
        return [f"{layer}:k4v4r8s1" for layer in range(n_layer)]
    left = max(0.0, (share * n_layer - 2 * ENDS) / (n_layer - 2 * ENDS))
    inner = range(ENDS, n_layer - ENDS)
    return [f"{layer}:s{left:.4f}" if layer in inner else f"{layer}:k4v4r8s1" for layer in range(n_layer)]


def pyramid(n_layer: int, share: float) -> list[str]:
    """Shares that fall linearly from the first layer to the last, their mean kept (PyramidKV's budgets, section 3.2).

    The paper's last layer has 1 / PYRAMID_BETA of the mean; here more, where the first would need more than all tokens.
    """
    first = max(share, min((2 - 1 / PYRAMID_BETA) * share, _MOST))
    step = 2 * (share - first) / max(n_layer - 1, 1)
    shares = [max(0.0, first + step * layer) if n_layer > 1 else share for layer in range(n_layer)]  # rounding falls below 0
    return [f"{layer}:s{own:.4f}" for layer, own in enumerate(shares)]


def kvmix(n_layer: int, share: float) -> list[str]:
    """Every fifth layer at KVmix's high bits: for a model whose layers were not measured; the paper's random layers."""
    every = round(1 / KVMIX_HIGH)
    return [f"{layer}:{kvmix_row(True, True, share)}" for layer in range(every // 2, n_layer, every)]


def kvmix_row(high_keys: bool, high_values: bool, share: float) -> str:
    """A layer's choices: 3-bit keys, 4-bit values, and twice the recent tokens (in the paper 20 %, where 2 bits have 10 %)."""
    return f"{'k3' if high_keys else ''}{'v4' if high_values else ''}s{min(2 * share, _MOST):.4f}"


def pool_pyramid(n_layer: int) -> list[str]:
    """Rows of a pool that fall linearly from the first layer to the last, as PyramidKV's budgets (section 3.2) do."""
    last = 1 / PYRAMID_BETA
    step = 2 * (1 - last) / max(n_layer - 1, 1)
    return [f"{layer}:p{2 - last - step * layer if n_layer > 1 else 1:.4f}" for layer in range(n_layer)]


#: The same for the rows of a pool, in multiples of the mean: from the number of layers.
POOL_SPREADS: Mapping[str, Callable[[int], list[str]]] = {"uniform": lambda _n_layer: [], "pyramid": pool_pyramid}

#: By the names that KVConfig.spread takes: rows from (number of layers, mean share).
SPREADS: Mapping[str, Callable[[int, float], list[str]]] = {
    "uniform": uniform,
    "ends": ends,
    "pyramid": pyramid,
    "kvmix": kvmix,
}
