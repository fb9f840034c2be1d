"""DarwinLM as a compression method: database, search, stitching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mobilekit.compress.base import draft
from mobilekit.compress.tensors import fill_tensors_, write_tensors
from mobilekit.core.cache import cache_root
from mobilekit.core.errors import UsageError
from mobilekit.core.files import sha256_json
from mobilekit.models.lineage import provenance
from mobilekit.schema.plan import Plan

from .config import DarwinConfig

if TYPE_CHECKING:
    import torch
    from torch import nn

    from mobilekit.models.stored import StoredModel

    from .data import Pools
    from .database import Database
    from .grid import Grid
    from .search import Found


class DarwinLM:
    """Remove query heads and MLP channels, differently in every layer.

    Every layer is pruned to every level by optimal brain surgeon; a search then chooses one level
    a layer under a fixed total. What stays is smaller dense matrices.

    Source: arXiv 2502.07780; the search from EvoPress, arXiv 2410.14649.
    """

    name = "darwinlm"
    version = 1
    Config = DarwinConfig
    needs = frozenset({"head"})
    after: frozenset[str] = frozenset()
    conflicts: frozenset[str] = frozenset()
    weight_only: frozenset[str] = frozenset()
    cuts_only = False

    def read(self, stored: StoredModel, device: torch.device) -> None:
        """Not available: calibration runs the model.

        Raises:
            UsageError: Always.
        """
        raise UsageError(
            f"{self.name} runs the model on calibration text, so it cannot plan from the files",
            hint="Load the model.",
        )

    def plan(
        self, model: nn.Module, config: DarwinConfig, data: Any = None, workdir: Path | None = None
    ) -> Plan:
        """Choose the heads and channels to keep, and repair the projections behind them.

        Args:
            model: The dense model; it stays as it is.
            config: The settings.
            data: Token ids as batches of shape (B, S), used for the Hessians and by the search;
                without them, windows of the text of ``config.calibration_data``.
            workdir: Where database, search state and the repaired weights are kept; a folder in
                the cache, named after all that they depend on, where ``None``. What is there
                already is used, so an interrupted call goes on.

        Raises:
            UsageError: If levels and target do not go together, or the working directory is
                another model's.
            InvalidInputError: If tokens are too few, or activations are not finite.
        """
        from .grid import grids

        layers, skipped = grids(model, config)
        if config.sparsity == 0.0:
            return draft(self, model, config, [], scores={}, unused=config.unused())
        from mobilekit.compress.calibration import evaluating
        from mobilekit.compress.evolution import from_first

        from .data import pools
        from .search import Search
        from .stitch import choice, parameter_costs

        drawn = pools(model, config, data)
        database = _made(model, layers, config, drawn, workdir)
        search = Search(
            model,
            layers,
            database,
            config,
            (drawn.fitness, drawn.training),
            parameter_costs(model, layers),
            database.folder / f"search-{_key(config)}.json",
        )
        with evaluating(model):
            found = search.run()
        picked = choice(layers, found.state)
        plan = draft(
            self,
            model,
            config,
            picked.edits(database),
            scores=_scores(layers, found, database, drawn, skipped),
            warnings=skipped,
            unused=config.unused(),
        )
        return from_first(lambda: write_tensors(plan, picked.weights(database), database.folder))

    def restructure(self, model: nn.Module, plan: Plan) -> None:
        """Cut heads and channels, remove sub-blocks, in place."""
        from mobilekit.models import surgery

        surgery.restructure_(model, plan.edits)

    def apply(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Cut in place, put the repaired projections in, and return the model."""
        self.restructure(model, plan)
        fill_tensors_(model, plan)
        return model

    def identity(self) -> DarwinConfig:
        """Return sparsity 0."""
        return DarwinConfig(sparsity=0.0)


# settings that change neither the levels of a layer nor what is found for them
_SEARCH = set(DarwinConfig.model_fields) - {
    "levels",
    "group_mode",
    "channel_multiple",
    "remove_blocks",
    "damping",
}


def _identity(
    model: nn.Module, layers: Sequence[Grid], config: DarwinConfig, drawn: Pools
) -> dict[str, Any]:
    """Return what a database is made for."""
    return {
        "parent": _content(model),
        "calibration": drawn.record["sha256"],
        "tokens": sha256_json([batch.tolist() for batch in drawn.calibration]),
        "score": config.score,
        "settings": config.model_dump(mode="json", exclude=_SEARCH),
        "layers": [[grid.key, list(grid.removed)] for grid in layers],
    }


def _content(model: nn.Module) -> str:
    """Return a hash of the model: its checkpoint's, or of its weights where it equals none."""
    import hashlib

    import torch

    if (known := provenance(model).parent_hash) is not None:
        return known
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name}\0{list(tensor.shape)}\0{tensor.dtype}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return f"sha256:{digest.hexdigest()}"


def _made(
    model: nn.Module,
    layers: Sequence[Grid],
    config: DarwinConfig,
    drawn: Pools,
    workdir: Path | None,
) -> Database:
    """Return the database, gone on with or new; of several ranks the first makes what it lacks."""
    from mobilekit.compress.calibration import evaluating
    from mobilekit.compress.evolution import from_first
    from mobilekit.core.device import choose_device

    from .build import build
    from .database import Database

    identity = _identity(model, layers, config, drawn)
    folder = workdir or cache_root() / "darwinlm" / sha256_json(identity)[:32]

    def made() -> None:
        with evaluating(model):
            build(
                model,
                layers,
                drawn.calibration,
                config,
                Database(folder, identity),
                choose_device("auto"),
            )

    from_first(made)
    return Database(folder, identity)


def _key(config: DarwinConfig) -> str:
    """Return a name for the search with these settings."""
    return sha256_json(config.model_dump(mode="json"))[:16]


def _scores(
    layers: Sequence[Grid], found: Found, database: Database, drawn: Pools, skipped: list[str]
) -> dict[str, Any]:
    """Return what led to the plan."""
    levels = [level for group in found.state for level in group]
    rows = []
    for grid, level in zip(layers, levels, strict=True):
        rows.append(
            {
                "layer": grid.layer,
                "unit": grid.unit,
                "level": level,
                "kept": grid.count - grid.removed[level],
                "of": grid.count,
                "errors": database.entry(grid).relative(),
            }
        )
    units = dict.fromkeys(grid.unit for grid in layers)
    scores: dict[str, Any] = {
        "layers": rows,
        "levels": {
            unit: list(next(grid.removed for grid in layers if grid.unit == unit)) for unit in units
        },
        "cost": "parameters",
        "skipped": skipped,
        "calibration": drawn.record,
    }
    if found.generations:
        scores["search"] = {"generations": found.generations}
    return scores


DARWINLM = DarwinLM()
