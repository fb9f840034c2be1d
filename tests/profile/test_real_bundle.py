"""The real exporters' artifacts of a tiny model, each measured in its own process."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mobilekit import export, profile

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(
    checkpoint: Path, byte_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    root = tmp_path_factory.mktemp("real")
    shutil.copytree(checkpoint, root / "checkpoint")
    shutil.copytree(byte_tokenizer, root / "checkpoint", dirs_exist_ok=True)
    export.build(
        root / "checkpoint",
        root / "bundle",
        targets=["executorch", "onnx"],
        precisions=["fp32"],
        context_length=64,
    )
    return root / "bundle"


def test_each_artifact_runs_in_a_process_with_its_own_runtime_only(bundle: Path) -> None:
    results = profile.run(
        bundle,
        workloads=("pp16", "tg8"),
        repetitions=2,
        warmup=1,
        progress=lambda share, note: None,
    )
    forbidden = {
        "executorch": {"transformers", "onnxruntime", "onnx", "coremltools"},
        "onnxruntime": {"transformers", "torch", "executorch", "coremltools"},
    }
    assert {r.runtime["name"] for r in results} == set(forbidden)
    assert len(results) == 4
    for result in results:
        assert not set(result.runtime["libraries"]) & forbidden[result.runtime["name"]]
        assert result.memory is not None
        assert result.memory.peak_bytes is not None
        assert result.memory.baseline_bytes is not None
        assert result.memory.peak_bytes > result.memory.baseline_bytes
        assert result.metrics["state_bytes"] == 2 * 2 * 2 * 64 * 16 * 4  # k, v; L, H, T, Dh; fp32
        name = "decode_tokens_per_s" if result.workload.new_tokens else "prefill_tokens_per_s"
        assert result.metrics[name]["n"] == 2
        assert result.metrics[name]["mean"] > 0
