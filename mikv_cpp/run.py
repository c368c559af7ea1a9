"""`python -m mikv_cpp.run [model.gguf]`: talk to a model, and see what its KV cache takes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from mikv_cpp import arguments, report
from mikv_cpp.answer import Answer, Speed, answer
from mikv_cpp.chat import Chat, Conversation
from mikv_cpp.errors import ConfigError, MikvError
from mikv_cpp.loading import find_model, load, say
from mikv_cpp.model_file import ModelFile
from mikv_cpp.session import Session
from mikv_cpp.terminal import Bar

if TYPE_CHECKING:
    from mikv_cpp.llama import Llama


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; the exit status: 0, 1 if it failed, 2 for bad input, 130 after Ctrl-C."""
    verbose = "-v" in (argv or sys.argv) or "--verbose" in (argv or sys.argv)
    try:
        return _run(arguments.build_parser().parse_args(argv))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        _detach_stdout()
        return 0
    except MikvError as error:
        return _fail(str(error), 2 if isinstance(error, ValueError) else 1)
    except Exception as error:  # the last line of defence: a sentence for people, the rest for --verbose
        if verbose:
            raise
        return _fail(f"{type(error).__name__}: {error} (--verbose shows more)", 1)


def _run(options: argparse.Namespace) -> int:
    arguments.check_numbers(options)
    config = arguments.kv_setting(options)
    cache = arguments.prompt_cache(options)
    prompt = _read_prompt(options)
    model = find_model(options)
    llm = load(options, model, config)
    if options.seed >= 0:
        llm.set_seed(options.seed)
    try:
        conversation = Conversation(llm, options.system_prompt, _is_raw(options, model), options.n_predict)
        kept = Session(options.session, cache, llm, conversation)
        printer = _Printer(options, llm, kept)
        if prompt is None:
            Chat(conversation, printer.reply, printer.closing_line).run()
        else:
            out = printer.reply(conversation.ask(prompt))
            conversation.answered(out.text)
            if options.json:
                print(json.dumps(report.as_json(out, llm.kv_stats(), model.name), ensure_ascii=False))
            else:
                print(flush=True)
        kept.save()
        printer.close()
    finally:
        llm.close()
    return 0


def _read_prompt(options: argparse.Namespace) -> Optional[str]:
    """The prompt, or None for a chat."""
    prompt: str
    if options.prompt is not None:
        prompt = options.prompt
    elif options.file is not None:
        try:
            prompt = Path(options.file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--file {options.file!r} cannot be read ({error}): name a UTF-8 text file") from error
    elif sys.stdin is None or sys.stdin.isatty():
        if options.json:
            raise ConfigError("--json needs a prompt: give -p, -f, or text on stdin")
        return None
    else:
        prompt = io.TextIOWrapper(sys.stdin.buffer, encoding="utf-8", errors="replace").read()
    if not prompt.strip():
        raise ConfigError("the prompt is empty: give -p, -f, or text on stdin")
    return prompt


def _is_raw(options: argparse.Namespace, model: ModelFile) -> bool:
    if not options.raw and not model.has_chat_template:
        say(f"{model.name} has no chat template: what you write is continued as plain text")
    return options.raw or not model.has_chat_template


class _Printer:
    """Everything that is printed between loading and leaving."""

    def __init__(self, options: argparse.Namespace, llm: Llama, kept: Session) -> None:
        self._kept = kept
        self._options = options
        self._llm = llm
        self._speed = Speed()

    def reply(self, tokens: list[int]) -> Answer:
        """Answer a prompt, streaming to stdout."""
        self._kept.before(tokens)
        with Bar("prompt", "token", enabled=not self._options.verbose) as bar:

            def write(text: str) -> None:
                bar.close()
                if not self._options.json:
                    sys.stdout.write(text)
                    sys.stdout.flush()

            out = answer(self._llm, tokens, arguments.sampling(self._options), self._options.n_predict, write, bar)
        self._speed.add(out.speed)
        return out

    def closing_line(self) -> str:
        return report.closing_line(self._llm.kv_stats(), self._speed)

    def close(self) -> None:
        """The line at the end, and the table that --stats asks for."""
        stats = self._llm.kv_stats()
        if self._options.stats:
            say(report.layer_table(stats))
        if not self._options.json:
            say(report.closing_line(stats, self._speed))


def _fail(sentence: str, status: int) -> int:
    print(f"error: {sentence}", file=sys.stderr)
    return status


def _detach_stdout() -> None:
    """Python flushes stdout when it leaves, and would complain about the closed pipe once more."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
