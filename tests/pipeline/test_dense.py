"""A dense Qwen3 checkpoint through the whole recipe, every target and precision."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mobilekit as mk
from mobilekit.schema.bundle import open_bundle

pytestmark = pytest.mark.slow


def test_a_dense_model_goes_through_the_same_recipe(dense_checkpoint: Path, tmp_path: Path) -> None:
    recipe = {
        "version": 1,
        "model": {"source": str(dense_checkpoint)},
        "export": {"context_length": 96},
        "profile": {"workloads": ["pp16", "tg8"], "repetitions": 2, "warmup": 1},
        "evaluate": [{"suite": "perplexity", "max_tokens": 64, "window": 32}],
    }
    record = mk.run(recipe, tmp_path / "run")
    assert {step.name for step in record.steps} == {"export", "verify", "profile", "evaluate"}
    artifacts = open_bundle(tmp_path / "run" / "bundle").manifest.artifacts
    assert len(artifacts) == 6
    for item in artifacts:
        assert item.parity.executed
        assert item.parity.passed, item.id
        assert item.parity.greedy is not None
        if item.precision == "fp32" and item.format != "mlpackage":
            assert item.parity.greedy.different == 0
    first, second = mk.load(dense_checkpoint), mk.load(dense_checkpoint)
    ids = torch.arange(20)[None]
    mk.save(first, tmp_path / "again")
    with torch.no_grad():
        expected = second(ids).logits
        assert torch.equal(mk.load(tmp_path / "again")(ids).logits, expected)
    assert (tmp_path / "run" / "report.html").is_file()
