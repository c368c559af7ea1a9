"""The search: the best bits at a budget, then which layers should have more of them than others.

What is measured is told by a `Measure`, so nothing here runs a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Optional, Protocol

from mikv_cpp.calibrate import rungs
from mikv_cpp.calibrate.allocation import (
    Allocation,
    Band,
    Choice,
    Harm,
    as_measured,
    by_band,
    exchanged,
    fitted,
    share_weights,
)
from mikv_cpp.config import KVConfig
from mikv_cpp.eval import bootstrap
from mikv_cpp.eval.divergence import Scores

KEPT = (  # of what the search starts from
    *("policy", "sinks", "window", "recent_share", "center_keys", "group", "rotate", "balance", "lead_share", "lead_bits"),
    *("end_points", "protect"),
)
FINEST = KVConfig(
    k_bits=4, v_bits=4, refined_bits=8, refined_share=1.0
)  # what the other layers have while one band is measured
BLOCK = 32  # positions of the held-out text that are drawn together; KL correlates over about 4
POWERS = (0.5, 1.0)  # of harm, that refined shares are tried in proportion to


class Measure(Protocol):
    """Runs the model."""

    def score(self, name: str, config: KVConfig, held_out: bool = False) -> Scores:
        """Score a cache on the text, or on the part of it that no choice was made on."""

    def expect(self, n_more: int) -> None:
        """So many scores are to come, at most."""


@dataclass(frozen=True)
class Trial:
    """One measured allocation. stage: "ladder", "layers" or "held out"."""

    stage: str
    name: str
    allocation: Allocation
    bits_per_value: float
    scores: Scores

    @property
    def mean_kl(self) -> float:
        """Of KL(f16 || cache), in nats."""
        return float(self.scores.kl.mean())


@dataclass(frozen=True)
class Terms:
    """What is searched: the start (policy, sinks, window), bytes at n_use cells, and what is measured on, n_measured cells."""

    start: KVConfig
    size_of: Callable[[Allocation], int]
    bits_of: Callable[[Allocation], float]
    budget_bytes: int
    n_use: int
    n_measured: int


class Search:
    """Its `best` and `trials` are there however far it got.

    Attributes:
        best: the best allocation so far that is safe to use: uniform until another one did better on the held-out text too.
        best_name: what it is called.
        trials: all measured allocations, in order.
        harms: what low bits in each band cost, once known.
        held_out: the mean KL of the best allocation by layer over the uniform one's, where nothing was chosen on.
    """

    def __init__(self, terms: Terms, measure: Measure, bands: Sequence[Band]) -> None:
        self._terms, self._measure, self._bands = terms, measure, bands
        self.best: Optional[Allocation] = None
        self.best_name = ""
        self.trials: list[Trial] = []
        self.harms: dict[Band, Harm] = {}
        self.held_out: Optional[bootstrap.Estimate] = None

    def run(self) -> None:
        """Search."""
        self._ladder()
        if len(self._bands) > 1:
            self._hold_out(self._by_layer())

    def _ladder(self) -> None:
        """Try combinations of bits, all layers alike."""
        every = rungs.rungs(self._terms.start, self._terms.size_of, self._terms.budget_bytes)
        kl: dict[rungs.Rung, float] = {}
        for order in (rungs.first_round, lambda keys: rungs.second_round(keys, kl)):
            chosen = order(list(every))
            self._measure.expect(len(chosen))
            for key in chosen:
                kl[key] = self._try("ladder", every[key].name, every[key]).mean_kl
                self.best = every[min(kl, key=lambda rung: kl[rung])]
                self.best_name = self.best.name

    def _by_layer(self) -> list[Trial]:
        """Try bits and shares by layer, as what each band costs alone suggests."""
        assert self.best is not None, "the ladder came first"
        self._measure.expect(4)
        self.find_harms()
        bands, harms, base = self._bands, [self.harms[band] for band in self._bands], self.best.base
        even = [(base.k_bits, base.v_bits)] * len(bands)
        moved = exchanged(base, bands, harms)
        plans = {f"shares by layer, power {power}": (even, power) for power in POWERS}
        if moved != even:
            plans["bits by layer"] = (moved, 0.0)
            plans["bits and shares by layer"] = (moved, POWERS[0])
        found = []
        for name, (bits, power) in plans.items():
            layers = by_band(bands, bits, share_weights(bands, harms, bits, power))
            found += self._try_fitted("layers", name, replace(self.best, layers=layers))
        return found

    def find_harms(self) -> None:
        """Measure 2-bit keys, and 2-bit values, in one band after the other, while the rest is as fine as can be."""
        self._measure.expect(2 * len(self._bands) + 1)
        start = self._terms.start
        finest = replace(FINEST, **{name: getattr(start, name) for name in KEPT})
        floor = self._score("all at 8 bits", Allocation(finest, 1.0))
        for band in self._bands:
            low = [
                self._score(f"2-bit {what} in layers {band.name}", self._one_band(finest, band, choice))
                for what, choice in (("keys", Choice(2, 4, 0.0)), ("values", Choice(4, 2, 0.0)))
            ]
            self.harms[band] = Harm(*(max(0.0, float(scores.kl.mean() - floor.kl.mean())) for scores in low))

    def _one_band(self, finest: KVConfig, band: Band, choice: Choice) -> Allocation:
        return Allocation(finest, 1.0, dict.fromkeys(band.layers, choice))

    def _hold_out(self, candidates: Sequence[Trial]) -> None:
        """Take the best candidate if it does better than the ladder's best on both parts of the text."""
        uniform = min((trial for trial in self.trials if trial.stage == "ladder"), key=lambda trial: trial.mean_kl)
        best = min([uniform, *candidates], key=lambda trial: trial.mean_kl)
        if best is uniform:
            return
        self._measure.expect(2)
        before, after = (self._try("held out", trial.name, trial.allocation).scores.kl for trial in (uniform, best))
        pairs = bootstrap.Pairs(after, before, bootstrap.cut_blocks([len(after)], BLOCK))
        self.held_out = bootstrap.ratio(*pairs.means())
        if after.mean() < before.mean():
            self.best, self.best_name = best.allocation, best.name

    def _try_fitted(self, stage: str, name: str, allocation: Allocation) -> list[Trial]:
        """The trial of an allocation with the share that the budget allows; none if it allows no share."""
        within = fitted(allocation, self._terms.size_of, self._terms.budget_bytes)
        return [] if within is None else [self._try(stage, name, within)]

    def _try(self, stage: str, name: str, allocation: Allocation) -> Trial:
        scores = self._score(name, allocation, held_out=stage == "held out")
        trial = Trial(stage, name, allocation, self._terms.bits_of(allocation), scores)
        self.trials.append(trial)
        return trial

    def _score(self, name: str, allocation: Allocation, held_out: bool = False) -> Scores:
        terms, start = self._terms, self._terms.start
        reserved = start.window + start.sinks if start.window else 0

        def share_as(share: float) -> float:
            return as_measured(share, terms.n_use, terms.n_measured, reserved)

        return self._measure.score(name, allocation.config(share_as), held_out)
