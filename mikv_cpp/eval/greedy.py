"""Does a cache give the same greedy tokens as f16, and if not, was the first difference a near tie?

Each cache continues three prompts greedily. Where it first leaves f16's tokens, both have seen the same text, so their logits
there can be compared: the gap is by how much f16 preferred its own token. A gap that is smaller than the error that llama.cpp's
own q8_0 cache makes in the logits at this position is one that no 8-bit cache can be asked to keep.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from tqdm import tqdm

from mikv_cpp.caches import CacheSpec, parse_cache
from mikv_cpp.engine import Engine, Logits, Models, Tokens
from mikv_cpp.errors import ConfigError

PROMPTS = (
    "Explain in a few sentences why the sky is blue during the day and red in the evening.",
    "Write a short story about a lighthouse keeper who finds a letter in a bottle.",
    "List the steps to plant a tomato in a pot on a balcony, and say what each step is for.",
)
LIKELIEST = 10  # tokens whose logit errors are looked at


@dataclass(frozen=True)
class Continuation:
    """Greedy tokens after a prompt, and the logits [n_tokens, vocabulary] each was chosen by."""

    tokens: list[int]
    logits: list[Logits]


def continue_greedily(engine: Engine, prompt: Tokens, n_tokens: int) -> Continuation:
    """The n_tokens likeliest tokens after a prompt on an emptied cache; fewer if the model ends its turn."""
    engine.clear()
    tokens: list[int] = []
    logits = [engine.decode(prompt, first_logits=-1)[0]]
    while True:
        tokens.append(int(np.argmax(logits[-1])))
        if len(tokens) == n_tokens or engine.vocabulary.is_end(tokens[-1]):
            return Continuation(tokens, logits)
        logits.append(engine.decode(np.array(tokens[-1:], dtype=np.int32))[0])


def first_difference(one: Sequence[int], other: Sequence[int]) -> Optional[int]:
    """Index of the first token in which two greedy continuations differ; None if they are the same.

    Without a difference they are equally long: both end at the same end-of-turn token, or at the number asked for.
    """
    return next((index for index, (mine, theirs) in enumerate(zip(one, other)) if mine != theirs), None)


def logit_error(reference: Logits, other: Logits) -> float:
    """The largest logit error [vocabulary] among the reference's likeliest tokens.

    A constant added to all logits changes no probability, so the mean difference over those tokens is taken out.
    """
    likeliest = np.argsort(reference)[-LIKELIEST:]
    difference = other[likeliest].astype(np.float64) - reference[likeliest]
    return float(np.abs(difference - difference.mean()).max())


def compare(reference: Continuation, own: Continuation, yardstick: Engine, prompt: Tokens) -> dict[str, Any]:
    """One cache against f16 on one prompt; `yardstick` is a q8_0 engine that reads f16's tokens up to the difference."""
    index = first_difference(reference.tokens, own.tokens)
    result: dict[str, Any] = {"n_tokens": len(reference.tokens), "first_difference": index}
    if index is None:
        return {**result, "same": True}
    expected, given = reference.tokens[index], own.tokens[index]
    logits = reference.logits[index]
    seen = np.concatenate([prompt, np.array(reference.tokens[:index], dtype=np.int32)])
    yardstick.clear()
    q8_0_error = logit_error(logits, yardstick.decode(seen, first_logits=-1)[0])
    gap = float(logits[expected] - logits[given])
    return {
        **result,
        "same": False,
        "expected": yardstick.vocabulary.detokenize([expected]),
        "given": yardstick.vocabulary.detokenize([given]),
        "logit_gap": gap,
        "logit_error": logit_error(logits, own.logits[index]),
        "q8_0_error": q8_0_error,
        "near_tie": gap < q8_0_error,
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval greedy` beyond those all measurements share."""
    parser.add_argument("--tokens", type=int, default=64, metavar="N", help="tokens to compare after each prompt (%(default)s)")
    parser.set_defaults(ctx_size=0, ubatch=512, caches="q8")


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Compare every cache with f16 and return what `--json` prints."""
    if args.tokens < 1:
        raise ConfigError(f"--tokens {args.tokens} leaves nothing to compare: give at least 1")
    with Models(args.model, n_threads=args.threads) as models:
        vocabulary = models.vocabulary
        prompts = [vocabulary.tokenize(vocabulary.chat(prompt), special=True) for prompt in PROMPTS]
        n_ctx = args.ctx_size or max(map(len, prompts)) + args.tokens
        reference, yardstick = (models.open(parse_cache(name), n_ctx, args.ubatch) for name in ("f16", "q8_0"))
        engines = [models.open(spec, n_ctx, args.ubatch) for spec in specs]
        rows = []
        with tqdm(total=len(prompts) * (len(engines) + 1), unit="answer", desc="continuing", disable=None) as progress:
            for number, prompt in enumerate(prompts):
                expected = continue_greedily(reference, prompt, args.tokens)
                progress.update()
                for engine in engines:
                    own = continue_greedily(engine, prompt, args.tokens)
                    rows.append({"cache": engine.spec.name, "prompt": number, **compare(expected, own, yardstick, prompt)})
                    progress.update()
    return {"model": args.model, "rows": rows}


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = []
    for row in result["rows"]:
        head = f"{row['cache']}, prompt {row['prompt'] + 1}: "
        if row["same"]:
            lines.append(f"{head}the same {row['n_tokens']} tokens")
            continue
        verdict = "a near tie" if row["near_tie"] else "NOT a near tie"
        lines.append(
            f"{head}token {row['first_difference'] + 1} is {row['given']!r}, not {row['expected']!r}: "
            f"f16's gap {row['logit_gap']:.4f}, q8_0's logit error there {row['q8_0_error']:.4f}, "
            f"this cache's {row['logit_error']:.4f}: {verdict}"
        )
    return "\n".join(lines)
