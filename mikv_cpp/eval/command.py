"""What the command lines of all measurements share: options, errors, output."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any, NoReturn, Optional, Protocol

from mikv_cpp import plugin
from mikv_cpp.arguments import add_device, n_threads
from mikv_cpp.caches import PLAIN_BITS, CacheSpec, parse_caches, parse_field
from mikv_cpp.config import PRESETS, KVConfig
from mikv_cpp.errors import ConfigError, MikvError


class Measurement(Protocol):
    """What a measurement's module has."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Its own options, and defaults for the shared ones."""

    def run(self, args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
        """Measure; what `--json` prints."""

    def table(self, result: dict[str, Any]) -> str:
        """The same for people."""


CACHES_HELP = (
    f"what to compare, separated by commas: llama.cpp's own ({', '.join(PLAIN_BITS)}), presets ({', '.join(PRESETS)}), bits "
    "such as k3v2r5s0.28 (3-bit keys, 2-bit values, 28 %% refined to 5 bits), or a profile's .toml file; :POLICY and "
    ":FIELD=VALUE may follow (default: %(default)s)"
)


class Parser(argparse.ArgumentParser):
    """Whose errors are one sentence, as all others."""

    def error(self, message: str) -> NoReturn:
        """Refuse the command line."""
        raise ConfigError(f"{message}: see --help")


def add_arguments(parser: argparse.ArgumentParser, measurement: Measurement, takes_list: bool = True) -> None:
    """The options of a measurement: the model, the caches and the context, then its own; it sets defaults for all.

    takes_list: whether it takes any number of caches; one that does not says itself how it takes them.
    """
    parser.add_argument("model", nargs="?", help="GGUF file")
    parser.add_argument("-m", "--model", dest="model_option", metavar="MODEL", help="the same")
    if takes_list:
        parser.add_argument("--kv", "--caches", dest="caches", metavar="LIST", help=CACHES_HELP)
    parser.add_argument(
        "-c",
        "--context",
        "--ctx-size",
        dest="ctx_size",
        type=int,
        metavar="N",
        help="context in tokens; 0: as long as needed (default: %(default)s)",
    )
    parser.add_argument("-ub", "--ubatch", type=int, metavar="N", help="tokens in a micro-batch (default: %(default)s)")
    parser.add_argument("-t", "--threads", type=int, default=0, metavar="N", help="0: every processor this process may use")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_device(parser)
    measurement.add_arguments(parser)
    add_fields(parser)
    parser.set_defaults(run=measurement.run, table=measurement.table)


def add_fields(parser: argparse.ArgumentParser) -> None:
    """The fields of KVConfig as options."""
    group = parser.add_argument_group(
        "for all MIKV caches in the list", "fields of KVConfig; what a cache's name says goes first"
    )
    for field in dataclasses.fields(KVConfig):
        group.add_argument(f"--{field.name.replace('_', '-')}", metavar="VALUE")


def add_keep(parser: argparse.ArgumentParser) -> None:
    """The option of measurements that can go on where they were."""
    parser.add_argument(
        "--keep",
        metavar="FOLDER",
        help="keep results in this folder and take from it what is there: an interrupted or extended run goes on",
    )


def named_model(args: argparse.Namespace) -> str:
    """The model, which may be named in two ways. Raises ConfigError unless it is named once."""
    named = [name for name in (args.model, args.model_option) if name is not None]
    if not named:
        raise ConfigError("no model is named: give --model FILE")
    if len(named) > 1:
        raise ConfigError(f"two models are named, {named[0]!r} and {named[1]!r}: give one")
    return str(named[0])


def overrides(args: argparse.Namespace) -> dict[str, Any]:
    """The KVConfig fields that were given as options."""
    given = {field.name: getattr(args, field.name) for field in dataclasses.fields(KVConfig)}
    return {name: parse_field(f"--{name}", name, text) for name, text in given.items() if text is not None}


def execute(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]]) -> int:
    """Run the measurement that the command line asks for and print its result.

    The exit status: 0, 1 if it failed, 2 for bad input, 130 after Ctrl-C; a failure is one sentence on stderr.
    """
    try:
        args = parser.parse_args(argv)
        args.threads = n_threads(args)
        plugin.use_device(getattr(args, "device", None))
        if "model_option" in args:
            args.model = named_model(args)
        caches = args.caches if isinstance(args.caches, str) else ",".join(args.caches)
        result = args.run(args, parse_caches(caches, overrides(args)))
    except MikvError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        return 130
    sys.stdout.write((json.dumps(result) if args.json else args.table(result)) + "\n")
    return 0
