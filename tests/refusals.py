"""The sentences with which the sources refuse something, as people read them, an ellipsis for every value."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = sorted(path for path in (ROOT / "mikv_cpp").rglob("*.py") if "reference" not in path.parts)
NATIVE = sorted([*(ROOT / "native" / "store").glob("*.cpp"), *(ROOT / "native" / "ggml").glob("*.cpp")])

_RAISED = re.compile(r"(Config|Budget|Library|Model|State|Mikv|Value|ArgumentType)Error|Refusal|Cancelled|Busy|PromptTooLong")
_LITERAL = r'"(?:[^"\\\n]|\\.)*"'
_FAILED = re.compile(rf"(?:fail\(\s*MIKV_ERROR_\w+,|GGML_LOG_ERROR\(|GGML_ABORT\()\s*({_LITERAL}(?:\s*{_LITERAL})*)")
_FORMAT = re.compile(r"%[-\d.]*(?:ll)?[a-z]")


def said_by_python(path: Path) -> list[str]:
    """What the errors say that a file raises, or makes to be raised."""
    calls = (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    made = (call for call in calls if _RAISED.fullmatch(getattr(call.func, "id", "")) or _is_init_of_error(call))
    return [sentence for call in made for sentence in map(_text, call.args) if _is_sentence(sentence)]


def said_by_native(path: Path) -> list[str]:
    """The same of a C++ file."""
    found = (_FORMAT.sub("…", _joined(match[1])) for match in _FAILED.finditer(path.read_text(encoding="utf-8")))
    return [sentence for sentence in (text.removeprefix("mikv: ").strip() for text in found) if _is_sentence(sentence)]


def literals(path: Path) -> str:
    """All text that a file can print."""
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return "\n".join(_texts(ast.parse(source)))
    return "\n".join(_FORMAT.sub("…", _joined(run)) for run in re.findall(rf"{_LITERAL}(?:\s*{_LITERAL})*", source))


def _is_init_of_error(call: ast.Call) -> bool:
    """super().__init__("..."): of an error's class, in this package."""
    function = call.func
    return isinstance(function, ast.Attribute) and function.attr == "__init__" and bool(call.args)


def _is_sentence(text: str) -> bool:
    return len(re.findall(r"(?<!_)\b[a-z]{2,}\b", text)) >= 3


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return re.sub("…+", "…", "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _texts(tree: ast.AST) -> Iterator[str]:
    return filter(None, (_text(node) for node in ast.walk(tree) if isinstance(node, ast.expr)))


def _joined(run: str) -> str:
    parts = re.findall(_LITERAL, run)
    return "".join(part[1:-1] for part in parts).replace('\\"', '"').replace("\\n", "")
