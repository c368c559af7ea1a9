"""The field: every method at the same bytes, those that cannot be there left out, and an interrupted run that goes on."""

from __future__ import annotations

import json

import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.config import PRESETS
from mikv_cpp.eval import field, methods_plot
from mikv_cpp.eval.__main__ import main


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(str(n) for n in range(2000)))
    return str(path)


def test_methods_take_the_same_bytes_and_a_run_goes_on(model, text, tmp_path, capsys):
    options = [
        "field",
        model,
        "--text",
        text,
        "--chunks",
        "1",
        "-c",
        "512",
        "-ub",
        "128",
        "--prompts",
        "0",
        "--depth",
        "480",
        "--json",
    ]
    options += ["--bits", "9.5", "--keep", str(tmp_path / "keep")]
    assert main([*options, "--kv", "q8_0,snapkv,qpruning"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert main([*options, "--kv", "q8_0,snapkv,qpruning,paper"]) == 0
    result = json.loads(capsys.readouterr().out)
    rows = {row["cache"]: row for row in result["rows"]}
    assert set(rows) == {"f16", "q8_0", "snapkv@9.5", "qpruning@9.5", "paper@9.5"}
    budgeted = [row["bits_per_value"] for name, row in rows.items() if "@" in name]
    assert max(budgeted) <= 9.5 + field.TOLERANCE
    assert abs(rows["snapkv@9.5"]["bits_per_value"] - 9.5) <= field.TOLERANCE, "what smaller micro-batches leave is spent"
    before = {row["cache"]: row for row in first["rows"]}
    assert all(rows[name] == row for name, row in before.items()), "what was measured is taken from the folder"
    assert all(row["right"] is None for row in rows.values())
    assert all(
        rows[name]["ratio_low"] <= rows[name]["ratio_to_f16"] <= rows[name]["ratio_high"] for name in rows if name != "f16"
    )
    assert {row["method"] for row in rows.values()} == {"f16", "q8_0", "snapkv", "qpruning", "paper"}


def test_a_method_whose_base_is_larger_is_left_out_with_the_reason(model, text, capsys):
    options = ["field", model, "--text", text, "--chunks", "1", "-c", "256", "-ub", "128", "--prompts", "0", "--depth", "0"]
    assert main([*options, "--bits", "4", "--kv", "q8,snapkv"]) == 0
    printed = capsys.readouterr().out
    assert "left out: q8@4 in 256 tokens: budget" in printed
    assert "q8_0" not in printed


def test_every_preset_is_a_method():
    entries = field.entries_of([field.CacheSpec(name, config) for name, config in PRESETS.items()], [3.0, 4.0])
    assert {entry.method for entry in entries} == set(PRESETS)
    assert all(entry.spec.config.budget in ("18.7500%", "25.0000%") for entry in entries)


@pytest.mark.parametrize("bits", ["0", "17", "3,x", ""])
def test_bits_that_cannot_be_are_refused(model, bits, capsys):
    assert main(["field", model, "--bits", bits]) == 2
    assert "is not a list of bits" in capsys.readouterr().err


def test_questions_that_do_not_divide_the_prompts_are_refused_before_anything_is_measured(model, monkeypatch, capsys):
    monkeypatch.setattr(field, "within_bits", lambda *_: pytest.fail("measured"))
    assert main(["field", model, "--prompts", "4", "--questions", "3", "--kv", "snapkv"]) == 2
    assert "--questions 3 does not divide --prompts 4" in capsys.readouterr().err


def test_a_line_for_each_method():
    rows = [{"method": "a", "bits_per_value": bits, "mean_kl": kl} for bits, kl in ((3, 0.1), (2, 0.3), (16, 0.0))]
    assert methods_plot.by_method(rows) == {"a": [(2, 0.3), (3, 0.1)]}
