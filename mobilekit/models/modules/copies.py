"""A model's module tree to change at will, over the same weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn


def shallow_copy(model: nn.Module, replaced: Mapping[str, nn.Module] | None = None) -> nn.Module:
    """Copy the module tree but share every tensor, then swap in replacements.

    Args:
        model: The model; left as it is.
        replaced: Modules to put in place of the model's own, by path.

    Returns:
        The copy, in eval mode, its parameters without gradients.
    """
    # views, so that the model's own parameters keep their gradients
    owned: dict[int, object] = {
        id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters()
    }
    owned.update({id(buffer): buffer for buffer in model.buffers()})
    for path in replaced or {}:  # what is replaced need not be copied at all
        owned.update({id(m): m for m in model.get_submodule(path).modules()})
    body = copy.deepcopy(model, memo=owned)
    for path, module in (replaced or {}).items():
        body.set_submodule(path, module)
    return body.eval()
