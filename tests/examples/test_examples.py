"""The programs of docs/examples as a reader builds and runs them: the installed package, llama-cpp-python's own libllama."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import llama_cpp
import numpy as np
import pytest

from mikv_cpp import Llama
from mikv_cpp.native import find_library

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"


def run(*command: str, **options: Any) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the built examples."""
    prefix = find_library().parents[1]
    if not (prefix / "lib" / "cmake" / "mikv_cpp").exists():
        pytest.skip(f"skipped: {find_library()} is not installed, it has no CMake package beside it")
    if not shutil.which("cmake"):
        pytest.skip("skipped: no cmake")
    source = os.environ.get("MIKV_LLAMA_CPP_DIR") or run(sys.executable, str(ROOT / "scripts/fetch_headers.py")).split()[-1]
    libraries = Path(llama_cpp.__file__).parent / "lib"
    folder = tmp_path_factory.mktemp("examples")
    where = [f"-DCMAKE_PREFIX_PATH={prefix}", f"-DLLAMA_SOURCE_DIR={source}", f"-DLLAMA_LIBRARY_DIR={libraries}"]
    run("cmake", "-S", str(EXAMPLES), "-B", str(folder), *where)
    run("cmake", "--build", str(folder))
    return folder


def test_a_c_program_asks_what_caches_take(built: Path) -> None:
    printed = run(str(built / "sizes"), "30", "3", "64", "8192").splitlines()
    assert printed[0] == "f16: 180.0 MiB"
    mib = [float(line.split(": ")[1].split()[0]) for line in printed]
    assert len(mib) == 4
    assert mib[1] < mib[2] < mib[3] < 0.3 * mib[0]


def test_a_c_program_says_what_is_wrong(built: Path) -> None:
    result = subprocess.run([str(built / "sizes"), "30", "3", "0", "8192"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "error: head sizes are 0 and 0" in result.stderr


def test_a_cpp_program_completes_a_text(built: Path, smollm: Path) -> None:
    command = [str(built / "complete"), str(smollm), "The capital of France is"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert "KV cache: 24.8 MiB, in f16 90.0 MiB" in result.stderr
    printed = result.stdout
    assert printed.lstrip().startswith("Paris")


def test_a_cpp_program_says_what_is_wrong(built: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [str(built / "complete"), str(tmp_path / "none.gguf"), "x"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "none.gguf is no model" in result.stderr


@pytest.mark.usefixtures("built")
def test_pkg_config_knows_where_things_are() -> None:
    if not shutil.which("pkg-config"):
        pytest.skip("skipped: no pkg-config")
    folder = find_library().parent / "pkgconfig"
    environment = {**os.environ, "PKG_CONFIG_PATH": str(folder)}
    include = run("pkg-config", "--variable=includedir", "mikv_cpp", env=environment).strip()
    assert (Path(include) / "mikv.h").exists()
    assert (
        Path(run("pkg-config", "--variable=plugin", "mikv_cpp", env=environment).strip()).resolve() == find_library().resolve()
    )


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A screen: the user's, or one in memory."""
    pytest.importorskip("tkinter", reason="skipped: this Python has no tkinter")
    if os.environ.get("DISPLAY") or sys.platform != "linux":
        yield
        return
    server_path = shutil.which("Xvfb")
    if not server_path:
        pytest.skip("skipped: no display and no Xvfb (Debian's package xvfb)")
    reader, writer = os.pipe()
    with subprocess.Popen(
        [server_path, "-displayfd", str(writer), "-nolisten", "tcp"], pass_fds=[writer], stderr=subprocess.DEVNULL
    ) as server:
        os.close(writer)
        monkeypatch.setenv("DISPLAY", ":" + os.read(reader, 16).decode().strip())
        yield
        server.terminate()
    os.close(reader)


def load_window() -> ModuleType:
    spec = importlib.util.spec_from_file_location("window", EXAMPLES / "window.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.usefixtures("display")
def test_the_window_answers_and_draws(tiny_model: Callable[..., Path]) -> None:
    module = load_window()
    llm = Llama(str(tiny_model()), n_ctx=2048, verbose=False, chat_format="chatml", kv="mikv")
    window = module.Window(llm)
    empty = module.picture(llm)
    assert np.unique(empty.reshape(-1, 3), axis=0).tolist() == [list(module.COLOURS["empty"])]
    window.entry.insert(0, "Tell me of rivers. " * 30)
    window.ask()
    end = time.monotonic() + 120
    while window.busy and time.monotonic() < end:
        window.root.update()
        time.sleep(0.01)
    assert not window.busy
    colours = {tuple(colour) for colour in np.unique(module.picture(llm).reshape(-1, 3), axis=0).tolist()}
    assert {module.COLOURS[name] for name in ("base", "refined", "exact")} <= colours
    assert window.status.cget("text").startswith(f"{llm.kv.stats().tokens} tokens in ")
    window.root.destroy()
