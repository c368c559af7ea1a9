"""What Prometheus reads at /metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mikv_cpp.answer import Speed
from mikv_cpp.cache import KVStats


@dataclass(frozen=True)
class Reading:
    """The numbers at one moment. requests: by path and status."""

    model: str
    context: int
    stats: KVStats
    speed: Speed
    n_waiting: int
    is_busy: bool
    requests: dict[tuple[str, int], int]


def exposition(reading: Reading) -> bytes:
    """The reading in Prometheus's text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Numbers(reading))
    return generate_latest(registry)


class _Numbers(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterator[Metric]:
        stats, speed = self._reading.stats, self._reading.speed
        yield _gauge(
            "mikv_kv_bytes",
            "Memory allocated for the KV cache, by what is kept there; with refined are the exact tokens",
            "precision",
            base=stats.bytes_base,
            refined=stats.bytes_refined,
            metadata=stats.bytes_metadata,
            staging=stats.bytes_staging,
        )
        yield GaugeMetricFamily("mikv_kv_used_bytes", "Of it, what the tokens held now take", stats.bytes_used)
        yield GaugeMetricFamily("mikv_kv_f16_bytes", "What an f16 cache of the same context takes", stats.bytes_f16)
        yield GaugeMetricFamily("mikv_kv_used_f16_bytes", "What the tokens held now take in f16", stats.bytes_used_f16)
        yield _gauge(
            "mikv_kv_tokens",
            "Tokens held now by precision, mean over layers and heads",
            "precision",
            exact=stats.tokens_exact,
            refined=stats.tokens_refined,
            base=stats.tokens_base,
        )
        yield _gauge(
            "mikv_kv_attention_share",
            "Share of attention that fell on tokens of each precision since the cache was cleared",
            "precision",
            exact=stats.mass_exact,
            refined=stats.mass_refined,
            base=stats.mass_base,
        )
        # llama.cpp clears caches, and with one its count: a gauge, not a counter
        yield GaugeMetricFamily(
            "mikv_kv_demotions", "Rows that lost their refinement since the cache was cleared", stats.demotions
        )
        yield GaugeMetricFamily("mikv_context_tokens", "Tokens that the context can hold", self._reading.context)
        yield CounterMetricFamily("mikv_prompt_tokens", "Prompt tokens read", speed.prompt_tokens)
        yield CounterMetricFamily("mikv_prompt_seconds", "Seconds spent reading prompts", speed.prompt_seconds)
        yield CounterMetricFamily(
            "mikv_generated_tokens", "Tokens generated, but for the first of each answer", speed.decode_tokens
        )
        yield CounterMetricFamily("mikv_generation_seconds", "Seconds spent generating them", speed.decode_seconds)
        yield _gauge(
            "mikv_tokens_per_second",
            "Mean since the start",
            "phase",
            prompt=speed.prefill_tps,
            generation=speed.decode_tps,
        )
        yield GaugeMetricFamily("mikv_requests_waiting", "Requests that wait for the model", self._reading.n_waiting)
        yield GaugeMetricFamily("mikv_requests_running", "Requests that the model answers now", int(self._reading.is_busy))
        requests = CounterMetricFamily("mikv_requests", "Requests answered", labels=["path", "status"])
        for (path, status), count in sorted(self._reading.requests.items()):
            requests.add_metric([path, str(status)], count)
        yield requests


def _gauge(name: str, meaning: str, label: str, **values: float) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, meaning, labels=[label])
    for key, value in values.items():
        gauge.add_metric([key], value)
    return gauge
