"""Caches filled by repetition: the same tokens in the same tiers as after a prefill."""

from __future__ import annotations

import numpy as np
import pytest

from mikv_cpp.bench import decode as bench
from mikv_cpp.bench.fill import repeat_state, repeat_to
from mikv_cpp.caches import parse_cache
from mikv_cpp.engine import Models
from mikv_cpp.errors import MikvError

DEPTH = 1536


@pytest.fixture(scope="module")
def models(tiny_model):
    with Models(str(tiny_model()), n_threads=2) as opened:
        yield opened


def filled(models, name, n_prefilled):
    engine = models.open(parse_cache(name), n_ctx=DEPTH + 64, ubatch=256)
    engine.decode(np.resize(np.arange(7, 250, dtype=np.int32), n_prefilled), first_logits=-1)
    return engine


@pytest.mark.parametrize("name", ["f16", "q8_0"])
def test_rows_of_llama_cpps_caches_are_repeated(models, name):
    engine = filled(models, name, 200)
    before = engine.state()
    repeat_to(engine, DEPTH)
    assert engine.n_past == DEPTH
    after = engine.state()
    assert bytes(repeat_state(before, DEPTH)) == bytes(after)
    assert bytes(repeat_state(after, 200)) == bytes(before)
    assert np.isfinite(engine.decode(np.array([9], np.int32))).all()


@pytest.mark.parametrize("name", ["mikv", "mikv-safe", "streaming"])
def test_tiers_are_those_of_a_prefill(models, name):
    prefilled, repeated = filled(models, name, DEPTH), filled(models, name, 256)
    repeat_to(repeated, DEPTH)
    for engine in (prefilled, repeated):
        engine.decode(np.array([9], np.int32))
    wanted, got = prefilled.kv.stats(), repeated.kv.stats()
    slack = wanted.tokens_refined / 32  # when slots are full, up to 1/128 of them are freed at a time
    assert wanted.tokens == got.tokens
    assert got.tokens_exact == wanted.tokens_exact
    assert got.tokens_refined == pytest.approx(wanted.tokens_refined, abs=slack)
    assert got.tokens_base == pytest.approx(wanted.tokens_base, abs=slack)


def test_refined_rows_are_scattered(models):
    engine = filled(models, "mikv", 256)
    repeat_to(engine, DEPTH)
    refined = engine.kv.precision_map(layer=0)[:, :DEPTH] == 5
    by_tile = refined.reshape(len(refined), -1, 64).sum(axis=2)
    assert refined.mean() > 0.05
    assert (by_tile > 0).mean() > 0.9


def test_what_a_row_holds_is_what_is_repeated(models):
    engines = [filled(models, name, 256) for name in ("q8", "f16", "f16")]  # q8: everything refined to 8 bits
    token = np.array([9], np.int32)

    def decode(engine):
        logits = engine.decode(token)
        engine.remove_from(engine.n_past - 1)
        return logits

    once = np.abs(decode(engines[0]) - decode(engines[1])).max()
    for engine in engines[:2]:
        repeat_to(engine, 512)
    own, plain, other = (decode(engine) for engine in engines)
    assert np.abs(own - plain).max() < 4 * once  # rounded when stored, for the state, and when stored again
    assert np.abs(own - other).max() > 4 * once  # which another depth is not


def test_states_of_another_form_are_refused(models, tiny_model):
    state = filled(models, "f16", 64).state()
    for broken in (state[:10], state[:-1], np.append(state, np.uint8(0))):
        with pytest.raises(MikvError, match="--fill prefill"):
            repeat_state(broken, 100)
    with Models(str(tiny_model(arch="gemma2")), n_threads=1) as gemma:
        engine = gemma.open(parse_cache("mikv"), n_ctx=512)
        engine.decode(np.arange(9, 99, dtype=np.int32), first_logits=-1)
        with pytest.raises(MikvError, match="--fill prefill"):
            repeat_to(engine, 256)


def test_the_command_says_how_a_depth_was_reached(tiny_model, capsys):
    arguments = ["--depths", "2200", "--burst", "2", "--rounds", "2", "--caches", "mikv", "--threads", "2", "--fill", "repeat"]
    assert bench.main([str(tiny_model()), *arguments, "--json"]) == 0
    printed = capsys.readouterr().out
    assert '"fill": "repeat"' in printed
    assert printed.count('"n_prefilled": 1024') == 2
