"""The ladder: which combinations of bits are tried at a budget, and in which order."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Optional

from mikv_cpp.calibrate.allocation import Allocation, SizeOf, fitted
from mikv_cpp.config import BASE_BITS, REFINED_BITS, KVConfig

FIRST_DEPTHS = (5, 6, 4, 8)  # refined bits that a base is tried with first: the best at 3 to 4.5 bits in most measurements
BASES_KEPT = 2  # whose other depths are tried too
LEAST_SPENT = 0.97  # of the budget

Rung = tuple[int, int, int]  # k_bits, v_bits, refined_bits


def rungs(start: KVConfig, size_of: SizeOf, budget_bytes: int) -> dict[Rung, Allocation]:
    """All combinations of bits, each with the largest share that the budget allows; empty if it allows none.

    Those that cannot spend the budget are left out, but for the largest where none can.
    """
    found: dict[Rung, Allocation] = {}
    for k, v, refined in itertools.product(BASE_BITS, BASE_BITS, REFINED_BITS):
        if refined >= max(k, v) and refined > min(k, v):
            base = replace(start, k_bits=k, v_bits=v, refined_bits=refined, layers="", budget=None)
            rung = fitted(Allocation(base, 0.0), size_of, budget_bytes)
            if rung is not None:
                found[k, v, refined] = rung
    spending = {key: rung for key, rung in found.items() if size_of(rung) >= LEAST_SPENT * budget_bytes}
    largest = max(found, key=lambda key: size_of(found[key]), default=None)
    return spending or ({} if largest is None else {largest: found[largest]})


def smallest(start: KVConfig) -> Allocation:
    """The allocation that takes the fewest bytes."""
    base = replace(start, k_bits=BASE_BITS[0], v_bits=BASE_BITS[0], refined_bits=REFINED_BITS[0], layers="", budget=None)
    return Allocation(base, 0.0)


def first_round(keys: Sequence[Rung]) -> list[Rung]:
    """Each base once."""
    chosen: dict[tuple[int, int], Rung] = {}
    for k, v, refined in sorted(keys, key=lambda key: FIRST_DEPTHS.index(key[2])):
        chosen.setdefault((k, v), (k, v, refined))
    return sorted(chosen.values())


def second_round(keys: Sequence[Rung], kl: Mapping[Rung, float]) -> list[Rung]:
    """The other depths of the bases that did best in the first; kl: of those measured."""
    best = sorted(kl, key=lambda key: kl[key])[:BASES_KEPT]
    return [key for key in sorted(keys) if key not in kl and any(key[:2] == kept[:2] for kept in best)]


def best_of(kl: Mapping[Rung, float]) -> Optional[Rung]:
    """The one with the least divergence; None if none was measured."""
    return min(kl, key=lambda key: kl[key], default=None)
