"""Seeded faults: each check passes the right thing and fails a broken one, so that a green run means something.

The broken things are made from the NumPy definition: one line of it wrong at a time.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
from attention_check import check_scene, check_step
from codec_check import check_decode, check_encode, hard_rows
from leading_check import EXACT, check_leading
from leading_check import SHAPE as LEADING_SHAPE
from scenes import Scene, View
from tier_check import (
    Diary,
    check_dead_rows_go_first,
    check_policy,
    check_pool_fills_first,
    check_rows,
    check_scores,
    check_window,
)

from mikv_cpp.reference import codec, planes, policy, transform
from mikv_cpp.reference.cache import FORGOTTEN_AFTER, ReferenceCache
from mikv_cpp.reference.layout import Config, Shape

# --- codec --------------------------------------------------------------------------------------------------------------

PARTS = ("params", "base", "refinement")


def nearest_minimum(row, group, bits, refined_bits):
    """The minimum's place rounded to the nearest rather than down."""
    right = codec.place_of
    codec.place_of = lambda low, span: right(low + span * np.float32(0.5 / 64), span)
    try:
        return codec.encode(row, group, bits, refined_bits)
    finally:
        codec.place_of = right


def rounded_codes(row, group, bits, refined_bits):
    """Codes rounded to the nearest rather than down: half a code too high."""
    e = codec.encode(row, group, bits, refined_bits)
    span, _ = codec.split_params(e.params)
    shifted = codec.encode(row + np.repeat(span, group) / 512, group, bits, refined_bits)
    return codec.Encoded(e.params, shifted.base, shifted.refinement)


def linear_planes(row, group, bits, refined_bits):
    """Neighbouring values in one byte rather than a stride apart."""
    e = codec.encode(row, group, bits, refined_bits)
    numbers = planes.unpack_row(e.base, bits, group, len(row))
    order = np.arange(group).reshape(2, -1).T.ravel()
    return replace(e, base=planes.pack_row(numbers.reshape(-1, group)[:, order].reshape(-1), bits, group))


def swapped_params(row, group, bits, refined_bits):
    """Minimum below, range above."""
    e = codec.encode(row, group, bits, refined_bits)
    return replace(e, params=(e.params >> 9) | ((e.params & 0x1FF) << 7))


def forgotten_refinement(row, group, bits, refined_bits):
    """The refinement left at zero."""
    e = codec.encode(row, group, bits, refined_bits)
    return replace(e, refinement=np.zeros_like(e.refinement))


def encode_all(encode):
    for name, row in hard_rows(64, 64):
        check_encode(encode, name, row, 64, 3, 8)


def test_the_right_encoder_passes():
    encode_all(codec.encode)


@pytest.mark.parametrize("encode", [nearest_minimum, rounded_codes, linear_planes, swapped_params, forgotten_refinement])
def test_a_broken_encoder_fails(encode):
    with pytest.raises(AssertionError, match="should be"):
        encode_all(encode)


def low_edge(params, base, refinement, group, bits, refined_bits):
    """Values read back at the low edge of their bin."""
    n = bits if refinement is None else refined_bits
    span, _ = codec.split_params(params)
    row = codec.decode(params, base, refinement, group, bits, refined_bits)
    return row - np.repeat(span, group) * np.float32(2.0 ** -(n + 1))


def end_points(params, base, refinement, group, bits, refined_bits):
    """The usual round-to-nearest grid, whose outer levels are the minimum and the maximum."""
    n = bits if refinement is None else refined_bits
    span, minimum = codec.split_params(params)
    row = codec.decode(params, base, refinement, group, bits, refined_bits)
    span, minimum = np.repeat(span, group), np.repeat(minimum, group)
    return (minimum + ((row - minimum) * 2.0**n - 0.5 * span) / (2.0**n - 1)).astype(np.float32)


def ignores_refinement(params, base, _refinement, group, bits, refined_bits):
    """The base alone, also where refinement is held."""
    return codec.decode(params, base, None, group, bits, refined_bits)


def decode_all(decode):
    for name, row in hard_rows(64, 64):
        check_decode(decode, name, row, 64, 2, 8)


def test_the_right_decoder_passes():
    decode_all(codec.decode)


@pytest.mark.parametrize("decode", [low_edge, end_points, ignores_refinement])
def test_a_broken_decoder_fails(decode):
    with pytest.raises(AssertionError, match="reads back"):
        decode_all(decode)


# --- attention ------------------------------------------------------------------------------------------------------------

SHAPE = Shape(n_head_kv=2, n_cells=60, head_dim_k=32, head_dim_v=32)
CONFIG = Config(3, 2, 8, sinks=2, window=3)


class RoundedRows(ReferenceCache):
    """Rows of the step are seen as they will be stored, not exactly."""

    def _visible_rows(self, layer, stream, step, i):
        k, v = super()._visible_rows(layer, stream, step, i)
        for cell in step.cells[i]:
            v[cell] = codec.decode(*_parts(v[cell], self.config.v_bits), None, 32, self.config.v_bits, 8)
        return k, v


def _parts(rows, bits):
    e = codec.encode(rows, 32, bits, 8)
    return e.params, e.base


class StaleRows(ReferenceCache):
    """A cell that the step overwrites still shows its old row."""

    def _visible_rows(self, layer, stream, step, i):
        held = self.cells[layer][stream].born[step.cells[i]] > 0
        return super()._visible_rows(layer, stream, replace(step, cells=np.where(held, 10**6, step.cells)), i)


class LostMean(ReferenceCache):
    """The block's mean is forgotten when a key is read for attention."""

    def _visible_rows(self, layer, stream, step, i):
        means = [head.k_mean.copy() for head in self.heads[layer][stream]]
        for head in self.heads[layer][stream]:
            head.k_mean[:, ::2] = 0
        rows = super()._visible_rows(layer, stream, step, i)
        for head, mean in zip(self.heads[layer][stream], means):
            head.k_mean[:] = mean
        return rows


class Edited(ReferenceCache):
    """A step with some fields of it ignored."""

    ignored: ClassVar[dict] = {}

    def step(self, layer, step):
        return super().step(layer, replace(step, **self.ignored))


class OneCellOff(ReferenceCache):
    """The mask is read one cell too far."""

    def step(self, layer, step):
        return super().step(layer, replace(step, mask=np.roll(step.mask, 1, axis=-1)))


class SwappedHeads(ReferenceCache):
    """Query heads are dealt to the wrong KV heads."""

    def step(self, layer, step):
        return super().step(layer, replace(step, q=step.q[:, :, ::-1]))


def ignoring(**fields):
    """A cache that ignores fields of its steps."""
    return type("Ignoring", (Edited,), {"ignored": fields})


ATTENTION_FAULTS = {
    "rounded rows": (RoundedRows, View()),
    "lost mean": (LostMean, View()),
    "mask off by one": (OneCellOff, View()),
    "swapped heads": (SwappedHeads, View(gqa=2)),
    "no ALiBi": (ignoring(max_bias=0.0), View(max_bias=8.0, gqa=2)),
    "no soft-cap": (ignoring(logit_softcap=0.0), View(logit_softcap=3.0)),
    "no sink logits": (ignoring(sinks=None), View(sinks=True)),
}


@pytest.mark.parametrize("kernel", ["plain", "avx512"])
@pytest.mark.parametrize("name", ATTENTION_FAULTS)
def test_a_broken_attention_fails(name, kernel):
    """Also within the wider bound of kernel sets that round queries to eight bits."""
    broken, view = ATTENTION_FAULTS[name]
    check_scene(ReferenceCache(CONFIG, SHAPE), Scene(SHAPE, view), (20, 7, 1, 1), kernel)
    with pytest.raises(AssertionError, match="should be"):
        check_scene(broken(CONFIG, SHAPE), Scene(SHAPE, view), (20, 7, 1, 1), kernel)


@pytest.mark.parametrize(("cache", "passes"), [(ReferenceCache, True), (StaleRows, False)])
def test_a_stale_row_is_noticed(cache, passes):
    scene, cache = Scene(SHAPE), cache(CONFIG, SHAPE)
    check_step(cache, 0, scene.step([0] * 30), "plain")
    step = scene.step([0] * 4, np.array([[3, 9, 11, 20]]))
    if passes:
        check_step(cache, 0, step, "plain")
    else:
        with pytest.raises(AssertionError, match="should be"):
            check_step(cache, 0, step, "plain")


# --- leading channels -----------------------------------------------------------------------------------------------------


class OneMoreLeads(ReferenceCache):
    """A group too many leads."""

    def __init__(self, *args):
        super().__init__(*args)
        self.n_lead += 1
        self.clear()


class LeastSalientFirst(ReferenceCache):
    """The order the other way round."""

    def _settle_balancer(self, head, *rest):
        settled = head.settled
        super()._settle_balancer(head, *rest)
        if not settled and head.balancer is not None:
            head.balancer = transform.Axes(head.balancer.matrix[::-1])


@pytest.mark.parametrize(("broken", "balance"), [(OneMoreLeads, "off"), (LeastSalientFirst, "salience")])
def test_broken_leading_channels_fail(broken, balance):
    config = replace(EXACT, balance=balance)
    check_leading(ReferenceCache(config, LEADING_SHAPE), config)
    with pytest.raises(AssertionError, match="read back otherwise"):
        check_leading(broken(config, LEADING_SHAPE), config)


# --- tiers and policies -----------------------------------------------------------------------------------------------------


class RuinedBase(ReferenceCache):
    """Demotion touches the base: the lowest bit of a demoted row's first byte."""

    def _choose(self, layer, h, head, cells, rows, mass, first, queries):
        held = set(head.slot_cell.tolist())
        chosen = super()._choose(layer, h, head, cells, rows, mass, first, queries)
        for cell in held - set(head.slot_cell.tolist()):
            head.v.base[int(cell), 0] ^= 1
        return chosen


class NoWindow(ReferenceCache):
    """Recent rows are ranked like all others."""

    def _move_windows(self, cells, _fresh, _seen):
        cells.windowed[:] = False


class EternalRows(ReferenceCache):
    """Cells that nobody sees any more count as seen."""

    def _rank(self, layer, h, cells, *rest):
        cells.seen[:] = cells.batch
        return super()._rank(layer, h, cells, *rest)


class EagerDemotion(ReferenceCache):
    """Only half of the pool is used."""

    def _rank(self, *query):
        return super()._rank(*query[:-1], query[-1] // 2)


class LeakingSinks(ReferenceCache):
    """Sinks are quantized like other rows."""

    def _sinks(self, _cells, _fresh, _seen):
        return []


TIERS = Config(2, 2, 8, sinks=2, window=4, refined_share=0.25, center_keys=False)
POOL = Shape(n_head_kv=2, n_cells=120, head_dim_k=32, head_dim_v=32)


def fill_and_check_rows(cache):
    diary = Diary(cache, Scene(POOL))
    for n in (40, 1, 1, 30):
        diary.feed([0] * n)
        check_rows(diary)


TIER_CHECKS = {
    "base after demotion": (fill_and_check_rows, RuinedBase),
    "pool is used": (lambda c: check_pool_fills_first(Diary(c, Scene(POOL)), c.n_slots, 5), EagerDemotion),
    "sinks are exact": (lambda c: check_pool_fills_first(Diary(c, Scene(POOL)), c.n_slots, 5), LeakingSinks),
    "window": (lambda c: check_window(Diary(c, Scene(POOL)), [[0] * 40, [1] * 20] + [[0, 1]] * 10), NoWindow),
    "dead rows": (
        lambda c: check_dead_rows_go_first(Diary(c, Scene(POOL)), 30, FORGOTTEN_AFTER + 20, FORGOTTEN_AFTER),
        EternalRows,
    ),
}


@pytest.mark.parametrize("name", TIER_CHECKS)
def test_a_broken_tier_fails(name):
    run, broken = TIER_CHECKS[name]
    run(ReferenceCache(TIERS, POOL))
    with pytest.raises(AssertionError):
        run(broken(TIERS, POOL))


POLICY_FAULTS = {
    "h2o, least first": ("h2o", lambda query: -query.mass),
    "h2o, youngest first": ("h2o", lambda query: query.born.astype(np.float32)),
    "h2o, this step's mass alone": ("h2o", lambda query: np.where(query.born == query.now, 1, 0) + 0 * query.mass),
    "normalized, not by age": ("normalized", lambda query: query.mass),
    "snapkv, not pooled": ("snapkv", lambda query: query.mass),
    "peak, least first": ("peak", lambda query: -query.mass),
    "clamped, least first": ("clamped", lambda query: -query.mass),
    "clamped*v, not clamped": ("clamped*v", lambda query: query.mass),
    "probes, not by age": ("probes", lambda query: query.mass),
    "expected, least first": ("expected", lambda query: -query.mass),
    "expected*v, its logarithm": ("expected*v", lambda query: query.mass),
    "rdkv, by the sum of squares alone": ("rdkv", lambda query: query.mass),
    "rdkv*v, squared but not v": ("rdkv*v", policy.normalized),
    "keydiff, likest first": ("keydiff", lambda query: -query.mass),
    "h2o*v, against v": ("h2o*v", lambda query: query.mass / query.value_norm**4),
    "recent, oldest first": ("recent", lambda query: -query.born.astype(np.float32)),
    "random, another hash": ("random", lambda query: policy.random(replace(query, layer=1))),
    "random, always the same": ("random", lambda query: 0 * query.mass),
}


@pytest.mark.parametrize("name", POLICY_FAULTS)
def test_a_broken_policy_fails(name, monkeypatch):
    known, broken = POLICY_FAULTS[name]
    config, batches = replace(TIERS, sinks=0, window=0, policy=known), [1] * 50 + [4, 1, 2] * 5

    class Ranked(ReferenceCache):
        def _rank(self, *query):
            with monkeypatch.context() as patch:
                patch.setitem(policy.POLICIES, known.split(policy.BY_VALUE)[0], broken)
                return super()._rank(*query)

    right = ReferenceCache(config, POOL)
    check_policy(Diary(right, Scene(POOL)), known, batches, right.n_slots)
    with pytest.raises(AssertionError):
        check_policy(Diary(Ranked(config, POOL), Scene(POOL)), known, batches, right.n_slots)


class LostMass(ReferenceCache):
    """The mass of a step's first query is not counted."""

    def _commit(self, layer, stream, step, i, mass):
        super()._commit(layer, stream, step, i, mass * 0.9)


def test_lost_mass_is_noticed():
    config = replace(TIERS, refined_share=1.0, sinks=0)
    check_scores(Diary(ReferenceCache(config, POOL), Scene(POOL)), [10, 1, 3])
    with pytest.raises(AssertionError):
        check_scores(Diary(LostMass(config, POOL), Scene(POOL)), [10, 1, 3])
