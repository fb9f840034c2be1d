"""Carry out the closed vocabulary of edits on a model, whole or on the meta device.

Methods decide, this file cuts. It knows no method and no class: where the units of a model lie
is asked of its family. Every edit is checked before the first tensor is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from mobilekit.core.errors import UsageError
from mobilekit.schema.plan import Edit, KeepEdit, Plan

from .families import Family, UnitGroup, family_of

if TYPE_CHECKING:
    from torch import Tensor

_Groups = dict[tuple[str, int], UnitGroup]


def check(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Check that every edit can be carried out on ``model`` as it is now.

    Raises:
        UsageError: If an edit names a layer or unit that is not there, keeps fewer units than
            the layer needs, or cannot be done to this family.
        UnsupportedModelError: If the family has no such units at all.
    """
    groups = _groups(model, edits)
    seen: set[tuple[str, int]] = set()
    for edit in edits:
        if not isinstance(edit, KeepEdit):
            raise _unavailable(family_of(model), edit)
        key = (edit.unit, edit.layer)
        if key in seen:
            raise UsageError(
                f"two edits keep {edit.unit}s of layer {edit.layer}",
                hint="Leave one edit a layer and unit in a plan.",
            )
        seen.add(key)
        _check_keep(edit, groups)


def restructure_(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Carry out ``edits`` on ``model`` in place: tensors, counters and, where true, the config.

    Cut tensors are new memory that nothing else shares; their dtype, device (meta included) and
    ``requires_grad`` stay. The config's count is set when every layer came to the same one.

    Raises:
        UsageError: As :func:`check`, before anything has changed.
    """
    check(model, edits)
    groups = _groups(model, edits)
    kept = [edit for edit in edits if isinstance(edit, KeepEdit)]
    for edit in kept:
        _keep_(model, groups[edit.unit, edit.layer], edit.indices)
    for kind in sorted({edit.unit for edit in kept}):
        _set_uniform_count_(model, kind)


def copy_for(model: nn.Module, edits: Sequence[Edit]) -> nn.Module:
    """Return an independent copy of ``model`` on which ``edits`` can be carried out.

    Tensors that an edit will replace are not copied but shared until then, so that the peak is
    the model and the result, not twice the model.
    """
    groups = _groups(model, edits)
    shared: dict[int, object] = {}
    for edit in edits:
        group = groups.get((edit.unit, edit.layer)) if isinstance(edit, KeepEdit) else None
        if group is not None and isinstance(edit, KeepEdit) and len(edit.indices) < group.count:
            tensors = [_tensor(model, piece.module, piece.name) for piece in group.slices]
            shared.update({id(tensor): tensor for tensor in tensors})
    return copy.deepcopy(model, memo=dict(shared))


def meta_copy(model: nn.Module) -> nn.Module:
    """Return ``model``'s structure on the meta device: shapes and dtypes, no values."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        empty = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        memo[id(parameter)] = empty
    memo.update({id(buffer): buffer.to("meta") for buffer in model.buffers()})
    return copy.deepcopy(model, memo=memo)


def replay_(model: nn.Module, plans: Sequence[Plan]) -> None:
    """Carry out, on a model just built from its config, what the config cannot say.

    A config holds one count for all layers. So the edits up to the last plan that left all layers
    alike are in the config already; those after it are carried out here.
    """
    for edits in _pending(model, plans):
        groups = _groups(model, edits)
        for edit in edits:
            _check_keep(edit, groups)
            _keep_(model, groups[edit.unit, edit.layer], edit.indices)


def _pending(model: nn.Module, plans: Sequence[Plan]) -> list[list[KeepEdit]]:
    pending: list[list[KeepEdit]] = []
    counts: dict[str, dict[int, int]] = {}  # unit -> layer -> count, as far as edits tell
    for plan in plans:
        for edit in plan.edits:
            if not isinstance(edit, KeepEdit):
                raise _unavailable(family_of(model), edit)
            counts.setdefault(edit.unit, {})[edit.layer] = len(edit.indices)
        pending.append([edit for edit in plan.edits if isinstance(edit, KeepEdit)])
        for kind, known in counts.items():
            layers = {group.layer for group in family_of(model).units(model, kind)}
            if kind not in family_of(model).set_count:
                continue  # no config says how many
            if layers == set(known) and len(set(known.values())) == 1:
                pending = [[e for e in edits if e.unit != kind] for edits in pending]
    return pending


def _groups(model: nn.Module, edits: Iterable[Edit]) -> _Groups:
    family = family_of(model)
    kinds = sorted({edit.unit for edit in edits if isinstance(edit, KeepEdit)})
    return {(kind, g.layer): g for kind in kinds for g in family.units(model, kind)}


def _check_keep(edit: KeepEdit, groups: _Groups) -> None:
    group = groups.get((edit.unit, edit.layer))
    if group is None:
        layers = sorted(layer for _, layer in groups)
        raise UsageError(
            f"the plan keeps {edit.unit}s of layer {edit.layer}, which has none",
            hint=f"Layers with {edit.unit}s: {', '.join(map(str, layers))}.",
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


def _unavailable(family: Family, edit: Edit) -> UsageError:
    what = f"'{edit.op}' of {getattr(edit, 'unit', None) or getattr(edit, 'path', '')}"
    return UsageError(
        f"the plan has an edit {what}, which is not available for family {family.name}",
        hint="This version carries out 'keep' edits only.",
    )


def _tensor(model: nn.Module, module: str, name: str) -> Tensor:
    tensor = getattr(model.get_submodule(module), name)
    assert isinstance(tensor, torch.Tensor)  # the family seam promises it
    return tensor


def _keep_(model: nn.Module, group: UnitGroup, indices: Sequence[int]) -> None:
    if len(indices) == group.count:
        return
    for (module, name, dim), kept in _kept_indices(model, group, indices).items():
        old = _tensor(model, module, name)
        index = torch.tensor(kept, device=old.device)
        cut: Tensor = old.detach().index_select(dim, index)  # always new memory
        if isinstance(old, nn.Parameter):
            cut = nn.Parameter(cut, requires_grad=old.requires_grad)
        setattr(model.get_submodule(module), name, cut)
    for counter in group.counters:
        size = counter.fixed + counter.per_unit * len(indices)
        setattr(model.get_submodule(counter.module), counter.attribute, size)


def _kept_indices(
    model: nn.Module, group: UnitGroup, indices: Sequence[int]
) -> dict[tuple[str, str, int], list[int]]:
    """Return what is left of each (module, tensor, dimension), all its slices taken together."""
    gone: dict[tuple[str, str, int], set[int]] = {}
    removed = sorted(set(range(group.count)) - set(indices))
    for piece in group.slices:
        mine = gone.setdefault((piece.module, piece.name, piece.dim), set())
        for unit in removed:
            start = piece.offset + unit * piece.width
            mine.update(range(start, start + piece.width))
    sizes = {key: _tensor(model, key[0], key[1]).shape[key[2]] for key in gone}
    return {key: [i for i in range(sizes[key]) if i not in gone[key]] for key in gone}


def _set_uniform_count_(model: nn.Module, kind: str) -> None:
    family = family_of(model)
    counts = {group.count for group in family.units(model, kind)}
    if len(counts) == 1 and kind in family.set_count:
        family.set_count[kind](model, counts.pop())
