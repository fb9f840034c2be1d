"""Run calibration tokens through a model and look at what enters chosen modules.

Shared by the methods that decide by data: where the tokens come from, one pass over them with
progress, no gradient, no padding. What is collected is up to the method::

    calibration = text_batches(model, text, tokens=65_536, length=256, batch_size=8, seed=0)
    run_batches(model, calibration.batches, {"model.layers.0.mlp": look}, description="looking")
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.core.files import sha256_bytes
from mobilekit.core.seeds import generator
from mobilekit.data.text import calibration_batches, read_text
from mobilekit.data.tokenizer import TextTokenizer, load_tokenizer
from mobilekit.models import has_tokenizer, provenance

from .config import EMBEDDED_TEXT

__all__ = [
    "Calibration",
    "Observer",
    "evaluating",
    "given_batches",
    "run_batches",
    "text_batches",
]

# called with the module, and the positional and named arguments of its call
Observer = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]


@dataclass(frozen=True)
class Calibration:
    """Tokens to look at, and where they come from.

    Attributes:
        batches: Token ids, each of shape (B, S), int64, without padding.
        record: For the plan: name, sha256 (of the text, or of the ids that were given), tokens.
    """

    batches: tuple[Tensor, ...]
    record: dict[str, Any]


def text_batches(
    model: nn.Module, source: str, *, tokens: int, length: int, batch_size: int, seed: int
) -> Calibration:
    """Return random windows of a text, encoded by the model's own tokenizer.

    The windows depend on text, tokenizer, counts and seed, not on the batch size. Each begins with
    what the tokenizer puts before a text, if anything.

    Args:
        model: A model that knows the checkpoint it comes from.
        source: ``embedded`` (English of the CPython that runs) or the path of a UTF-8 text file.
        tokens: Tokens in all, rounded up to whole windows.
        length: Tokens in a window.
        batch_size: Windows in a batch.
        seed: Seed of the window positions.

    Raises:
        UsageError: If the model has no tokenizer, or fewer positions than a window has tokens.
        InvalidInputError: If the text cannot be read or is too short, or the tokenizer has ids
            that the model has not.
    """
    tokenizer = _tokenizer(model)
    _check_length(model, length, len(tokenizer.prefix_ids))
    name, text = _text(source)
    count = math.ceil(tokens / length)
    batches = calibration_batches(
        tokenizer,
        text,
        num_calibration_samples=count,
        length=length,
        batch_size=batch_size,
        generator=generator(seed, "calibration.windows"),
        prefix=tokenizer.prefix_ids,
    )
    _check_ids(model, batches, "Use the tokenizer.json that belongs to this model.")
    record = {"name": name, "sha256": sha256_bytes(text.encode()), "tokens": count * length}
    return Calibration(tuple(batches), {**record, "sequences": count, "length": length})


def given_batches(model: nn.Module, data: Any, *, batch_size: int) -> Calibration:
    """Return token ids that the caller has, checked.

    Args:
        model: The model that they are for.
        data: A tensor of shape (N, S), cut into batches; or a sequence of batches of shape (B, S)
            and of single sequences, taken as they are.
        batch_size: Sequences in a batch of a cut tensor.

    Raises:
        UsageError: If it is anything else, or holds no token.
        InvalidInputError: If an id is none of the model's.
    """
    given = torch.split(data, batch_size) if isinstance(data, Tensor) and data.dim() == 2 else data
    if isinstance(given, Tensor | str | bytes) or not isinstance(given, Sequence):
        raise _no_batches(data)
    batches = [_batch(entry) for entry in given]
    if not batches:
        raise UsageError(
            "data holds no batch of token ids", hint="Give at least one sequence of tokens."
        )
    _check_ids(model, batches, "Encode the text with this model's own tokenizer.")
    digest = hashlib.sha256()
    for row in (row for batch in batches for row in batch):
        digest.update(len(row).to_bytes(8, "little") + row.numpy().astype("<i8").tobytes())
    sequences, tokens = sum(len(batch) for batch in batches), sum(b.numel() for b in batches)
    record = {"name": "given tokens", "sha256": digest.hexdigest(), "tokens": tokens}
    return Calibration(tuple(batches), {**record, "sequences": sequences})


def run_batches(
    model: nn.Module,
    batches: Sequence[Tensor],
    observers: Mapping[str, Observer],
    *,
    description: str,
) -> None:
    """Run every batch through the model, in evaluation mode; its language head stays out.

    Args:
        model: The model; nothing of it has changed afterwards.
        batches: Token ids, each of shape (B, S).
        observers: Module path to what is called each time before that module runs.
        description: What the progress bar says.

    Raises:
        UnsupportedModelError: If a module that is observed never ran.
    """
    device = _embeddings(model).device
    base: Any = getattr(model, "base_model", model)
    total = sum(batch.numel() for batch in batches)
    with (
        _observed(model, observers) as waiting,
        evaluating(model),
        torch.no_grad(),
        console.progress(total, description, announce=True) as bar,
    ):
        for batch in batches:
            base(input_ids=batch.to(device), use_cache=False)
            if waiting:
                raise UnsupportedModelError(
                    f"{min(waiting)} of {type(model).__name__} is not called in a forward pass",
                    hint="Load the model without replaced kernels, or use a variant without data.",
                )
            bar.advance(batch.numel())


@contextmanager
def _observed(model: nn.Module, observers: Mapping[str, Observer]) -> Iterator[set[str]]:
    """Give the paths whose modules have not been called yet."""
    waiting, handles = set(observers), []

    def hook(path: str, observer: Observer) -> Callable[..., None]:
        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            waiting.discard(path)
            observer(module, args, kwargs)

        return look

    try:
        for path, observer in observers.items():
            module = model.get_submodule(path)
            handles.append(module.register_forward_pre_hook(hook(path, observer), with_kwargs=True))
        yield waiting
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside; every module then has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _tokenizer(model: nn.Module) -> TextTokenizer:
    source = provenance(model).source
    if source is None or not has_tokenizer(source):
        where = "was not loaded from a checkpoint" if source is None else f"({source}) has none"
        raise UsageError(
            f"calibration text needs a tokenizer, and this model {where}",
            hint="Load a checkpoint with tokenizer.json in it, or give token ids: data=[…].",
        )
    return load_tokenizer(source)


def _text(source: str) -> tuple[str, str]:
    """Return a text's name and content."""
    if source != EMBEDDED_TEXT:
        return Path(source).name, read_text(source)
    from mobilekit.data.corpora import training_text

    with console.progress(None, "collecting CPython's English text", announce=True):
        return "cpython-training", training_text()


def _check_length(model: Any, length: int, prefix: int) -> None:
    most = getattr(model.config, "max_position_embeddings", None)
    if length <= prefix or (most is not None and length > most):
        bound = f"{prefix + 1} to {most}" if most is not None else f"at least {prefix + 1}"
        raise UsageError(
            f"calibration sequences of {length} tokens were asked for, this model takes {bound}",
            hint="Choose another calibration_length.",
        )


def _check_ids(model: nn.Module, batches: Sequence[Tensor], hint: str) -> None:
    size = _embeddings(model).shape[0]
    low = min(int(batch.min()) for batch in batches)
    high = max(int(batch.max()) for batch in batches)
    if low < 0 or high >= size:
        raise InvalidInputError(
            f"calibration tokens have ids from {low} to {high}, the model has 0 to {size - 1}",
            hint=hint,
        )


def _batch(entry: Any) -> Tensor:
    """Return one batch or sequence as ids of shape (B, S)."""
    try:
        ids = entry if isinstance(entry, Tensor) else torch.tensor(entry)
    except (TypeError, ValueError, RuntimeError):
        raise _no_batches(entry) from None
    whole = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if not whole or ids.dim() not in (1, 2) or ids.numel() == 0:
        raise _no_batches(entry)
    return ids.detach().cpu().long().reshape(-1, ids.shape[-1])


def _no_batches(given: Any) -> UsageError:
    shape = f" of shape {list(given.shape)}" if isinstance(given, Tensor) else ""
    return UsageError(
        f"data is {type(given).__name__}{shape}, expected batches of token ids, each (B, S)",
        hint="For text, leave data out and set calibration_data to the path of a UTF-8 file.",
    )


def _embeddings(model: Any) -> Tensor:
    weight: Tensor = model.get_input_embeddings().weight
    return weight
