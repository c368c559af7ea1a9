"""Bits per value as papers count them: codes, and for each group an f16 scale and an f16 zero; nothing else."""

from __future__ import annotations

from mikv_cpp.config import EXACT_BITS, HALF, KVConfig

SCALE_AND_ZERO = 32  # bits for each group


def coded_bits(bits: int, group: int) -> float:
    """Bits per value of a token at so many bits: f16 needs neither scale nor zero."""
    return float(bits) if bits == EXACT_BITS else bits + SCALE_AND_ZERO / group


def published_bits(config: KVConfig, head_dim: int) -> float:
    """Mean bits per value of all tokens, as MiKV's Table 3 (arXiv 2402.18096) and quantized pruning (2412.12706) count them.

    Important tokens at refined_bits alone, retained ones at the base's, dropped ones at none; no maps, scores, balancer,
    sinks or staging. A number of rows (above 1) is no share, and is not known here: such a config counts as one row a token.
    """
    group = head_dim // 2 if config.group == HALF else int(config.group) or 64
    lead = config.lead_share
    keys = lead * coded_bits(config.lead_bits, group) + (1 - lead) * coded_bits(config.k_bits, group)
    base = (keys + coded_bits(config.v_bits, group)) / 2
    refined = coded_bits(config.refined_bits, group)
    return min(config.rows, 1.0) * (config.refined_share * refined + (1 - config.refined_share) * base)
