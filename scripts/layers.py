#!/usr/bin/env python3
"""Check who includes or imports whom: arrows point down only, and each stranger is known in one place.

C++, folders of native/: ggml -> store -> {policy, backend}, backend -> kernel -> codec -> format -> dialect; only ggml/
includes ggml's headers. Python: only the modules of STRANGERS import cffi and llama_cpp; mikv_cpp/reference, the executable
specification, imports neither these nor the rest of the package, so it cannot agree with the native code by sharing it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# folder -> folders right below it; what is below those may be included too
BELOW = {
    "ggml": ("store",),
    "store": ("policy", "backend", "include"),
    "policy": ("include",),
    "backend": ("kernel",),
    "kernel": ("codec",),
    "codec": ("format",),
    "format": ("dialect",),
    "dialect": (),  # the one place that knows compilers
    "include": (),  # the public declarations: words that ggml, store and policy share
}
GGML_HEADER = re.compile(r"(ggml|gguf|llama)[\w-]*\.h")
INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]')

STRANGERS = {
    "cffi": {"mikv_cpp/native.py"},
    "_cffi_backend": {"mikv_cpp/native.py"},
    "llama_cpp": {"mikv_cpp/plugin.py", "mikv_cpp/llama.py", "mikv_cpp/engine.py"},
}
REFERENCE_IMPORTS = {"numpy"}  # besides the standard library and itself


def reachable(folder: str) -> set[str]:
    """The folder and all below it."""
    return {folder}.union(*(reachable(below) for below in BELOW[folder]))


def included_folder(path: Path, target: str) -> str | None:
    """The folder of native/ that an include of `path` leads to; None for headers from elsewhere."""
    native = ROOT / "native"
    for base in (native, path.parent, native / "include"):
        if (base / target).is_file():
            return (base / target).resolve().relative_to(native).parts[0]
    return None


def check_native(path: Path) -> Iterator[str]:
    """Faults of one C++ file."""
    folder = path.relative_to(ROOT / "native").parts[0]
    if folder not in BELOW:
        yield f"{path.relative_to(ROOT)}: folder {folder} is not known: give it a place in scripts/layers.py"
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        where = f"{path.relative_to(ROOT)}:{number}"
        target = included_folder(path, match[1])
        if target is None:
            if GGML_HEADER.fullmatch(Path(match[1]).name) and folder != "ggml":
                yield f"{where}: {match[1]}: only native/ggml may include ggml's headers"
        elif target not in reachable(folder):
            yield f"{where}: {match[1]}: {folder} may not include {target}"


def imported_modules(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import, importlib.import_module("...") included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield node.lineno, str(node.args[0].value)


def check_python(path: Path) -> Iterator[str]:
    """Faults of one module of the package."""
    name = path.relative_to(ROOT).as_posix()
    tree = ast.parse(path.read_text(encoding="utf-8"), name)
    in_reference = name.startswith("mikv_cpp/reference/")
    for line, module in imported_modules(tree, list(path.relative_to(ROOT).parts[:-1])):
        top = module.split(".", 1)[0]
        if top in STRANGERS and name not in STRANGERS[top]:
            yield f"{name}:{line}: import of {top}: only {' and '.join(sorted(STRANGERS[top]))} may know it"
        elif in_reference and top == "mikv_cpp" and not module.startswith("mikv_cpp.reference"):
            yield f"{name}:{line}: import of {module}: reference shares nothing with the rest of the package"
        elif in_reference and top not in (REFERENCE_IMPORTS | {"mikv_cpp", "__future__"}) and not is_standard(top):
            yield f"{name}:{line}: import of {top}: reference uses {', '.join(REFERENCE_IMPORTS)} and the standard library"


def is_standard(top: str) -> bool:
    """Whether a module is of the standard library (before Python 3.10, which cannot tell: yes)."""
    return top in getattr(sys, "stdlib_module_names", {top})


def main() -> int:
    """Print every fault; 1 if there is one."""
    native = [path for path in sorted((ROOT / "native").rglob("*")) if path.suffix in (".h", ".cpp", ".cu", ".cuh", ".mm")]
    python = sorted((ROOT / "mikv_cpp").rglob("*.py"))
    faults = [fault for path in native for fault in check_native(path)]
    faults += [fault for path in python for fault in check_python(path)]
    print("\n".join([*faults, f"layers: {len(native)} native and {len(python)} Python files, {len(faults)} faults"]))
    return 1 if faults or not native or not python else 0


if __name__ == "__main__":
    raise SystemExit(main())
