"""What tests of the package share: models."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from tiny_model import TinyModel, write_tiny_model

from mikv_cpp.errors import ModelError
from mikv_cpp.models import default_model

ROOT = Path(__file__).resolve().parent.parent

# how long an example takes says something of the machine's other work, too
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny_model(head_dim=128, n_head_kv=1, ...): path of such a GGUF file (fields of TinyModel), written once."""
    folder = tmp_path_factory.mktemp("models")
    written: dict[TinyModel, Path] = {}

    def write(**sizes: Any) -> Path:
        model = TinyModel(**sizes)
        if model not in written:
            written[model] = write_tiny_model(folder / f"tiny-{len(written)}.gguf", model)
        return written[model]

    return write


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct, fetched once into the user's cache folder."""
    try:
        return default_model()
    except ModelError as error:
        pytest.skip(f"skipped: no SmolLM2-135M: {error}")


@pytest.fixture(scope="session")
def python_environment() -> dict[str, str]:
    """Environment in which `python -m mikv_cpp.run` is the package under test, installed or not."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.fixture(scope="session")
def python() -> str:
    """The interpreter that runs the tests."""
    return sys.executable
