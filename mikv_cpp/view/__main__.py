"""`python -m mikv_cpp.view [model.gguf] -p TEXT`: where the precision of a prompt went, and why."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from mikv_cpp import arguments, report
from mikv_cpp.answer import Sampling, Speed, answer, context_size
from mikv_cpp.errors import ConfigError, MikvError
from mikv_cpp.loading import find_model, load
from mikv_cpp.terminal import Bar

if TYPE_CHECKING:
    from mikv_cpp.llama import Llama


def build_parser() -> argparse.ArgumentParser:
    """The parser of `python -m mikv_cpp.view`."""
    parser = arguments.Parser(
        prog="python -m mikv_cpp.view",
        description="Read a prompt and show which of its tokens are kept at which precision, by layer and KV head, how "
        "important they are, and how much attention each precision gets.",
    )
    arguments.add_model(parser)
    group = parser.add_argument_group("prompt")
    one = group.add_mutually_exclusive_group(required=True)
    one.add_argument("-p", "--prompt", metavar="TEXT", help="this text, as it is: no chat template")
    one.add_argument("-f", "--file", metavar="FILE", help="what this text file says")
    group.add_argument("-n", "--n-predict", type=int, default=0, metavar="N", help="go on for N tokens first (default 0)")
    group = parser.add_argument_group("output")
    group.add_argument("--plot", metavar="FILE", help="draw it to a .png, .svg or .pdf file (needs matplotlib)")
    group.add_argument("--json", action="store_true", help="one JSON object on stdout: bits and importance of every token")
    group.add_argument("-v", "--verbose", action="store_true", help="llama.cpp's log, and tracebacks")
    arguments.add_cache(parser)
    arguments.add_machine(parser)
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; the exit status: 0, 1 if it failed, 2 for bad input, 130 after Ctrl-C."""
    try:
        return _view(build_parser().parse_args(argv))
    except KeyboardInterrupt:
        return 130
    except MikvError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _view(options: argparse.Namespace) -> int:
    arguments.check_numbers(options)
    if options.kv == "off":
        raise ConfigError("--kv off is llama.cpp's own cache, all of one precision: name a preset")
    config = arguments.kv_setting(options)
    text = _text(options)
    llm = load(options, find_model(options), config)
    try:
        _show(llm, text, options)
    finally:
        llm.close()
    return 0


def _text(options: argparse.Namespace) -> str:
    try:
        text = options.prompt if options.file is None else Path(options.file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file {options.file!r} cannot be read ({error}): name a UTF-8 text file") from error
    if not text.strip():
        raise ConfigError("the prompt is empty: give -p or -f some text")
    return str(text)


def _show(llm: Llama, text: str, options: argparse.Namespace) -> None:
    from mikv_cpp.snapshot import take_snapshot, token_pieces  # noqa: PLC0415 - needs llama.cpp
    from mikv_cpp.view.plot import save_plot  # noqa: PLC0415 - beside it
    from mikv_cpp.view.summary import as_json, terminal_summary  # noqa: PLC0415 - beside it

    tokens = llm.tokenize(text.encode(), add_bos=True, special=False)
    if len(tokens) >= context_size(llm):
        raise ConfigError(
            f"the prompt has {len(tokens)} tokens, but the context holds {context_size(llm)}: shorten it, or raise -c"
        )
    with Bar("prompt", "token", enabled=not options.verbose) as bar:
        out = answer(llm, tokens, Sampling(temp=0.0), max(options.n_predict, 1), lambda _: None, bar)
    shot, stats = take_snapshot(llm), llm.kv_stats()
    if not shot.rows:
        raise ConfigError(
            f"this model's cache stays llama.cpp's own, all of one precision ({stats.note}): there is nothing to show"
        )
    pieces, _ = token_pieces(llm, llm.input_ids[: llm.n_tokens].tolist())
    if options.plot:
        save_plot(options.plot, shot, stats, f"{llm.model_file.name}, {llm.n_tokens} tokens")
    if options.json:
        print(json.dumps(as_json(shot, stats, pieces, llm.model_file.name), ensure_ascii=False))
        return
    print(terminal_summary(shot, stats, pieces))
    speed = Speed()
    speed.add(out.speed)
    print(report.closing_line(stats, speed))


if __name__ == "__main__":
    sys.exit(main())
