"""What is read while positions are scored: texts, cut into passages of the context's length."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Optional

import numpy as np

from mikv_cpp.engine import Tokens, Vocabulary
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval.texts import read_text

SHORTEST_CONTEXT = 4  # tokens: with fewer there is no position to score


@dataclass(frozen=True)
class Passage:
    """A part of a text, [n_ctx] tokens. text: the file it is of, None for the one that comes with the package."""

    text: Optional[str]
    tokens: Tokens

    @property
    def first_scored(self) -> int:
        """The first position that is scored: those before it only give context."""
        return len(self.tokens) // 2

    @property
    def targets(self) -> Tokens:
        """The token that follows each scored position; the last position has none."""
        targets: Tokens = self.tokens[self.first_scored + 1 :]
        return targets

    def inputs(self, vocabulary: Vocabulary) -> Tokens:
        """The tokens as they are decoded: where the model asks for a BOS token, it takes the first one's place."""
        inputs: Tokens = self.tokens.copy()
        if vocabulary.add_bos:
            inputs[0] = vocabulary.bos
        return inputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say what is read."""
    parser.add_argument(
        "--text",
        action="append",
        metavar="FILE",
        help="text to score, in UTF-8; may be given several times (default: the opening of Austen's Persuasion)",
    )
    parser.add_argument(
        "--chunks", type=int, default=4, metavar="N", help="chunks of -c tokens of each text; 0: the whole text (%(default)s)"
    )
    parser.set_defaults(ctx_size=2048, ubatch=128)


def read_passages(args: argparse.Namespace, vocabulary: Vocabulary) -> list[Passage]:
    """The passages of all texts that the command line names.

    Raises ConfigError for sizes that leave nothing to score, and for a text that is too short or cannot be read.
    """
    if args.chunks < 0:
        raise ConfigError(f"--chunks {args.chunks} is negative: give 0 for the whole text, or how many chunks to score")
    if args.ctx_size < SHORTEST_CONTEXT:
        raise ConfigError(f"-c {args.ctx_size} leaves no position to score: give at least {SHORTEST_CONTEXT}")
    names: list[Optional[str]] = list(dict.fromkeys(args.text)) if args.text else [None]
    passages = []
    for name in names:
        tokens = vocabulary.tokenize(read_text(name))
        passages += [Passage(name, chunk) for chunk in cut_chunks(tokens, args.ctx_size, args.chunks, name)]
    return passages


def cut_chunks(tokens: Tokens, n_ctx: int, n_chunks: int, name: Optional[str] = None) -> Tokens:
    """The first chunks of a text, [n, n_ctx]; all whole chunks when n_chunks is 0.

    Raises ConfigError when the text, called `name`, is shorter than the chunks asked for.
    """
    available = len(tokens) // n_ctx
    if available < max(n_chunks, 1):
        text = "the text" if name is None else f"the text {name!r}"
        raise ConfigError(
            f"{text} has {len(tokens)} tokens, too few for {max(n_chunks, 1)} chunks of {n_ctx}: "
            f"give a longer --text, a smaller -c or at most --chunks {available}"
        )
    n = n_chunks or available
    return np.ascontiguousarray(tokens[: n * n_ctx].reshape(n, n_ctx))
