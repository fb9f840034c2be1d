"""One run under way: its recipe, its directory, and which checkpoints its steps read and write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from mobilekit.core import console
from mobilekit.core.needs import Need
from mobilekit.models import checkpoint_hash
from mobilekit.recipe import Recipe
from mobilekit.schema.run import StepName

from .state import RunDirectory


@dataclass
class Context:
    """One run under way."""

    recipe: Recipe
    directory: RunDirectory
    source: Path
    created: str
    needs: dict[str, Need] = field(default_factory=dict)
    ignore_estimates: bool = False

    @property
    def root(self) -> Path:
        """The run directory."""
        return self.directory.root

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that is exported: the last one made, or the source itself."""
        if self.recipe.recover is not None or self.recipe.compress:
            return self.root / "checkpoint"
        return self.source

    @property
    def compressed(self) -> Path:
        """The checkpoint after compression, before recovery."""
        if not self.recipe.compress:
            return self.source
        return self.root / ("compressed" if self.recipe.recover is not None else "checkpoint")

    def do(
        self, name: StepName, step_id: str, inputs: Any, outputs: list[str], work: Callable[[], str]
    ) -> None:
        """Do one step unless it is done already, and say so in one line."""
        need = self.needs.get(name)
        done = self.directory.step(
            step_id,
            inputs,
            work,
            name=name,
            outputs=outputs,
            estimated_peak_bytes=need.own_bytes if need is not None else None,
        )
        record = self.directory.records[-1]
        took = "done before" if done else f"{record.seconds:.1f} s"
        console.status(f"{f'[{name}]':12}{record.detail}   {took}")


@lru_cache(maxsize=8)
def _hash_at(path: Path, stamp: tuple[int, ...]) -> str:
    return checkpoint_hash(path)


def hash_of(path: Path) -> str:
    """Return a checkpoint's content hash; read again only where a file changed."""
    files = sorted(p for p in path.iterdir() if p.is_file())
    return _hash_at(path, tuple(p.stat().st_mtime_ns for p in files))


Seeded = TypeVar("Seeded", bound=BaseModel)


def seeded(config: Seeded, seed: int) -> Seeded:
    """Return settings with the recipe's seed, where they have one and do not name their own."""
    has_seed = "seed" in type(config).model_fields and "seed" not in config.model_fields_set
    return config.model_copy(update={"seed": seed}) if has_seed else config


Written = TypeVar("Written")


def replace(out: Path, write: Callable[[], Written]) -> Written:
    """Remove what an earlier run of a step left in ``out``, then write anew."""
    if out.is_dir():
        shutil.rmtree(out)
    return write()
