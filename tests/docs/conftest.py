"""A reader's folder: model.gguf, text.txt, and a `python` that is this one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from documented import ROOT, shim
from served import serving

from mikv_cpp.serve.app import Settings

TEXT = "The cache keeps every token. Important ones are refined, and the rest stay at base precision. " * 12


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory, python: str) -> dict[str, str]:
    """Environment of the reader's shell."""
    bin_folder = tmp_path_factory.mktemp("bin")
    script = bin_folder / "python"
    script.write_text(shim(python), encoding="utf-8")
    script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MIKV_") or name == "MIKV_LIBRARY"}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **kept,
        "PATH": os.pathsep.join([str(bin_folder), str(Path(python).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Callable[..., Path]) -> Path:
    """Where the reader works."""
    shutil.copy(tiny_model(n_layer=4, chat_template=True), tmp_path / "model.gguf")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


@pytest.fixture(scope="session")
def server_url(tiny_model: Callable[..., Path]) -> Iterator[str]:
    """A server for programs that ask one."""
    with serving(tiny_model(chat_template=True), Settings(), n_ctx=256) as served:
        yield served.url
