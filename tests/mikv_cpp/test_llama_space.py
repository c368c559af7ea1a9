"""Llama with caches in a space of their own: balanced, unrotated, of head sizes that llama.cpp does not rotate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import pytest

from mikv_cpp import KVConfig, Llama
from mikv_cpp.config import KVSetting

TEXT = "The quick brown fox jumps over the lazy dog. " * 12


def log_probabilities(path: Path, kv: KVSetting, keep: list[Llama]) -> Any:
    """Of each next token of TEXT, float64 [n_tokens, n_vocab]; the model is put into `keep`."""
    llm = Llama(
        path, kv=kv, n_ctx=1024, n_batch=128, n_ubatch=128, n_threads=2, verbose=False, logits_all=True, flash_attn=True
    )
    keep.append(llm)
    llm.eval(llm.tokenize(TEXT.encode()))
    return llama_cpp.Llama.logits_to_logprobs(llm.scores[: llm.n_tokens].astype(np.float64))


@pytest.mark.parametrize(
    "changes", [{"balance": "max"}, {"balance": "rms"}, {"rotate": False}, {"balance": "max", "rotate": False}], ids=str
)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_eight_bits_are_near_f16_in_any_space(tiny_model: Callable[..., Path], head_dim: int, changes: dict[str, Any]) -> None:
    path, keep = tiny_model(head_dim=head_dim), []
    reference = log_probabilities(path, "off", keep)
    ours = log_probabilities(path, KVConfig.preset("q8", **changes), keep)
    assert (np.exp(reference) * (reference - ours)).sum(axis=1).mean() < 0.02, "mean KL divergence"
    kv = keep[1].kv
    assert kv.note == ""
    assert kv.stats().bytes_total < 0.9 * kv.stats().bytes_f16
