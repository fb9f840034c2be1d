"""Score every routed expert of a model by one criterion, from its weights or from its work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.core.seeds import generator
from mobilekit.models.families import UnitGroup

from .config import VARIANTS, AimerConfig, data_variants

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilekit.compress.calibration import Calibration

_WHOLE_FLOATS = {"float64", "float32", "float16", "bfloat16"}


@dataclass(frozen=True)
class Scores:
    """The scores of all layers, and how they came about.

    Attributes:
        layers: For each group one score an expert; +inf marks one of AIMER's that is all zeros.
        warnings: What a user should know about them.
        calibration: What was looked at: name, sha256, tokens; ``None`` for weights alone.
    """

    layers: tuple[list[float], ...]
    warnings: tuple[str, ...] = ()
    calibration: dict[str, Any] | None = None


def score_experts(
    model: nn.Module, groups: Sequence[UnitGroup], config: AimerConfig, data: Any = None
) -> Scores:
    """Return the scores of every group's experts by ``config.variant``.

    Args:
        model: The model; it stays as it is.
        groups: Its groups of routed experts.
        config: The settings.
        data: Batches of token ids, for a variant that needs data; otherwise ``None``.

    Raises:
        UsageError: If data is given to a variant that needs none, or beside a text of its own, or
            there is no tokenizer for the text.
        InvalidInputError: If weights or activations are not finite, or the text cannot be used.
        UnsupportedModelError: If the weights are quantized or not there, or the experts cannot be
            watched.
    """
    if config.needs_data:
        return _calibrated(model, groups, config, data)
    if data is not None:
        raise UsageError(
            f"data was given, but variant {config.variant} needs none",
            hint=f"Leave it out, or choose one of: {', '.join(data_variants())}.",
        )
    found, warnings = [], []
    for group in groups:
        scores = _of_weights(model, group, config)
        found.append(scores)
        nothing = {"aimer": math.inf, "magnitude": 0.0}.get(config.variant)
        dead = [expert for expert, score in enumerate(scores) if score == nothing]
        if dead:
            warnings.append(f"layer {group.layer}: experts {dead} are all zeros, removed first")
    return Scores(tuple(found), tuple(warnings))


def _of_weights(model: nn.Module, group: UnitGroup, config: AimerConfig) -> list[float]:
    import torch

    from .known import known_sums
    from .score import aimer_scores, magnitude_scores, rounded

    if config.variant == "random":
        stream = generator(config.seed, f"aimer.random.layer{group.layer}")
        return rounded(torch.rand(group.count, generator=stream))
    score = aimer_scores if config.variant == "aimer" else magnitude_scores
    if (sums := known_sums(model, group)) is not None:  # of a checkpoint that was read, not loaded
        return rounded(score(sums))
    tensors = group.scored_tensors(model)
    _check_loaded(tensors, group.layer)
    values = score(tensors)
    if not bool(values.isfinite().all()):  # a dead expert, or weights that are not finite
        _check_finite(tensors, group.layer)
    return rounded(values)


def _calibrated(
    model: nn.Module, groups: Sequence[UnitGroup], config: AimerConfig, data: Any
) -> Scores:
    from .routing import expert_statistics
    from .score import rounded

    for group in groups:
        tensors = group.scored_tensors(model)
        _check_loaded(tensors, group.layer)
        _check_finite(tensors, group.layer)
    calibration = _calibration(model, config, data)
    statistics = expert_statistics(
        model,
        groups,
        calibration.batches,
        outputs=VARIANTS[config.variant].needs == "activations",
        description=f"calibration ({config.variant})",
    )
    warnings = [
        f"layer {group.layer}: no calibration token was routed to experts {found.unrouted}, "
        "which score 0"
        for group, found in zip(groups, statistics, strict=True)
        if found.unrouted
    ]
    layers = tuple(rounded(found.importance(config.variant)) for found in statistics)  # type: ignore[arg-type]
    return Scores(layers, tuple(warnings), calibration.record)


def _calibration(model: nn.Module, config: AimerConfig, data: Any) -> Calibration:
    from mobilekit.compress.calibration import given_batches, text_batches

    if data is None:
        return text_batches(
            model,
            config.calibration_data,
            tokens=config.calibration_tokens,
            length=config.calibration_length,
            batch_size=config.calibration_batch_size,
            seed=config.seed,
        )
    if config.has_own_text:
        raise UsageError(
            "both data and a calibration text were given",
            hint="Leave data out, or calibration_data, calibration_tokens and calibration_length.",
        )
    return given_batches(model, data, batch_size=config.calibration_batch_size)


def _check_loaded(tensors: Sequence[Tensor], layer: int) -> None:
    for tensor in tensors:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if tensor.is_meta or dtype not in _WHOLE_FLOATS:
            found = "not loaded" if tensor.is_meta else dtype
            raise UnsupportedModelError(
                f"expert weights of layer {layer} are {found}, expected 16- to 64-bit floats",
                hint="Load the float checkpoint; compress before you quantize.",
            )


def _check_finite(tensors: Sequence[Tensor], layer: int) -> None:
    whole = [tensor.isfinite().flatten(1).all(dim=1).tolist() for tensor in tensors]
    for expert, finite in enumerate(zip(*whole, strict=True)):
        if not all(finite):
            raise InvalidInputError(
                f"expert {expert} of layer {layer} has weights that are NaN or infinite",
                hint="The checkpoint is damaged, or its training diverged: use another one.",
            )
