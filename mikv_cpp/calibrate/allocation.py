"""Who gets which bits: a cache whose layers differ, and how measured harm becomes such an allocation.

Nothing here runs a model. Harm is additive over layers: each layer's error is small and its own, and the divergence grows with
the sum of their squares. One bit less is four times the squared error.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Optional

from mikv_cpp.bisection import largest
from mikv_cpp.config import BASE_BITS, KVConfig

STEPS = 1024  # of a refined share, from 0 to 1
ERROR_RATIO = 4.0  # squared error of one bit less
LEAST_GAIN = 0.01  # of all harm: an exchange that promises less is noise
MARGIN = 2.0  # how much more an exchange must help than harm: both are measured on a short text
LEAST_WEIGHT, MOST_WEIGHT = 0.25, 4.0

#: Bytes of an allocation at the context of use.
SizeOf = Callable[["Allocation"], int]


@dataclass(frozen=True)
class Choice:
    """What one layer has. weight: its refined share over the allocation's."""

    k_bits: int
    v_bits: int
    weight: float = 1.0


@dataclass(frozen=True)
class Allocation:
    """A cache whose layers differ.

    Attributes:
        base: of the layers that `layers` does not name; its own share, table and budget are not used.
        share: refined share where the weight is 1.
        layers: what the others have, by llama.cpp's layer numbers.
    """

    base: KVConfig
    share: float
    layers: Mapping[int, Choice] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The base as `--kv` lists name it."""
        base = self.base
        return f"k{base.k_bits}v{base.v_bits}r{base.refined_bits}s{self.share:.3f}"

    def config(self, share_as: Callable[[float], float] = lambda share: share) -> KVConfig:
        """The configuration; share_as: what each refined share is replaced with."""
        usual = rounded(share_as(min(1.0, self.share)))
        rows: list[str] = []
        for layer, choice in sorted(self.layers.items()):
            bits = ((choice.k_bits, self.base.k_bits, "k"), (choice.v_bits, self.base.v_bits, "v"))
            share = rounded(share_as(min(1.0, self.share * choice.weight)))
            chosen = "".join(f"{letter}{own}" for own, others, letter in bits if own != others)
            chosen += f"s{share:.4f}" if share != usual else ""
            rows += [f"{layer}:{chosen}"] if chosen else []
        return replace(self.base, refined_share=usual, layers=",".join(rows), budget=None)


def numbered(config: KVConfig, layers: Sequence[int]) -> KVConfig:
    """The configuration of a cache that holds these layers, as if they were numbered from 0 on."""
    rows = []
    for row in config.layers.split(",") if config.layers else ():
        place, _, choices = row.partition(":")
        layer, dot, head = place.partition(".")
        if int(layer) in layers:
            rows.append(f"{layers.index(int(layer))}{dot}{head}:{choices}")
    return replace(config, layers=",".join(rows))


def rounded(share: float) -> float:
    """A share as profiles write it: four digits, never more than was asked for."""
    return math.floor(share * 10_000) / 10_000


def fitted(allocation: Allocation, size_of: SizeOf, budget_bytes: int) -> Optional[Allocation]:
    """The allocation with the largest share that meets the budget; None if even share 0 does not."""
    if size_of(replace(allocation, share=0.0)) > budget_bytes:
        return None
    weights = [choice.weight for choice in allocation.layers.values() if choice.weight > 0]

    def sharing(steps: int) -> Allocation:
        return replace(allocation, share=steps / STEPS)

    most = STEPS * math.ceil(1 / min([1.0, *weights]))  # where every share is 1
    return sharing(largest(most, lambda steps: size_of(sharing(steps)) <= budget_bytes))


def as_measured(share: float, n_use: int, n_measured: int, n_reserved: int) -> float:
    """The share of n_measured cells that refines as large a part of all but n_reserved (sinks, window) as `share` of n_use."""
    if n_use <= n_reserved or n_measured <= n_reserved:
        return share
    older = max(0.0, (share * n_use - n_reserved) / (n_use - n_reserved))
    return min(1.0, (n_reserved + older * (n_measured - n_reserved)) / n_measured)


# --- layers -------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Band:
    """Neighbouring layers. k_values, v_values: of one token in all of them."""

    layers: tuple[int, ...]
    k_values: int
    v_values: int

    @property
    def name(self) -> str:
        """Its layers: "3-5"."""
        first, last = self.layers[0], self.layers[-1]
        return str(first) if first == last else f"{first}-{last}"


@dataclass(frozen=True)
class Harm:
    """What 2-bit keys, and 2-bit values, in one band alone add to the divergence, in nats."""

    k: float
    v: float

    def at(self, k_bits: float, v_bits: float) -> float:
        """What other bits add."""
        return self.k * error_of(k_bits) + self.v * error_of(v_bits)


def cut_bands(layers: Sequence[int], values_of: Callable[[int], tuple[int, int]], most: int) -> list[Band]:
    """At most `most` bands of neighbours, as even as can be; values_of: a layer's key and value values."""
    n_bands = min(most, len(layers))
    edges = [round(index * len(layers) / n_bands) for index in range(n_bands + 1)]
    bands = []
    for first, last in zip(edges, edges[1:]):
        values = [values_of(layer) for layer in layers[first:last]]
        bands.append(Band(tuple(layers[first:last]), sum(k for k, _ in values), sum(v for _, v in values)))
    return bands


def error_of(bits: float) -> float:
    """Squared error over that of 2 bits."""
    return float(ERROR_RATIO ** (2 - bits))


def exchanged(base: KVConfig, bands: Sequence[Band], harms: Sequence[Harm]) -> list[tuple[int, int]]:
    """Key and value bits of each band after all exchanges that pay: a bit goes from where it helps least to where most.

    An exchange never needs more bytes than it frees.
    """
    values = [(band.k_values, band.v_values) for band in bands]
    bits = [[base.k_bits, base.v_bits] for _ in bands]
    least = LEAST_GAIN * sum(harm.at(base.k_bits, base.v_bits) for harm in harms)
    sides = list(itertools.product(range(len(bands)), (0, 1)))

    def change(band: int, side: int, step: int) -> float:
        """Harm that `step` more bits of keys (side 0) or values (1) take away."""
        now = bits[band][side]
        return (harms[band].k, harms[band].v)[side] * (error_of(now) - error_of(now + step))

    while True:
        up = [side for side in sides if bits[side[0]][side[1]] < min(BASE_BITS[-1], base.refined_bits)]
        down = [side for side in sides if bits[side[0]][side[1]] > BASE_BITS[0]]
        pairs = [(u, d) for u in up for d in down if u != d and values[u[0]][u[1]] <= values[d[0]][d[1]]]
        pairs = [(u, d) for u, d in pairs if change(*u, 1) > -MARGIN * change(*d, -1)]
        gain, chosen = max(((change(*u, 1) + change(*d, -1), (u, d)) for u, d in pairs), default=(0.0, None))
        if chosen is None or gain <= least:
            return [(k, v) for k, v in bits]
        for (band, side), step in zip(chosen, (1, -1)):
            bits[band][side] += step


def share_weights(bands: Sequence[Band], harms: Sequence[Harm], bits: Sequence[tuple[int, int]], power: float) -> list[float]:
    """Refined shares of the bands over the mean: harm for each value, to the power."""
    harm = [own.at(*chosen) / (band.k_values + band.v_values) for band, own, chosen in zip(bands, harms, bits)]
    mean = sum(harm) / len(harm)
    return [min(MOST_WEIGHT, max(LEAST_WEIGHT, (own / mean) ** power)) if mean > 0 else 1.0 for own in harm]


def by_band(bands: Sequence[Band], bits: Sequence[tuple[int, int]], weights: Sequence[float]) -> dict[int, Choice]:
    """An allocation's layers: each as its band."""
    rows = zip(bands, bits, weights)
    return {layer: Choice(k, v, round(weight, 3)) for band, (k, v), weight in rows for layer in band.layers}
