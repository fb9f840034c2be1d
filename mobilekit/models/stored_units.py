"""Where the units of a model (its experts, …) lie in the tensors of its checkpoint.

In memory the experts of a layer are fused; on disk each may have matrices of its own, as the
class's conversion in transformers says. We do not repeat what it says: we send numbered tensors
through it and look where the numbers come out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mobilekit.core.errors import MobileKitError, UnsupportedModelError

from .families import UnitGroup, family_of
from .stored import stored_specs

# Sizes but that of the units' dimension are cut down to this: a number of equal parts that any
# conversion cuts a tensor into divides it.
_SMALL = 12

Key = tuple[str, int]  # kind of unit, layer


@dataclass(frozen=True)
class StoredUnits:
    """Which units of a group a stored tensor holds.

    Attributes:
        key: The group: kind of unit and layer.
        units: The unit at each index of dimension ``dim``, -1 for none; a single unit where the
            whole tensor is its own.
        dim: The dimension along which the units lie; ``None`` where the tensor is one unit's own.
        scored: Whether it holds the units' own weights (see :class:`Slice`).
    """

    key: Key
    units: tuple[int, ...]
    dim: int | None
    scored: bool


@dataclass(frozen=True)
class Cut:
    """Where a tensor of the result comes from.

    Attributes:
        source: The stored tensor that it is taken from.
        dim: The dimension that is cut, or ``None`` where it is taken whole.
        indices: What stays of that dimension, ascending.
    """

    source: str
    dim: int | None = None
    indices: tuple[int, ...] = ()


def stored_units(model: nn.Module, kinds: Iterable[str]) -> dict[str, StoredUnits]:
    """Return what every stored tensor with units of the given kinds holds, in stored order.

    Args:
        model: A model, on the meta device or elsewhere; only its structure is looked at.
        kinds: The kinds of unit.

    Raises:
        UnsupportedModelError: If units do not lie side by side on disk, or the family has no
            such units.
    """
    family = family_of(model)
    groups = [group for kind in sorted(set(kinds)) for group in family.units(model, kind)]
    specs = stored_specs(model)
    found = {}
    for scored in (True, False):
        numbered, owners = _numbered(model, groups, scored)
        for name, numbers in _converted(model, numbered).items():
            if (units := _located(name, numbers, owners, specs, scored)) is not None:
                found[name] = units
    return {name: found[name] for name in specs if name in found}


def cuts(before: nn.Module, after: nn.Module, kept: Mapping[Key, Sequence[int]]) -> dict[str, Cut]:
    """Return where each stored tensor of ``after`` comes from in the checkpoint of ``before``.

    Args:
        before: The model as it is stored; its structure is enough.
        after: The same with units removed.
        kept: For each group that lost units, which of them are in ``after``, ascending.

    Raises:
        UnsupportedModelError: If the result cannot be made by cutting stored tensors.
    """
    kinds = {kind for kind, _ in kept}
    old, new = stored_units(before, kinds), stored_units(after, kinds)
    own = _own_tensors(old)
    places = {
        name: (k, u, i)
        for (k, u), names in _own_tensors(new).items()
        for i, name in enumerate(names)
    }
    old_specs, new_specs = stored_specs(before), stored_specs(after)
    found = {}
    for name, spec in new_specs.items():
        held = old.get(name)
        if held is not None and held.dim is not None:
            stay = set(kept.get(held.key, held.units))
            indices = [i for i, unit in enumerate(held.units) if unit < 0 or unit in stay]
            found[name] = Cut(name, held.dim, tuple(indices))
        elif name in places:
            key, unit, ordinal = places[name]
            origin = kept[key][unit] if key in kept else unit
            found[name] = Cut(own[key, origin][ordinal])
        else:
            found[name] = Cut(name)
        if _shape_of(found[name], old_specs) != tuple(spec.shape):
            raise _untraceable(name)
    return found


def _shape_of(cut: Cut, specs: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    if cut.source not in specs:
        return None
    shape = list(specs[cut.source].shape)
    if cut.dim is not None:
        shape[cut.dim] = len(cut.indices)
    return tuple(shape)


def _own_tensors(found: Mapping[str, StoredUnits]) -> dict[tuple[Key, int], list[str]]:
    """Return the tensors that are a unit's own, always in the same order."""
    own: dict[tuple[Key, int], list[str]] = {}
    for scored in (True, False):
        for name, held in found.items():
            if held.dim is None and held.scored is scored:
                own.setdefault((held.key, held.units[0]), []).append(name)
    return own


def _numbered(
    model: nn.Module, groups: Sequence[UnitGroup], scored: bool
) -> tuple[dict[str, Tensor], list[tuple[Key, int]]]:
    """Return stand-ins for the tensors with units: each index says whose it is, 0 for nobody's.

    Number n stands for entry n - 1 of the list that is returned with them.
    """
    owners: list[tuple[Key, int]] = []
    stored = set(model.state_dict())
    tensors: dict[str, Tensor] = {}
    for group in groups:
        first = len(owners) + 1
        owners += [((group.kind, group.layer), unit) for unit in range(group.count)]
        for piece in group.slices:
            name = f"{piece.module}.{piece.name}"
            if piece.scored is not scored or name not in stored:
                continue
            shape = list(getattr(model.get_submodule(piece.module), piece.name).shape)
            size = shape[piece.dim]
            if name not in tensors:
                small = [min(n, _SMALL) for n in shape]
                small[piece.dim] = size
                tensors[name] = torch.zeros(small, dtype=torch.int64)
            if tensors[name].shape[piece.dim] != size:  # units along another dimension too
                raise _untraceable(name)
            for unit in range(group.count):
                part = tensors[name].narrow(
                    piece.dim, piece.offset + unit * piece.width, piece.width
                )
                part.fill_(first + unit)
    return tensors, owners


def _converted(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    try:
        converted: dict[str, Tensor] = revert_weight_conversion(model, tensors)
    except MobileKitError:
        raise
    except Exception as error:  # whatever a conversion makes of smaller tensors than it knows
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be worked on file to file: its conversion does not "
            f"say where its units lie ({' '.join(str(error).split())[:120]})",
            hint="Load it into memory: mk.load, mk.plan, mk.apply, mk.save.",
        ) from error
    return converted


def _located(
    name: str,
    numbers: Tensor,
    owners: Sequence[tuple[Key, int]],
    specs: Mapping[str, Tensor],
    scored: bool,
) -> StoredUnits | None:
    """Return which units a stored tensor holds, given the numbers that came out in its place."""
    present = np.unique(numbers.numpy()).tolist()
    keys = {owners[number - 1][0] for number in present if number}
    if not keys:
        return None
    if name not in specs or len(keys) > 1 or numbers.dim() != specs[name].dim():
        raise _untraceable(name)
    (key,) = keys
    if len(present) == 1:
        return StoredUnits(key, (owners[present[0] - 1][1],), None, scored)
    for dim in range(numbers.dim()):
        line = numbers.movedim(dim, 0).reshape(numbers.shape[dim], -1)
        if bool((line == line[:, :1]).all()) and len(line) == specs[name].shape[dim]:
            units = tuple(owners[n - 1][1] if n else -1 for n in line[:, 0].tolist())
            return StoredUnits(key, units, dim, scored)
    raise _untraceable(name)


def _untraceable(name: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{name} is stored such that its units cannot be told apart on disk",
        hint="Load the model into memory: mk.load, mk.plan, mk.apply, mk.save.",
    )
