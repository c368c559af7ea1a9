"""`python -m mikv_cpp.eval kl | ladder | field | compare | lines | needle | memory | greedy`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Optional

from mikv_cpp.eval import command, compare, field, greedy, kl, ladder, lines, memory, needle

MEASUREMENTS: dict[str, command.Measurement] = {
    "kl": kl,
    "ladder": ladder,
    "field": field,
    "compare": compare,
    "lines": lines,
    "needle": needle,
    "memory": memory,
    "greedy": greedy,
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status."""
    parser = command.Parser(prog="python -m mikv_cpp.eval", description="Measure what a compressed KV cache costs.")
    commands = parser.add_subparsers(dest="measurement", required=True)
    for name, module in MEASUREMENTS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        own = commands.add_parser(
            name, help=summary, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_arguments(own, module, takes_list=module is not compare)
    return command.execute(parser, argv)


if __name__ == "__main__":
    raise SystemExit(main())
