#!/usr/bin/env python3
"""Gradient norms of key and value projections, for `python -m mikv_cpp.calibrate M --method kvmix --gradients FILE`.

KVmix's own importance (arXiv 2506.08018, section 3): s_k[i] = ||dL / dW_k[i]||_2 and s_v[i] = ||dL / dW_v[i]||_2 of the
language modelling loss, averaged over prompts. It needs the model in Hugging Face's form, torch and transformers
(`pip install 'mikv-cpp[gradients]'`), and memory for the model and the gradients of these projections. A GGUF file will do,
if its architecture is one that transformers reads: its weights are unpacked to f32.

    kvmix_gradients.py HuggingFaceTB/SmolLM2-135M-Instruct --text a.txt --text b.txt -o norms.json
    kvmix_gradients.py SmolLM2-135M-Instruct.Q4_1.gguf --text a.txt --tokens 256 -o norms.json
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from tqdm import tqdm

PROJECTION = re.compile(r"\.(\d+)\.(?:self_attn|attention|attn)\.([kv])_proj\.weight$")


def projections(model: Any) -> dict[tuple[int, str], Any]:
    """The weights of key and value projections by (layer, "k" or "v")."""
    found = {}
    for name, weight in model.named_parameters():
        match = PROJECTION.search(name)
        weight.requires_grad_(match is not None)
        if match:
            found[int(match[1]), match[2]] = weight
    if not found:
        raise SystemExit("error: no weight of this model is called ...k_proj or ...v_proj: its projections are not separate")
    return found


def prompts(paths: list[str], tokenizer: Any, n_tokens: int, most: int) -> list[list[int]]:
    """At most `most` prompts of n_tokens tokens each, from all texts in turn."""
    texts = [tokenizer(Path(path).read_text(encoding="utf-8"))["input_ids"] for path in paths]
    cut = [[text[i : i + n_tokens] for i in range(0, len(text) - n_tokens + 1, n_tokens)] for text in texts]
    turns = [prompt for turn in zip(*cut) for prompt in turn] or [prompt for own in cut for prompt in own]
    if not turns:
        raise SystemExit(f"error: no text has {n_tokens} tokens: give longer ones, or a smaller --tokens")
    return turns[:most]


def norms(model: Any, weights: dict[tuple[int, str], Any], batches: list[list[int]]) -> dict[int, dict[str, float]]:
    """Mean norm of the loss's gradient over the prompts: layer -> {"k": norm, "v": norm}."""
    import torch  # noqa: PLC0415 -- optional, and slow to import

    sums: dict[int, dict[str, float]] = defaultdict(lambda: {"k": 0.0, "v": 0.0})
    for tokens in tqdm(batches, unit="prompt", disable=None):
        ids = torch.tensor([tokens])
        model(input_ids=ids, labels=ids).loss.backward()
        for (layer, kind), weight in weights.items():
            sums[layer][kind] += float(weight.grad.norm()) / len(batches)
            weight.grad = None
    return dict(sums)


def main() -> int:
    """Compute and write the norms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or a name that transformers can load, or a GGUF file")
    parser.add_argument("--text", action="append", required=True, metavar="FILE", help="what prompts are cut from")
    parser.add_argument("--prompts", type=int, default=20, metavar="N", help="%(default)s, as in the paper: 20 to 30")
    parser.add_argument("--tokens", type=int, default=1024, metavar="N", help="of each prompt (%(default)s)")
    parser.add_argument("-o", "--output", default="norms.json", metavar="FILE", help="%(default)s")
    args = parser.parse_args()
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415 -- optional
    except ImportError as error:
        raise SystemExit("error: this script needs torch and transformers: pip install 'mikv-cpp[gradients]'") from error
    path = Path(args.model)
    place = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (args.model, {})
    tokenizer = AutoTokenizer.from_pretrained(place[0], **place[1])
    model = AutoModelForCausalLM.from_pretrained(place[0], **place[1])
    found = norms(model, projections(model), prompts(args.text, tokenizer, args.tokens, args.prompts))
    layers = [{"layer": layer, "s_k": own["k"], "s_v": own["v"]} for layer, own in sorted(found.items())]
    Path(args.output).write_text(json.dumps({"model": args.model, "layers": layers}, indent=1) + "\n", encoding="utf-8")
    print(f"{len(layers)} layers, written: {args.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
