"""The needle: where it lies in the haystack, and that the haystack is prose."""

from __future__ import annotations

import hashlib
import re

import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.eval import needle
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.texts import read_text

FACT = re.compile(r"The number of the locker at the old harbour is (\d{5})\.")


@pytest.fixture(scope="module")
def sentences():
    return needle.split_sentences(read_text())


def test_prompts_are_the_same_everywhere(sentences):
    text = "".join(needle.make_question(sentences, index, 20, 0.3).prompt for index in range(3))
    assert hashlib.sha256(text.encode()).hexdigest().startswith("9bb30164f5783935")


def test_sentences_end_where_people_end_them():
    text = 'Mr. Elliot came.  "Why?" she said!\nNo. It was Mrs. Clay, at 3 p.m. or so. _He_ knew'
    assert needle.split_sentences(text) == [
        "Mr. Elliot came.",
        '"Why?" she said!',
        "No.",
        "It was Mrs. Clay, at 3 p.m. or so.",
        "_He_ knew",
    ]


@pytest.mark.parametrize("n_sentences", [1, 10, 33])
@pytest.mark.parametrize("depth", [0.0, 0.25, 0.5, 1.0])
def test_the_fact_is_there_once_at_its_depth_among_whole_sentences(sentences, depth, n_sentences):
    question = needle.make_question(sentences, 4, n_sentences, depth)
    (value,) = FACT.findall(question.prompt)
    assert value == question.answer
    body = question.prompt[len(needle.OPENING) : -len(needle.QUESTION)]
    before, after = (needle.split_sentences(part) if part else [] for part in map(str.strip, FACT.split(body)[::2]))
    assert (len(before), len(after)) == (round(depth * n_sentences), n_sentences - round(depth * n_sentences))
    assert set(before + after) <= set(sentences)


def test_excerpts_and_numbers_differ(sentences):
    questions = [needle.make_question(sentences, index, 10, 0.5) for index in range(20)]
    assert len({question.answer for question in questions}) == 20
    assert len({FACT.sub("", question.prompt) for question in questions}) == 20


def test_an_excerpt_goes_round_the_end_of_the_text():
    short = ["One.", "Two.", "Three."]
    question = needle.make_question(short, 0, 3, 1.0)
    assert all(sentence in question.prompt for sentence in short)


@pytest.mark.parametrize(("n", "depths"), [(1, [0.5]), (2, [0.0, 1.0]), (5, [0.0, 0.25, 0.5, 0.75, 1.0])])
def test_depths(n, depths):
    assert needle.spread(n) == depths


def test_too_short_a_text_is_one_sentence(tmp_path, capsys):
    model = str(write_tiny_model(tmp_path / "tiny.gguf", TinyModel()))
    text = tmp_path / "short.txt"
    text.write_text("One. Two. Three.")
    common = ["needle", model, "--kv", "f16", "--threads", "1"]
    assert main([*common, "--text", str(text), "--lengths", "2000"]) == 2
    assert "too short for --lengths 2000" in capsys.readouterr().err
    assert main([*common, "--depths", "0"]) == 2
    assert "--depths 0" in capsys.readouterr().err
