"""Profiles: what is written is read again, and what cannot be read says why."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikv_cpp import ConfigError, KVConfig
from mikv_cpp.arguments import build_parser, kv_setting
from mikv_cpp.caches import parse_cache, parse_caches
from mikv_cpp.config import PRESETS, resolve_config
from mikv_cpp.profile import Profile, layer_rows, layers_text, load_profile, profile_text, save_profile

shares = st.floats(0, 1).map(lambda share: round(share, 4))
places = st.one_of(st.integers(0, 40).map(str), st.tuples(st.integers(0, 40), st.integers(0, 8)).map("{0[0]}.{0[1]}".format))
choices = st.sampled_from(["k4", "v3", "k4v4r8s1", "s0.25", "k2s.5"])
tables = st.lists(st.tuples(places, choices).map(":".join), max_size=12).map(",".join)
configs = st.builds(
    KVConfig,
    k_bits=st.sampled_from([2, 3, 4]),
    v_bits=st.sampled_from([2, 3, 4]),
    refined_bits=st.sampled_from([4, 5, 6, 8]),
    refined_share=shares,
    policy=st.sampled_from(["h2o", "random", "normalized*v"]),
    sinks=st.integers(0, 64),
    window=st.integers(0, 4096),
    center_keys=st.booleans(),
    layers=tables,
    budget=st.sampled_from([None, "25%", 10**9]),
)
names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
values = st.one_of(st.text(), st.booleans(), st.integers(-(2**62), 2**62), st.floats(allow_nan=False))
measured = st.dictionaries(
    names, st.one_of(values, st.lists(st.dictionaries(names, values, max_size=3), min_size=1, max_size=3))
)


@given(configs, measured)
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, config: KVConfig, found: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("profile") / "profile.toml"
    config.save(path, found)
    assert load_profile(path) == Profile(config, found)
    assert KVConfig.load(str(path)) == config


def test_neighbouring_layers_share_a_row() -> None:
    layers = "0:k4,1:k4,2:s0.1,2.1:s0.3,7:k4,9:v3,10:v3"
    rows = {"0-1": "k4", "2": "s0.1", "2.1": "s0.3", "7": "k4", "9-10": "v3"}
    assert layer_rows(layers) == rows
    assert layers_text(rows) == layers
    assert '\n[kv.layers]\n"0-1" = "k4"\n' in profile_text(Profile(KVConfig(layers=layers)))


def test_a_place_named_twice_stays_text() -> None:
    assert 'layers = "3.1:s0.1,3.1:k4"' in profile_text(Profile(KVConfig(layers="3.1:s0.1,3.1:k4")))


def test_names_no_file_can_hold_are_written_all_the_same(tmp_path: Path) -> None:
    save_profile(tmp_path / "p.toml", Profile(KVConfig(), {"text": "a\udce4\x7f\n\"b'"}))
    assert load_profile(tmp_path / "p.toml").measured == {"text": "a?\x7f\n\"b'"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("k_bits = 3", ["no table [kv]"]),
        ("kv = 3", ["no table [kv]"]),
        ("[kv]\nmeasured = 1\n[measured", ["not TOML"]),
        ("[kv]\nbits = 3", ["no field 'bits'", "k_bits"]),
        ("[kv]\nk_bits = 7", ["k_bits=7", "2, 3, 4"]),
        ("[kv]\nk_bits = '3'", ["k_bits='3'"]),
        ("[kv]\npolicy = 3", ["policy=3", "not text"]),
        ("[kv]\npolicy = 'best'", ["'best'", "h2o"]),
        ("[kv]\nrefined_share = nan", ["refined_share=nan"]),
        ("[kv]\nbudget = 1979-05-27", ["budget"]),
        ("[kv]\nlayers = 5", ["layers=5"]),
        ("[kv]\nlayers = '0:k9'", ["'0:k9'"]),
        ("[kv.layers]\n'0-1' = 4", ["'0-1' = 4"]),
        ("[kv.layers]\nfirst = 'k4'", ["'first' = 'k4'"]),
        ("[kv.layers]\n'3-1' = 'k4'", ["'3-1'"]),
        ("[kv.layers]\n'0-99999999999' = 'k4'", ["'0-99999999999'"]),
        ("[kv.layers]\n'0' = 'k9'", ["0:k9"]),
    ],
)
def test_what_cannot_be_read_says_why_in_one_sentence(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        KVConfig.load(path)
    assert all(word in str(caught.value) for word in [*words, "bad.toml"]), caught.value
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[kv] # caf\xe9")
    for path, words in (
        (tmp_path / "missing.toml", "No such file"),
        (tmp_path, "Is a directory"),
        (tmp_path / "latin.toml", "TOML"),
    ):
        with pytest.raises(ConfigError, match=words):
            KVConfig.load(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        KVConfig().save(tmp_path / "nowhere" / "p.toml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latin.toml"]


def test_a_profile_is_named_where_a_preset_is(tmp_path: Path) -> None:
    config, path = KVConfig(k_bits=4, v_bits=3, layers="0:k3,1:s0.5"), str(tmp_path / "own.profile.toml")
    config.save(path)
    assert resolve_config(path) == config
    assert kv_setting(build_parser().parse_args(["--kv", path, "--budget", "30%"])) == dataclasses.replace(config, budget="30%")
    assert parse_cache(path).config == config
    plain, own = parse_caches(f"q8_0,{path}:random:sinks=0", {"window": 0})
    assert plain.config is None
    assert own.config == dataclasses.replace(config, policy="random", sinks=0, window=0)


@pytest.mark.parametrize("read", [resolve_config, parse_cache])
def test_a_profile_that_is_not_there(read: Any) -> None:
    with pytest.raises(ConfigError, match=re.escape("'C:/nowhere/p.toml' cannot be read")):
        read("C:/nowhere/p.toml")


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_be_saved(tmp_path: Path, name: str) -> None:
    PRESETS[name].save(tmp_path / "p.toml")
    assert KVConfig.load(tmp_path / "p.toml") == PRESETS[name]
