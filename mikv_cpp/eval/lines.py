"""Line retrieval: does a model still find one line among many when its cache is compressed?

The prompt lists lines "line <word>-<word>: REGISTER_CONTENT is <number>" and asks for the number of one of them (the MiKV
paper's task, after LongEval). The asked line moves evenly through the list from prompt to prompt. Every number in the answer
must be the right one. With --questions, several are asked about one list: the cache reads it once, and what a question and
its answer have added is removed before the next.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mikv_cpp.caches import CacheSpec
from mikv_cpp.engine import Models, Vocabulary
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval import retrieval
from mikv_cpp.eval.retrieval import Group, Question, Series

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
QUESTION = "\n\nThe list is over. What is the REGISTER_CONTENT of line {name}? " + retrieval.INSTRUCTION


def make_series(index: int, n_lines: int, depths: Sequence[float]) -> Series:
    """List number `index` with n_lines lines, and a question for the one at each of the depths (0: the first .. 1: the last).

    The same arguments give the same questions everywhere. Raises ConfigError beyond the number of distinct names.
    """
    if not 1 <= n_lines <= len(NAMES):
        raise ConfigError(f"{n_lines} lines cannot be made: there are names for 1 to {len(NAMES)}")
    # random() is the one method of random.Random whose sequence Python promises to keep.
    source = random.Random(f"lines-{index}")  # noqa: S311 -- nothing secret
    order = [source.random() for _ in NAMES]
    names = [name for _, name in sorted(zip(order, NAMES))]
    values = [10000 + int(source.random() * 90000) for _ in range(n_lines)]
    body = "\n".join(f"line {name}: REGISTER_CONTENT is <{value}>" for name, value in zip(names, values))
    series = []
    for depth in depths:
        asked = min(int(depth * n_lines), n_lines - 1)
        series.append(Question(OPENING + body + QUESTION.format(name=names[asked]), str(values[asked]), depth))
    return series


def fit_series(index: int, depths: Sequence[float], n_tokens: int, vocabulary: Vocabulary) -> Series:
    """The longest list whose questions have at most n_tokens, chat template included."""

    def make(n_lines: int) -> Series:
        series = make_series(index, n_lines, depths)
        return [Question(vocabulary.chat(question.prompt), question.answer, question.depth) for question in series]

    def count(series: Series) -> int:
        return max(len(vocabulary.tokenize(question.prompt, special=True)) for question in series)

    return retrieval.fit(make, len(NAMES), n_tokens, count)


def read_questions(path: str) -> list[Question]:
    """Questions from a JSONL file: `prompt`, taken as it is, and `answers`, a list with one number.

    Raises ConfigError that names the file and the line at fault.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the prompts {path!r} ({error}): give a JSONL file in UTF-8") from error
    questions = [parse_question(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not questions:
        raise ConfigError(f"{path!r} has no prompts: give a JSONL file with a prompt and its answers in each line")
    return questions


def parse_question(place: str, line: str) -> Question:
    """One row of a JSONL file; `place` names it in the error."""
    try:
        row = json.loads(line)
        (answer,) = row["answers"]
        return Question(str(row["prompt"]), str(int(answer)))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{place} is not a row with a prompt and one number in its list of answers") from error


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval lines` beyond those all measurements share."""
    parser.add_argument("--prompts", type=int, default=40, metavar="N", help="how many prompts of each length (%(default)s)")
    parser.add_argument(
        "--questions",
        type=int,
        default=1,
        metavar="N",
        help="prompts that share a list: it is read once, and each question asked on what is left of it (%(default)s)",
    )
    parser.add_argument(
        "--lengths",
        type=retrieval.parse_lengths,
        default=[1500],
        metavar="LIST",
        help="lengths of the prompts in tokens, at most, separated by commas (1500)",
    )
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="JSONL rows with prompt (used as it is) and answers, instead of own prompts"
    )
    retrieval.add_arguments(parser)


def make_groups(args: argparse.Namespace, vocabulary: Vocabulary) -> list[Group]:
    """The questions that the command line asks for, chat template included."""
    if args.prompts < 1:
        raise ConfigError(f"--prompts {args.prompts} asks for nothing: give at least 1")
    if args.questions < 1 or args.prompts % args.questions:
        raise ConfigError(f"--questions {args.questions} does not divide --prompts {args.prompts}: give a divisor")
    if args.prompts_file:
        return [Group(None, [[question] for question in read_questions(args.prompts_file)[: args.prompts]])]
    groups = [Group(length, []) for length in args.lengths]
    n_lists = args.prompts // args.questions
    with tqdm(total=len(groups) * n_lists, unit="list", desc="writing", disable=None) as progress:
        for group, length in zip(groups, args.lengths):
            for index in range(n_lists):
                depths = [(index + n_lists * number + 0.5) / args.prompts for number in range(args.questions)]
                group.series.append(fit_series(index, depths, length, vocabulary))
                progress.update()
    return groups


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Ask every question of every cache and return what `--json` prints."""
    with Models(args.model, n_threads=args.threads) as models:
        return retrieval.ask_all(models, args, specs, make_groups(args, models.vocabulary))


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    return retrieval.table(result)
