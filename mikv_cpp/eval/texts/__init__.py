"""Texts to measure on. persuasion.txt: the opening of Jane Austen's *Persuasion* (1818), public domain."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

from mikv_cpp.errors import ConfigError

DEFAULT = Path(__file__).with_name("persuasion.txt")


def read_text(path: Optional[str] = None) -> str:
    """The text in a UTF-8 file, or the one that comes with the package.

    Raises ConfigError when the file cannot be read or is not UTF-8.
    """
    source = DEFAULT if path is None else Path(path)
    try:
        return source.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read the text {str(source)!r} ({error.strerror}): give a readable file to --text") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the text {str(source)!r} is not UTF-8 (byte {error.start}): convert it first") from error
