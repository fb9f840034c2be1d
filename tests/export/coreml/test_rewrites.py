"""Graph rewrites: what coremltools lacks is said in words that it has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("coremltools")

from mobilekit.export.backends.coreml.convert import capture, convert  # noqa: E402
from mobilekit.export.backends.coreml.package import write_package  # noqa: E402
from mobilekit.export.backends.coreml.quantize import Quantizer  # noqa: E402
from mobilekit.export.backends.coreml.scheme import SCHEMES  # noqa: E402

from mobilekit.models.families.base import Program  # noqa: E402
from mobilekit.runtime.mil import load_functions  # noqa: E402


class _Window(nn.Module):
    """A sliding window's mask, and scores that are scaled after the product."""

    def forward(self, input_ids: Tensor, input_pos: Tensor) -> Tensor:
        slots = torch.arange(8, dtype=torch.int32)
        near = (slots <= input_pos) & (slots > input_pos - 3)
        rows = near.to(torch.float32)[None, None] * (input_ids + 1) * torch.arange(1.0, 9.0)
        return torch.matmul(rows, rows.transpose(1, 2) + torch.ones(1, 8, 8)) * 0.25 + near


@pytest.fixture(scope="module")
def program() -> Any:
    inputs = (torch.ones(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    return Program(_Window(), inputs, None, (), ())


def test_queries_are_scaled_before_they_meet_the_keys(program: Any) -> None:
    aten = torch.ops.aten
    captured = capture(program)
    (product,) = [n for n in captured.graph.nodes if n.target is aten.matmul.default]
    assert product.args[0].target is aten.mul.Tensor
    assert product.args[0].args[1] == 0.25
    assert next(iter(product.users)).target is aten.add.Tensor
    found = captured.module()(*program.example_inputs)
    torch.testing.assert_close(found, program.module(*program.example_inputs))


def test_logic_of_masks_converts(program: Any, tmp_path: Path) -> None:
    converted = convert(program, SCHEMES["fp32"], Quantizer({}))
    function = load_functions(write_package({"decode": converted}, (), tmp_path))["decode"]
    for token, position in [(0, 0), (1, 6), (7, 5)]:
        feeds = {
            "input_ids": np.asarray([[token]], np.int32),
            "input_pos": np.asarray([position], np.int32),
        }
        expected = program.module(*(torch.from_numpy(v) for v in feeds.values()))
        np.testing.assert_allclose(function(feeds, {})["logits"], expected.numpy())
