"""Runs of the model that the search asks for; what was scored before is taken from the archive."""

from __future__ import annotations

import argparse
from typing import Any

from mikv_cpp.caches import CacheSpec
from mikv_cpp.config import KVConfig
from mikv_cpp.engine import Models
from mikv_cpp.eval.archive import Archive
from mikv_cpp.eval.divergence import Scores
from mikv_cpp.eval.passages import Passage, read_passages
from mikv_cpp.eval.scoring import Scorer


class Runs:
    """A `Measure` on passages of texts: --chunks of each are chosen on, and as many that follow are held out."""

    def __init__(self, models: Models, args: argparse.Namespace, archive: Archive, progress: Any) -> None:
        self._models, self._n_ctx, self._ubatch, self._progress = models, args.context, args.ubatch, progress
        self._passages = self._read(args)
        self._scorer = Scorer(models, args.context, args.ubatch, archive, progress)

    def _read(self, args: argparse.Namespace) -> tuple[list[Passage], list[Passage]]:
        wanted = argparse.Namespace(text=args.text, ctx_size=args.context, chunks=2 * args.chunks)
        every = read_passages(wanted, self._models.vocabulary)
        texts = dict.fromkeys(passage.text for passage in every)
        parts = [[passage for passage in every if passage.text == text] for text in texts]
        n = args.chunks
        return [passage for part in parts for passage in part[:n]], [passage for part in parts for passage in part[n:]]

    def expect(self, n_more: int) -> None:
        """So many scores are to come, at most."""
        self._progress.total += n_more * len(self._passages[0]) * self._n_ctx

    def score(self, name: str, config: KVConfig, held_out: bool = False) -> Scores:
        """On the passages that are chosen on, or on those held out."""
        spec = CacheSpec(name, config)
        return Scores.joined([self._scorer.score([spec], passage)[0].scores for passage in self._passages[held_out]])
