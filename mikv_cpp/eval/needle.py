"""A needle in a haystack: does a model still find one fact hidden in prose when its cache is compressed?

A sentence with a number is put between two sentences of a text, at depths from the start (0) to the end (1), in excerpts of
given lengths, and asked for at the end. Every number in the answer must be the right one.
"""

from __future__ import annotations

import argparse
import random
import re
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from mikv_cpp.caches import CacheSpec
from mikv_cpp.engine import Models, Vocabulary
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval import retrieval
from mikv_cpp.eval.retrieval import Group, Question
from mikv_cpp.eval.texts import read_text

OPENING = "Here is a text. Read it, then answer the question that comes after it.\n\n"
FACT = "The number of the locker at the old harbour is {value}."
QUESTION = "\n\nWhat is the number of the locker at the old harbour? " + retrieval.INSTRUCTION
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.) (?=[A-Z\"'\u2018\u201c_])")


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, their white space made single spaces."""
    return SENTENCE_END.split(" ".join(text.split()))


def make_question(sentences: Sequence[str], index: int, n_sentences: int, depth: float) -> Question:
    """Question number `index`: an excerpt of n_sentences with the fact before the one at `depth` (0: the first; 1: at the end).

    Where the excerpt starts and what the number is depend on `index` only; after the text's last sentence comes its first.
    """
    source = random.Random(f"needle-{index}")  # noqa: S311 -- nothing secret
    start = int(source.random() * len(sentences))
    value = str(10000 + int(source.random() * 90000))
    excerpt = [sentences[(start + offset) % len(sentences)] for offset in range(n_sentences)]
    excerpt.insert(round(depth * n_sentences), FACT.format(value=value))
    return Question(OPENING + " ".join(excerpt) + QUESTION, value, depth)


def fit_question(sentences: Sequence[str], index: int, depth: float, n_tokens: int, vocabulary: Vocabulary) -> Question:
    """The longest question of at most n_tokens, its chat template included. Raises ConfigError for too short a text."""

    def make(n_sentences: int) -> Question:
        question = make_question(sentences, index, n_sentences, depth)
        return Question(vocabulary.chat(question.prompt), question.answer, depth)

    def count(question: Question) -> int:
        return len(vocabulary.tokenize(question.prompt, special=True))

    if count(make(len(sentences))) < n_tokens:
        raise ConfigError(f"the text is too short for --lengths {n_tokens}: give a longer --text, or shorter lengths")
    return retrieval.fit(make, len(sentences), n_tokens, count)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval needle` beyond those all measurements share."""
    parser.add_argument("--text", metavar="FILE", help="prose to hide it in (default: the opening of Austen's Persuasion)")
    parser.add_argument(
        "--lengths",
        type=retrieval.parse_lengths,
        default=[512, 1024, 2048],
        metavar="LIST",
        help="lengths of the prompts in tokens, at most, separated by commas (512,1024,2048)",
    )
    parser.add_argument("--depths", type=int, default=5, metavar="N", help="at how many depths (%(default)s)")
    parser.add_argument("--prompts", type=int, default=4, metavar="N", help="prompts for each length and depth (%(default)s)")
    retrieval.add_arguments(parser)


def spread(n: int) -> list[float]:
    """N depths from 0 to 1, evenly; the middle when there is but one."""
    return [index / (n - 1) for index in range(n)] if n > 1 else [0.5]


def make_groups(args: argparse.Namespace, vocabulary: Vocabulary) -> list[Group]:
    """The questions that the command line asks for, chat template included."""
    for name in ("depths", "prompts"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name} {getattr(args, name)} asks for nothing: give at least 1")
    sentences = split_sentences(read_text(args.text))
    groups = [Group(length, []) for length in args.lengths]
    with tqdm(total=len(groups) * args.depths * args.prompts, unit="prompt", desc="writing", disable=None) as progress:
        for group, length in zip(groups, args.lengths):
            for index in range(args.depths * args.prompts):
                depth = spread(args.depths)[index % args.depths]
                group.series.append([fit_question(sentences, index, depth, length, vocabulary)])
                progress.update()
    return groups


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Ask every question of every cache and return what `--json` prints."""
    with Models(args.model, n_threads=args.threads) as models:
        return retrieval.ask_all(models, args, specs, make_groups(args, models.vocabulary))


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    return retrieval.table(result)
