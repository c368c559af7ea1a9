"""KVmix: which layers get more bits, from measured harm or from norms that somebody else computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mikv_cpp import KVConfig
from mikv_cpp.calibrate.__main__ import main
from mikv_cpp.calibrate.kvmix import Importance, high_layers, profile, read_importance
from mikv_cpp.errors import ConfigError

START = KVConfig.preset("kvmix")


@given(st.dictionaries(st.integers(0, 99), st.floats(0, 9), min_size=1), st.floats(0, 1))
def test_the_high_layers_are_the_most_important(scores: dict[int, float], share: float) -> None:
    high = high_layers(scores, share)
    assert len(high) == max(1, int(share * len(scores) + 0.5))
    others = [score for layer, score in scores.items() if layer not in high]
    assert not others or min(scores[layer] for layer in high) >= max(others)


def test_keys_and_values_are_ranked_on_their_own() -> None:
    layers = {layer: Importance(k=layer % 5, v=10 - layer) for layer in range(10)}
    config = profile(START, layers)
    assert config.layers == "0:v4s0.1000,1:v4s0.1000,4:k3s0.1000,9:k3s0.1000"
    assert config.spread == "uniform"
    both = {layer: Importance(float(layer == 2), float(layer == 2)) for layer in range(5)}
    assert profile(START, both).layers == "2:k3v4s0.1000"


@pytest.mark.parametrize("name", ["norms.json", "norms.csv"])
def test_norms_from_elsewhere(tmp_path: Path, name: str) -> None:
    rows = [(0, 0.5, 2.0), (1, 3.0, 1.0)]
    as_json = json.dumps({"layers": [{"layer": layer, "s_k": k, "s_v": v} for layer, k, v in rows]})
    as_csv = "layer,s_k,s_v\n" + "\n".join(",".join(map(str, row)) for row in rows)
    path = tmp_path / name
    path.write_text(as_json if name.endswith("json") else as_csv, encoding="utf-8")
    assert read_importance(str(path), [0, 1]) == {0: Importance(0.5, 2.0), 1: Importance(3.0, 1.0)}
    with pytest.raises(ConfigError, match="nothing of layer 2"):
        read_importance(str(path), range(4))


@pytest.mark.parametrize("text", ["", "{}", '{"layers": [{"layer": 0}]}', '{"layers": [{"layer": 0, "s_k": -1, "s_v": 1}]}'])
def test_norms_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "norms.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="is not understood"):
        read_importance(str(path), [0])
    with pytest.raises(ConfigError, match="cannot be read"):
        read_importance(str(tmp_path / "nowhere.csv"), [0])


def test_the_command_measures_and_writes_a_profile(tiny_model: Callable[..., Path], tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "k.toml"
    arguments = [str(tiny_model(n_layer=5)), "--method", "kvmix", "-c", "256", "-ub", "64", "-t", "1", "-o", str(path)]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    config = KVConfig.load(path)
    assert config.layers == found["config"]["layers"]
    for kind, key in (("k3", "s_k"), ("v4", "s_v")):
        (high,) = (row.split(":")[0] for row in config.layers.split(",") if kind in row)
        assert int(high) == max(found["layers"], key=lambda row: row[key])["layer"]
    assert (config.k_bits, config.v_bits, config.policy) == (2, 2, "recent")
    assert all(row["s_k"] >= 0 and row["s_v"] >= 0 for row in found["layers"])
    assert any(row["s_k"] > 0 for row in found["layers"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "kvmix", "--budget", "20%"], "leave --budget out"),
        (["--budget", "20%", "--gradients", "x.json"], "add --method kvmix"),
        (["--method", "kvmix", "--gradients", "nowhere.json"], "cannot be read"),
    ],
)
def test_bad_input_is_one_sentence(tiny_model: Callable[..., Path], capsys: Any, arguments: list[str], words: str) -> None:
    assert main([str(tiny_model()), "-c", "256", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
