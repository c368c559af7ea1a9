"""Asking a model for a number that its prompt holds: what `lines` and `needle` have in common.

Scoring is strict: every number in the answer must be the one that was asked for, and there must be one. An answer that lists
many numbers, the right one among them, is wrong.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional, TypeVar

import numpy as np
from tqdm import tqdm

from mikv_cpp.bisection import largest
from mikv_cpp.caches import CacheSpec
from mikv_cpp.engine import Engine, Models, Tokens
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval.archive import Archive, open_archive
from mikv_cpp.eval.command import add_keep
from mikv_cpp.eval.footprint import Footprint
from mikv_cpp.eval.identity import identify_cache, identify_model, identify_tokens

NUMBER = re.compile(r"\d[\d,]*")
INSTRUCTION = "Answer with the number only."


@dataclass(frozen=True)
class Question:
    """A prompt and the number that answers it. depth: where in the prompt the number stands, 0 (start) to 1 (end)."""

    prompt: str
    answer: str
    depth: Optional[float] = None


#: Questions asked one after the other, each on the cache that the beginning they share has left.
Series = list[Question]
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """Questions of one length. length: tokens that a prompt may have; None where the prompts were given."""

    length: Optional[int]
    series: list[Series]

    @property
    def questions(self) -> list[Question]:
        """All of them, in the order in which they are asked."""
        return [question for series in self.series for question in series]


def numbers(text: str) -> list[str]:
    """The numbers in a text, thousands separators removed."""
    return [match.replace(",", "") for match in NUMBER.findall(text)]


def is_right(given: str, answer: str) -> bool:
    """Whether an answer names the number asked for, and no other."""
    return set(numbers(given)) == {answer}


def fit(make: Callable[[int], T], most: int, n_tokens: int, count: Callable[[T], int]) -> T:
    """The longest of make(1) .. make(most) with at most n_tokens, as `count` counts them.

    Raises ConfigError when even make(1) is longer.
    """
    n = largest(most, lambda n: count(make(n)) <= n_tokens)
    if n == 0:
        raise ConfigError(f"--lengths {n_tokens} is too few tokens for the shortest prompt: give at least 120")
    return make(n)


def answers(engine: Engine, prompts: Sequence[Tokens], n_answer: int) -> Iterator[str]:
    """The answers to a series of prompts on an emptied cache, which reads what they have in common once."""
    shared = n_shared(prompts)
    engine.clear()
    for prompt in prompts:
        if engine.n_past > 0:
            engine.remove_from(shared)
        yield answer(engine, prompt[engine.n_past :], n_answer)


def n_shared(prompts: Sequence[Tokens]) -> int:
    """How many tokens all prompts begin with; the last of a prompt is its own."""
    n = min(map(len, prompts)) - 1
    start = np.stack([prompt[:n] for prompt in prompts])
    differs = (start != start[0]).any(axis=0)
    return int(np.argmax(differs)) if differs.any() else n


def answer(engine: Engine, prompt: Tokens, n_answer: int) -> str:
    """The greedy answer to what the cache holds and a prompt: to the end of the turn, a second number, or n_answer tokens."""
    token = int(np.argmax(engine.decode(prompt, first_logits=-1)[0]))
    tokens: list[int] = []
    while not engine.vocabulary.is_end(token):
        tokens.append(token)
        text = engine.vocabulary.detokenize(tokens)
        if len(tokens) == n_answer or len(set(numbers(text))) > 1:
            return text
        token = int(np.argmax(engine.decode(np.array([token], dtype=np.int32))[0]))
    return engine.vocabulary.detokenize(tokens)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of both measurements."""
    parser.add_argument("--answer-tokens", type=int, default=24, metavar="N", help="longest answer (%(default)s)")
    add_keep(parser)
    parser.set_defaults(ctx_size=0, ubatch=512, caches="f16,q8_0,q4_0,mikv")


def parse_lengths(text: str) -> list[int]:
    """Lengths in tokens, separated by commas."""
    try:
        lengths = [int(part) for part in text.split(",")]
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of lengths in tokens, such as 512,1024")
    return list(dict.fromkeys(lengths))


class Interview:
    """Asks caches of one model, and remembers in an archive, where there is one, what they answered."""

    def __init__(self, models: Models, args: argparse.Namespace, archive: Optional[Archive], progress: Any) -> None:
        self._models, self._args, self._archive, self._progress = models, args, archive, progress
        self._model = identify_model(models.file.path)

    def ask(self, spec: CacheSpec, group: Group) -> dict[str, Any]:
        """One cache's row: how many answers to the group's questions are right, and every answer given."""
        vocabulary = self._models.vocabulary
        asked = [[vocabulary.tokenize(question.prompt, special=True) for question in series] for series in group.series]
        longest = max(len(prompt) for prompts in asked for prompt in prompts)
        n_ctx = self._args.ctx_size or longest + self._args.answer_tokens
        engine: Optional[Engine] = None
        given = []
        self._progress.set_postfix_str(spec.name)
        for prompts in asked:
            key = self._key(spec, n_ctx, prompts)
            found = self._archive.load("answers", key) if self._archive else None
            if found is None:
                engine = engine or self._models.open(spec, n_ctx, self._args.ubatch)
                texts = []
                for text in answers(engine, prompts, self._args.answer_tokens):
                    texts.append(text)
                    self._progress.update()
                footprint = Footprint.of(self._models, engine)
                if self._archive:
                    kept = json.dumps(texts).encode()
                    self._archive.save("answers", key, {"texts": list(kept), "footprint": footprint.to_list()})
            else:
                texts = json.loads(bytes(found["texts"].tolist()))
                footprint = Footprint.from_list(found["footprint"].tolist())
                self._progress.update(len(texts))
            given.extend(texts)
        if engine is not None:
            engine.close()
        sizes = {"length": group.length, "n_ctx": n_ctx, "longest_prompt": longest}
        return {"cache": spec.name, **sizes, **footprint.fields(), **marks(group.questions, given)}

    def _key(self, spec: CacheSpec, n_ctx: int, prompts: Sequence[Tokens]) -> dict[str, Any]:
        return {
            "model": self._model,
            "cache": identify_cache(spec),
            "tokens": [identify_tokens(prompt) for prompt in prompts],
            "n_ctx": n_ctx,
            "ubatch": self._args.ubatch,
            "answer_tokens": self._args.answer_tokens,
        }


def marks(questions: Sequence[Question], given: Sequence[str]) -> dict[str, Any]:
    """How many answers are right, and all of them."""
    right = [is_right(text, question.answer) for question, text in zip(questions, given)]
    return {
        "n_prompts": len(right),
        "right": sum(right),
        "accuracy": sum(right) / len(right),
        "answers": [
            {"depth": question.depth, "expected": question.answer, "given": text, "right": verdict}
            for question, text, verdict in zip(questions, given, right)
        ],
    }


def ask_all(models: Models, args: argparse.Namespace, specs: Sequence[CacheSpec], groups: Sequence[Group]) -> dict[str, Any]:
    """Ask every cache every question and return what `--json` prints: a row for each length and cache."""
    if args.answer_tokens < 1:
        raise ConfigError(f"--answer-tokens {args.answer_tokens} leaves no room for an answer: give at least 1")
    n_questions = sum(len(group.questions) for group in groups)
    with open_archive(args.keep) as archive, tqdm(total=n_questions * len(specs), unit="prompt", disable=None) as progress:
        progress.set_description("asking")
        interview = Interview(models, args, archive if args.keep else None, progress)
        rows = [interview.ask(spec, group) for group in groups for spec in specs]
    return {"model": args.model, "n_prompts": n_questions, "lengths": [group.length for group in groups], "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result as a table for people: a line for each cache, a column for each length."""
    caches = list(dict.fromkeys(row["cache"] for row in result["rows"]))
    width = max(24, *(len(name) + 1 for name in caches))
    heads = ["given" if length is None else f"{length} tok" for length in result["lengths"]]
    lines = [f"{'cache':<{width}}{'bits':>7}" + "".join(f"{head:>18}" for head in heads)]
    for name in caches:
        rows = [row for row in result["rows"] if row["cache"] == name]
        cells = [f"{row['right']}/{row['n_prompts']} {row['accuracy']:7.1%}" for row in rows]
        lines.append(f"{name:<{width}}{rows[-1]['bits_per_value']:>7.2f}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
