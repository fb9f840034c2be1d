"""Tokens for the Hessians, for comparing candidates, and for their fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mobilekit.compress.calibration import given_batches, text_batches
from mobilekit.core.errors import UsageError

from .config import DarwinConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Pools:
    """Token ids without padding.

    Attributes:
        calibration: Batches for the Hessians, each of shape (B, S).
        fitness: What candidates are compared on, shape (N, S).
        training: What they are fine-tuned on, shape (N, S).
        record: Where they come from, for the plan.
    """

    calibration: tuple[Tensor, ...]
    fitness: Tensor
    training: Tensor
    record: dict[str, Any]


def pools(model: nn.Module, config: DarwinConfig, data: Any) -> Pools:
    """Return the three pools.

    Args:
        model: A model that knows its checkpoint.
        config: The settings.
        data: Token ids as batches of shape (B, S), of one length, which then are all three; or
            ``None`` for random windows of the text that the settings name.

    Raises:
        UsageError: If sequences that are given differ in length, or hold padding.
        InvalidInputError: If the text cannot be read or is too short, or ids are not the model's.
    """
    if data is not None:
        return _given(model, config, data)
    counts = [config.calibration_tokens, config.fitness_pool]
    counts += [config.finetune_pool] if config.variant == "darwin" else [0]
    length = config.calibration_length
    rows = [-(-count // length) for count in counts]
    drawn = text_batches(
        model,
        config.calibration_data,
        tokens=sum(rows) * length,
        length=length,
        batch_size=sum(rows),
        seed=config.seed,
    )
    windows = torch.cat(drawn.batches)
    first, fitness, training = torch.split(windows, rows)
    batches = torch.split(first, config.calibration_batch_size)
    return Pools(tuple(batches), fitness, training, {**drawn.record, "tokens": rows[0] * length})


def _given(model: nn.Module, config: DarwinConfig, data: Any) -> Pools:
    found = given_batches(model, data, batch_size=config.calibration_batch_size)
    lengths = {batch.shape[1] for batch in found.batches}
    if len(lengths) > 1:
        raise UsageError(
            f"data holds sequences of {', '.join(map(str, sorted(lengths)))} tokens",
            hint="Cut them to one length: candidates are compared on batches of whole sequences.",
        )
    _check_padding(model, found.batches)
    rows = torch.cat(found.batches)
    return Pools(found.batches, rows, rows, found.record)


def _check_padding(model: Any, batches: Sequence[Tensor]) -> None:
    """Refuse padding: it would enter the Hessians as if it were text."""
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    ends = end if isinstance(end, list) else [end]
    if pad is None or pad in ends:
        return
    found = sum(int((batch == pad).sum()) for batch in batches)
    if found:
        raise UsageError(
            f"data holds {found} padding tokens (id {pad})",
            hint="Give sequences of one length without padding; join short ones.",
        )
