"""The names that the measuring commands give to caches."""

from __future__ import annotations

import pytest

from mikv_cpp.caches import PLAIN_BITS, parse_cache, parse_caches
from mikv_cpp.config import PRESETS, KVConfig
from mikv_cpp.errors import ConfigError


@pytest.mark.parametrize("name", PLAIN_BITS)
def test_llama_cpps_own(name):
    assert parse_cache(name).config is None


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    assert parse_cache(name).config == PRESETS[name]


def test_bits():
    assert parse_cache("k3v2r5s0.28").config == KVConfig(k_bits=3, v_bits=2, refined_bits=5, refined_share=0.28)
    assert parse_cache("k4v3r8s.1").config == KVConfig(k_bits=4, v_bits=3, refined_bits=8, refined_share=0.1)
    assert parse_cache("k2v2r8").config == KVConfig(k_bits=2, v_bits=2, refined_bits=8)


def test_policy_and_fields():
    config = parse_cache("k2v2r8s0.2:random:sinks=0:center_keys=0:budget=25%").config
    assert config == KVConfig(
        k_bits=2, v_bits=2, refined_bits=8, refined_share=0.2, policy="random", sinks=0, center_keys=False, budget="25%"
    )


def test_options_hold_for_all_mikv_caches_and_names_go_first():
    plain, preset, bits = parse_caches("q8_0, mikv,k4v4r8s0.5", {"refined_share": 0.1, "window": 0})
    assert plain.config is None
    assert preset.config == KVConfig.preset("mikv", refined_share=0.1, window=0)
    assert bits.config == KVConfig(k_bits=4, v_bits=4, refined_bits=8, refined_share=0.5, window=0)


def test_repeated_names_are_measured_once():
    assert [spec.name for spec in parse_caches("q8_0,mikv,q8_0")] == ["q8_0", "mikv"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("q3_0", "unknown cache 'q3_0'.*q8_0.*mikv"),
        ("k3v2", "unknown cache 'k3v2'"),
        ("k1v2r8s0.2", "k_bits=1"),
        ("mikv:nobody", "unknown policy 'nobody'"),
        ("mikv:sink=3", "unknown field 'sink'.*sinks"),
        ("mikv:sinks=few", "sinks.*'few'"),
        ("mikv:center_keys=2", "center_keys.*'2'"),
    ],
)
def test_unknown_names_say_what_there_is(name, sentence):
    with pytest.raises(ConfigError, match=sentence):
        parse_cache(name)
