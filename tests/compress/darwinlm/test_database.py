"""The database on disk: whole or made anew, never another model's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mobilekit.compress.darwinlm.database import INDEX, Database
from mobilekit.compress.darwinlm.grid import Grid
from mobilekit.compress.obs import Removal, remove_units
from mobilekit.core.errors import InvalidInputError, UsageError

IDENTITY: dict[str, Any] = {"parent": "sha256:1", "levels": 3}


def grid(layer: int = 0) -> Grid:
    return Grid(
        layer,
        "channel",
        8,
        1,
        f"model.layers.{layer}.mlp.down_proj",
        removed=(0, 2, 5, 8),
        steps=3,
        runs=1,
    )


def removal(seed: int = 0) -> Removal:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 8, generator=generator)
    return remove_units(weight, x.T @ x, width=1, removed=grid().removed)


def test_what_is_added_is_read_again(tmp_path: Path) -> None:
    found = removal()
    Database(tmp_path / "db", IDENTITY).add(grid(), found, samples=40)
    database = Database(tmp_path / "db", IDENTITY)
    assert grid() in database
    assert grid(1) not in database
    for number, level in enumerate(found.levels):
        assert database.kept(grid(), number) == level.kept
        if level.weight is not None:
            assert torch.equal(database.weight(grid(), number), level.weight)
    entry = database.entry(grid())
    assert entry.errors == tuple(level.error for level in found.levels)
    assert entry.relative()[0] == 0.0
    assert entry.relative()[-1] == 1.0
    assert entry.samples == 40
    # inner levels only: 6 + 3 columns of 4 rows, and a header
    size = sum(file.stat().st_size for file in (tmp_path / "db").glob("*.safetensors"))
    assert 4 * 9 * 4 <= size <= 4 * 9 * 4 + 200
    database.check([grid()])


def test_another_checkpoints_database_is_refused(tmp_path: Path) -> None:
    Database(tmp_path / "db", IDENTITY).add(grid(), removal(), samples=40)
    with pytest.raises(UsageError, match="made for another checkpoint"):
        Database(tmp_path / "db", {**IDENTITY, "parent": "sha256:2"})
    with pytest.raises(UsageError, match=r"other settings \(levels\)"):
        Database(tmp_path / "db", {**IDENTITY, "levels": 4})


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_file_that_is_not_whole_is_made_anew(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Database(tmp_path / "db", IDENTITY).add(grid(), removal(), samples=40)
    (file,) = (tmp_path / "db").glob("*.safetensors")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-5])
    database = Database(tmp_path / "db", IDENTITY)
    assert grid() not in database
    assert "layer 0 is made anew" in capsys.readouterr().err


def test_changed_bytes_are_noticed(tmp_path: Path) -> None:
    database = Database(tmp_path / "db", IDENTITY)
    database.add(grid(), removal(), samples=40)
    (file,) = (tmp_path / "db").glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(InvalidInputError, match="its checksum differs"):
        database.check([grid()])


@pytest.mark.parametrize("text", ["[]", "{}", '{"identity": 1, "entries": {"0.channel": {}}}', "x"])
def test_a_damaged_index_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / INDEX).write_text(text)
    with pytest.raises((InvalidInputError, UsageError)):
        Database(tmp_path, IDENTITY)


def test_an_index_holds_plain_values(tmp_path: Path) -> None:
    Database(tmp_path, IDENTITY).add(grid(), removal(), samples=40)
    data = json.loads((tmp_path / INDEX).read_text())
    assert data["entries"]["0.channel"]["order"] == list(removal().order)
