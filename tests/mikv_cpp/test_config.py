"""KVConfig, presets, budgets."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikv_cpp import ConfigError, KVConfig
from mikv_cpp.config import PRESETS, parse_budget


def test_presets_are_what_the_readme_says() -> None:
    rows = {name: (c.k_bits, c.v_bits, c.refined_bits, c.refined_share, c.policy) for name, c in PRESETS.items()}
    assert rows == {
        "mikv": (4, 2, 5, 0.12, "normalized"),
        "mikv-tight": (3, 2, 5, 0.03, "normalized"),
        "mikv-pool": (4, 2, 5, 0.12, "normalized"),
        "mikv-safe": (4, 3, 6, 0.19, "normalized"),
        "mikv-2bit": (2, 2, 8, 0.20, "h2o"),
        "paper": (2, 2, 8, 0.20, "h2o"),
        "streaming": (2, 2, 16, 1.0, "recent"),
        "h2o": (2, 2, 16, 1.0, "h2o"),
        "snapkv": (2, 2, 16, 1.0, "snapkv"),
        "pyramidkv": (2, 2, 16, 1.0, "snapkv"),
        "qpruning": (2, 2, 4, 1.0, "snapkv"),
        "zipcache": (2, 2, 4, 0.6, "probes"),
        "kvmix": (2, 2, 16, 0.05, "recent"),
        "mixkvq": (2, 2, 16, 0.05, "recent"),
        "kivi": (2, 2, 16, 0.0, "recent"),
        "mixeddim": (0, 2, 5, 0.2, "normalized"),
        "rdkv": (2, 2, 5, 0.5, "rdkv*v"),
        "sinks": (4, 4, 8, 0.0, "recent"),
        "q8": (4, 4, 8, 1.0, "normalized"),
    }
    paper = PRESETS["paper"]
    pools = {name for name, c in PRESETS.items() if c.is_pool}
    assert pools == {"streaming", "h2o", "snapkv", "pyramidkv", "qpruning", "rdkv", "mikv-pool"}
    leading = {name: (c.balance, c.lead_share, c.lead_bits) for name, c in PRESETS.items() if c.lead_share}
    assert leading == {"mixkvq": ("salience", 0.25, 4), "mixeddim": ("basis", 0.5, 4)}
    methods = (pools - {"mikv-pool"}) | {"paper", "zipcache", "kvmix", "mixkvq", "kivi", "mixeddim"}
    others = [c for name, c in PRESETS.items() if name not in methods]
    assert all((c.sinks, c.window, c.recent_share, c.center_keys, c.budget) == (4, 64, 0, True, None) for c in others)
    assert all((c.rotate, c.balance, c.end_points, c.group, c.protect) == (True, "off", False, 0, True) for c in others)
    assert (paper.sinks, paper.window, paper.recent_share, paper.center_keys, paper.budget) == (0, 0, 0.5, False, None)
    assert (paper.rotate, paper.balance, paper.end_points, paper.group, paper.protect) == (False, "max", True, -1, False)
    assert KVConfig.presets()[0] == "mikv"


def test_default_is_the_preset_mikv() -> None:
    assert KVConfig() == KVConfig.preset("mikv")


def test_preset_with_changes() -> None:
    assert KVConfig.preset("paper", budget="25%") == dataclasses.replace(PRESETS["paper"], budget="25%")


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        KVConfig().k_bits = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"k_bits": 5}, ["k_bits=5", "2, 3, 4"]),
        ({"v_bits": 1}, ["v_bits=1", "2, 3, 4"]),
        ({"k_bits": 3.0}, ["k_bits=3.0"]),
        ({"k_bits": True}, ["k_bits=True"]),
        ({"refined_bits": 7}, ["refined_bits=7", "2, 3, 4, 5, 6, 8, 16"]),
        ({"rows": 0}, ["rows=0", "share of the context"]),
        ({"rows": float("nan")}, ["rows=nan"]),
        ({"rows": True}, ["rows=True"]),
        ({"rows": 0.5, "spread": "ends"}, ["spread='ends'", "uniform, pyramid"]),
        ({"refined_share": 1.5}, ["refined_share=1.5", "between 0 and 1"]),
        ({"refined_share": float("nan")}, ["refined_share=nan"]),
        ({"refined_share": "0.3"}, ["refined_share='0.3'"]),
        ({"sinks": 65}, ["sinks=65", "0 to 64"]),
        ({"window": -1}, ["window=-1", "0 to 4096"]),
        ({"group": 16}, ["group=16", "0, 32, 64"]),
        ({"group": "third"}, ["group='third'"]),
        ({"balance": "min"}, ["balance='min'", "off, max, rms"]),
        ({"rotate": 1}, ["rotate=1"]),
        ({"end_points": "no"}, ["end_points='no'"]),
        ({"recent_share": 1.5}, ["recent_share=1.5", "between 0 and 1"]),
        ({"center_keys": 1}, ["center_keys=1"]),
        ({"policy": "best"}, ["'best'", "h2o, normalized, snapkv", "register_policy"]),
        ({"budget": "lots"}, ["'lots'", "25%"]),
    ],
)
def test_impossible_values_are_named_with_the_remedy(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        KVConfig(**fields)
    assert all(word in str(caught.value) for word in words), caught.value
    assert "\n" not in str(caught.value)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="unknown preset 'best': use one of mikv, mikv-tight, mikv-pool, mikv-safe, mikv-2bit, paper, "
    ):
        KVConfig.preset("best")


def test_unknown_field_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="no field 'bits': it has k_bits, v_bits"):
        KVConfig.preset("mikv", bits=3)


@pytest.mark.parametrize(
    ("text", "of_1000"),
    [
        ("25%", 250),
        (" 12.5 % ", 125),
        ("100%", 1000),
        ("1.5GiB", 3 << 29),
        ("800MB", 800_000_000),
        ("2kib", 2048),
        ("77", 77),
        (5, 5),
    ],
)
def test_budgets_are_read(text: Any, of_1000: int) -> None:
    assert parse_budget(text).of(1000) == of_1000


@pytest.mark.parametrize(
    "text", ["", "%", "0%", "101%", "-5MB", "0", "12x", "1.5 G iB", "1e9", "٣MB", None, 1.5, True, "1" * 400]
)
def test_unreadable_budgets_say_what_can_be_read(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"25%.*1\.5GiB"):
        parse_budget(text)


@given(st.text(max_size=12))
def test_any_text_is_a_budget_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_budget(text).of(10**6) >= 0


@pytest.mark.parametrize("layers", ["", "0:k4v4r8s0.5", "3.1:s0.1,29:v3", "0:s1,1:s0,2:s.5", "0:r16,1:p1.95,2.0:p0.05"])
def test_layers_are_rows_of_choices(layers: str) -> None:
    assert KVConfig(layers=layers).layers == layers


@pytest.mark.parametrize(
    "layers", ["0", "0:", "0:k5", "0:r7", "x:k4", "0:k4 1:k4", "0:k4,", "0:s1.5", "-1:k4", "0:rk16", "0:p"]
)
def test_layers_that_cannot_be_read_are_refused(layers: str) -> None:
    with pytest.raises(ConfigError, match=re.escape("0:k4v4r8s0.5")):
        KVConfig(layers=layers)


def test_a_policy_may_be_weighed_by_the_value_if_it_weighs() -> None:
    assert KVConfig(policy="normalized*v").policy == "normalized*v"
    for policy in ("recent*v", "random*v", "*v", "h2o*v*v"):
        with pytest.raises(ConfigError, match="unknown policy"):
            KVConfig(policy=policy)
