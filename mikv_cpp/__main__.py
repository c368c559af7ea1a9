"""`mikv-cpp COMMAND ...`, or `python -m mikv_cpp COMMAND ...`: every command of the package under one name."""

from __future__ import annotations

import runpy
import sys

from mikv_cpp import __version__

#: Each is a module that `python -m mikv_cpp.NAME` runs too; --help of it says more.
COMMANDS = {
    "run": "talk to a model, and see what its KV cache takes",
    "serve": "OpenAI's API, and a page with a chat and the cache as it fills",
    "plan": "what fits into memory, without loading the model",
    "view": "which tokens of a text are refined, by layer and head, as text, picture or JSON",
    "calibrate": "find bits, shares and layers for one model",
    "eval": "measure what a compressed cache costs in quality",
    "bench": "measure speed",
}


def main() -> int:
    """Run the command that was named; the exit status is 0 for help, 2 for none or an unknown one, else the command's."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name in COMMANDS:
        del sys.argv[1]
        runpy.run_module(f"mikv_cpp.{name}", run_name="__main__", alter_sys=True)  # it leaves by SystemExit
    elif name in ("-h", "--help"):
        print("usage: mikv-cpp COMMAND ...\n\n" + "\n".join(f"  {row:<10} {what}" for row, what in COMMANDS.items()))
        print("\nmikv-cpp COMMAND --help says more.")
    elif name == "--version":
        print(f"mikv-cpp {__version__}")
    else:
        print(f"error: {name!r} is not a command: use one of {', '.join(COMMANDS)}, or --help", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
