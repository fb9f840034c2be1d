"""In single precision an artifact gives the letters of its checkpoint, on every sample question."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilekit import evaluate, export
from mobilekit.data.tokenizer import load_tokenizer
from mobilekit.evaluate.suites.mobile_mmlu.run import mobile_mmlu
from mobilekit.models import load
from mobilekit.models.inspect import embedded_path
from mobilekit.runtime.torch import TorchRuntime

PACKAGES = {"onnx": "onnxruntime", "executorch": "executorch"}


@pytest.fixture(scope="module")
def letters() -> dict[str, str]:
    """Those of the embedded checkpoint, whose weights are stored in bfloat16, in float32."""
    runtime = TorchRuntime(load("embedded", device="cpu", dtype="float32"))
    return dict(mobile_mmlu(runtime, load_tokenizer(embedded_path())).letters)


@pytest.mark.slow
@pytest.mark.parametrize("target", PACKAGES)
def test_an_artifact_gives_the_letters_of_the_checkpoint(
    tmp_path: Path, letters: dict[str, str], target: str
) -> None:
    pytest.importorskip(PACKAGES[target])
    out = tmp_path / "bundle"
    export.build("embedded", out, targets=[target], precisions=["fp32"], context_length=512)
    result = evaluate.run_on(out, None, evaluate.MobileMMLUConfig())
    assert len(result.letters) == 80
    assert result.letters == letters
