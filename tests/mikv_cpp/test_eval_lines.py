"""Line retrieval: the prompts it makes and reads."""

from __future__ import annotations

import hashlib
import json
import re

import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.errors import MikvError
from mikv_cpp.eval import lines
from mikv_cpp.eval.__main__ import main
from mikv_cpp.eval.retrieval import Question, is_right


def test_prompts_are_the_same_everywhere():
    text = "".join(lines.make_series(index, 50, [0.3])[0].prompt for index in range(3))
    assert hashlib.sha256(text.encode()).hexdigest().startswith("9888093bc2d122ff")


@pytest.mark.parametrize("depth", [0.0, 0.25, 0.99, 1.0])
def test_the_line_asked_for_is_there_once_at_its_depth(depth):
    (question,) = lines.make_series(7, 40, [depth])
    found = re.findall(r"^line (\S+): REGISTER_CONTENT is <(\d+)>$", question.prompt, re.MULTILINE)
    assert len(found) == len(dict(found)) == 40
    asked = re.search(r"of line (\S+)\?", question.prompt)[1]
    assert dict(found)[asked] == question.answer
    assert [name for name, _ in found].index(asked) == min(int(depth * 40), 39)


def test_prompts_differ():
    assert lines.make_series(0, 20, [0.5]) != lines.make_series(1, 20, [0.5])


def test_questions_about_one_list_ask_for_different_lines_of_it():
    series = lines.make_series(0, 20, [0.1, 0.5, 0.9])
    assert len({question.answer for question in series}) == 3
    assert len({question.prompt.split("The list is over.")[0] for question in series}) == 1


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1, "prompt": "What?", "answers": ["42"]}\n\n{"prompt": "And?", "answers": [7]}\n')
    assert lines.read_questions(str(path)) == [Question("What?", "42"), Question("And?", "7")]


@pytest.mark.parametrize(
    "row", ['{"prompt": "What?"}', '{"prompt": "a", "answers": ["kitchen"]}', "[]", "{", '{"prompt": "a", "answers": []}']
)
def test_a_bad_row_is_named(tmp_path, row):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "answers": ["1"]}\n' + row + "\n")
    with pytest.raises(MikvError, match=r"rows\.jsonl:2 is not a row"):
        lines.read_questions(str(path))


def test_command_line(tmp_path, capsys):
    model = write_tiny_model(tmp_path / "tiny.gguf", TinyModel(chat_template=True))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"<|im_start|>{n}", "answers": [n]}) + "\n" for n in range(3)))
    common = ["lines", str(model), "--caches", "f16,q8_0", "--answer-tokens", "4", "--threads", "1", "--json"]
    assert main([*common, "--prompts-file", str(rows), "--prompts", "2"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["n_prompts"], result["lengths"]) == (2, [None])
    # control tokens in a file's prompts are control tokens
    assert [row["longest_prompt"] for row in result["rows"]] == [2, 2]
    assert main([*common, "--prompts", "3", "--questions", "2"]) == 2
    assert "--questions 2 does not divide --prompts 3" in capsys.readouterr().err
    assert main([*common, "--prompts", "4", "--questions", "2", "--lengths", "600"]) == 0
    depths = [[entry["depth"] for entry in row["answers"]] for row in json.loads(capsys.readouterr().out)["rows"]]
    assert depths == [[0.125, 0.625, 0.375, 0.875]] * 2
    assert main([*common, "--prompts", "2", "--lengths", "600"]) == 0
    result = json.loads(capsys.readouterr().out)
    for row in result["rows"]:
        assert 500 < row["longest_prompt"] <= 600
        assert row["n_ctx"] == row["longest_prompt"] + 4
        right = [is_right(entry["given"], entry["expected"]) for entry in row["answers"]]
        assert (row["right"], row["accuracy"]) == (sum(right), sum(right) / 2)
