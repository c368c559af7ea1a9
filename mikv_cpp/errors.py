"""What can go wrong, one class for each remedy.

Every message is one sentence that names the value and says what to do about it.
"""

from __future__ import annotations


class MikvError(Exception):
    """Base of all errors that mikv_cpp raises on purpose."""


class ConfigError(MikvError, ValueError):
    """A setting that cannot be used: change the setting."""


class BudgetError(ConfigError):
    """Too few bytes, of the budget or of the machine's memory: give more bytes or ask for less context."""


class ModelError(MikvError, ValueError):
    """A model file that is missing, damaged, or not GGUF: give another file."""


class StateError(MikvError, RuntimeError):
    """A saved state that does not fit this model, context or cache: load it where it was saved."""


class LibraryError(MikvError, RuntimeError):
    """The native library or llama-cpp-python is missing or of another version: install the right one."""
