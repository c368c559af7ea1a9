"""GGUF headers, good and damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mikv_cpp import ModelError
from mikv_cpp.model_file import AttentionShape, read_model_file

Writer = Callable[..., Path]


def test_header_of_a_grouped_query_model(tiny_model: Writer) -> None:
    model = read_model_file(tiny_model(head_dim=128, n_head=8, n_head_kv=2, n_layer=3, n_ctx_train=2048))
    assert (model.arch, model.n_layer, model.n_ctx_train, model.sliding_window) == ("llama", 3, 2048, 0)
    assert dict(model.attention_layers()) == {AttentionShape(2, 128, 128): 3}
    assert model.f16_bytes(256) == 256 * 3 * 2 * (128 + 128) * 2
    assert not model.has_chat_template
    assert model.is_plain_attention


def test_sliding_window_and_template_are_seen(tiny_model: Writer) -> None:
    assert read_model_file(tiny_model(arch="gemma3", n_layer=6, sliding_window=32)).sliding_window == 32
    assert read_model_file(tiny_model(chat_template=True)).has_chat_template


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.gguf' does not exist: check the path"):
        read_model_file(tmp_path / "nowhere.gguf")


def test_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a file"):
        read_model_file(tmp_path)


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04 a zip file", b"hello"])
def test_not_gguf(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not a GGUF file"):
        read_model_file(path)


def test_another_version(tiny_model: Writer, tmp_path: Path) -> None:
    content = bytearray(tiny_model().read_bytes())
    content[4] = 9
    (tmp_path / "new.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="GGUF version 9"):
        read_model_file(tmp_path / "new.gguf")


def test_truncated_anywhere_in_the_header(tiny_model: Writer, tmp_path: Path) -> None:
    content = tiny_model(n_layer=1).read_bytes()
    header_bytes = len(content) - 4 * 259 * 64  # at most: the token embedding alone is that long
    path = tmp_path / "cut.gguf"
    for size in [*range(4, 200), *range(200, header_bytes, 997)]:
        path.write_bytes(content[:size])
        with pytest.raises(ModelError, match="truncated or damaged"):
            read_model_file(path)


def test_damaged_lengths_are_not_believed(tiny_model: Writer, tmp_path: Path) -> None:
    content = bytearray(tiny_model().read_bytes())
    content[16:24] = (2**63 - 1).to_bytes(8, "little")  # how many fields there are
    (tmp_path / "damaged.gguf").write_bytes(content)
    with pytest.raises(ModelError, match="truncated or damaged"):
        read_model_file(tmp_path / "damaged.gguf")
