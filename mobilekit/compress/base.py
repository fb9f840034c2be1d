"""Contract 1: what a compression method is, and what all of them share."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from mobilekit.core.errors import UsageError
from mobilekit.schema.plan import Edit, Plan

from .config import MethodConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mobilekit.models.stored import StoredModel

C = TypeVar("C", bound=MethodConfig)


class Method(Protocol[C]):
    """One compression method: decide (``plan``), cut (``restructure``), fill in (``apply``).

    Attributes:
        name: Id in the registry and in plans.
        version: Raised when the same settings would lead to another plan or result.
        Config: Typed settings; the field ``variant``, where there is one, names a baseline.
        needs: Kinds of unit it acts on; the model's family must have them.
        after: Methods that, where both are used, must come before this one.
        conflicts: Methods that cannot be combined with this one.
        weight_only: Variants whose ``plan`` needs no weights in memory: after ``read`` it takes
            the model of a stored checkpoint, which is on the meta device.
        cuts_only: Whether ``apply`` is ``restructure`` and nothing else, so that a stored
            checkpoint can be cut file to file.
    """

    name: str
    version: int
    Config: type[C]
    needs: frozenset[str]
    after: frozenset[str]
    conflicts: frozenset[str]
    weight_only: frozenset[str]
    cuts_only: bool

    def read(self, stored: StoredModel, device: torch.device) -> None:
        """Read from a checkpoint on disk what ``plan`` needs of its weights, and its hash.

        Args:
            stored: The checkpoint, its model on the meta device.
            device: Where the weights are worked on, a block at a time.
        """

    def plan(
        self, model: nn.Module, config: C, data: Any = None, workdir: Path | None = None
    ) -> Plan:
        """Decide what to do; reads weights and data, leaves ``model`` as it is."""

    def restructure(self, model: nn.Module, plan: Plan) -> None:
        """Bring modules and shapes to those of the result, in place; runs on meta tensors."""

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Restructure ``model`` in place, give it its values, and return it."""

    def identity(self) -> C | None:
        """Return the settings that leave the model bit-identical, if there are any."""


def draft(
    method: Method[C],
    model: nn.Module,
    config: C,
    edits: Sequence[Edit],
    *,
    scores: dict[str, Any],
    warnings: Sequence[str] = (),
    unused: Collection[str] = (),
) -> Plan:
    """Return a complete plan: the edits with their origin and what they do to the size.

    Settings that are ``unused`` are left out of it: a plan says what led to it.
    """
    from mobilekit.models.lineage import provenance

    plan = Plan(
        schema="mobilekit.plan/1",
        method=method.name,
        method_version=method.version,
        config=config.model_dump(mode="json", exclude=set(unused)),
        seed=config.seed,
        parent=provenance(model).parent_hash,
        edits=tuple(edits),
        scores=scores,
        warnings=tuple(warnings),
    )
    return with_summary(method, model, plan)


def with_summary(method: Method[Any], model: nn.Module, plan: Plan) -> Plan:
    """Return ``plan`` with the sizes before and after, found on the meta device.

    ``bytes`` are those of the weights in the model's own dtype; ``active_parameters`` are those
    that one token uses; ``routed_experts`` are counted over all layers, ``null`` without experts.
    What is ``original`` was there before the first plan that the model went through, and the share
    ``removed_of_original`` counts what all plans took together, this one included.
    """
    from mobilekit.models.checkpoint import describe
    from mobilekit.models.lineage import provenance
    from mobilekit.models.surgery import meta_copy

    result = meta_copy(model)
    method.restructure(result, plan)
    summary = dict(plan.summary)
    for when, state in (("before", model), ("after", result)):
        facts = describe(state)
        summary[f"parameters_{when}"] = facts["parameters"]
        summary[f"active_parameters_{when}"] = facts["active_parameters"]
        summary[f"routed_experts_{when}"] = _routed_experts(state)
        summary[f"bytes_{when}"] = facts["weight_bytes"]
    summary.update(_since_the_original(provenance(model).plans, summary))
    return plan.model_copy(update={"summary": summary})


def _since_the_original(applied: Sequence[Plan], summary: dict[str, Any]) -> dict[str, Any]:
    first = applied[0].summary if applied else summary
    found: dict[str, Any] = {}
    for what in ("routed_experts", "parameters"):
        original, after = first.get(f"{what}_before"), summary[f"{what}_after"]
        known = isinstance(original, int) and original > 0 and after is not None
        found[f"{what}_original"] = original if known else None
        found[f"{what}_removed_of_original"] = round(1 - after / original, 6) if known else None
    return found


def _routed_experts(model: nn.Module) -> int | None:
    from mobilekit.models.families import family_of

    family = family_of(model)
    if "expert" not in family.units_of:
        return None
    return sum(group.count for group in family.units(model, "expert"))


def check_units(method: Method[Any], model: nn.Module) -> None:
    """Check that the model's family has every kind of unit that the method acts on.

    Raises:
        UnsupportedModelError: If it has not; the hint lists the families that have.
        UsageError: If the family has them, but this model holds none.
    """
    from mobilekit.models.families import family_of

    family = family_of(model)
    for kind in sorted(method.needs):
        if not family.units(model, kind):
            raise UsageError(
                f"{method.name} acts on {kind}s, but no layer of this "
                f"{type(model).__name__} has any",
                hint="Choose another method for this model.",
            )


def check_order(
    method: Method[Any], applied: Sequence[Plan], known: dict[str, Method[Any]]
) -> None:
    """Check that ``method`` may follow the plans that were applied already.

    Args:
        method: The method that is to follow.
        applied: The plans so far, in order.
        known: The registered methods among them, by name.

    Raises:
        UsageError: If two methods conflict, or stand in the wrong order.
    """
    for name in dict.fromkeys(plan.method for plan in applied):
        before = known.get(name)
        conflicts = name in method.conflicts or (before and method.name in before.conflicts)
        if name != method.name and conflicts:
            raise UsageError(
                f"{method.name} cannot be combined with {name}, which was applied already",
                hint="Start from a checkpoint without it, or choose another method.",
            )
        if before and method.name in before.after:
            raise UsageError(
                f"{method.name} must come before {name}, which was applied already",
                hint=f"Start from the original checkpoint: {method.name} first, then {name}.",
            )
