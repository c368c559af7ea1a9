"""One knob: which preset, of those that are worth having, fits a memory and a context."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Optional

from mikv_cpp.bisection import largest
from mikv_cpp.config import KVConfig
from mikv_cpp.errors import BudgetError
from mikv_cpp.memory import available_bytes
from mikv_cpp.model_file import ModelFile
from mikv_cpp.native import Library
from mikv_cpp.plan import budgeted_bytes, cells_step, in_mib, kv_bytes, plain_bytes, plan_cache

_RESERVE_SHARE = 0.1  # of the memory, for what llama.cpp computes in and for the process itself
_RESERVE_LEAST = 256 * 2**20


@dataclass(frozen=True)
class Tier:
    """What a cache costs in quality: mean KL divergence to the f16 cache and share of positions with the same top token.

    On SmolLM2-135M at 2048 tokens, the mean of the three texts of docs/quality.md; q8 of README's one text.
    """

    preset: str
    mean_kl: float
    same_top: float


#: The best first; presets that another one beats at fewer bytes are left out.
TIERS = (
    Tier("q8", 0.0036, 0.955),
    Tier("mikv-safe", 0.0052, 0.962),
    Tier("mikv", 0.0094, 0.952),
    Tier("mikv-tight", 0.0206, 0.933),
)

#: llama.cpp's own types on the same texts, to compare with.
PLAIN_KL = {"q8_0": 0.0036, "q5_0": 0.0185, "q4_0": 0.0646}


@dataclass(frozen=True)
class Choice:
    """A preset for a context, and what its cache takes."""

    tier: Tier
    n_ctx: int
    size_bytes: int
    f16_bytes: int

    @property
    def config(self) -> KVConfig:
        """The preset."""
        return KVConfig.preset(self.tier.preset)

    def sentence(self) -> str:
        """It in words."""
        return f"{self.tier.preset} for {_size(self.n_ctx, self.size_bytes, self.f16_bytes)}; {_quality(self.tier)}"


def _size(n_ctx: int, size_bytes: int, f16_bytes: int) -> str:
    share = f" ({100 * size_bytes / f16_bytes:.0f} % of f16's {in_mib(f16_bytes)})" if f16_bytes else ""
    return f"{n_ctx} tokens: {in_mib(size_bytes)}{share}"


def _quality(tier: Tier, bound: str = "") -> str:
    plain = ", ".join(f"{name} {kl:.4f}" for name, kl in PLAIN_KL.items())
    return f"expected KL to f16 {bound}{tier.mean_kl:.4f} (llama.cpp's {plain})"


def budget_sentence(library: Library, model: ModelFile, config: KVConfig, n_ctx: int) -> str:
    """The plan of a config with a budget, in words: its bytes, and the quality of its preset as far as that was measured.

    Raises:
        BudgetError: the budget is too small; the sentence names the smallest that works.
    """
    plan = plan_cache(library, model, config, n_ctx, swa_full=False)
    size_bytes = budgeted_bytes(library, model, plan, n_ctx)
    size = _size(n_ctx, size_bytes, plain_bytes(model, n_ctx))
    tier = next((tier for tier in TIERS if KVConfig.preset(tier.preset) == replace(config, budget=None)), None)
    if tier is None:
        return f"{size}; its quality was not measured: python -m mikv_cpp.eval kl measures it"
    is_full = size_bytes >= kv_bytes(library, model, KVConfig.preset(tier.preset), n_ctx)
    return (
        f"{tier.preset} for {size}, tokens refined as far as that goes; {_quality(tier, 'at most ' if is_full else 'above ')}"
    )


def room_for_cache(model: ModelFile, memory_bytes: int) -> int:
    """Bytes that a cache may take of a memory: not the model's own, nor a reserve of a tenth, at least 256 MiB."""
    reserve = max(int(_RESERVE_SHARE * memory_bytes), _RESERVE_LEAST)
    return max(memory_bytes - model.size_bytes - reserve, 0)


def free_bytes() -> Optional[int]:
    """Memory for model and cache: of the GPU if llama.cpp has one, else of this machine; None if unknown."""
    from mikv_cpp.plugin import gpu_free_bytes  # noqa: PLC0415 - needs llama.cpp, which importing this does not

    gpu = gpu_free_bytes()
    return available_bytes() if gpu is None else gpu


def choose(library: Library, model: ModelFile, n_ctx: int, memory_bytes: int, shorten: bool = False) -> Choice:
    """The best tier whose cache of n_ctx tokens fits; shorten: rather fewer tokens than a refusal.

    Raises:
        BudgetError: nothing fits; the sentence names the smallest plan.
    """
    room = room_for_cache(model, memory_bytes)
    for tier in TIERS:
        choice = _choice(library, model, tier, n_ctx)
        if choice.size_bytes <= room:
            return choice
    smallest = min((_choice(library, model, tier, n_ctx) for tier in TIERS), key=lambda choice: choice.size_bytes)
    most = _longest(library, model, smallest.tier, n_ctx, room)
    if most and shorten:
        return _choice(library, model, smallest.tier, most)
    taken = smallest.size_bytes + model.size_bytes
    enough = f"give {math.ceil(max(taken + _RESERVE_LEAST, taken / (1 - _RESERVE_SHARE)) / 2**20)}MiB"
    remedy = f"ask for at most {most} tokens, or {enough}" if most else enough
    raise BudgetError(
        f"no cache of {n_ctx} tokens fits {in_mib(memory_bytes)} beside the model's {in_mib(model.size_bytes)}: the smallest, "
        f"{smallest.tier.preset}, takes {in_mib(smallest.size_bytes)}: {remedy}"
    )


def choose_for_this_machine(library: Library, model: ModelFile, n_ctx: int, shorten: bool = False) -> Choice:
    """`choose` for the memory that is free now, the GPU's where llama.cpp has one; where that is not known, the default preset.

    Raises:
        BudgetError: as `choose`.
    """
    memory = free_bytes()
    if memory is None:
        return _choice(library, model, TIERS[2], n_ctx)
    return choose(library, model, n_ctx, memory, shorten)


def _choice(library: Library, model: ModelFile, tier: Tier, n_ctx: int) -> Choice:
    size_bytes = kv_bytes(library, model, KVConfig.preset(tier.preset), n_ctx)
    return Choice(tier, n_ctx, size_bytes, plain_bytes(model, n_ctx))


def _longest(library: Library, model: ModelFile, tier: Tier, n_ctx: int, room: int) -> int:
    """The largest context below n_ctx whose cache fits, 0 if none does."""
    step = cells_step()

    def fits(steps: int) -> bool:
        return steps == 0 or _choice(library, model, tier, steps * step).size_bytes <= room

    return largest(n_ctx // step, fits) * step
