"""The database: every layer at every level, made once, kept on disk, read where it lies.

One safetensors file a layer and kind of unit holds the output projection's columns that are left at
each inner level; level 0 is the model's own, and at the last level nothing is left. An index names
what the database was made for. It is written after every file, so that an interrupted build goes on
at the layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mobilekit.compress.obs import Removal
from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.files import atomic_write_json, read_json, sha256_file, writing

from .grid import Grid

INDEX = "database.json"
_FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What the index says of one file.

    Attributes:
        sha256: Of the file.
        size: Its bytes.
        order: Units in the order in which they went.
        errors: Squared output error at each level.
        total: That of removing everything.
        samples: Calibration tokens that were looked at.
    """

    sha256: str
    size: int
    order: tuple[int, ...]
    errors: tuple[float, ...]
    total: float
    samples: int

    def relative(self) -> list[float]:
        """Return the errors as shares of that of removing everything."""
        scale = self.total if self.total > 0 else 1.0
        return [error / scale for error in self.errors]


class Database:
    """Layers at their levels, in a folder.

    Args:
        folder: Where it is, or is to be made.
        identity: What it is made for, as JSON values: checkpoint, calibration, levels, score.

    Raises:
        UsageError: If the folder holds a database made for something else.
        InvalidInputError: If its index cannot be read.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder
        self._identity = {"format": _FORMAT, **identity}
        self._entries: dict[str, Entry] = {}
        if (folder / INDEX).is_file():
            self._read()

    def _read(self) -> None:
        index = self.folder / INDEX
        data = read_json(index)
        try:
            found, entries = data["identity"], data["entries"]
            self._entries = {key: _entry(value) for key, value in entries.items()}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(
                f"{index} is no index of a database: {error!r}",
                hint="Remove the folder, and the database is made anew.",
            ) from None
        if found != self._identity:
            raise UsageError(
                f"the database in {self.folder} was made for {_difference(found, self._identity)}",
                hint="Give another working directory, or remove this one.",
            )

    def __contains__(self, grid: Grid) -> bool:
        """Tell whether a layer is there, whole."""
        entry = self._entries.get(grid.key)
        if entry is None:
            return False
        file = self._file(grid)
        if file.is_file() and file.stat().st_size == entry.size:
            return True
        console.warn(f"{file} is missing or not whole: layer {grid.layer} is made anew")
        return False

    def add(self, grid: Grid, removal: Removal, samples: int) -> None:
        """Keep a layer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file(grid)
        tensors = {
            str(number): level.weight.contiguous().cpu()
            for number, level in enumerate(removal.levels)
            if level.weight is not None
        }
        part = file.with_suffix(".part")
        with writing(file):
            save_file(tensors, part)
            part.replace(file)
        self._entries[grid.key] = Entry(
            sha256=sha256_file(file),
            size=file.stat().st_size,
            order=removal.order,
            errors=tuple(level.error for level in removal.levels),
            total=removal.total,
            samples=samples,
        )
        entries = {key: asdict(entry) for key, entry in self._entries.items()}
        atomic_write_json(self.folder / INDEX, {"identity": self._identity, "entries": entries})

    def entry(self, grid: Grid) -> Entry:
        """Return what the index says of a layer."""
        return self._entries[grid.key]

    def kept(self, grid: Grid, level: int) -> tuple[int, ...]:
        """Return the units that a layer has at a level, ascending."""
        gone = set(self._entries[grid.key].order[: grid.removed[level]])
        return tuple(unit for unit in range(grid.count) if unit not in gone)

    def weight(self, grid: Grid, level: int) -> Tensor:
        """Return the columns left of an output projection at an inner level, memory-mapped.

        Raises:
            InvalidInputError: If the file is damaged.
        """
        file = self._file(grid)
        try:
            with safe_open(file, "pt") as opened:
                weight: Tensor = opened.get_tensor(str(level))
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(
                f"{file} cannot be read: {error}",
                hint="Remove the file, and the layer is made anew.",
            ) from None
        return weight

    def check(self, grids: Sequence[Grid]) -> None:
        """Hold every file against the checksum in the index.

        Raises:
            InvalidInputError: With the first that differs.
        """
        for grid in grids:
            file = self._file(grid)
            if sha256_file(file) != self._entries[grid.key].sha256:
                raise InvalidInputError(
                    f"{file} is not what was written: its checksum differs",
                    hint="Remove the file, and the layer is made anew.",
                )

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self._entries.values())

    def _file(self, grid: Grid) -> Path:
        return self.folder / f"layer-{grid.layer:03d}.{grid.unit}.safetensors"


def _entry(value: dict[str, Any]) -> Entry:
    return Entry(
        sha256=str(value["sha256"]),
        size=int(value["size"]),
        order=tuple(int(unit) for unit in value["order"]),
        errors=tuple(float(error) for error in value["errors"]),
        total=float(value["total"]),
        samples=int(value["samples"]),
    )


def _difference(found: Any, wanted: dict[str, Any]) -> str:
    if not isinstance(found, dict):
        return "something else"
    names = [name for name in wanted if found.get(name) != wanted[name]]
    if names == ["parent"]:
        return "another checkpoint"
    return f"other settings ({', '.join(names)})"
