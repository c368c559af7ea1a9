"""The command line: `python -m mikv_cpp.bench model.gguf`, or `python -m mikv_cpp.bench attention`."""

from __future__ import annotations

import sys

from mikv_cpp.bench import attention, decode

arguments = sys.argv[1:]
raise SystemExit(attention.main(arguments[1:]) if arguments[:1] == ["attention"] else decode.main(arguments))
