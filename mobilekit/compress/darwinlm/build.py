"""Make the database: walk through the layers, look at what enters projections, remove, keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mobilekit.compress.obs import Removal, SecondMoments, remove_by_score, remove_units
from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError

from .config import DarwinConfig
from .grid import Grid
from .walk import LayerWalk

if TYPE_CHECKING:
    from torch import nn

    from .database import Database

_FEW = 10  # tokens a column below which a Hessian is a poor estimate


def build(
    model: nn.Module,
    grids: Sequence[Grid],
    batches: Sequence[Tensor],
    config: DarwinConfig,
    database: Database,
    device: torch.device,
) -> None:
    """Add to a database the layers that it lacks.

    Args:
        model: The dense model, in evaluation mode.
        grids: The levels of its layers.
        batches: Calibration tokens, each of shape (B, S), without padding.
        config: Score, damping.
        database: Where the layers go.
        device: Where layers work.

    Raises:
        InvalidInputError: If there are fewer tokens than columns, or activations are not finite.
    """
    missing = [grid for grid in grids if grid not in database]
    if not missing:
        return
    check_tokens(grids, sum(batch.numel() for batch in batches))
    walk = LayerWalk(model, batches, device)
    last = max(grid.layer for grid in missing)
    work = sum(grid.width * grid.removed[-1] for grid in missing)
    with console.progress(work, "building the database", announce=True) as bar:
        for layer in range(last + 1):
            own = [grid for grid in missing if grid.layer == layer]
            moments = {grid.projection: _moments(grid, device) for grid in own}
            walk.step(layer, {path: sums.add for path, sums in moments.items()})
            for grid in own:
                sums = moments.pop(grid.projection)
                found = _removal(model, grid, sums.matrix(), config, bar)
                database.add(grid, found, sums.samples)


def check_tokens(grids: Sequence[Grid], tokens: int) -> None:
    """Refuse fewer tokens than a layer has columns; warn where there are few.

    Raises:
        InvalidInputError: If there are fewer.
    """
    widest = max(grid.count * grid.width for grid in grids)
    if tokens < widest:
        raise InvalidInputError(
            f"{tokens} calibration tokens cannot tell apart the {widest} columns of a layer",
            hint=f"Use at least {widest} tokens, better {_FEW * widest}.",
        )
    if tokens < _FEW * widest:
        console.warn(
            f"{tokens} calibration tokens are few for {widest} columns: {_FEW * widest} or more "
            "give better Hessians"
        )


def _moments(grid: Grid, device: torch.device) -> SecondMoments:
    return SecondMoments(grid.count * grid.width, device)


def _removal(
    model: nn.Module, grid: Grid, hessian: Tensor, config: DarwinConfig, bar: Any
) -> Removal:
    projection: Any = model.get_submodule(grid.projection)
    if config.score != "obs":
        found = remove_by_score(
            projection.weight,
            hessian,
            config.score,
            width=grid.width,
            removed=grid.removed,
            runs=grid.runs,
        )
        bar.advance(grid.width * grid.removed[-1], grid.projection)
        return found
    done = 0

    def advance(units: int) -> None:
        nonlocal done
        done += units
        bar.advance(units * grid.width, grid.projection)

    found = remove_units(
        projection.weight,
        hessian,
        width=grid.width,
        removed=grid.removed,
        runs=grid.runs,
        damping=config.damping,
        name=grid.projection,
        advance=advance,
    )
    bar.advance((grid.removed[-1] - done) * grid.width, grid.projection)
    return found
