"""Watch a model's experts at work: which token goes where, with what weight, to what output.

The layout of the experts does not matter: their container is asked to compute again, each chosen
expert by itself. So statistics of activations cost the experts twice, those of routing nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mobilekit.compress.calibration import run_batches
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError
from mobilekit.models.families import UnitGroup

from .criteria import ExpertStatistics


def expert_statistics(
    model: nn.Module,
    groups: Sequence[UnitGroup],
    batches: Sequence[Tensor],
    *,
    outputs: bool,
    description: str = "calibration",
) -> list[ExpertStatistics]:
    """Return the statistics of each group's experts over all tokens, in the groups' order.

    Args:
        model: The model; it stays as it is.
        groups: Groups of routed experts, as the family gives them.
        batches: Token ids, each of shape (B, S).
        outputs: Whether the experts' outputs are looked at, or the routing alone.
        description: What the progress bar says.

    Raises:
        UnsupportedModelError: If a layer's experts are not one module that takes hidden states
            (T, D), expert ids (T, k) and weights (T, k).
        InvalidInputError: If a router weight or an output is not finite.
    """
    watchers = {_container(group): _Watcher(group, outputs) for group in groups}
    run_batches(model, batches, watchers, description=description)
    for watcher in watchers.values():
        watcher.check_finite()
    return [watcher.statistics for watcher in watchers.values()]


class _Watcher:
    """Sums up what one layer's container of experts is given."""

    def __init__(self, group: UnitGroup, outputs: bool) -> None:
        self.layer, self.outputs = group.layer, outputs
        self.statistics = ExpertStatistics(group.count)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden, index, weights = self._inputs(module, args, kwargs)
        norms = _output_norms(module, hidden, index, weights) if self.outputs else None
        self.statistics.add(index, weights, norms)

    def _inputs(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        try:
            given = tuple(inspect.signature(module.forward).bind(*args, **kwargs).args)
        except TypeError:
            given = ()
        if len(given) == 3 and all(isinstance(value, Tensor) for value in given):
            hidden, index, weights = given
            whole = not index.is_floating_point()
            shaped = hidden.dim() == index.dim() == 2 and len(hidden) == len(index)
            if whole and shaped and index.shape == weights.shape:
                return hidden, index, weights
        raise UnsupportedModelError(
            f"experts of layer {self.layer} ({type(module).__name__}) do not take hidden states, "
            "expert ids and weights, as transformers' do",
            hint="Use a variant that needs no data: aimer, magnitude or random.",
        )

    def check_finite(self) -> None:
        if not self.statistics.is_finite():
            raise InvalidInputError(
                f"router weights or expert outputs of layer {self.layer} are NaN or infinite",
                hint="Load the model with dtype=float32; if that does not help, it is damaged.",
            )


def _output_norms(module: nn.Module, hidden: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Return ‖f_e(x)‖₂ of every token x and each of its experts e, shape (T, k), float64.

    Each pair is given to the container as a token with one expert of weight 1.
    """
    rows = hidden.repeat_interleave(index.shape[1], dim=0)  # (T·k, D)
    ones = torch.ones_like(weights).reshape(-1, 1)
    outputs: Tensor = module.forward(rows, index.reshape(-1, 1), ones)
    norms: Tensor = torch.linalg.vector_norm(outputs, dim=-1, dtype=torch.float64)
    return norms.view(index.shape)


def _container(group: UnitGroup) -> str:
    """Return the path of the module that holds the experts' own weights."""
    paths = {piece.module for piece in group.slices if piece.scored}
    if len(paths) != 1:
        raise UnsupportedModelError(
            f"experts of layer {group.layer} are spread over {len(paths)} modules, expected one",
            hint="Use a variant that needs no data: aimer, magnitude or random.",
        )
    return paths.pop()
