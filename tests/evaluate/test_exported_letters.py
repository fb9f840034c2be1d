"""In single precision an artifact gives the letters of its checkpoint, on every sample question."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobilekit import evaluate, export

PACKAGES = {"onnx": "onnxruntime", "executorch": "executorch"}


@pytest.fixture(scope="module")
def letters() -> dict[str, str]:
    config = evaluate.MobileMMLUConfig(rotations=4)
    return dict(evaluate.run_on("embedded", None, config).metrics["order"]["letters"])


@pytest.mark.slow
@pytest.mark.parametrize("target", PACKAGES)
def test_an_artifact_gives_the_letters_of_the_checkpoint(
    tmp_path: Path, letters: dict[str, str], target: str
) -> None:
    pytest.importorskip(PACKAGES[target])
    export.build(
        "embedded", tmp_path / "b", targets=[target], precisions=["fp32"], context_length=512
    )
    config = evaluate.MobileMMLUConfig(rotations=4)
    result = evaluate.run_on(tmp_path / "b", None, config)
    assert len(result.letters) == 80
    assert result.metrics["order"]["letters"] == letters
