"""The bench: its statistics, its turns, and what it prints."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.bench import attention, machine
from mikv_cpp.bench import decode as bench
from mikv_cpp.bench.ratio import ratio_with_interval
from mikv_cpp.bench.upstream import UpstreamAttention
from mikv_cpp.caches import parse_caches


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


def test_the_ratio_is_taken_within_each_round():
    reference = np.array([1.0, 5.0, 1.0, 9.0, 2.0, 1.0, 1.0])  # the machine was busy in some rounds
    assert ratio_with_interval(reference / 2, reference) == (2.0, 2.0, 2.0)


def test_the_interval_holds_the_median_and_narrows_with_more_rounds():
    widths = []
    for n in (9, 400):
        noise = np.random.default_rng(3).lognormal(0, 0.2, n)
        ratio, low, high = ratio_with_interval(noise, np.ones(n))
        assert low <= ratio <= high
        assert low < 1 < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3
    assert ratio_with_interval([0.5, 0.25], [1, 1]) == ratio_with_interval([0.5, 0.25], [1, 1])


class FakeEngine:
    """Counts what it is asked."""

    kv = None

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
    timings = [bench.Timing(100, [2.0], [0.5, 0.5, 0.4]), bench.Timing(100, [1.0], [1.0, 1.0, 1.0])]
    timings[0].kv_bytes = 30
    rows = bench.rows_of(specs, timings, 7, bench.Plan(burst=10, rounds=3, slice=64), weights_bytes=70)
    assert rows[0] == {
        "cache": "q8_0",
        "depth": 7,
        "n_prefilled": 100,
        "prefill_tps": 50.0,
        "decode_tps": 20.0,
        "decode_tps_low": 20.0,
        "decode_tps_high": pytest.approx(10 / 0.45),
        "ratio_to_f16": 2.0,
        "ratio_low": 2.0,
        "ratio_high": 2.5,
        "prefill_ratio_to_f16": 0.5,
        "prefill_ratio_low": 0.5,
        "prefill_ratio_high": 0.5,
        "kv_bytes": 30,
        "bytes_per_token": 100,
        "gb_per_s": pytest.approx(2e-6),
    }
    assert rows[1]["gb_per_s"] is None
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
    assert len(capsys.readouterr().out.splitlines()) == 8
    values = 2 * TinyModel().n_layer * TinyModel().n_head_kv * TinyModel().head_dim
    assert [row["kv_bytes"] for row in result["rows"][3:]] == [200 * values * bits / 8 for bits in (16, 8.5, 4.5)]
    assert result["copy_gb_per_s"] > 0.1
    assert result["peak_bytes"] is None or result["peak_bytes"] > 2**24


def test_bytes_of_a_mikv_cache_are_those_of_the_tokens_held(model, capsys):
    arguments = ["--depths", "64,256", "--burst", "2", "--rounds", "1", "--caches", "mikv", "--threads", "1"]
    assert bench.main([model, *arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    f16, own = ([row["kv_bytes"] for row in rows if row["cache"] == name] for name in ("f16", "mikv"))
    assert f16[1] == 4 * f16[0]
    assert all(small < large for small, large in zip(own, f16))
    assert own[1] > 2 * own[0]


def test_a_plot_is_written_and_a_bad_one_refused_before_anything_is_measured(model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    path = tmp_path / "speed.svg"
    assert (
        bench.main([model, "--depths", "0,32", "--burst", "1", "--rounds", "1", "--caches", "q8_0", "--plot", str(path)]) == 0
    )
    assert "q8_0" in path.read_text()
    capsys.readouterr()
    assert bench.main(["missing.gguf", "--plot", "speed.txt"]) == 2
    assert "speed.txt" in capsys.readouterr().err


def test_attention_alone_on_every_kernel_set(capsys):
    arguments = ["--heads", "64x2x3", "--depths", "40,600", "--kernels", "all", "--burst", "2", "--rounds", "2", "-t", "1"]
    assert attention.main([*arguments, "--caches", "mikv,q8_0", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    kernels = sorted({row["kernel"] for row in rows if row["cache"] == "mikv"})
    assert "plain" in kernels
    assert len(rows) == 2 * (2 + len(kernels))
    by_cache = {(row["cache"], row["depth"]): row["bytes_read"] for row in rows}
    assert by_cache["f16", 600] == 600 * 2 * 2 * 64 * 2
    assert by_cache["q8_0", 600] == 600 * 2 * 2 * 64 * 34 / 32
    assert by_cache["mikv", 600] < by_cache["q8_0", 600]
    assert attention.main(arguments) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2 + 2 * (1 + len(kernels))


@pytest.mark.parametrize("name", ["f16", "q8_0"])
def test_upstreams_attention_sees_the_rows_that_ours_sees(name):
    rows = peaked_rows()
    upstream = UpstreamAttention(name, rows.k, rows.v, rows.q, 1)
    upstream.step()
    # q8_0: half of a 127th of the largest value, 0.012, in values; |q| / 8 = 3 times 0.007 rms in logits
    assert np.abs(upstream.result() - exact_attention(rows)).max() < 0.1
    upstream.close()


def peaked_rows():
    """Queries that give outputs of order 1, so that rows of another head or token would show."""
    rows = attention.Rows.random(attention.Heads(64, 2, 3), 300)
    return attention.Rows(rows.k, rows.v, 3 * rows.q)


def exact_attention(rows):
    """[n_head, head_dim], with three query heads to a KV head of 64 values."""
    logits = np.einsum("hd,nhd->hn", rows.q, np.repeat(rows.k, 3, axis=1)) / 8
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    wanted = np.einsum("hn,nhd->hd", weights / weights.sum(axis=1, keepdims=True), np.repeat(rows.v, 3, axis=1))
    assert np.abs(wanted).max() > 1
    return wanted


def test_our_attention_sees_the_rows_too():
    rows = peaked_rows()
    everything_refined = parse_caches("q8")[0].config
    own = attention.Own(everything_refined, "plain", attention.Heads(64, 2, 3), rows, 2, room=3)
    own.burst(2)  # the second token sees the first, and both bring the first row
    more = attention.Rows(*(np.concatenate([x, x[:1], x[:1]]) for x in (rows.k, rows.v)), rows.q)
    # a 512th of a group's range, 0.01, in values, as with q8_0
    assert np.abs(own.result() - exact_attention(more)).max() < 0.1
    assert np.abs(own.result() - exact_attention(rows)).max() > 1e-4
    own.close()


def test_copies_are_measured():
    assert machine.copy_gb_per_s(1) > 0.1


@pytest.mark.parametrize(
    "arguments", [["--heads", "64"], ["--heads", "60x1x1"], ["--depths", "0"], ["--kernels", "mmx"], ["--rounds", "0"]]
)
def test_bad_input_of_attention_is_one_sentence(capsys, arguments):
    assert attention.main(["--heads", "64x1x1", "--depths", "32", "--caches", "f16,mikv", *arguments]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize(
    "arguments", [["--depths", "few"], ["--depths", "-1"], ["--rounds", "0"], ["--burst", "0"], ["--ubatch", "0"], ["-c", "64"]]
)
def test_bad_input_is_one_sentence(model, capsys, arguments):
    assert bench.main([model, "--depths", "0", "--caches", "f16", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
