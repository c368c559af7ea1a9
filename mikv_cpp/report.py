"""What a run has to show: the closing line, the table by layer, the JSON object."""

from __future__ import annotations

from typing import Any

from mikv_cpp.answer import Answer, Speed
from mikv_cpp.cache import KVStats
from mikv_cpp.plan import in_mib


def closing_line(stats: KVStats, speed: Speed) -> str:
    """KV bytes against f16, tokens by precision, tokens per second."""
    share = (
        f" ({100 * stats.bytes_total / stats.bytes_f16:.1f} % of f16's {in_mib(stats.bytes_f16)})" if stats.bytes_f16 else ""
    )
    parts = [
        f"KV cache {in_mib(stats.bytes_total)}{share}, {in_mib(stats.bytes_used)} of it in use",
        f"{stats.tokens} tokens: {stats.tokens_exact:.0f} exact, {stats.tokens_refined:.0f} refined, "
        f"{stats.tokens_base:.0f} base",
        f"prefill {speed.prefill_tps:.1f}, decode {speed.decode_tps:.1f} tokens/s",
    ]
    return "; ".join(parts) + (f" ({stats.note})" if stats.note else "")


def layer_table(stats: KVStats) -> str:
    """One line for each layer."""
    head = f"{'layer':>5} {'MiB':>8} {'exact':>7} {'refined':>8} {'base':>8} {'demoted':>9}   attention on exact/refined/base"
    lines = [
        f"{row.layer:>5} {row.bytes_total / 2**20:>8.2f} {row.tokens_exact:>7.1f} {row.tokens_refined:>8.1f} "
        f"{row.tokens_base:>8.1f} {row.demotions:>9}   "
        f"{row.mass_exact:.3f} / {row.mass_refined:.3f} / {row.mass_base:.3f}"
        for row in stats.by_layer
    ]
    return "\n".join([head, *lines])


def as_json(out: Answer, stats: KVStats, model: str) -> dict[str, Any]:
    """One object; the names are kept, people script against them."""
    return {
        "text": out.text,
        "kv": stats.to_dict(),
        "prefill_tps": out.speed.prefill_tps,
        "decode_tps": out.speed.decode_tps,
        "model": model,
        "prompt_tokens": out.prompt_tokens,
        "generated_tokens": out.generated_tokens,
        "finish": out.finish,
    }
