"""Whole chains by one recipe: compress, recover, four bits, three formats, questions asked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import mobilekit as mk
from mobilekit.models.tiny import TINY
from mobilekit.schema.bundle import open_bundle
from mobilekit.schema.plan import read_plans

pytestmark = pytest.mark.slow

LONG = {**TINY, "max_position_embeddings": 1024, "num_hidden_layers": 3}  # questions are long
DARWIN: dict[str, Any] = {
    "method": "darwinlm",
    "sparsity": 0.5,
    "levels": 3,
    "calibration_tokens": 2048,
    "calibration_length": 32,
    "offspring": 4,
    "generations": 3,
    "survivors": [2, 1],
    "fitness_tokens": [128, 256],
    "fitness_pool": 2048,
    "finetune_tokens": [64, 128],
    "finetune_pool": 2048,
    "tolerance": 0.1,
}
AIMER: dict[str, Any] = {"method": "aimer", "sparsity": 0.25}


def dense() -> nn.Module:
    return Qwen3ForCausalLM(Qwen3Config(**LONG, intermediate_size=96))


def sparse() -> nn.Module:
    config = Qwen3MoeConfig(
        **LONG, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, norm_topk_prob=True
    )
    return Qwen3MoeForCausalLM(config)


@pytest.mark.parametrize(("make", "step"), [(dense, DARWIN), (sparse, AIMER)])
def test_a_recipe_chains_everything(
    make: Any, step: dict[str, Any], byte_tokenizer: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    mk.save(make().eval(), tmp_path / "dense")
    shutil.copytree(byte_tokenizer, tmp_path / "dense", dirs_exist_ok=True)
    recipe = {
        "version": 1,
        "model": {"source": str(tmp_path / "dense")},
        "compress": [step],
        "recover": {"tokens": 2048, "sequence_length": 64},
        "export": {
            "targets": ["executorch", "onnx", "coreml"],
            "precisions": ["int4"],
            "context_length": 1024,
        },
        "evaluate": [{"suite": "mobile_mmlu", "data": "sample", "limit": 8}],
    }
    root = tmp_path / "run"
    record = mk.run(recipe, root)
    names = [s.name for s in record.steps]
    assert names[:4] == ["compress", "recover", "export", "verify"]
    artifacts = open_bundle(root / "bundle").manifest.artifacts
    assert {item.format for item in artifacts} == {"pte", "onnx", "mlpackage"}
    assert all(item.parity.passed for item in artifacts), [item.id for item in artifacts]
    assert [plan.method for plan in read_plans(root / "checkpoint" / "plan.json")] == [
        step["method"]
    ]
    assert record.models is not None
    assert record.models.after is not None
    assert record.models.after.parameters < record.models.before.parameters
    answered = [
        json.loads(path.read_text())
        for path in (root / "results").glob("evaluate-mobile_mmlu-*.json")
    ]
    assert len(answered) >= 3  # before, after, and every artifact that runs here
    assert all(len(entry["letters"]) == 8 for entry in answered)
    assert (root / "report.html").is_file()
