"""Line retrieval: the prompts it makes and reads, and its scoring."""

from __future__ import annotations

import hashlib
import json
import re

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.errors import MikvError
from mikv_cpp.eval import lines
from mikv_cpp.eval.__main__ import main


def test_prompts_are_the_same_everywhere():
    text = "".join(lines.make_prompt(index, 50, 0.3).text for index in range(3))
    assert hashlib.sha256(text.encode()).hexdigest().startswith("9888093bc2d122ff")


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.99, 1.0])
def test_the_line_asked_for_is_there_once_at_its_depth(depth):
    prompt = lines.make_prompt(7, 40, depth)
    found = re.findall(r"^line (\S+): REGISTER_CONTENT is <(\d+)>$", prompt.text, re.MULTILINE)
    assert len(found) == len(dict(found)) == 40
    asked = re.search(r"of line (\S+)\?", prompt.text)[1]
    assert dict(found)[asked] == prompt.answer
    assert [name for name, _ in found].index(asked) == min(int(depth * 40), 39)


def test_prompts_differ():
    assert lines.make_prompt(0, 20, 0.5) != lines.make_prompt(1, 20, 0.5)


def test_the_longest_prompt_that_fits():
    prompt = lines.fit_prompt(0, 0.5, 2000, len)
    n_lines = prompt.text.count("\nline ")
    assert len(prompt.text) <= 2000 < len(lines.make_prompt(0, n_lines + 1, 0.5).text)
    with pytest.raises(MikvError, match="--tokens 10 is too few"):
        lines.fit_prompt(0, 0.5, 10, len)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The REGISTER_CONTENT is <12345>.", "12345"),
        ("12,345", "12345"),
        ("It is 11111. No: 12345", "11111"),
        ("123456", "123456"),
        ("I do not know.", None),
    ],
)
def test_only_the_first_number_counts(text, number):
    assert lines.first_number(text) == number


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
        (["it ", "is ", "12", "34", ".", " more", ""], "it is 1234."),  # the number is complete
        (["12", "34", "", "5"], "1234"),  # the turn ends
        (list("abcdefgh"), "abcde"),  # too long
        (["", "12"], ""),
    ],
)
def test_answers_end(pieces, expected):
    assert lines.answer(FakeEngine(pieces), np.zeros(3, dtype=np.int32), 5) == expected


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "prompt": "What?", "answers": ["42"]}\n\n{"prompt": "And?", "answers": [7]}\n')
    assert lines.read_prompts(str(path)) == [lines.Prompt("What?", "42"), lines.Prompt("And?", "7")]


@pytest.mark.parametrize(
    "row", ['{"prompt": "What?"}', '{"prompt": "a", "answers": ["kitchen"]}', "[]", "{", '{"prompt": "a", "answers": []}']
)
def test_a_bad_row_is_named(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answers": ["1"]}\n' + row + "\n")
    with pytest.raises(MikvError, match=r"rows\.jsonl:2 is not a row"):
        lines.read_prompts(str(path))


def test_command_line(tmp_path, capsys):
    model = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(chat_template=True))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"<|im_start|>{n}", "answers": [n]}) + "\n" for n in range(3)))
    common = ["lines", str(model), "--caches", "f16,q8_0", "--answer-tokens", "4", "--threads", "1", "--json"]
    assert main([*common, "--prompts-file", str(rows), "--prompts", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n_prompts"], result["longest_prompt"]) == (2, 2)  # control tokens in a file's prompts are control tokens
    assert main([*common, "--prompts", "2", "--tokens", "600"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 500 < result["longest_prompt"] <= 600
    for row in result["rows"]:
        right = [lines.first_number(entry["given"]) == entry["expected"] for entry in row["answers"]]
        assert (row["right"], row["accuracy"]) == (sum(right), sum(right) / 2)
