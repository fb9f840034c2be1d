"""Checkpoints in shards, and the way through memory that file to file is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import mobilekit as mk
from mobilekit.schema.plan import Plan


def stored(model: nn.Module, folder: Path, size: str = "50KB") -> Path:
    model.save_pretrained(folder, max_shard_size=size)  # type: ignore[operator]
    return folder


def through_memory(source: Path, out: Path, **settings: Any) -> Plan:
    model = mk.load(source, device="cpu")
    plan = mk.plan(model, "aimer", **settings)
    mk.save(mk.apply(model, plan), out)
    return plan


def tensors(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def check_same(found: Path, expected: Path) -> None:
    """The same tensors to the bit, and the same of all else but the shards."""
    ours, theirs = tensors(found), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    others = [
        {p.name: p.read_bytes() for p in folder.iterdir() if not p.name.startswith("model")}
        for folder in (found, expected)
    ]
    assert others[0] == others[1]
