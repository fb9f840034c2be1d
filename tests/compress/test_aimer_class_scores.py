"""Scores of every class against float64 over the separate matrices that its checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import mobilekit as mk
from mobilekit.models.families.experts import sparse_blocks
from mobilekit.models.tiny import TINY_MODELS, tiny_family

NAMES = [name for name in TINY_MODELS if "expert" in tiny_family(name).units_of]
Tensors = dict[str, torch.Tensor]


def by_name(stored: Tensors, prefix: str, parts: tuple[str, ...]) -> Iterator[list[np.ndarray]]:
    """Yield each expert's matrices where a file has them apart."""
    expert = 0
    while f"{prefix}.experts.{expert}.{parts[0]}.weight" in stored:
        names = (f"{prefix}.experts.{expert}.{part}.weight" for part in parts)
        yield [stored[name].double().numpy() for name in names]
        expert += 1


def disk_matrices(stored: Tensors, name: str, layer: int) -> list[list[np.ndarray]]:
    """Return gate, up and down of each expert of a layer, as the class's own format stores them."""
    block = f"model.layers.{layer}.mlp"
    if name == "mixtral":
        moved = f"model.layers.{layer}.block_sparse_moe"
        return list(by_name(stored, moved, ("w1", "w3", "w2")))
    if name == "granite_moe":
        moved = f"model.layers.{layer}.block_sparse_moe"
        rows = stored[f"{moved}.input_linear.weight"].double().numpy()  # (E, 2F, D)
        down = stored[f"{moved}.output_linear.weight"].double().numpy()
        return [[*np.split(r, 2), d] for r, d in zip(rows, down, strict=True)]
    if name == "gpt_oss":
        both = stored[f"{block}.experts.gate_up_proj"].double().numpy()  # (E, D, 2F), in turns
        down = stored[f"{block}.experts.down_proj"].double().numpy()
        return [[b[:, ::2], b[:, 1::2], d] for b, d in zip(both, down, strict=True)]
    return list(by_name(stored, block, ("gate_proj", "up_proj", "down_proj")))


def score(matrices: list[np.ndarray]) -> float:
    """Score one expert by the definition: one ratio over all its weights, in float64."""
    weights = np.concatenate([matrix.ravel() for matrix in matrices])
    return float(np.abs(weights).mean() / np.sqrt((weights**2).mean()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_matrices_on_disk(
    name: str, dtype: torch.dtype, tiny: Callable[[str], nn.Module], tmp_path: Path
) -> None:
    model: Any = copy.deepcopy(tiny(name)).to(dtype)
    for block in sparse_blocks(model):
        with torch.no_grad():  # gate constant, up all but zero: no mean of three ratios would do
            block.experts.gate_up_proj[1, : block.experts.gate_up_proj.shape[1] // 2] = 0.25
            block.experts.down_proj[2] *= 30
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    layers = mk.plan(model, "aimer", sparsity=0.0).scores["layers"]
    assert [record["layer"] for record in layers] == [b.layer for b in sparse_blocks(model)]
    for record in layers:
        matrices = disk_matrices(stored, name, record["layer"])
        assert len(matrices) == len(record["scores"])
        sizes = {matrix.size for expert in matrices for matrix in expert}
        assert len(sizes) == 1  # three matrices of m·d weights
        np.testing.assert_allclose(record["scores"], [score(m) for m in matrices], atol=1e-6)
