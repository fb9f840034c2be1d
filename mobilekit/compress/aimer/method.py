"""AIMER as a compression method: for each expert layer score, choose, record."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.compress.base import draft
from mobilekit.models import has_tokenizer
from mobilekit.models.families import UnitGroup, family_of
from mobilekit.models.lineage import provenance
from mobilekit.schema.plan import KeepEdit, Plan

from .config import AimerConfig, Variant

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mobilekit.models.stored import StoredModel

_SMALL = 1_000_000_000  # parameters; the models of our experiments had up to 3 million


class Aimer:
    """Remove the experts whose weights are spread most evenly; no data, no forward pass.

    Variants rank experts by other criteria, some of them by calibration data.

    Source: arXiv 2603.18492, with its baselines; ``man`` and ``msan`` from arXiv 2606.15716.
    """

    name = "aimer"
    version = 2  # of 16-bit weights, the ninth digit of a score
    Config = AimerConfig
    needs = frozenset({"expert"})
    after: frozenset[str] = frozenset()
    conflicts: frozenset[str] = frozenset()
    weight_only = frozenset({"aimer", "random", "magnitude"})
    cuts_only = True

    def read(self, stored: StoredModel, device: torch.device) -> None:
        """Sum the experts of a stored checkpoint, so that its model can be planned for."""
        from .scan import scan

        scan(stored, device)

    def plan(
        self, model: nn.Module, config: AimerConfig, data: Any = None, workdir: Path | None = None
    ) -> Plan:
        """Choose the experts to keep, the same number in every layer and group of a layer.

        Args:
            model: The model; it stays as it is.
            config: The settings.
            data: Token ids for a variant that needs data, as batches of shape (B, S); without
                them it looks at the text of ``config.calibration_data``.
            workdir: Not used.

        Raises:
            UsageError: If fewer experts than the router needs would stay and ``clip`` is off,
                layers have different numbers of experts, or data does not go with the variant.
            InvalidInputError: If weights or activations are not finite, or a text cannot be used.
            UnsupportedModelError: If the weights are quantized or not there.
        """
        from .scoring import score_experts
        from .selection import choose_in_parts, count_removed

        groups = family_of(model).units(model, "expert")
        removed, warnings = count_removed(groups, config.sparsity, clip=config.clip)
        scored = score_experts(model, groups, config, data)
        edits, layers = [], []
        for group, scores in zip(groups, scored.layers, strict=True):
            pruned = choose_in_parts(_removable(scores, config.variant), removed, group.partitions)
            kept = [i for i in range(group.count) if i not in set(pruned)]
            edits.append(KeepEdit(unit="expert", layer=group.layer, indices=tuple(kept)))
            shown = [None if math.isinf(score) else score for score in scores]
            layers.append({"layer": group.layer, "scores": shown, "kept": kept, "pruned": pruned})
        found: dict[str, Any] = {
            "criterion": config.variant,
            "larger_is": "removable" if config.variant == "aimer" else "important",
            "layers": layers,
        }
        if scored.calibration is not None:
            found["calibration"] = scored.calibration
        if note := _note(model, config):
            found["note"] = note
        warnings = [*_repeated(model, groups, removed), *warnings, *scored.warnings]
        unused = config.unused(is_given_data=data is not None)
        return draft(self, model, config, edits, scores=found, warnings=warnings, unused=unused)

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


def _repeated(model: nn.Module, groups: Sequence[UnitGroup], removed: int) -> list[str]:
    """Say that indices and sparsity are those of a model that was pruned before."""
    earlier = [plan for plan in provenance(model).plans if plan.method == Aimer.name]
    if not earlier:
        return []
    original = earlier[0].summary.get("routed_experts_before")
    text = "this model was pruned by aimer before"
    if isinstance(original, int) and original > 0:
        gone = 1 - sum(group.count - removed for group in groups) / original
        text += f" (from {original} routed experts, of which {gone:.1%} will be gone)"
    return [f"{text}; the sparsity is of those that are left"]


def _note(model: nn.Module, config: AimerConfig) -> str:
    """Return advice where a calibrated variant can be had, and was better in our own experiment."""
    source = provenance(model).source
    small = sum(parameter.numel() for parameter in model.parameters()) < _SMALL
    if config.variant != "aimer" or not small or source is None or not has_tokenizer(source):
        return ""
    return (
        "for a model this small, a variant that looks at text (ean, frequency or seer) may be "
        "better: compare on held-out text"
    )


def _removable(scores: Sequence[float], variant: Variant) -> list[float]:
    """Return the scores with the sign of "the higher, the sooner it goes"."""
    return list(scores) if variant == "aimer" else [-score for score in scores]


AIMER = Aimer()
