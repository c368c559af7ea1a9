"""What a cache will take, decided before anything is loaded: bytes for a context, and whether they fit."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Optional

from mikv_cpp.bisection import largest
from mikv_cpp.config import KVConfig, parse_budget
from mikv_cpp.errors import BudgetError, ConfigError
from mikv_cpp.fragile import SHARE_STEPS, protected
from mikv_cpp.memory import available_bytes
from mikv_cpp.model_file import AttentionShape, ModelFile
from mikv_cpp.native import Library, Shape, logical_type
from mikv_cpp.spread import POOL_SPREADS, SPREADS

_FEWEST_ROWS = 1e-6  # a share for which sinks and window alone are left
_CELLS_PADDING = 256  # llama.cpp rounds a context up to this many cells
_UBATCH = 512  # the micro-batch that is planned for

#: Caches that are made together, and bytes that they take besides.
_Made = tuple[list[Shape], int]


@dataclass(frozen=True)
class Plan:
    """A cache before it is made.

    Attributes:
        config: how it stores its tokens, fragile keys protected; of a share of the f16 cache only refined_share is left, and of
            a spread the rows in `layers`.
        shape: head sizes and counts, if all layers agree and they are known; else None, and the graph teaches them.
        budget_bytes: bytes the whole cache may take, 0 if refined_share decides.
        size_bytes: bytes it will take, 0 if unknown.
    """

    config: KVConfig
    shape: Optional[Shape]
    budget_bytes: int
    size_bytes: int

    @property
    def logical_type(self) -> str:
        """What llama.cpp is told to store: q8_0 or f16."""
        return logical_type(self.config, self.shape)


def n_cells(n_ctx: int) -> int:
    """Cells of llama.cpp's cache for a context of n_ctx tokens."""
    return -(-n_ctx // _CELLS_PADDING) * _CELLS_PADDING


def cache_shapes(model: ModelFile, n_ctx: int) -> list[Shape]:
    """The model's attention layers at full length, one Shape for each kind of layer; empty where they are not plain."""
    if not model.is_plain_attention:
        return []
    return _shapes(model.attention_layers(), n_cells(n_ctx))


def made_shapes(model: ModelFile, n_ctx: int, kinds: tuple[bool, ...] = (False, True)) -> list[Shape]:
    """As cache_shapes, but layers with a sliding window at the length that llama.cpp gives them without swa_full.

    kinds: of layers without the window (False), with it (True).
    """
    if not model.is_plain_attention:
        return []
    lengths = {False: n_cells(n_ctx), True: _window_cells(model, n_ctx)}
    return [shape for windowed in kinds for shape in _shapes(model.attention_layers(windowed), lengths[windowed])]


def plain_bytes(model: ModelFile, n_ctx: int) -> int:
    """Bytes of llama.cpp's f16 cache of a context, windowed layers as in made_shapes."""
    return _f16_bytes(made_shapes(model, n_ctx))


def plan_cache(library: Library, model: ModelFile, config: KVConfig, n_ctx: int, swa_full: bool = True) -> Plan:
    """Work out the cache of a context of n_ctx tokens.

    swa_full: as llama.cpp is told, whose own default it is: layers with a sliding window at full length.

    Raises:
        BudgetError: the budget is too small for sinks, window and base, or the cache is larger than the memory.
        ConfigError: the file says no usable head size.
    """
    shapes = cache_shapes(model, n_ctx)
    config = _protected(library, model, config, shapes)
    for shape in shapes:
        for dim in (shape.head_dim_k, shape.head_dim_v):
            if dim <= 0:
                raise ConfigError(f'model {model.name!r} has attention heads of {dim} values: use kv="off" (--kv off)')
    if not shapes:
        return Plan(replace(config, budget=None), None, 0, 0)
    if config.budget is not None:
        config, budget_bytes = _spend(library, model, config, _made_together(library, model, config, n_ctx, swa_full), n_ctx)
    else:
        budget_bytes = 0
    config = spread_out(config, model.n_layer)
    size_bytes = budget_bytes or _bytes(library, config, shapes)
    check_memory(size_bytes, n_ctx)
    return Plan(config, shapes[0] if len(shapes) == 1 else None, budget_bytes, size_bytes)


def kv_bytes(library: Library, model: ModelFile, config: KVConfig, n_ctx: int) -> int:
    """Bytes of the cache of a context, with micro-batches of 512 and without swa_full.

    Of an architecture whose windowed layers are not known, with every layer at full length: an upper bound.

    Raises:
        ConfigError: a head size that cannot be stored.
    """
    kept = spread_out(_protected(library, model, config, cache_shapes(model, n_ctx)), model.n_layer)
    return _bytes(library, replace(kept, budget=None), made_shapes(model, n_ctx))


def budgeted_bytes(library: Library, model: ModelFile, plan: Plan, n_ctx: int) -> int:
    """What the cache of a plan with a budget takes: no more than with every token refined, and windowed layers on top."""
    if not plan.budget_bytes:
        return kv_bytes(library, model, plan.config, n_ctx)
    full, windowed = (made_shapes(model, n_ctx, (kind,)) for kind in (False, True))
    most = plan.config if plan.config.is_pool else replace(plan.config, refined_share=1.0)
    return min(plan.budget_bytes, _bytes(library, most, full)) + _bytes(library, plan.config, windowed)


def cells_step() -> int:
    """Contexts are multiples of so many tokens."""
    return _CELLS_PADDING


def largest_context(library: Optional[Library], model: ModelFile, config: Optional[KVConfig], wanted: int) -> int:
    """The largest context up to `wanted` tokens whose cache takes at most half of the memory left beside the model.

    library or config None: of llama.cpp's f16 cache.
    """
    memory = available_bytes()
    if memory is None or not cache_shapes(model, wanted):
        return wanted
    room = max(memory - model.size_bytes, memory // 4) // 2
    n_ctx = wanted
    while n_ctx > 2 * _CELLS_PADDING:
        needed = kv_bytes(library, model, config, n_ctx) if library and config else plain_bytes(model, n_ctx)
        if needed <= room:
            break
        n_ctx = max(int(n_ctx * min(0.98 * room / needed, 0.9)) // _CELLS_PADDING, 2) * _CELLS_PADDING
    return n_ctx


def spread_out(config: KVConfig, n_layer: int) -> KVConfig:
    """The config with its spread in `layers`, before what stands there."""
    pool = config.is_pool
    rows = POOL_SPREADS[config.spread](n_layer) if pool else SPREADS[config.spread](n_layer, config.refined_share)
    return replace(config.with_layers(rows), spread="uniform")


def check_memory(size_bytes: int, n_ctx: int) -> None:
    """Refuse a cache that is larger than the memory.

    Raises:
        BudgetError: it is; the sentence names a context that fits.
    """
    memory = available_bytes()
    if memory is not None and size_bytes > memory:
        fits = max(int(n_ctx * 0.9 * memory / size_bytes) // _CELLS_PADDING, 1) * _CELLS_PADDING
        raise BudgetError(
            f"a context of {n_ctx} tokens needs {in_mib(size_bytes)} for its KV cache, but {in_mib(memory)} of memory are "
            f"free: ask for at most {fits} tokens, or for fewer bits"
        )


def in_mib(size_bytes: float) -> str:
    """Bytes as people read them: "12.3 MiB"."""
    mib = size_bytes / 2**20
    return f"{mib:.1f} MiB" if mib < 100 else f"{mib:,.0f} MiB"


def _protected(library: Library, model: ModelFile, config: KVConfig, shapes: list[Shape]) -> KVConfig:
    return protected(config, model, lambda kv: _bytes(library, spread_out(kv, model.n_layer), shapes))


def _bytes(library: Library, config: KVConfig, shapes: list[Shape]) -> int:
    return sum(library.config_bytes(config, shape) for shape in shapes)


def _spend(library: Library, model: ModelFile, config: KVConfig, made: list[_Made], n_ctx: int) -> tuple[KVConfig, int]:
    """Turn the config's budget into bytes, or into a share where bytes cannot say it: (config, budget_bytes).

    A model with sliding windows has two caches of one configuration: there, a share of the f16 cache is met by the share of
    refined tokens, or of a pool's rows, over both.
    """
    assert config.budget is not None
    budget = parse_budget(config.budget)
    f16_bytes = model.f16_bytes(n_cells(n_ctx))
    wanted = budget.of(f16_bytes)

    def taken(share: float) -> float:
        """Of the f16 cache's bytes, with this share of what the budget decides."""
        spread = spread_out(_of_share(replace(config, budget=None), share), model.n_layer)
        return max((_bytes(library, spread, caches) + more) / _f16_bytes(caches) for caches, more in made) * f16_bytes

    least = round(taken(0.0))
    if wanted < least:
        percent = math.ceil(1000 * least / f16_bytes) / 10
        raise BudgetError(
            f"budget {config.budget!r} is {in_mib(wanted)}, too little for sinks, window and base of {n_ctx} tokens: the "
            f'smallest that works is {math.ceil(least / 2**20)}MiB or "{percent}%", or ask for fewer tokens or base bits'
        )
    if budget.share is None or not model.sliding_window:
        return replace(config, budget=None), wanted
    share = largest(SHARE_STEPS, lambda steps: taken(steps / SHARE_STEPS) <= wanted) / SHARE_STEPS
    return replace(_of_share(config, share), budget=None), 0


def _of_share(config: KVConfig, share: float) -> KVConfig:
    """The config with another share of what a budget decides: of tokens refined, or of rows in a pool."""
    if config.is_pool:
        return replace(config, rows=min(max(share, _FEWEST_ROWS), 1 - _FEWEST_ROWS))
    return replace(config, refined_share=share)


def _made_together(library: Library, model: ModelFile, config: KVConfig, n_ctx: int, swa_full: bool) -> list[_Made]:
    """What llama.cpp may make of a model's plain layers that a budget has to hold.

    With a sliding window two caches, if the budget is a share. Where it is not known which layers are windowed, all but one of
    them are or only one is: bytes are linear in between. A table by layer speaks of the whole model: all layers together, at
    full length, and what they share twice.
    """
    whole, full = model.attention_layers(), n_cells(n_ctx)
    together = _shapes(whole, full)
    if not model.sliding_window or config.budget is None or parse_budget(config.budget).share is None:
        return [(together, 0)]
    if config.layers or config.spread != "uniform":
        plain = replace(config, budget=None, layers="", spread="uniform")
        one, two = (_bytes(library, plain, _shapes(Counter(dict.fromkeys(whole, n)), full)) for n in (1, 2))
        return [(together, 2 * one - two)]
    single = Counter(dict.fromkeys(whole, 1))
    splits = [(single, whole - single), (whole - single, single)]  # without the window, with it
    if model.windowed_layers is not None:
        splits = [(model.attention_layers(windowed=False), model.attention_layers(windowed=True))]
    length = full if swa_full else _window_cells(model, n_ctx)
    return [(_shapes(rest, full) + _shapes(windowed, length), 0) for rest, windowed in splits]


def _window_cells(model: ModelFile, n_ctx: int) -> int:
    return min(n_cells(model.sliding_window + _UBATCH), n_cells(n_ctx))


def _shapes(layers: Counter[AttentionShape], length: int) -> list[Shape]:
    return [Shape(n, layer.n_head_kv, length, 1, layer.head_dim_k, layer.head_dim_v) for layer, n in layers.items()]


def _f16_bytes(shapes: list[Shape]) -> int:
    return sum(2 * s.n_layer * s.n_cells * s.n_head_kv * (s.head_dim_k + s.head_dim_v) for s in shapes)
