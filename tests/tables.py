"""The tables that every shared test runs over: a new kernel set, precision, shape or policy is one row here."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import NamedTuple

from scenes import View

from mikv_cpp.reference.layout import Config, Shape

BASE_BITS = (2, 3, 4)
REFINED_BITS = (4, 5, 6, 8)
POLICIES = (
    *("h2o", "normalized", "snapkv", "peak", "clamped", "probes", "expected", "rdkv", "keydiff", "recent", "random"),
    *("h2o*v", "keydiff*v", "clamped*v", "expected*v", "rdkv*v"),
)

#: (dim, group) of a row.
ROWS = ((32, 32), (64, 64), (64, 32), (96, 32), (128, 64), (160, 32), (192, 64), (256, 64), (256, 32))

#: (bits, refined_bits) of a row: every split there is. Of no base bits are rows' parts behind their leading groups.
SPLITS = tuple((bits, refined) for bits, refined in product((0, *BASE_BITS), (2, 3, *REFINED_BITS)) if refined >= bits)


class Case(NamedTuple):
    """One attention scene: what is stored, how it is looked at, and in which micro-batches it comes."""

    name: str
    config: Config
    shape: Shape
    view: View
    batches: tuple[int, ...]


#: Prefill, then decode: sizes that are a multiple of nothing.
MIXED = (70, 37, 1, 1, 3, 1)
SHORT = (9, 1, 1)

#: (k_bits, v_bits, refined_bits), each with a shape and a view of its own below.
PRECISIONS = tuple(product(BASE_BITS, BASE_BITS, REFINED_BITS))

#: (head_dim_k, head_dim_v, n_head_kv, query heads per KV head)
HEADS = (
    (32, 32, 1, 1),
    (64, 64, 3, 3),
    (64, 64, 1, 8),
    (96, 96, 2, 2),
    (128, 128, 2, 6),
    (160, 160, 1, 5),
    (192, 128, 2, 4),
    (256, 256, 1, 4),
    (64, 128, 2, 7),
)

VIEWS = {
    "causal": View(),
    "holes": View(keep=0.5),
    "sparse": View(keep=0.02),
    "window": View(reach=20),
    "alibi": View(max_bias=8.0),
    "softcap": View(logit_softcap=5.0),
    "sink logits": View(sinks=True),
    "all": View(keep=0.7, max_bias=4.0, logit_softcap=8.0, sinks=True),
    "flat": View(gain=0.1),
    "sharp": View(gain=12.0),
}


def precision_cases() -> list[Case]:
    """Every precision, the head sizes taken in turn."""
    cases = []
    for i, (k_bits, v_bits, refined_bits) in enumerate(PRECISIONS):
        dim_k, dim_v, heads, gqa = HEADS[i % len(HEADS)]
        config = Config(k_bits, v_bits, refined_bits, sinks=2, window=5, center_keys=i % 3 != 0)
        shape = Shape(n_head_kv=heads, n_cells=261, head_dim_k=dim_k, head_dim_v=dim_v)
        name = f"k{k_bits}v{v_bits}r{refined_bits}-{dim_k}x{dim_v}"
        cases.append(Case(name, config, shape, View(gqa=gqa), MIXED))
    return cases


def pool_cases() -> list[Case]:
    """Rows refined to float16, and pools: every way that a row may lie, with fewer rows than cells, tiles and micro-batches."""
    layouts = {
        "f16": Config(2, 3, 16, sinks=2, window=5, center_keys=False),
        "all f16": Config(2, 2, 16, refined_share=1.0),
        "pool": Config(3, 2, 8, sinks=2, window=5, rows=0.3, center_keys=False),
        "pool of base": Config(4, 2, 4, sinks=2, rows=0.4, refined_share=0.0, center_keys=False),
        "pool, all refined": Config(2, 4, 8, sinks=3, window=7, rows=70, refined_share=1.0, center_keys=False),
        "pool, f16": Config(2, 2, 16, window=3, rows=0.25, refined_share=1.0),
        "pool, some f16": Config(3, 4, 16, sinks=1, window=3, rows=130, refined_share=0.3, center_keys=False),
    }
    views = (View(gqa=2), View(gqa=3, keep=0.7, max_bias=4.0, logit_softcap=8.0, sinks=True))
    cases = []
    for (name, config), (i, view) in product(layouts.items(), enumerate(views)):
        shape = Shape(n_head_kv=2, n_cells=400, head_dim_k=(64, 96)[i], head_dim_v=64)
        cases.append(Case(f"{name}-{i}", config, shape, view, (150, 129, 1, 1, 9, 2)))
    return cases


def leading_cases() -> list[Case]:
    """Keys whose leading channels have more bits than the rest, or alone have any, in every order and basis."""
    forms = {
        "none": Config(2, 2, 8, sinks=2, window=3, lead_share=0.5, rotate=False),
        "salience": Config(2, 2, 8, sinks=2, window=3, lead_share=0.25, balance="salience"),
        "range": Config(3, 4, 16, window=3, lead_share=0.4, lead_bits=3, balance="range", rotate=True, center_keys=False),
        "basis": Config(0, 2, 4, sinks=1, window=5, lead_share=0.5, balance="basis", rotate=True),
        "basis at 8": Config(0, 3, 8, lead_share=0.7, lead_bits=2, balance="basis", rotate=True, center_keys=False),
        "pool": Config(2, 2, 5, sinks=2, rows=0.3, refined_share=0.2, lead_share=0.5, balance="salience", center_keys=False),
    }
    heads = ((64, 64, 2, 2), (128, 64, 1, 3), (80, 80, 2, 1), (32, 32, 1, 5))
    cases = []
    for (name, config), (dim_k, dim_v, n_head_kv, gqa) in product(forms.items(), heads):
        shape = Shape(n_head_kv=n_head_kv, n_cells=261, head_dim_k=dim_k, head_dim_v=dim_v)
        cases.append(Case(f"leading, {name}-{dim_k}", config, shape, View(gqa=gqa), MIXED))
    return cases


def shape_cases() -> list[Case]:
    """Every head shape with every GQA factor, one precision."""
    cases = []
    config = Config(3, 2, 8, sinks=3, window=4)
    for dim, gqa in product((32, 64, 96, 128, 192, 256), range(1, 9)):
        shape = Shape(n_head_kv=1 + gqa % 2, n_cells=150, head_dim_k=dim, head_dim_v=dim)
        cases.append(Case(f"{dim}-gqa{gqa}", config, shape, View(gqa=gqa), (SHORT, (33, 1, 2))[gqa % 2]))
    return cases


def view_cases() -> list[Case]:
    """Every kind of mask and bias, short and past two blocks, with and without refinement and centring."""
    cases = []
    for (name, view), (k_bits, share, centred) in product(VIEWS.items(), ((2, 0.2, True), (4, 0.0, False), (3, 1.0, True))):
        config = Config(k_bits, 2, 8, sinks=2, window=3, refined_share=share, center_keys=centred)
        shape = Shape(n_head_kv=2, n_cells=400)
        cases.append(Case(f"{name}-k{k_bits}-{share}", config, shape, replace(view, gqa=2), (150, 129, 1, 1, 2)))
    return cases
