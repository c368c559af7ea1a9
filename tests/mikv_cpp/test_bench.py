"""The bench: its statistics, its turns, and what it prints."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp import bench
from mikv_cpp.caches import parse_caches


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


def test_the_ratio_is_taken_within_each_round():
    reference = np.array([1.0, 5.0, 1.0, 9.0, 2.0, 1.0, 1.0])  # the machine was busy in some rounds
    assert bench.ratio_with_interval(reference / 2, reference) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_median_and_narrows_with_more_rounds():
    widths = []
    for n in (9, 400):
        noise = np.random.default_rng(3).lognormal(0, 0.2, n)
        ratio, low, high = bench.ratio_with_interval(noise, np.ones(n))
        assert low <= ratio <= high
        assert low < 1 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert bench.ratio_with_interval([0.5, 0.25], [1, 1]) == bench.ratio_with_interval([0.5, 0.25], [1, 1])


class FakeEngine:
    """Counts what it is asked."""

    def __init__(self, log, name):
        self.log, self.name, self.n_past = log, name, 0

    def clear(self):
        self.n_past = 0

    def decode(self, tokens, **_):
        self.n_past += len(tokens)
        self.log.append((self.name, self.n_past))

    def remove_from(self, position):
        self.n_past = position


@pytest.mark.parametrize("depth", [0, 100])
def test_caches_take_turns_and_every_burst_starts_at_the_depth(depth):
    log = []
    engines = [FakeEngine(log, name) for name in "abc"]
    plan = bench.Plan(burst=2, rounds=3, slice=60)
    timings = bench.time_depth(engines, np.arange(10), depth, plan, SimpleNamespace(update=lambda _: None))
    n_prompt = depth or bench.SHALLOW_PROMPT
    assert [timing.n_prefilled for timing in timings] == [n_prompt] * 3
    assert [len(timing.bursts_s) for timing in timings] == [3] * 3
    turns = "".join(name for name, n_past in log)
    n_slices = -(-n_prompt // 60)
    assert turns == "abc" * n_slices + "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb"
    decoded = [n_past for _, n_past in log[3 * n_slices :]]
    assert decoded == [depth + 1, depth + 2] * (3 * 4)


def test_rows_compare_with_f16():
    specs = parse_caches("q8_0,f16")
    timings = [bench.Timing(100, 2.0, [0.5, 0.5, 0.4]), bench.Timing(100, 1.0, [1.0, 1.0, 1.0])]
    rows = bench.rows_of(specs, timings, 7, bench.Plan(burst=10, rounds=3, slice=64))
    assert rows[0] == {
        "cache": "q8_0",
        "depth": 7,
        "prefill_tps": 50.0,
        "decode_tps": 20.0,
        "ratio_to_f16": 2.0,
        "ratio_low": 2.0,
        "ratio_high": 2.5,
        "prefill_ratio_to_f16": 0.5,
    }
    assert (rows[1]["ratio_to_f16"], rows[1]["prefill_ratio_to_f16"]) == (1.0, 1.0)


def test_command_line_prints_one_json_object(model, capsys):
    arguments = ["--depths", "0,200", "--burst", "2", "--rounds", "3", "--caches", "q8_0,q4_0", "--threads", "1"]
    assert bench.main([model, *arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [(row["depth"], row["cache"]) for row in result["rows"]] == [
        (depth, cache) for depth in (0, 200) for cache in ("f16", "q8_0", "q4_0")
    ]
    for row in result["rows"]:
        assert row["decode_tps"] > 0
        assert row["prefill_tps"] > 0
        assert row["ratio_low"] <= row["ratio_to_f16"] <= row["ratio_high"]
    assert bench.main([model, *arguments]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 7


@pytest.mark.parametrize(
    "arguments", [["--depths", "few"], ["--depths", "-1"], ["--rounds", "0"], ["--burst", "0"], ["--ubatch", "0"], ["-c", "64"]]
)
def test_bad_input_is_one_sentence(model, capsys, arguments):
    assert bench.main([model, "--depths", "0", "--caches", "f16", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
