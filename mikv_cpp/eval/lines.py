"""Line retrieval: does a model still find one line among many when its cache is compressed?

The prompt lists lines "line <word>-<word>: REGISTER_CONTENT is <number>" and asks for the number of one of them (the MiKV
paper's task, after LongEval). The asked line moves evenly through the list from prompt to prompt. Scoring is strict: the first
number in the answer counts, nothing after it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
from tqdm import tqdm

from mikv_cpp.caches import CacheSpec
from mikv_cpp.engine import Engine, Models, Tokens
from mikv_cpp.errors import ConfigError

_QUALITIES = """
amber brisk calm dusty eager faded gentle hollow icy jolly keen lucky mellow narrow olive proud quiet rusty silver tidy upper
vivid warm young zesty bright clever distant early famous
"""
_THINGS = """
anchor basket candle drum engine feather garden hammer island jacket kettle ladder mirror needle orchard pencil quarry river
saddle tunnel umbrella violin window yard bridge castle dragon forest guitar harbor lantern meadow notebook ocean pillow rocket
shovel temple valley wagon
"""
NAMES = [f"{quality}-{thing}" for quality in _QUALITIES.split() for thing in _THINGS.split()]
OPENING = (
    "Below is a list of lines to remember. Each gives a number as its REGISTER_CONTENT. I will ask for one of them later.\n\n"
)
QUESTION = "\n\nThe list is over. What is the REGISTER_CONTENT of line {name}? Answer with the number only."
NUMBER = re.compile(r"\d[\d,]*")


@dataclass(frozen=True)
class Prompt:
    """A prompt for the model and the number that answers it."""

    text: str
    answer: str


def make_prompt(index: int, n_lines: int, depth: float) -> Prompt:
    """Prompt number `index` with n_lines lines, asking for the one at `depth` (0: the first .. 1: the last).

    The same arguments give the same prompt everywhere. Raises ConfigError beyond the number of distinct names.
    """
    if not 1 <= n_lines <= len(NAMES):
        raise ConfigError(f"{n_lines} lines cannot be made: there are names for 1 to {len(NAMES)}")
    # random() is the one method of random.Random whose sequence Python promises to keep.
    source = random.Random(f"lines-{index}")  # noqa: S311 -- nothing secret
    order = [source.random() for _ in NAMES]
    names = [name for _, name in sorted(zip(order, NAMES))]
    values = [10000 + int(source.random() * 90000) for _ in range(n_lines)]
    asked = min(int(depth * n_lines), n_lines - 1)
    body = "\n".join(f"line {name}: REGISTER_CONTENT is <{value}>" for name, value in zip(names, values))
    return Prompt(OPENING + body + QUESTION.format(name=names[asked]), str(values[asked]))


def fit_prompt(index: int, depth: float, n_tokens: int, count: Callable[[str], int]) -> Prompt:
    """The longest prompt of at most n_tokens, as `count` counts a prompt's tokens."""
    low, high = 0, len(NAMES)
    while low < high:
        middle = (low + high + 1) // 2
        if count(make_prompt(index, middle, depth).text) <= n_tokens:
            low = middle
        else:
            high = middle - 1
    if low == 0:
        raise ConfigError(f"--tokens {n_tokens} is too few for a prompt of one line: give at least 120")
    return make_prompt(index, low, depth)


def read_prompts(path: str) -> list[Prompt]:
    """Prompts from a JSONL file: `prompt`, taken as it is, and `answers`, a list with one number.

    Raises ConfigError that names the file and the line at fault.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompts {path!r} ({error}): give a JSONL file in UTF-8") from error
    prompts = [parse_prompt(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise ConfigError(f"{path!r} has no prompts: give a JSONL file with a prompt and its answers in each line")
    return prompts


def parse_prompt(place: str, line: str) -> Prompt:
    """One row of a JSONL file; `place` names it in the error."""
    try:
        row = json.loads(line)
        (answer,) = row["answers"]
        return Prompt(str(row["prompt"]), str(int(answer)))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place} is not a row with a prompt and one number in its list of answers") from error


def first_number(text: str) -> Optional[str]:
    """The first number of an answer, thousands separators removed; None if there is none."""
    match = NUMBER.search(text)
    return match.group().replace(",", "") if match else None


def answer(engine: Engine, prompt: Tokens, n_answer: int) -> str:
    """The greedy answer on an emptied cache: until the turn ends, a first number is complete, or n_answer tokens are there."""
    engine.clear()
    token = int(np.argmax(engine.decode(prompt, first_logits=-1)[0]))
    tokens: list[int] = []
    while not engine.vocabulary.is_end(token):
        tokens.append(token)
        text = engine.vocabulary.detokenize(tokens)
        number = NUMBER.search(text)
        if len(tokens) == n_answer or (number and number.end() < len(text)):
            return text
        token = int(np.argmax(engine.decode(np.array([token], dtype=np.int32))[0]))
    return engine.vocabulary.detokenize(tokens)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval lines` beyond those all measurements share."""
    parser.add_argument("--prompts", type=int, default=40, metavar="N", help="how many prompts (%(default)s)")
    parser.add_argument("--tokens", type=int, default=1500, metavar="N", help="length of each prompt, at most (%(default)s)")
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="JSONL rows with prompt (used as it is) and answers, instead of own prompts"
    )
    parser.add_argument("--answer-tokens", type=int, default=24, metavar="N", help="longest answer (%(default)s)")
    parser.set_defaults(ctx_size=0, ubatch=512, caches="f16,q8_0,q4_0,mikv")


def make_prompts(args: argparse.Namespace, models: Models) -> list[Prompt]:
    """The prompts that the command line asks for, chat template included."""
    if args.prompts < 1:
        raise ConfigError(f"--prompts {args.prompts} asks for nothing: give at least 1")
    if args.prompts_file:
        return read_prompts(args.prompts_file)[: args.prompts]
    vocabulary = models.vocabulary

    def count(text: str) -> int:
        return len(vocabulary.tokenize(vocabulary.chat(text), special=True))

    prompts = [fit_prompt(index, (index + 0.5) / args.prompts, args.tokens, count) for index in range(args.prompts)]
    return [Prompt(vocabulary.chat(prompt.text), prompt.answer) for prompt in prompts]


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Ask every prompt of every cache and return what `--json` prints."""
    with Models(args.model, n_threads=args.threads) as models:
        prompts = make_prompts(args, models)
        tokens = [models.vocabulary.tokenize(prompt.text, special=True) for prompt in prompts]
        n_ctx = args.ctx_size or max(len(part) for part in tokens) + args.answer_tokens
        engines = [models.open(spec, n_ctx=n_ctx, ubatch=args.ubatch) for spec in specs]
        answers: list[list[str]] = [[] for _ in engines]
        with tqdm(total=len(prompts) * len(engines), unit="prompt", desc="asking", disable=None) as progress:
            for part in tokens:
                for engine, own in zip(engines, answers):
                    own.append(answer(engine, part, args.answer_tokens))
                    progress.update()
        rows = [row(engine, prompts, own) for engine, own in zip(engines, answers)]
    return {
        "model": args.model,
        "n_ctx": n_ctx,
        "n_prompts": len(prompts),
        "longest_prompt": max(map(len, tokens)),
        "rows": rows,
    }


def row(engine: Engine, prompts: Sequence[Prompt], answers: Sequence[str]) -> dict[str, Any]:
    """One cache's result: how many answers are right, and every answer given."""
    right = [first_number(text) == prompt.answer for prompt, text in zip(prompts, answers)]
    return {
        "cache": engine.spec.name,
        "bits_per_value": engine.bits_per_value,
        "right": sum(right),
        "accuracy": sum(right) / len(right),
        "answers": [{"expected": prompt.answer, "given": text} for prompt, text in zip(prompts, answers)],
    }


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [f"{'cache':<24}{'bits':>7}{'right':>10}{'accuracy':>10}"]
    for entry in result["rows"]:
        right = f"{entry['right']}/{result['n_prompts']}"
        lines.append(f"{entry['cache']:<24}{entry['bits_per_value']:>7.2f}{right:>10}{entry['accuracy']:>10.1%}")
    return "\n".join(lines)
