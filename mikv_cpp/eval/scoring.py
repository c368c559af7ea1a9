"""Scores of caches against f16, position by position, one context at a time.

The f16 run comes first, and its log probabilities are kept in float16, in a file for each passage. When they are read back
they are normalised again, so a rounding error e of a token's log probability l changes the divergence by p * e * (l - l'),
and not by p * e: what is lost shrinks with what is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from mikv_cpp.caches import CacheSpec, parse_cache
from mikv_cpp.engine import Engine, Logits, Models, Tokens
from mikv_cpp.eval.archive import Archive, Arrays, Table, open_archive
from mikv_cpp.eval.divergence import Floats, Scores, kl_rows, log_softmax
from mikv_cpp.eval.footprint import Footprint
from mikv_cpp.eval.identity import identify_cache, identify_model, identify_tokens
from mikv_cpp.eval.passages import Passage, read_passages

F16 = "f16"
ROWS_AT_ONCE = 16  # positions whose whole vocabulary is held in float64: 16 of 150,000 are 19 MB
LEAST_LOG_P = -60000.0  # float16 ends at 65504

#: Told how many tokens were read since the last call.
OnRead = Callable[[int], object]


@dataclass(frozen=True)
class Outcome:
    """One cache on one passage."""

    scores: Scores
    footprint: Footprint

    def arrays(self) -> dict[str, npt.ArrayLike]:
        """What an archive keeps."""
        scores = self.scores
        return {"kl": scores.kl, "nll": scores.nll, "same_top": scores.same_top, "footprint": self.footprint.to_list()}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Outcome:
        """The outcome that was kept."""
        scores = Scores(arrays["kl"], arrays["nll"], arrays["same_top"])
        return cls(scores, Footprint.from_list(arrays["footprint"].tolist()))


@dataclass(frozen=True)
class Reference:
    """What f16 says of one passage: log probabilities [n, vocabulary] in float16, and its likeliest tokens [n]."""

    log_p: Table
    top: Tokens


def scored_logits(engine: Engine, passage: Passage, ubatch: int, on_read: OnRead) -> Iterator[tuple[slice, Logits]]:
    """Read a passage on an emptied cache: the logits of all scored positions, a few rows at a time, and which these are."""
    inputs, first, n_scored = passage.inputs(engine.vocabulary), passage.first_scored, len(passage.targets)
    engine.clear()
    done = 0
    for start in range(0, len(inputs), ubatch):
        tokens = inputs[start : start + ubatch]
        logits = engine.decode(tokens, first_logits=max(first - start, 0))
        logits = logits[: n_scored - done]  # a passage's last position has no next token in it
        for row in range(0, len(logits), ROWS_AT_ONCE):
            part = logits[row : row + ROWS_AT_ONCE]
            yield slice(done + row, done + row + len(part)), part
        done += len(logits)
        on_read(len(tokens))


def score(engine: Engine, passage: Passage, ubatch: int, reference: Reference, on_read: OnRead) -> Scores:
    """Score a cache against f16."""
    kl, nll, top = [], [], []
    for rows, logits in scored_logits(engine, passage, ubatch, on_read):
        log_q, targets = log_softmax(logits), passage.targets[rows]
        kl.append(kl_rows(log_softmax(reference.log_p[rows]), log_q))
        nll.append(-log_q[np.arange(len(targets)), targets])
        top.append(log_q.argmax(axis=-1))
    return Scores(np.concatenate(kl), np.concatenate(nll), np.concatenate(top) == reference.top)


class Scorer:
    """Scores caches of one model, and remembers in an archive what was scored before."""

    def __init__(self, models: Models, n_ctx: int, ubatch: int, archive: Archive, progress: Any) -> None:
        self._models, self._n_ctx, self._ubatch, self._archive, self._progress = models, n_ctx, ubatch, archive, progress
        self._model = identify_model(models.file.path)
        self._f16 = parse_cache(F16)

    def score(self, specs: Sequence[CacheSpec], passage: Passage) -> list[Outcome]:
        """What each cache scores on a passage."""
        outcomes = []
        reference: Optional[Reference] = None
        for spec in specs:
            found = self._archive.load("scores", self._key(spec, passage))
            if found is None and spec != self._f16:
                reference = reference or self._reference(passage)
            self._progress.set_postfix_str(spec.name)
            if found is None:
                outcomes.append(self._measure(spec, passage, reference))
            else:
                outcomes.append(Outcome.from_arrays(found))
                self._progress.update(len(passage.tokens))
        reference = None  # a mapped file cannot be deleted everywhere
        if not self._archive.keeps_tables:
            self._archive.drop_table("reference", self._key(self._f16, passage))
        return outcomes

    def _key(self, spec: CacheSpec, passage: Passage) -> dict[str, Any]:
        return {
            "model": self._model,
            "cache": identify_cache(spec),
            "tokens": identify_tokens(passage.tokens),
            "n_ctx": self._n_ctx,
            "ubatch": self._ubatch,
        }

    def _measure(self, spec: CacheSpec, passage: Passage, reference: Optional[Reference]) -> Outcome:
        """Score a cache and keep the outcome; without a reference the cache is f16, which leaves its reference behind."""
        engine = self._models.open(spec, self._n_ctx, self._ubatch)
        try:
            if reference is None:
                scores = self._read_reference(engine, passage)
            else:
                scores = score(engine, passage, self._ubatch, reference, self._progress.update)
            outcome = Outcome(scores, Footprint.of(self._models, engine))
        finally:
            engine.close()
        self._archive.save("scores", self._key(spec, passage), outcome.arrays())
        return outcome

    def _reference(self, passage: Passage) -> Reference:
        """The kept reference, made again if it is not whole."""
        found = self._load_reference(passage)
        if found is None:
            self._progress.total += len(passage.tokens)
            self._measure(self._f16, passage, None)
            found = self._load_reference(passage)
        assert found is not None, "what was just written can be read"
        return found

    def _load_reference(self, passage: Passage) -> Optional[Reference]:
        key = self._key(self._f16, passage)
        log_p, top = self._archive.load_table("reference", key), self._archive.load("top", key)
        return None if log_p is None or top is None else Reference(log_p, top["top"])

    def _read_reference(self, engine: Engine, passage: Passage) -> Scores:
        """Keep what f16 says of a passage. Its own scores are exact: no divergence from itself."""
        key, n = self._key(self._f16, passage), len(passage.targets)
        nll, top = np.empty(n), np.empty(n, dtype=np.int32)

        def blocks() -> Iterator[Table]:
            for rows, logits in scored_logits(engine, passage, self._ubatch, self._progress.update):
                log_p: Floats = log_softmax(logits)
                nll[rows] = -log_p[np.arange(len(log_p)), passage.targets[rows]]
                top[rows] = log_p.argmax(axis=-1)
                yield np.maximum(log_p, LEAST_LOG_P).astype(np.float16)

        self._archive.save_table("reference", key, (n, engine.vocabulary.n_tokens), blocks())
        self._archive.save("top", key, {"top": top})
        return Scores(np.zeros(n), nll, np.ones(n, dtype=np.bool_))


@dataclass(frozen=True)
class Study:
    """Caches, what they were measured on, and an outcome for each cache (by name) and passage."""

    specs: list[CacheSpec]
    passages: list[Passage]
    outcomes: dict[str, list[Outcome]]

    def scores(self, name: str, text: Optional[str] = None) -> Scores:
        """A cache's scores, of one text's passages or (None) all."""
        picked = zip(self.passages, self.outcomes[name])
        return Scores.joined([outcome.scores for passage, outcome in picked if text is None or passage.text == text])

    def rows(self, text: Optional[str] = None) -> list[dict[str, Any]]:
        """A row for each cache, as `--json` prints it; of one text's passages or (None) all."""
        return [
            {"cache": spec.name, **self.outcomes[spec.name][0].footprint.fields(), **self.scores(spec.name, text).summary()}
            for spec in self.specs
        ]

    def result(self, args: argparse.Namespace) -> dict[str, Any]:
        """What `--json` prints: rows over all texts, and the same for each text."""
        by_text: dict[Optional[str], int] = {}
        for passage in self.passages:
            by_text[passage.text] = by_text.get(passage.text, 0) + 1
        n_scored = len(self.passages[0].targets)
        return {
            "model": args.model,
            "n_ctx": args.ctx_size,
            "ubatch": args.ubatch,
            "n_chunks": len(self.passages),
            "n_positions": n_scored * len(self.passages),
            "rows": self.rows(),
            "texts": [
                {"text": text, "n_chunks": n, "n_positions": n_scored * n, "rows": self.rows(text)}
                for text, n in by_text.items()
            ],
        }


def study(args: argparse.Namespace, specs: Sequence[CacheSpec]) -> Study:
    """Score f16 and the caches on what the command line names, or take from --keep what was scored before."""
    specs = [parse_cache(F16), *(spec for spec in specs if spec.name != F16)]
    outcomes: dict[str, list[Outcome]] = {spec.name: [] for spec in specs}
    with open_archive(args.keep) as archive, Models(args.model, n_threads=args.threads) as models:
        passages = read_passages(args, models.vocabulary)
        n_tokens = len(specs) * len(passages) * args.ctx_size
        with tqdm(total=n_tokens, unit="tok", desc="scoring", disable=None) as progress:
            scorer = Scorer(models, args.ctx_size, args.ubatch, archive, progress)
            for passage in passages:
                for spec, outcome in zip(specs, scorer.score(specs, passage)):
                    outcomes[spec.name].append(outcome)
    return Study(specs, passages, outcomes)
