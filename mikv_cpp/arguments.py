"""The words of the command line: llama.cpp's where it has them, KVConfig's for the cache."""

from __future__ import annotations

import argparse
import os
from typing import Any, NoReturn, Optional

from mikv_cpp.answer import Sampling
from mikv_cpp.config import AUTOMATIC, DEFAULT_PRESET, POLICIES, KVConfig, named_config, parse_budget
from mikv_cpp.errors import ConfigError
from mikv_cpp.prompt_cache import PromptCache

_CACHE_FIELDS = ("k_bits", "v_bits", "refined_bits", "refined_share", "policy", "sinks", "window", "budget")


class Parser(argparse.ArgumentParser):
    """Bad options become a ConfigError, one sentence like every other."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse for whatever it does not understand."""
        raise ConfigError(f"{message}: see --help")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m mikv_cpp.run`."""
    parser = Parser(
        prog="python -m mikv_cpp.run",
        description="Run a GGUF model with a mixed-precision KV cache. Without a prompt, at a terminal, it chats.",
        epilog="A prompt goes through the model's chat template if it has one; --raw continues the plain text instead.",
    )
    add_model(parser)
    _add_prompt(parser)
    _add_sampling(parser)
    add_cache(parser)
    _add_session(add_states(parser))
    add_machine(parser)
    _add_output(parser)
    return parser


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model, which may be left out."""
    parser.add_argument("model", nargs="?", help="a GGUF file; without one, SmolLM2-135M-Instruct is fetched once (93 MB)")


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("prompt")
    one = group.add_mutually_exclusive_group()
    one.add_argument("-p", "--prompt", metavar="TEXT", help="answer this")
    one.add_argument(
        "-f", "--file", metavar="FILE", help="answer what this text file says; without -p and -f, stdin if it is a pipe"
    )
    group.add_argument("-sys", "--system-prompt", metavar="TEXT", help="system message of the chat")
    group.add_argument("--raw", action="store_true", help="no chat template: continue the text")


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    default = Sampling()
    group = parser.add_argument_group("sampling")
    group.add_argument("-n", "--n-predict", type=int, default=-1, metavar="N", help="tokens to generate; -1: until the end")
    group.add_argument("--temp", type=float, default=default.temp, metavar="T", help="0: greedy (default %(default)s)")
    group.add_argument("--top-k", type=int, default=default.top_k, metavar="N", help="default %(default)s; 0: off")
    group.add_argument("--top-p", type=float, default=default.top_p, metavar="P", help="default %(default)s; 1: off")
    group.add_argument("--min-p", type=float, default=default.min_p, metavar="P", help="default %(default)s; 0: off")
    group.add_argument(
        "--repeat-penalty", type=float, default=default.repeat_penalty, metavar="X", help="default %(default)s: off"
    )
    group.add_argument("-s", "--seed", type=int, default=-1, metavar="N", help="-1: another one each time")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """The words about the cache, for every command that loads a model."""
    group = parser.add_argument_group("KV cache")
    presets = ", ".join([*KVConfig.presets(), "off"])
    group.add_argument(
        "--kv",
        default=DEFAULT_PRESET,
        metavar="NAME",
        help=f"one of {presets}, or a profile's .toml file (default %(default)s)",
    )
    group.add_argument(
        "--budget",
        metavar="BYTES",
        help='bytes it may take: "25%%" of the f16 cache, 1.5GiB, 800MB; auto: the best preset that free memory has room for',
    )
    group.add_argument("--k-bits", type=int, metavar="N", help="bits of a key that is not refined: 2, 3, 4")
    group.add_argument("--v-bits", type=int, metavar="N", help="the same for a value")
    group.add_argument("--refined-bits", type=int, metavar="N", help="bits of a refined token: 4, 5, 6, 8")
    group.add_argument("--refined-share", type=float, metavar="X", help="share of tokens that may be refined: 0 to 1")
    group.add_argument(
        "--policy", metavar="NAME", help=f"who is refined: {', '.join(POLICIES)}; *v behind it: times the value's norm"
    )
    group.add_argument("--sinks", type=int, metavar="N", help="first tokens, kept exact")
    group.add_argument("--window", type=int, metavar="N", help="most recent tokens, always refined")
    group.add_argument(
        "-c", "--ctx-size", type=int, default=0, metavar="N", help="context; 0: the model's, as far as memory allows"
    )


def add_states(parser: argparse.ArgumentParser) -> Any:
    """The words about states on disk; the group that they are in."""
    group = parser.add_argument_group("states on disk")
    group.add_argument(
        "--prompt-cache", metavar="FOLDER", help="keep what was read there, and read nothing again that begins the same"
    )
    group.add_argument(
        "--prompt-cache-size",
        default="4GiB",
        metavar="BYTES",
        help="the least recently used go when it grows larger (default %(default)s)",
    )
    return group


def _add_session(group: Any) -> None:
    group.add_argument(
        "--session", metavar="FILE", help="go on with the conversation in this file, and save it there at the end"
    )


def prompt_cache(options: argparse.Namespace) -> Optional[PromptCache]:
    """The folder that --prompt-cache names, or None.

    Raises:
        ConfigError: it cannot be used, or --prompt-cache-size is no size.
    """
    if options.prompt_cache is None:
        return None
    size_bytes = parse_budget(options.prompt_cache_size).size_bytes
    if size_bytes is None:
        raise ConfigError(f"--prompt-cache-size {options.prompt_cache_size} is a share: give bytes, such as 4GiB")
    return PromptCache(options.prompt_cache, size_bytes)


def add_machine(parser: argparse.ArgumentParser) -> None:
    """The words about the machine, for every command that loads a model."""
    group = parser.add_argument_group("machine")
    group.add_argument(
        "-t", "--threads", type=int, default=0, metavar="N", help="default: every processor this process may use"
    )
    group.add_argument(
        "-b", "--batch-size", type=int, default=512, metavar="N", help="prompt tokens at a time (default %(default)s)"
    )
    group.add_argument(
        "-ub", "--ubatch-size", type=int, default=512, metavar="N", help="of these, computed together (%(default)s)"
    )
    add_device(group)


def add_device(parser: argparse._ActionsContainer) -> None:
    """Which of ggml's devices computes."""
    parser.add_argument(
        "--device",
        metavar="NAME",
        help="compute on this ggml device, such as CUDA0 or CPU (default: the first GPU of the installed llama-cpp-python, "
        "else the CPU; measurements: the CPU's plain device for llama.cpp's own caches)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument("--stats", action="store_true", help="a table by layer at the end, on stderr")
    group.add_argument("--json", action="store_true", help="one JSON object on stdout instead of the text")
    group.add_argument("-v", "--verbose", action="store_true", help="llama.cpp's log, and tracebacks")


def is_automatic(options: argparse.Namespace) -> bool:
    """Whether the cache is to be chosen by the memory that is free."""
    return bool(options.budget == AUTOMATIC)


def kv_setting(options: argparse.Namespace) -> Optional[KVConfig]:
    """The cache that the options ask for, before the memory is known; None for llama.cpp's own.

    Raises:
        ConfigError: a value that cannot be used, alone or with the others.
    """
    if is_automatic(options):
        given = [name for name in _CACHE_FIELDS if name != "budget" and getattr(options, name) is not None]
        if given or options.kv != DEFAULT_PRESET:
            other = given[0].replace("_", "-") if given else "kv"
            raise ConfigError(f"--budget auto chooses the preset itself: leave --{other} out, or give a budget in bytes")
        return KVConfig()
    changes: dict[str, Any] = {name: getattr(options, name) for name in _CACHE_FIELDS if getattr(options, name) is not None}
    if options.kv == "off":
        if changes:
            raise ConfigError(
                f"--kv off cannot be combined with --{next(iter(changes)).replace('_', '-')}: leave one of them out"
            )
        return None
    if "budget" in changes and "refined_share" in changes:
        raise ConfigError("--budget and --refined-share both say how much is refined: leave one of them out")
    return named_config(options.kv, **changes)


def check_numbers(options: argparse.Namespace) -> None:
    """Refuse numbers that llama.cpp would stumble over, of those options that the command has.

    Raises:
        ConfigError: one of them.
    """
    for name, least in (
        ("ctx_size", 0),
        ("batch_size", 1),
        ("ubatch_size", 1),
        ("threads", 0),
        ("n_predict", -1),
        ("top_k", 0),
    ):
        value = getattr(options, name, least)
        if value < least or value > 2**31 - 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value} is not possible: use {least} or more")
    for name, least_float, largest in (
        ("temp", 0.0, 100.0),
        ("top_p", 0.0, 1.0),
        ("min_p", 0.0, 1.0),
        ("repeat_penalty", 0.0, 100.0),
    ):
        number = getattr(options, name, largest)
        if not least_float <= number <= largest:
            raise ConfigError(f"--{name.replace('_', '-')} {number} is not possible: use {least_float:g} to {largest:g}")
    if not -1 <= getattr(options, "seed", -1) < 2**32:
        raise ConfigError(f"--seed {options.seed} is not possible: use -1 to {2**32 - 1}")


def sampling(options: argparse.Namespace) -> Sampling:
    """The sampling options."""
    return Sampling(**{name: getattr(options, name) for name in vars(Sampling())})


def n_threads(options: argparse.Namespace) -> int:
    """-t, else every processor that this process may use."""
    if options.threads:
        return int(options.threads)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
