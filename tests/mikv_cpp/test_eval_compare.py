"""The comparison of two caches, and what it dares to say."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.eval import compare
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.bootstrap import cut_blocks
from mikv_cpp.eval.divergence import Scores


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


def scores(kl, same_top=0.9):
    return Scores(kl, np.ones(len(kl)), np.arange(len(kl)) % 10 < 10 * same_top)


def compared(factor, noise):
    source = np.random.default_rng(5)
    a = source.gamma(0.3, 0.1, 4096)
    return compare.compare(scores(a * factor + noise * source.normal(0, 0.01, 4096)), scores(a), cut_blocks([4096], 64))


@pytest.mark.parametrize(
    ("factor", "noise", "verdict"),
    [(0.9, 1, "A is better"), (1.1, 1, "B is better"), (1.0, 1, "no difference shown"), (1.0, 0, "no difference shown")],
)
def test_the_verdict(factor, noise, verdict):
    found = compared(factor, noise)
    assert found["verdict"] == verdict
    ratio = found["mean_kl_ratio"]
    assert ratio["low"] <= factor <= ratio["high"]
    assert (ratio["value"] - 1) * found["mean_kl_difference"]["value"] >= 0
    assert found["kl_999_ratio"]["value"] == pytest.approx(factor, rel=0.1)
    assert found["same_top_difference"]["value"] == 0


def test_pairs_show_what_unpaired_values_could_not():
    """3 % less at every position is far less than positions differ; in another order it is not seen any more."""
    kl = np.random.default_rng(5).gamma(0.3, 0.1, 4096)
    blocks = cut_blocks([4096], 64)
    assert compare.compare(scores(0.97 * kl), scores(kl), blocks)["verdict"] == "A is better"
    moved = np.random.default_rng(6).permutation(kl)
    assert compare.compare(scores(0.97 * moved), scores(kl), blocks)["verdict"] == "no difference shown"


def test_same_top_is_a_share():
    kl = np.random.default_rng(5).gamma(0.3, 0.1, 1000)
    found = compare.compare(scores(kl, 0.7), scores(kl, 0.9), cut_blocks([1000], 7))["same_top_difference"]
    assert found["value"] == pytest.approx(-0.2)
    assert -0.25 < found["low"] < -0.2 < found["high"] < -0.15


def run(model, a, b, capsys, *options):
    common = ["-c", "128", "--chunks", "4", "--block", "8", "--threads", "1"]
    assert main(["compare", a, b, "--model", model, *common, *options]) == 0
    return capsys.readouterr().out


def test_command_line(model, capsys):
    result = json.loads(run(model, "q8_0", "q4_0", capsys, "--json"))
    assert (result["a"], result["b"], result["verdict"]) == ("q8_0", "q4_0", "A is better")
    assert [row["cache"] for row in result["rows"]] == ["f16", "q8_0", "q4_0"]
    assert (result["n_positions"], result["block"], result["n_blocks"]) == (4 * 63, 8, 4 * 8)
    _, q8_0, q4_0 = result["rows"]
    assert result["mean_kl_ratio"]["value"] == pytest.approx(q8_0["mean_kl"] / q4_0["mean_kl"])
    assert result["kl_999_difference"]["value"] == pytest.approx(q8_0["kl_999"] - q4_0["kl_999"])
    assert result["same_top_difference"]["value"] == pytest.approx(q8_0["same_top"] - q4_0["same_top"])
    assert "B is better (by mean KL)" in run(model, "q4_0", "q8_0", capsys)
    printed = run(model, "q4_0", "f16", capsys)
    assert "B is better" in printed
    assert "mean KL, A / B             -" in printed, "f16 has no divergence to divide by"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["q8_0", "q8_0"], "q8_0 and q8_0 are not two different caches"),
        (["mikv", "k4v2r5s0.12"], "not two different caches"),
        (["q8_0", "q4_0", "--block", "0"], "--block 0"),
        (["q8_0", "q4_0", "--block", "64"], "only 1 blocks of 64.*more --chunks"),
        (["q8_0"], "required: CACHE"),
        (["q8_0", "q3_0"], "unknown cache 'q3_0'"),
    ],
)
def test_bad_input_is_one_sentence(model, capsys, arguments, sentence):
    assert main(["compare", *arguments, "--model", model, "-c", "128", "--chunks", "1", "--threads", "1"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(sentence, printed.err)
