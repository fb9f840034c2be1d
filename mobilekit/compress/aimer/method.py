"""AIMER as a compression method: for each expert layer score, choose, record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.compress.base import draft
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.core.seeds import generator
from mobilekit.models.families import UnitGroup, family_of
from mobilekit.models.lineage import provenance
from mobilekit.schema.plan import KeepEdit, Plan

from .config import AimerConfig, Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mobilekit.models.stored import StoredModel

_WHOLE_FLOATS = {"float64", "float32", "float16", "bfloat16"}


class Aimer:
    """Remove the experts whose weights are spread most evenly; no data, no forward pass.

    Source: arXiv 2603.18492; baselines ``random`` and ``magnitude`` as there.
    """

    name = "aimer"
    version = 1
    Config = AimerConfig
    needs = frozenset({"expert"})
    after: frozenset[str] = frozenset()
    conflicts: frozenset[str] = frozenset()
    weight_only = frozenset({"aimer", "random", "magnitude"})
    cuts_only = True

    def read(self, stored: StoredModel) -> None:
        """Sum the experts of a stored checkpoint, so that its model can be planned for."""
        from .scan import scan

        scan(stored)

    def plan(
        self, model: nn.Module, config: AimerConfig, data: Any = None, workdir: Path | None = None
    ) -> Plan:
        """Choose the experts to keep, the same number in every layer.

        Raises:
            UsageError: If fewer experts than the router's top-k would stay and ``clip`` is off,
                or layers have different numbers of experts.
            InvalidInputError: If an expert's weights are not finite.
            UnsupportedModelError: If the weights are quantized or not there.
        """
        from .score import choose_pruned

        groups = family_of(model).units(model, "expert")
        removed, warnings = _count(groups, config)
        warnings = [*_repeated(model), *warnings]
        edits, layers = [], []
        for group in groups:
            scores = _layer_scores(model, group, config)
            dead = [i for i, score in enumerate(scores) if math.isinf(score)]
            if dead:
                warnings.append(f"layer {group.layer}: experts {dead} are all zeros, removed first")
            pruned = choose_pruned(_removable(scores, config.variant), removed)
            kept = [i for i in range(group.count) if i not in set(pruned)]
            edits.append(KeepEdit(unit="expert", layer=group.layer, indices=tuple(kept)))
            shown = [None if math.isinf(score) else score for score in scores]
            layers.append({"layer": group.layer, "scores": shown, "kept": kept, "pruned": pruned})
        found = {
            "criterion": config.variant,
            "larger_is": "removable" if config.variant == "aimer" else "important",
            "layers": layers,
        }
        return draft(self, model, config, edits, scores=found, warnings=warnings)

    def restructure(self, model: nn.Module, plan: Plan) -> None:
        """Cut experts and router rows, in place."""
        from mobilekit.models import surgery

        surgery.restructure_(model, plan.edits)

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Cut in place and return the model: what stays keeps its values."""
        self.restructure(model, plan)
        return model

    def identity(self) -> AimerConfig:
        """Return sparsity 0."""
        return AimerConfig(sparsity=0.0)


def _count(groups: Sequence[UnitGroup], config: AimerConfig) -> tuple[int, list[str]]:
    """Return how many experts every layer loses, and what to say about it."""
    from .score import uniform_count

    experts = [group.count for group in groups]
    if len(set(experts)) > 1:
        raise UsageError(
            f"layers have different numbers of experts ({min(experts)} to {max(experts)})",
            hint="aimer removes the same number from every layer: start from a uniform model.",
        )
    choice = uniform_count(config.sparsity, experts, [group.minimum for group in groups])
    warnings = []
    if choice.wanted > choice.largest:
        text = (
            f"sparsity {config.sparsity:g} leaves {experts[0] - choice.wanted} of {experts[0]} "
            f"experts a layer, fewer than the router's top-{experts[0] - choice.largest}"
        )
        legal = math.floor(choice.largest / experts[0] * 10_000) / 10_000
        if not config.clip:
            raise UsageError(
                text, hint=f"Use a sparsity of at most {legal:g}, or set clip=true to stop there."
            )
        warnings.append(f"{text}; clipped to {choice.largest} removed a layer")
    elif choice.removed * len(groups) != choice.target:
        warnings.append(
            f"sparsity {config.sparsity:g} asks for {choice.target} of {sum(experts)} experts; "
            f"the nearest equal number a layer is {choice.removed}, "
            f"{choice.removed * len(groups)} in all"
        )
    if config.sparsity > 0 and choice.removed == 0:
        warnings.append(f"sparsity {config.sparsity:g} removes no expert at all")
    return choice.removed, warnings


def _repeated(model: nn.Module) -> list[str]:
    earlier = [plan for plan in provenance(model).plans if plan.method == Aimer.name]
    if not earlier:
        return []
    original = earlier[0].summary.get("routed_experts_before")
    return [
        f"this model was pruned by aimer before (from {original} routed experts); "
        "the sparsity is of those that are left"
    ]


def _layer_scores(model: nn.Module, group: UnitGroup, config: AimerConfig) -> list[float]:
    """Return one score an expert; +inf marks an expert that is all zeros."""
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


def _removable(scores: Sequence[float], variant: Variant) -> list[float]:
    """Return the scores with the sign of "the higher, the sooner it goes"."""
    return list(scores) if variant == "aimer" else [-score for score in scores]


AIMER = Aimer()
