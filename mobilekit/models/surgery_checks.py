"""Whether an edit can be carried out on the units and sub-blocks that a model has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mobilekit.core.errors import UsageError
from mobilekit.schema.plan import Edit, KeepEdit, RemoveEdit

from .families import SubBlock, UnitGroup

Groups = Mapping[tuple[str, int], UnitGroup]
Blocks = Mapping[tuple[str, int], SubBlock]


def check_keep(edit: KeepEdit, groups: Groups) -> None:
    """Check that the units to keep are there, and enough.

    Raises:
        UsageError: If they are not.
    """
    group = groups.get((edit.unit, edit.layer))
    if group is None:
        layers = sorted(layer for kind, layer in groups if kind == edit.unit)
        raise UsageError(
            f"the plan keeps {edit.unit}s of layer {edit.layer}, which has none",
            hint=f"Layers with {edit.unit}s: {', '.join(map(str, layers))}.{_uneven_hint(edit)}",
        )
    if edit.indices[-1] >= group.count:
        raise UsageError(
            f"the plan keeps {edit.unit} {edit.indices[-1]} of layer {edit.layer}, "
            f"which has {group.count}",
            hint="The plan was made for another model, or was applied already: plan anew.",
        )
    if len(edit.indices) < group.minimum:
        reason = "(an expert layer needs its router's top-k)"
        if group.partitions > 1:
            reason = f"of the {group.partitions} groups that its router chooses among"
        raise UsageError(
            f"the plan keeps {len(edit.indices)} {edit.unit}s of layer {edit.layer}, "
            f"which needs {group.minimum}",
            hint=f"Keep at least {group.minimum} {reason}.",
        )
    _check_partitions(edit, group)


def _uneven_hint(edit: KeepEdit) -> str:
    if edit.unit != "kv_head":
        return ""
    return " A layer that lost heads unevenly has heads only."


def _check_partitions(edit: KeepEdit, group: UnitGroup) -> None:
    """Refuse to leave unequal parts: which part a unit is in goes by its position alone."""
    size = group.count // group.partitions
    kept = [0] * group.partitions
    for index in edit.indices:
        kept[index // size] += 1
    if len(set(kept)) > 1:
        raise UsageError(
            f"the plan keeps {', '.join(map(str, kept))} {edit.unit}s of the {group.partitions} "
            f"groups of layer {edit.layer}, so that some would move to another group",
            hint=f"Keep the same number of each group: they are {size} {edit.unit}s each, "
            "side by side.",
        )


def check_remove(edit: RemoveEdit, edits: Sequence[Edit], blocks: Blocks) -> None:
    """Check that a sub-block is there to remove, once, and that tokens still see one another.

    Args:
        edit: The edit.
        edits: All edits that it is carried out with.
        blocks: The sub-blocks that the model has, of every kind that an edit removes.

    Raises:
        UsageError: If it is not.
    """
    if (edit.unit, edit.layer) not in blocks:
        layers = sorted(layer for kind, layer in blocks if kind == edit.unit)
        raise UsageError(
            f"the plan removes the {edit.unit} of layer {edit.layer}, which has none",
            hint=f"Layers with one: {', '.join(map(str, layers))}. The plan was made for another "
            "model, or was applied already: plan anew.",
        )
    same = [e for e in edits if isinstance(e, RemoveEdit) and e.unit == edit.unit]
    if same.count(edit) > 1:
        raise UsageError(
            f"two edits remove the {edit.unit} of layer {edit.layer}", hint="Leave one of them."
        )
    present = sum(kind == edit.unit for kind, _ in blocks)
    if edit.unit == "attention" and len(same) >= present:
        raise UsageError(
            "the plan removes the attention of every layer that has one, so that no token would "
            "see another",
            hint="Keep the attention of at least one layer.",
        )


def check_overlaps(edits: Sequence[Edit], groups: Groups, blocks: Blocks) -> None:
    """Check that no two edits cut the same tensor, and none cuts what another removes.

    Raises:
        UsageError: If two contradict one another.
    """
    cut_by: dict[tuple[str, str, int], tuple[int, KeepEdit]] = {}
    gone = [blocks[e.unit, e.layer] for e in edits if isinstance(e, RemoveEdit)]
    for position, edit in enumerate(edits):
        if not isinstance(edit, KeepEdit):
            continue
        group = groups[edit.unit, edit.layer]
        for block in gone:
            if block.layer == edit.layer and block.holds(group):
                raise UsageError(
                    f"the plan keeps {edit.unit}s of layer {edit.layer} and removes its "
                    f"{block.kind}",
                    hint="Leave one of the two edits.",
                )
        for piece in group.slices:
            key = (piece.module, piece.name, piece.dim)
            first, other = cut_by.setdefault(key, (position, edit))
            if first != position:
                raise _contradiction(other, edit)


def _contradiction(first: KeepEdit, second: KeepEdit) -> UsageError:
    if first.unit == second.unit:
        return UsageError(
            f"two edits keep {first.unit}s of layer {first.layer}",
            hint="Leave one edit a layer and unit in a plan.",
        )
    return UsageError(
        f"the plan keeps {first.unit}s and {second.unit}s of layer {first.layer}, "
        "which lie in the same tensors",
        hint="Do it in two plans, one after the other.",
    )
