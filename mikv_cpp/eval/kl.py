"""KL divergence of a compressed cache to the f16 cache, as llama.cpp's perplexity tool defines it.

The text is cut into chunks of the context's length. Where the model asks for a BOS token, it replaces the first token of
each chunk. Every position of a chunk's second half that has a next token in the chunk is scored:
KL(f16 || cache) = sum over the vocabulary of p * (ln p - ln q), in nats.

llama.cpp's tool keeps the f16 run in a file, rounded to 16 bits and cut off at p = e^-16; here both runs advance in lockstep,
micro-batch by micro-batch, so nothing is rounded and a cache compared with itself gives exactly 0.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mikv_cpp.caches import CacheSpec, parse_caches
from mikv_cpp.engine import Engine, Models
from mikv_cpp.errors import ConfigError
from mikv_cpp.eval.texts import read_text

ROWS_AT_ONCE = 16  # positions whose whole vocabulary is held in float64: 16 of 150,000 are 19 MB


def log_softmax(logits: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Natural log of the softmax along the last axis, [n, vocabulary], in float64."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_rows(reference: npt.NDArray[np.float64], other: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """KL(reference || other) in nats for each row of log probabilities [n, vocabulary] -> [n]."""
    result: npt.NDArray[np.float64] = (np.exp(reference) * (reference - other)).sum(axis=-1)
    return result


@dataclass
class Scores:
    """What one cache scored at each position, in the order of the text."""

    kl: list[npt.NDArray[np.float64]] = field(default_factory=list)
    nll: list[npt.NDArray[np.float64]] = field(default_factory=list)
    same_top: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def add(
        self,
        reference: npt.NDArray[np.float64],
        other: npt.NDArray[np.float64],
        targets: npt.NDArray[np.int32],
    ) -> None:
        """Score log probabilities [n, vocabulary] against the reference's and the tokens that follow [n]."""
        self.kl.append(kl_rows(reference, other))
        self.nll.append(-other[np.arange(len(targets)), targets])
        self.same_top.append(reference.argmax(axis=-1) == other.argmax(axis=-1))

    def summary(self) -> dict[str, float]:
        """Mean, its standard error, median and 99.9 % of the KL divergence; share of the same top token; perplexity."""
        kl = np.concatenate(self.kl)
        return {
            "mean_kl": float(kl.mean()),
            "mean_kl_error": float(kl.std() / np.sqrt(max(len(kl) - 1, 1))),
            "median_kl": float(np.median(kl)),
            "kl_999": float(np.quantile(kl, 0.999)),
            "same_top": float(np.concatenate(self.same_top).mean()),
            "ppl": float(np.exp(np.concatenate(self.nll).mean())),
        }


def cut_chunks(tokens: npt.NDArray[np.int32], n_ctx: int, n_chunks: int) -> npt.NDArray[np.int32]:
    """The first chunks of a text, [n, n_ctx]; all whole chunks when n_chunks is 0.

    Raises ConfigError when the text is shorter than the chunks asked for.
    """
    available = len(tokens) // n_ctx
    if available < max(n_chunks, 1):
        wanted = max(n_chunks, 1)
        raise ConfigError(
            f"the text has {len(tokens)} tokens, too few for {wanted} chunks of {n_ctx}: "
            f"give a longer --text, a smaller -c or at most --chunks {available}"
        )
    n = n_chunks or available
    return tokens[: n * n_ctx].reshape(n, n_ctx)


def score_batch(logits: Sequence[npt.NDArray[np.float32]], targets: npt.NDArray[np.int32], scores: Sequence[Scores]) -> None:
    """Score every cache's logits [n, vocabulary] for the same positions against those of the first cache."""
    for start in range(0, len(targets), ROWS_AT_ONCE):
        rows = slice(start, min(start + ROWS_AT_ONCE, len(targets)))
        reference = log_softmax(logits[0][rows])
        for own, score in zip(logits, scores):
            score.add(reference, reference if own is logits[0] else log_softmax(own[rows]), targets[rows])


def measure(
    engines: Sequence[Engine],
    chunks: npt.NDArray[np.int32],
    ubatch: int,
    progress: Optional[Any] = None,
) -> list[Scores]:
    """Run the chunks [n, n_ctx] through all engines in lockstep; the first engine is the reference."""
    scores = [Scores() for _ in engines]
    vocabulary = engines[0].vocabulary
    for chunk in chunks:
        n_ctx = len(chunk)
        first = n_ctx // 2
        inputs = chunk.copy()
        if vocabulary.add_bos:
            inputs[0] = vocabulary.bos
        for engine in engines:
            engine.clear()
        for start in range(0, n_ctx, ubatch):
            end = min(start + ubatch, n_ctx)
            scored = max(first - start, 0)  # first token of the micro-batch whose logits count
            logits = [engine.decode(inputs[start:end], first_logits=scored) for engine in engines]
            # The last position of a chunk has no next token in it, so its logits are not scored.
            targets = chunk[start + scored + 1 : min(end + 1, n_ctx)]
            score_batch([own[: len(targets)] for own in logits], targets, scores)
            if progress is not None:
                progress.update(end - start)
    return scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `eval kl` beyond those all measurements share."""
    parser.add_argument("--text", metavar="FILE", help="text to score (default: the opening of Austen's Persuasion)")
    parser.add_argument(
        "--chunks", type=int, default=4, metavar="N", help="chunks of -c tokens; 0: the whole text (%(default)s)"
    )
    parser.set_defaults(ctx_size=2048, ubatch=128, caches="q8_0,q4_0,mikv")


def run(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> dict[str, Any]:
    """Measure the caches and return what `--json` prints."""
    specs = parse_caches("f16") + [spec for spec in specs if spec.name != "f16"]
    if args.chunks < 0:
        raise ConfigError(f"--chunks {args.chunks} is negative: give 0 for the whole text, or how many chunks to score")
    if args.ctx_size < 4:
        raise ConfigError(f"-c {args.ctx_size} leaves no position to score: give at least 4")
    with Models(args.model, n_threads=args.threads) as models:
        tokens = models.vocabulary.tokenize(read_text(args.text))
        chunks = cut_chunks(tokens, args.ctx_size, args.chunks)
        engines = [models.open(spec, n_ctx=args.ctx_size, ubatch=args.ubatch) for spec in specs]
        with tqdm(total=chunks.size, unit="tok", desc="scoring", disable=None) as progress:
            scores = measure(engines, chunks, args.ubatch, progress)
        rows = [
            {"cache": spec.name, "bits_per_value": engine.bits_per_value, **score.summary()}
            for spec, engine, score in zip(specs, engines, scores)
        ]
    return {
        "model": args.model,
        "text": args.text,
        "n_ctx": args.ctx_size,
        "n_chunks": len(chunks),
        "n_positions": int(sum(len(part) for part in scores[0].kl)),
        "ubatch": args.ubatch,
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    """The result as a table for people."""
    lines = [f"{'cache':<24}{'bits':>7}{'mean KL':>11}{'+-':>9}{'median':>10}{'99.9 %':>10}{'same top':>10}{'ppl':>10}"]
    lines += [
        f"{row['cache']:<24}{row['bits_per_value']:>7.2f}{row['mean_kl']:>11.5f}{row['mean_kl_error']:>9.5f}"
        f"{row['median_kl']:>10.5f}{row['kl_999']:>10.4f}{row['same_top']:>10.2%}{row['ppl']:>10.3f}"
        for row in result["rows"]
    ]
    return "\n".join(lines)
