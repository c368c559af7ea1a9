"""Asking for a number: what counts as an answer, and what is remembered."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.caches import parse_cache
from mikv_cpp.engine import Models
from mikv_cpp.errors import MikvError
from mikv_cpp.eval import lines, needle, retrieval
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.retrieval import Question


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("12345", True),
        ("The REGISTER_CONTENT is <12345>.", True),
        ("12,345", True),
        ("It is 12345. Yes, 12345.", True),
        ("It is 11111. No: 12345", False),
        ("12345, 23456, 34567", False),
        ("12345,23456", False),
        ("12345\n23456", False),
        ("123456", False),
        ("1234", False),
        ("I do not know.", False),
        ("", False),
    ],
)
def test_only_the_number_itself_is_right(text, right):
    assert retrieval.is_right(text, "12345") is right


@given(st.lists(st.integers(10000, 99999), min_size=2, unique=True), st.sampled_from([", ", "\n", " ", "; ", ",", " and "]))
def test_a_list_of_numbers_is_never_right(values, separator):
    listed = separator.join(map(str, values))
    assert not any(retrieval.is_right(listed, str(value)) for value in values)


def test_a_scorer_that_takes_lists_would_be_seen():
    """The seeded fault: "the number is somewhere in the answer" passes what the test above refuses."""
    listed = "10001, 10002, 10003"
    assert all(value in listed for value in listed.split(", "))
    assert not any(retrieval.is_right(listed, value) for value in listed.split(", "))


class FakeEngine:
    """Answers with the given tokens: their detokenized text is what they spell."""

    def __init__(self, pieces):
        self.pieces, self.n_past, self.vocabulary = pieces, 0, self

    def clear(self):
        self.n_past = 0

    def decode(self, *_, **__):
        logits = np.zeros((1, len(self.pieces) + 1), dtype=np.float32)
        logits[0, self.n_past] = 1
        self.n_past += 1
        return logits

    def is_end(self, token):
        return self.pieces[token] == ""

    def detokenize(self, tokens):
        return "".join(self.pieces[token] for token in tokens)


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        (["it ", "is ", "12", "34", ".", ""], "it is 1234."),
        (["12", "34", "", "5"], "1234"),  # the turn ends
        (["12", "34", ", ", "1", "5", "6", "7", "8", ""], "1234, 1"),  # a list is one as soon as it has two numbers
        (["12", " 12", " 12", ""], "12 12 12"),
        (list("abcdefghijk"), "abcdefgh"),  # too long
        (["", "12"], ""),
    ],
)
def test_answers_end(pieces, expected):
    assert retrieval.answer(FakeEngine(pieces), np.zeros(3, dtype=np.int32), 8) == expected


def test_an_engine_that_lists_every_number_gets_none_right():
    values = [str(10000 + index) for index in range(50)]
    pieces = [piece for value in values for piece in (value, ", ")] + [""]
    given_answer = retrieval.answer(FakeEngine(pieces), np.zeros(3, dtype=np.int32), 1000)
    found = retrieval.marks([Question("", value) for value in values], [given_answer] * 50)
    assert (found["right"], found["accuracy"], found["n_prompts"]) == (0, 0.0, 50)


@given(st.integers(1, 60), st.integers(0, 200))
def test_the_longest_that_fits(most, n_tokens):
    def make(n):
        return Question("x" * (3 * n), "1")

    def count(question):
        return len(question.prompt)

    if n_tokens < 3:
        with pytest.raises(MikvError, match=f"--lengths {n_tokens} is too few"):
            retrieval.fit(make, most, n_tokens, count)
    else:
        assert len(retrieval.fit(make, most, n_tokens, count).prompt) == 3 * min(most, n_tokens // 3)


def test_lengths():
    assert retrieval.parse_lengths("512,1024,512") == [512, 1024]
    for text in ("", "512,", "0", "-5", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match="not a list of lengths"):
            retrieval.parse_lengths(text)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf", TinyModel(chat_template=True)))


def tokens_of(*numbers_):
    return np.array(numbers_, dtype=np.int32)


@pytest.mark.parametrize(
    ("prompts", "n"),
    [
        ([tokens_of(1, 2, 3)], 2),
        ([tokens_of(1, 2, 3), tokens_of(1, 2, 4)], 2),
        ([tokens_of(1, 2, 3, 4), tokens_of(1, 5, 3, 4), tokens_of(1, 2, 3, 4)], 1),
        ([tokens_of(1, 2), tokens_of(1, 2, 3)], 1),
        ([tokens_of(1), tokens_of(2)], 0),
    ],
)
def test_what_prompts_share(prompts, n):
    assert retrieval.n_shared(prompts) == n


def test_a_series_reads_what_its_prompts_share_once_and_answers_as_if_each_were_alone(model):
    """On llama.cpp's own cache the answers are those of single prompts; the cache saw the shared tokens once."""
    with Models(model, n_threads=1) as models:
        (first, second), read = lines.fit_series(0, [0.1, 0.9], 500, models.vocabulary), []
        prompts = [models.vocabulary.tokenize(question.prompt, special=True) for question in (first, second, first)]
        engine = models.open(parse_cache("f16"), 600)
        alone = [next(retrieval.answers(engine, [prompt], 5)) for prompt in prompts]
        decode = engine.decode
        engine.decode = lambda tokens, *rest, **named: (read.append(len(tokens)), decode(tokens, *rest, **named))[1]
        assert list(retrieval.answers(engine, prompts, 5)) == alone
        longest = [length for length in read if length > 1]
        assert longest == [len(prompts[0]), *(len(prompt) - retrieval.n_shared(prompts) for prompt in prompts[1:])]


@pytest.mark.parametrize("options", [["lines", "--prompts", "2"], ["needle", "--prompts", "1", "--depths", "2"]])
def test_answers_are_remembered(model, tmp_path, capsys, monkeypatch, options):
    asked = []
    original = retrieval.answer

    def count(engine, *args):
        asked.append(engine.spec.name)
        return original(engine, *args)

    monkeypatch.setattr(retrieval, "answer", count)
    common = [*options, "--model", model, "--answer-tokens", "3", "--threads", "1", "--keep", str(tmp_path / "kept"), "--json"]
    assert main([*common, "--kv", "f16", "--lengths", "500"]) == 0
    first = json.loads(capsys.readouterr().out)["rows"]
    assert asked == ["f16"] * 2
    asked.clear()
    assert main([*common, "--kv", "f16,q4_0", "--lengths", "500,600"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert asked == ["q4_0"] * 2 + ["f16"] * 2 + ["q4_0"] * 2
    assert result["rows"][:1] == first
    assert [(row["length"], row["cache"]) for row in result["rows"]] == [
        (500, "f16"),
        (500, "q4_0"),
        (600, "f16"),
        (600, "q4_0"),
    ]
    assert result["rows"][1]["bytes_total"] < result["rows"][1]["bytes_f16"] == result["rows"][0]["bytes_total"]
    asked.clear()
    for path in (tmp_path / "kept").glob("answers-*"):
        path.write_bytes(b"damaged")
    assert main([*common, "--kv", "f16", "--lengths", "500"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"] == first
    assert asked == ["f16"] * 2


def test_the_table_has_a_column_for_each_length(model, capsys):
    common = ["lines", model, "--prompts", "1", "--answer-tokens", "2", "--threads", "1", "--kv", "f16,q8_0"]
    assert main([*common, "--lengths", "500,600"]) == 0
    head, f16, q8_0 = capsys.readouterr().out.splitlines()
    assert head.split() == ["cache", "bits", "500", "tok", "600", "tok"]
    assert f16.split() == ["f16", "16.00", "0/1", "0.0%", "0/1", "0.0%"]
    assert q8_0.startswith("q8_0")


@pytest.mark.parametrize("command", ["lines", "needle"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--lengths", "10"], ["--lengths 10 is too few"]),
        (["--lengths", "ten"], ["--lengths", "'ten'"]),
        (["--prompts", "0"], ["--prompts 0"]),
        (["--answer-tokens", "0"], ["--answer-tokens 0"]),
        (["--lengths", "600", "-c", "512"], ["512", "larger -c"]),
    ],
)
def test_bad_input_is_one_sentence(model, capsys, command, arguments, words):
    assert main([command, model, "--kv", "f16", "--threads", "1", "--prompts", "1", "--lengths", "500", *arguments]) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert all(word in printed for word in words)


def test_a_capable_model_finds_the_needle_and_a_broken_cache_loses_it(smollm, capsys):
    """SmolLM2 can read the number out of a short text, and no more when keys and values are 2 bits without a trick."""
    broken = "k2v2r8s0:sinks=0:window=0:center_keys=0"
    common = ["needle", "--model", str(smollm), "--prompts", "1", "--depths", "2", "--lengths", "200", "--json"]
    assert main([*common, "--kv", f"f16,{broken}"]) == 0
    f16, other = json.loads(capsys.readouterr().out)["rows"]
    assert f16["right"] == f16["n_prompts"] == 2, f16["answers"]
    assert other["right"] < 2, other["answers"]


def test_prompts_hold_no_more_tokens_than_asked_for(model):
    with Models(model, n_threads=1) as models:
        vocabulary = models.vocabulary
        sentences = needle.split_sentences("It was so. " * 30 + "Why? No. " * 30)
        for n_tokens in (400, 555):
            for question in (
                *lines.fit_series(3, [0.5, 0.9], n_tokens, vocabulary),
                needle.fit_question(sentences, 3, 0.5, n_tokens, vocabulary),
            ):
                assert n_tokens - 60 < len(vocabulary.tokenize(question.prompt, special=True)) <= n_tokens
