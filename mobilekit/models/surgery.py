"""Carry out the closed vocabulary of edits on a model, whole or on the meta device.

Methods decide, this file cuts. It knows no method and no class: where the units of a model lie
is asked of its family. Every edit is checked before the first tensor is touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import nn

from mobilekit.core.errors import UsageError
from mobilekit.schema.plan import Edit, KeepEdit, Plan, RemoveEdit

from .families import Family, SubBlock, UnitGroup, family_of
from .surgery_checks import check_keep, check_overlaps, check_remove

if TYPE_CHECKING:
    from torch import Tensor

_Groups = dict[tuple[str, int], UnitGroup]
_Blocks = dict[tuple[str, int], SubBlock]


def check(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Check that every edit can be carried out on ``model`` as it is now.

    Raises:
        UsageError: If an edit names a layer or unit that is not there, keeps fewer units than
            the layer needs, contradicts another, or cannot be done to this family.
        UnsupportedModelError: If the family has no such units at all.
    """
    _check_available(family_of(model), edits)
    groups, blocks = _groups(model, edits), _blocks(model, edits)
    for edit in edits:
        if isinstance(edit, KeepEdit):
            check_keep(edit, groups)
        elif isinstance(edit, RemoveEdit):
            check_remove(edit, edits, blocks)
    check_overlaps(edits, groups, blocks)


def restructure_(model: nn.Module, edits: Sequence[Edit]) -> None:
    """Carry out ``edits`` on ``model`` in place: tensors, counters and, where true, the config.

    Cut tensors are new memory that nothing else shares; their dtype, device (meta included) and
    ``requires_grad`` stay. The config's count is set when every layer came to the same one.

    Raises:
        UsageError: As :func:`check`, before anything has changed.
    """
    check(model, edits)
    groups = _groups(model, edits)
    _remove_(model, _blocks(model, edits), edits)
    kept = [edit for edit in edits if isinstance(edit, KeepEdit)]
    for edit in kept:
        _keep_(model, groups[edit.unit, edit.layer], edit.indices)
    kinds = {edit.unit for edit in kept}
    if len(kept) < len(edits):  # what is left beside a removed sub-block may be alike
        kinds.update(family_of(model).set_count)
    for kind in sorted(kinds):
        _set_uniform_count_(model, kind)


def copy_for(model: nn.Module, edits: Sequence[Edit]) -> nn.Module:
    """Return an independent copy of ``model`` on which ``edits`` can be carried out.

    Tensors that an edit will replace or remove are not copied but shared until then, so that the
    peak is the model and the result, not twice the model.
    """
    groups, blocks = _groups(model, edits), _blocks(model, edits)
    shared: list[Tensor] = []
    for edit in edits:
        if isinstance(edit, KeepEdit):
            group = groups.get((edit.unit, edit.layer))
            if group is not None and len(edit.indices) < group.count:
                shared += [_tensor(model, piece.module, piece.name) for piece in group.slices]
        elif isinstance(edit, RemoveEdit) and (edit.unit, edit.layer) in blocks:
            block = blocks[edit.unit, edit.layer]
            for path in (block.path, *block.around):
                shared += model.get_submodule(path).parameters()
    return copy.deepcopy(model, memo={id(tensor): tensor for tensor in shared})


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

    A config holds one count for all layers, that of some moment in the model's history. Counts
    only fall: an edit that keeps fewer units than the config says came later and is carried out
    here; any other came before, or changed nothing. What was cut of a sub-block that was removed
    later does not matter.

    Raises:
        UsageError: If an edit cannot be carried out, or the config does not say what it could.
    """
    for plan in plans:
        _check_available(family_of(model), plan.edits)
    edits = [edit for plan in plans for edit in plan.edits]
    built, blocks = _groups(model, edits), _blocks(model, edits)
    for edit in edits:
        if isinstance(edit, RemoveEdit):
            check_remove(edit, edits, blocks)
    gone = [blocks[edit.unit, edit.layer] for edit in edits if isinstance(edit, RemoveEdit)]
    for plan in plans:
        pending = [edit for edit in plan.edits if _is_pending(edit, built, gone)]
        groups = _groups(model, pending)
        for edit in pending:
            check_keep(edit, groups)
            _keep_(model, groups[edit.unit, edit.layer], edit.indices)
    _remove_(model, blocks, edits)
    _check_config(model, built)


def _check_config(model: Any, built: _Groups) -> None:
    """Refuse a config from before the layers came to be alike: no other tool could load it."""
    said = model.config.to_dict()
    first = {kind: group for (kind, _), group in reversed(built.items())}
    for kind, group in first.items():
        _set_uniform_count_(model, kind)
        if model.config.to_dict() != said:
            left = family_of(model).units(model, kind)[0].count
            raise UsageError(
                f"the plans leave {left} {kind}s in each of model.layers.*, but config.json "
                f"asks for {group.count}",
                hint="The config and the plans do not belong together: restore both.",
            )


def _is_pending(edit: Edit, built: _Groups, gone: Sequence[SubBlock]) -> TypeGuard[KeepEdit]:
    """Tell whether an edit cuts a model just built from its config."""
    if not isinstance(edit, KeepEdit):
        return False
    group = built.get((edit.unit, edit.layer))
    if group is None:
        return True  # for the check to refuse
    is_gone = any(block.layer == group.layer and block.holds(group) for block in gone)
    return len(edit.indices) < group.count and not is_gone


def _groups(model: nn.Module, edits: Iterable[Edit]) -> _Groups:
    family = family_of(model)
    kinds = sorted({edit.unit for edit in edits if isinstance(edit, KeepEdit)})
    return {(kind, g.layer): g for kind in kinds for g in family.units(model, kind)}


def _blocks(model: nn.Module, edits: Iterable[Edit]) -> _Blocks:
    family = family_of(model)
    kinds = sorted({edit.unit for edit in edits if isinstance(edit, RemoveEdit)})
    found = [b for kind in kinds if kind in family.blocks_of for b in family.blocks_of[kind](model)]
    return {(block.kind, block.layer): block for block in found}


def _check_available(family: Family, edits: Iterable[Edit]) -> None:
    for edit in edits:
        can_go = isinstance(edit, RemoveEdit) and edit.unit in family.blocks_of
        if isinstance(edit, KeepEdit) or can_go:
            continue
        what = f"'{edit.op}' of {getattr(edit, 'unit', None) or getattr(edit, 'path', '')}"
        removable = f", and 'remove' of {' or '.join(family.blocks_of)}" if family.blocks_of else ""
        raise UsageError(
            f"the plan has an edit {what}, which is not available for family {family.name}",
            hint=f"Available are 'keep'{removable}.",
        )


def _tensor(model: nn.Module, module: str, name: str) -> Tensor:
    tensor = getattr(model.get_submodule(module), name)
    assert isinstance(tensor, torch.Tensor)  # the family seam promises it
    return tensor


def _remove_(model: nn.Module, blocks: _Blocks, edits: Iterable[Edit]) -> None:
    for edit in edits:
        if isinstance(edit, RemoveEdit):
            block = blocks[edit.unit, edit.layer]
            model.set_submodule(block.path, block.stand_in())
            for path in block.around:
                model.set_submodule(path, nn.Identity())


def _keep_(model: nn.Module, group: UnitGroup, indices: Sequence[int]) -> None:
    if len(indices) == group.count:
        return
    for (module, name, dim), kept in _kept_indices(model, group, indices).items():
        old = _tensor(model, module, name)
        cut: Tensor = old.detach().index_select(dim, kept.to(old.device))  # always new memory
        if isinstance(old, nn.Parameter):
            cut = nn.Parameter(cut, requires_grad=old.requires_grad)
        setattr(model.get_submodule(module), name, cut)
    for counter in group.counters:
        size = counter.fixed + counter.per_unit * len(indices)
        setattr(model.get_submodule(counter.module), counter.attribute, size)
    if group.settle is not None:
        group.settle(model, indices)


def _kept_indices(
    model: nn.Module, group: UnitGroup, indices: Sequence[int]
) -> dict[tuple[str, str, int], Tensor]:
    """Return what is left of each (module, tensor, dimension), all its slices taken together."""
    # a device is named throughout: a model may be under construction on another one
    stays = torch.zeros(group.count, dtype=torch.bool, device="cpu")
    stays[torch.tensor(indices, device="cpu")] = True
    masks: dict[tuple[str, str, int], Tensor] = {}
    for piece in group.slices:
        key = (piece.module, piece.name, piece.dim)
        size = _tensor(model, piece.module, piece.name).shape[piece.dim]
        mask = masks.setdefault(key, torch.ones(size, dtype=torch.bool, device="cpu"))
        mask[piece.offset : piece.offset + group.count * piece.width] = stays.repeat_interleave(
            piece.width
        )
    return {key: mask.nonzero().flatten() for key, mask in masks.items()}


def _set_uniform_count_(model: nn.Module, kind: str) -> None:
    family = family_of(model)
    counts = {group.count for group in family.units(model, kind)}
    if len(counts) == 1 and kind in family.set_count:
        family.set_count[kind](model, counts.pop())
