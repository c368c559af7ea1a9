"""The KL measurement's command line, and the contexts that it reads with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.caches import parse_cache
from mikv_cpp.engine import Models
from mikv_cpp.errors import MikvError
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.passages import cut_chunks

N_CTX = 256


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel()))


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
    assert [row["bytes_total"] / row["bytes_f16"] for row in result["rows"]] == [1.0, 8.5 / 16, 4.5 / 16]
    assert result["n_positions"] == 2 * 63
    assert "mean_kl" not in result
    for row in result["rows"]:
        assert {"mean_kl", "median_kl", "kl_999", "same_top", "ppl"} <= row.keys()


def test_one_cache_is_on_the_top_level_too(model, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("One text, and nothing but one text. " * 20)
    words = ["kl", "--model", model, "--text", str(text), "--context", "128", "--chunks", "4", "--kv", "q4_0", "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    (row,) = (row for row in result["rows"] if row["cache"] == "q4_0")
    assert row.items() <= result.items()
    assert (result["model"], result["n_ctx"], result["n_chunks"]) == (model, 128, 4)


def test_several_texts_are_scored_apart_and_together(model, tmp_path, capsys):
    texts = [tmp_path / "one.txt", tmp_path / "two.txt"]
    for text, line in zip(texts, ("A first text. ", "Something else altogether: 42! ")):
        text.write_text(line * 40)
    common = ["kl", model, "-c", "64", "--chunks", "3", "--kv", "q4_0,q8_0", "--threads", "1", "--json"]
    alone = []
    for text in texts:
        assert main([*common, "--text", str(text)]) == 0
        alone.append(json.loads(capsys.readouterr().out)["rows"])
    assert main([*common, "--text", str(texts[0]), "--text", str(texts[1])]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [part["text"] for part in result["texts"]] == list(map(str, texts))
    assert [part["rows"] for part in result["texts"]] == alone
    assert (result["n_chunks"], result["n_positions"]) == (6, 6 * 31)
    for over_all, one, two in zip(result["rows"], *alone):
        assert over_all["mean_kl"] == pytest.approx((one["mean_kl"] + two["mean_kl"]) / 2)
    assert main([*common[:-1], "--text", str(texts[0]), "--text", str(texts[1])]) == 0
    assert capsys.readouterr().out.count("q4_0") == 3


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
        (["--caches", ","], ["--kv"]),
        (["--model", "other.gguf"], ["two models", "'other.gguf'"]),
        (["--keep", "/dev/null"], ["--keep '/dev/null'"]),
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


def test_no_model_is_one_sentence(capsys):
    assert main(["kl"]) == 2
    assert "no model is named: give --model FILE" in capsys.readouterr().err


def test_too_short_a_text_says_how_many_chunks_there_are():
    with pytest.raises(MikvError, match="at most --chunks 2"):
        cut_chunks(np.zeros(300, dtype=np.int32), 128, 3)
