"""Greedy agreement: where continuations part, and how near the tie was."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.eval import greedy
from mikv_cpp.eval.__main__ import main


@pytest.mark.parametrize(("other", "index"), [([1, 2, 3], None), ([1, 2, 4], 2), ([0, 2, 3], 0)])
def test_first_difference(other, index):
    assert greedy.first_difference([1, 2, 3], other) == index


def test_logit_error_is_that_of_the_likeliest_tokens_and_blind_to_a_constant():
    reference = np.arange(100, dtype=np.float32)
    other = reference + 5
    assert greedy.logit_error(reference, other) == 0
    other[3] += 50  # an unlikely token
    assert greedy.logit_error(reference, other) == 0
    other[99] += 1
    assert greedy.logit_error(reference, other) == pytest.approx(0.9)  # 1, less the mean over ten tokens


class Yardstick:
    """A q8_0 engine whose logits are the reference's but for an error at the likeliest token."""

    def __init__(self, logits, error):
        self.logits, self.error, self.read = logits, error, []
        self.vocabulary = SimpleNamespace(detokenize=lambda tokens: f"<{tokens[0]}>")

    def clear(self):
        self.read = []

    def decode(self, tokens, first_logits):
        assert first_logits == -1
        self.read += tokens.tolist()
        changed = self.logits.copy()
        changed[changed.argmax()] += self.error
        return changed[np.newaxis]


@pytest.mark.parametrize(("error", "near_tie"), [(1.0, True), (0.1, False)])
def test_a_difference_is_a_near_tie_if_q8_0_errs_by_more(error, near_tie):
    logits = np.zeros(20, dtype=np.float32)
    logits[[5, 7]] = 3.0, 2.5
    own = logits.copy()
    own[7] = 3.2
    expected = greedy.Continuation([1, 5, 2], [logits] * 3)
    given = greedy.Continuation([1, 7, 2], [own] * 3)
    yardstick = Yardstick(logits, error)
    result = greedy.compare(expected, given, yardstick, np.array([8, 9], dtype=np.int32))
    assert yardstick.read == [8, 9, 1], "what both had seen when they parted"
    assert (result["first_difference"], result["expected"], result["given"]) == (1, "<5>", "<7>")
    assert result["logit_gap"] == 0.5
    assert result["near_tie"] is near_tie
    assert not result["same"]


def test_command_line(tmp_path, capsys):
    model = str(write_tiny_model(tmp_path / "tiny.gguf", TinyModel(chat_template=True)))
    assert main(["greedy", model, "--tokens", "24", "--caches", "f16,q4_0", "--threads", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["cache"], row["prompt"]) for row in rows] == [(cache, n) for n in range(3) for cache in ("f16", "q4_0")]
    assert all(row["same"] for row in rows if row["cache"] == "f16")
    assert not all(row["same"] for row in rows if row["cache"] == "q4_0"), "4 bits change a random model's answers"
    assert main(["greedy", model, "--tokens", "24", "--caches", "q4_0", "--threads", "1"]) == 0
    assert "q8_0's logit error there" in capsys.readouterr().out
    assert main(["greedy", model, "--tokens", "0"]) == 2
