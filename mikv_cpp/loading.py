"""From the words of a command line to a loaded model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from mikv_cpp import arguments
from mikv_cpp.config import KVConfig
from mikv_cpp.model_file import ModelFile, read_model_file
from mikv_cpp.models import default_model
from mikv_cpp.plan import cache_shapes, largest_context, n_cells
from mikv_cpp.terminal import Bar, quiet

if TYPE_CHECKING:
    from mikv_cpp.llama import Llama

_DEFAULT_CONTEXT = 4096  # of a model that does not say for what context it was trained


def say(text: str) -> None:
    """A line on stderr, for people."""
    print(quiet(text), file=sys.stderr, flush=True)


def find_model(options: argparse.Namespace) -> ModelFile:
    """The model that was named, else the one that is fetched once.

    Raises:
        ModelError: it is missing, damaged or not GGUF, or cannot be fetched.
    """
    if options.model is not None:
        return read_model_file(Path(options.model))
    with Bar("fetching SmolLM2-135M", "B", scale=True) as bar:
        return read_model_file(default_model(bar))


def context_of(options: argparse.Namespace, model: ModelFile, config: Optional[KVConfig]) -> int:
    """-c, else the model's context as far as memory allows, rounded up as llama.cpp rounds it."""
    from mikv_cpp.plugin import native_library  # noqa: PLC0415 - help and bad options are answered without llama.cpp

    n_ctx: int = options.ctx_size
    if n_ctx == 0:
        wanted = model.n_ctx_train or _DEFAULT_CONTEXT
        n_ctx = largest_context(native_library() if config else None, model, config, wanted)
        if n_ctx < wanted:
            say(f"context {n_ctx} of the model's {wanted} tokens, as far as memory allows (-c asks for more)")
    return n_cells(n_ctx)


def _chosen(options: argparse.Namespace, model: ModelFile) -> tuple[KVConfig, int]:
    """Preset and context of --budget auto; the plan is said before the model is loaded.

    Raises:
        BudgetError: the context that was asked for does not fit.
    """
    from mikv_cpp.plan.choice import choose_for_this_machine  # noqa: PLC0415 - beside the library
    from mikv_cpp.plugin import native_library  # noqa: PLC0415 - as above

    wanted = n_cells(options.ctx_size or model.n_ctx_train or _DEFAULT_CONTEXT)
    choice = choose_for_this_machine(native_library(), model, wanted, shorten=options.ctx_size == 0)
    say(choice.sentence())
    return choice.config, choice.n_ctx


def _say_budget(model: ModelFile, config: KVConfig, n_ctx: int) -> None:
    """What a budget in bytes or as a share buys, before the model is loaded.

    Raises:
        BudgetError: too little.
    """
    from mikv_cpp.plan.choice import budget_sentence  # noqa: PLC0415 - beside the library
    from mikv_cpp.plugin import native_library  # noqa: PLC0415 - as above

    if cache_shapes(model, n_ctx):
        say(budget_sentence(native_library(), model, config, n_ctx))


def load(
    options: argparse.Namespace,
    model: ModelFile,
    config: Optional[KVConfig],
    kind: Optional[type[Llama]] = None,
    **more: Any,
) -> Llama:
    """Load a model as the options of `arguments.add_cache` and `add_machine` say.

    Args:
        options: the parsed options, --verbose among them.
        model: the file.
        config: what `arguments.kv_setting` made of the options.
        kind: the class to load it as.
        more: what else that class takes.
    """
    from mikv_cpp.llama import Llama  # noqa: PLC0415 - as above
    from mikv_cpp.plugin import silence_log, use_device  # noqa: PLC0415 - as above

    if not options.verbose:
        silence_log()
    use_device(getattr(options, "device", None))
    if arguments.is_automatic(options):
        config, n_ctx = _chosen(options, model)
    else:
        n_ctx = context_of(options, model, config)
        if config is not None and config.budget is not None:
            _say_budget(model, config, n_ctx)
    threads = arguments.n_threads(options)
    with Bar("loading", "%", enabled=not options.verbose) as bar:
        return (kind or Llama)(
            model.path,
            kv=config or "off",
            on_load=bar.share,
            n_ctx=n_ctx,
            n_batch=options.batch_size,
            n_ubatch=options.ubatch_size,
            n_threads=threads,
            n_threads_batch=threads,
            swa_full=False,  # llama.cpp's own default: windowed layers keep their window, not the whole context
            verbose=options.verbose,
            **more,
        )
