"""A program with another ggml than the plug-in was built for gets one sentence and no device; nothing of that ggml is touched.

A ggml that says it is of such a version stands in for it: it has every function that the plug-in calls, and most of them abort.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import llama_cpp
import pytest

from mikv_cpp import LibraryError, plugin
from mikv_cpp.native import Library, find_library

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "compatibility.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([\d.]+) \| ([\d.]+) \| (\w+)", PAGE, flags=re.MULTILINE)
REFUSED = [(package, ggml) for package, ggml, verdict in ROWS if verdict == "refused"]
BUILT_FOR = next(ggml for _, ggml, verdict in ROWS if verdict == "works")

SPEAKING = {
    "ggml_version": 'const char * ggml_version(void) { return getenv("GGML_VERSION"); }',
    "ggml_log_internal": "void ggml_log_internal(int level, const char * format, ...)"
    " { va_list more; (void) level; va_start(more, format); vfprintf(stderr, format, more); va_end(more); }",
    "ggml_backend_dev_count": "size_t ggml_backend_dev_count(void) { return 0; }",
}
LOAD = """
import ctypes, sys
base, ggml, plugin = (ctypes.CDLL(path, ctypes.RTLD_GLOBAL) for path in sys.argv[1:])
plugin.ggml_backend_init.restype = ctypes.c_void_p
print(plugin.ggml_backend_init())
"""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The two libraries of a ggml that does nothing."""
    compiler = shutil.which("cc")
    if sys.platform != "linux" or not compiler:
        pytest.skip("skipped: needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("host")
    symbols = re.findall(r"^(ggml(?:-base)?) (\w+)$", (ROOT / "native/ggml/symbols.txt").read_text(), flags=re.MULTILINE)
    made = []
    for library in ("ggml-base", "ggml"):
        lines = [SPEAKING.get(name, f"void {name}(void) {{ abort(); }}") for owner, name in symbols if owner == library]
        source = folder / f"{library}.c"
        source.write_text("#include <stdarg.h>\n#include <stdio.h>\n#include <stdlib.h>\n" + "\n".join(lines) + "\n")
        made.append(str(folder / f"lib{library}.so.0"))
        command = [compiler, "-shared", "-fPIC", f"-Wl,-soname,lib{library}.so.0", "-o", made[-1], str(source)]
        subprocess.run(command, check=True)
    return made


def loaded(host: list[str], version: str) -> SimpleNamespace:
    """What came of loading the plug-in into a program with a ggml of this version."""
    command = [sys.executable, "-c", LOAD, *host, str(find_library())]
    result = subprocess.run(command, env={**os.environ, "GGML_VERSION": version}, capture_output=True, text=True, check=False)
    return SimpleNamespace(status=result.returncode, registry=result.stdout.strip(), log=result.stderr)


@pytest.mark.parametrize("version", sorted({ggml for _, ggml in REFUSED} | {"99.0.0"}))
def test_another_ggml_is_refused(host: list[str], version: str) -> None:
    out = loaded(host, version)
    assert (out.status, out.registry) == (0, "None"), out.log
    assert out.log == (
        f"mikv: this library was built for ggml {BUILT_FOR} and the program has ggml {version}: "
        "install the mikv_cpp that fits it\n"
    )


def test_its_own_ggml_comes_past_that_question(host: list[str]) -> None:
    out = loaded(host, BUILT_FOR)
    assert (out.status, out.registry) == (0, "None"), out.log
    assert out.log == "mikv: the program has no device yet: load its backends before this library\n"


@pytest.mark.parametrize(("package", "ggml"), REFUSED)
def test_python_refuses_it_before_loading_anything(package: str, ggml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "__version__", package)
    with pytest.raises(LibraryError, match=rf"{re.escape(package)} is installed, .* needs {plugin.LLAMA_CPP_VERSION}"):
        plugin.check_version()
    with pytest.raises(LibraryError, match=rf"built for ggml {re.escape(BUILT_FOR)}, but .* ggml {re.escape(ggml)}"):
        Library(ggml)


def test_the_page_says_which() -> None:
    works = [(package, ggml) for package, ggml, verdict in ROWS if verdict == "works"]
    ggml = plugin.ggml_function("ggml_version", ctypes.c_char_p)().decode()
    assert works == [(plugin.LLAMA_CPP_VERSION, ggml)]
    assert len(REFUSED) >= 2
