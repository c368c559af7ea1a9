"""The KL measurement: its arithmetic, which positions it scores, and what it says about caches of a small model."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.caches import parse_cache
from mikv_cpp.engine import Models
from mikv_cpp.errors import MikvError
from mikv_cpp.eval import kl
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.texts import read_text

N_CTX = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


def test_log_softmax_and_kl_against_the_direct_formula():
    rows = np.random.default_rng(1).normal(0, 4, (2, 3, 50)).astype(np.float32)
    got = kl.kl_rows(kl.log_softmax(rows[0]), kl.log_softmax(rows[1]))
    for index in range(3):
        p, q = ([math.exp(x) for x in row[index].tolist()] for row in rows)
        expected = sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q))
        assert got[index] == pytest.approx(expected, rel=1e-10)


def test_summary():
    scores = kl.Scores()
    scores.kl = [np.arange(501.0), np.arange(501.0, 1001.0)]
    scores.nll = [np.full(1001, math.log(20.0))]
    scores.same_top = [np.arange(1001) % 4 == 0]
    summary = scores.summary()
    assert (summary["mean_kl"], summary["median_kl"], summary["kl_999"]) == (500.0, 500.0, 999.0)
    assert summary["mean_kl_error"] == pytest.approx(np.std(np.arange(1001), ddof=1) / math.sqrt(1001), rel=1e-6)
    assert summary["same_top"] == pytest.approx(251 / 1001)
    assert summary["ppl"] == pytest.approx(20.0)


def test_log_softmax_does_not_overflow():
    values = kl.log_softmax(np.array([[90000.0, 0.0, -90000.0]], dtype=np.float32))
    assert values[0].tolist() == [0.0, -90000.0, -180000.0]


class FakeEngine:
    """Predicts, with certainty, the token that follows in `text`, whatever it reads."""

    def __init__(self, text, add_bos):
        self.vocabulary = SimpleNamespace(add_bos=add_bos, bos=999)
        self.text, self.read, self.n_past = text, [], 0

    def clear(self):
        self.n_past = 0

    def decode(self, tokens, first_logits):
        self.read += tokens.tolist()
        done = len(self.read) - len(tokens)
        rows = np.full((max(len(tokens) - first_logits, 0), 1000), -1000.0, dtype=np.float32)
        for row, position in enumerate(range(done + first_logits, done + len(tokens))):
            rows[row, self.text[(position + 1) % len(self.text)]] = 1000.0
        return rows


@pytest.mark.parametrize("ubatch", [1, 5, 8, 16, 64])
@pytest.mark.parametrize("add_bos", [False, True])
def test_second_halves_are_scored_against_the_tokens_that_follow(ubatch, add_bos):
    tokens = np.random.default_rng(2).permutation(900)[:48].astype(np.int32)
    engines = [FakeEngine(tokens, add_bos), FakeEngine(tokens, add_bos)]
    scores = kl.measure(engines, kl.cut_chunks(tokens, 16, 0), ubatch)
    assert sum(map(len, scores[1].nll)) == 3 * 7, "positions 8 .. 14 of each chunk: position 15 has no next token"
    assert np.concatenate(scores[1].nll).max() == 0, "a score against any other token than the next one would be 2000"
    expected = tokens.reshape(3, 16).copy()
    if add_bos:
        expected[:, 0] = 999
    assert engines[0].read == expected.ravel().tolist()


def test_a_cache_against_itself_is_exactly_zero_and_coarser_ones_are_worse(model):
    with Models(model, n_threads=1) as models:
        chunks = kl.cut_chunks(models.vocabulary.tokenize(read_text()), N_CTX, 1)
        engines = [models.open(parse_cache(name), N_CTX, 64) for name in ("f16", "f16", "q8_0", "q4_0")]
        own, again, q8_0, q4_0 = (score.summary() for score in kl.measure(engines, chunks, 64))
    for exact in (own, again):
        assert (exact["mean_kl"], exact["kl_999"], exact["same_top"]) == (0.0, 0.0, 1.0)
    assert 0 < q8_0["mean_kl"] < q4_0["mean_kl"] / 10
    assert q4_0["same_top"] < 1
    assert own["ppl"] == again["ppl"]


def test_the_numbers_do_not_depend_on_the_micro_batch(model):
    results = []
    with Models(model, n_threads=1) as models:
        chunks = kl.cut_chunks(models.vocabulary.tokenize(read_text()), N_CTX, 1)
        for ubatch in (37, 256):
            engines = [models.open(parse_cache(name), N_CTX, ubatch) for name in ("f16", "q4_0")]
            results.append(kl.measure(engines, chunks, ubatch)[1].summary())
    assert results[0]["mean_kl"] == pytest.approx(results[1]["mean_kl"], rel=0.02)
    assert results[0]["ppl"] == pytest.approx(results[1]["ppl"], rel=0.001)


def test_logits_are_of_the_tokens_asked_for(model):
    with Models(model, n_threads=1) as models:
        tokens = models.vocabulary.tokenize("Some text of a few dozen bytes, no more.")
        engine = models.open(parse_cache("f16"), N_CTX, 16)
        every = engine.decode(tokens)
        assert every.shape == (len(tokens), models.vocabulary.n_tokens)
        for first, count in ((0, 40), (16, 24), (20, 20), (39, 1), (40, 0), (-1, 1), (-17, 17)):
            engine.clear()
            some = engine.decode(tokens, first_logits=first)
            assert len(some) == count
            np.testing.assert_allclose(some, every[len(tokens) - count :], atol=2e-3)


def test_removed_tokens_are_forgotten(model):
    with Models(model, n_threads=1) as models:
        tokens = models.vocabulary.tokenize("abcdefghij" * 3)
        engine = models.open(parse_cache("f16"), N_CTX)
        engine.decode(tokens[:20])
        fresh = engine.decode(tokens[20:21])
        engine.decode(tokens[5:15])
        engine.remove_from(20)
        assert engine.n_past == 20
        np.testing.assert_array_equal(engine.decode(tokens[20:21]), fresh)


def test_command_line_prints_one_json_object(model, capsys):
    assert main(["kl", model, "-c", "128", "--chunks", "2", "--caches", "q8_0,f16,q4_0", "--threads", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["cache"] for row in result["rows"]] == ["f16", "q8_0", "q4_0"]
    assert [row["bits_per_value"] for row in result["rows"]] == [16.0, 8.5, 4.5]
    assert result["n_positions"] == 2 * 63
    for row in result["rows"]:
        assert {"mean_kl", "median_kl", "kl_999", "same_top", "ppl"} <= row.keys()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--caches", "q3_0"], ["'q3_0'", "q8_0", "mikv"]),
        (["--text", "/nowhere.txt"], ["'/nowhere.txt'", "--text"]),
        (["--chunks", "999999"], ["999999", "--chunks"]),
        (["--chunks", "-1"], ["-1"]),
        (["-c", "2"], ["-c 2"]),
        (["--ubatch", "0"], ["0", "positive"]),
        (["--threads", "-2"], ["-2 threads"]),
        (["--caches", ","], ["--caches"]),
    ],
)
def test_bad_input_is_one_sentence(model, capsys, arguments, names):
    assert main(["kl", model, "--caches", "q8_0", "--chunks", "1", "-c", "128", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for name in names:
        assert name in printed.err


def test_a_missing_model_is_one_sentence(capsys):
    assert main(["kl", "/nowhere.gguf"]) == 2
    assert "'/nowhere.gguf'" in capsys.readouterr().err


def test_too_short_a_text_says_how_many_chunks_there_are():
    with pytest.raises(MikvError, match="at most --chunks 2"):
        kl.cut_chunks(np.zeros(300, dtype=np.int32), 128, 3)
