"""File to file: weights, files, plans and disks that will not do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import mobilekit as mk
from mobilekit.compress.stored import (
    compress_stored,
    plan_stored,
)
from mobilekit.core.errors import InvalidInputError, UnsupportedModelError, UsageError
from mobilekit.models import blocks, rewrite
from mobilekit.models.tiny import make_tiny
from mobilekit.schema.plan import KeepEdit

from .on_disk import stored

pytestmark = pytest.mark.usefixtures("own_cache")


def put(folder: Path, name: str, value: float) -> None:
    for file in folder.glob("*.safetensors"):
        held = load_file(file)
        if name in held:
            held[name].flatten()[5] = value
            save_file(held, file, metadata={"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        ("model.layers.1.mlp.experts.2.up_proj.weight", "expert 2 of layer 1 has weights that"),
        ("model.layers.1.mlp.gate.weight", "model.layers.1.mlp.gate.weight in"),
        ("model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.q_proj.weight in"),
    ],
)
@pytest.mark.parametrize("variant", ["aimer", "random"])
def test_weights_that_are_not_finite(
    sharded: Path, tensor: str, told: str, value: float, variant: str
) -> None:
    put(sharded, tensor, value)
    with pytest.raises(InvalidInputError, match=told):
        plan_stored(sharded, "aimer", variant=variant)


def test_dead_experts_go_first(sharded: Path, tmp_path: Path) -> None:
    for part in ("gate", "up", "down"):
        name = f"model.layers.1.mlp.experts.1.{part}_proj.weight"
        for file in sharded.glob("*.safetensors"):
            held = load_file(file)
            if name in held:
                held[name].zero_()
                save_file(held, file, metadata={"format": "pt"})
    plan = plan_stored(sharded, "aimer", sparsity=0.25)
    assert 1 in plan.scores["layers"][0]["pruned"]
    assert "all zeros" in plan.warnings[0]
    assert plan == mk.plan(mk.load(sharded, device="cpu"), "aimer", sparsity=0.25)


def test_files_that_are_damaged_or_missing(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    data = second.read_bytes()
    second.write_bytes(data[:-10])
    with pytest.raises(InvalidInputError, match="truncated or damaged"):
        plan_stored(sharded, "aimer")
    second.unlink()
    with pytest.raises(InvalidInputError, match="is missing"):
        plan_stored(sharded, "aimer")
    second.write_bytes(data)
    config = json.loads((sharded / "config.json").read_text())
    (sharded / "config.json").write_text(json.dumps({**config, "num_local_experts": 3}))
    with pytest.raises(InvalidInputError, match="has no place for"):
        plan_stored(sharded, "aimer")
    del first


def test_a_file_that_is_cut_off_while_it_is_read(
    sharded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = blocks.os.preadv
    monkeypatch.setattr(
        blocks.os, "preadv", lambda fd, into, at: 0 if at > 5000 else real(fd, into, at)
    )
    with pytest.raises(InvalidInputError, match="ends at byte"):
        plan_stored(sharded, "aimer")
    monkeypatch.setattr(blocks.os, "preadv", raising(OSError(5, "Input/output error")))
    with pytest.raises(InvalidInputError, match="cannot be read: Input/output error"):
        plan_stored(sharded, "aimer")


def raising(error: Exception) -> Any:
    def call(*_: Any) -> Any:
        raise error

    return call


def test_what_a_plan_may_not_do(sharded: Path, tmp_path: Path) -> None:
    plan = plan_stored(sharded, "aimer", sparsity=0.25)
    layer = plan.edits[0].layer  # type: ignore[union-attr]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"parent": f"sha256:{'0' * 64}"}, "made for checkpoint"),
        ({"method_version": 99}, "version 99"),
        ({"edits": (KeepEdit(unit="expert", layer=layer, indices=(0,)),)}, "which needs 2"),
        ({"edits": (KeepEdit(unit="expert", layer=layer, indices=(0, 9)),)}, "which has 4"),
        ({"edits": (KeepEdit(unit="expert", layer=0, indices=(0, 1)),)}, "which has none"),
    ]
    for change, told in cases:
        with pytest.raises(UsageError, match=told):
            compress_stored(sharded, tmp_path / "out", plans=[plan.model_copy(update=change)])
    with pytest.raises(UsageError, match="leaves 0 of 4"):
        plan_stored(sharded, "aimer", sparsity=0.95)
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / ".out.partial").exists()


def test_a_model_without_experts(tmp_path: Path) -> None:
    source = stored(make_tiny("llama"), tmp_path / "llama")
    with pytest.raises(UnsupportedModelError, match="has no experts"):
        plan_stored(source, "aimer")


def test_a_disk_that_is_too_small(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "free_disk_bytes", lambda path: 1000)
    with pytest.raises(UsageError, match=r"needs .* of disk, but 0\.0 MB are free"):
        compress_stored(sharded, tmp_path / "out", method="aimer")
    assert not (tmp_path / ".out.partial").exists()
