"""Budgets, shared windows and what a later recipe leaves out, on one really exported bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import mobilekit as mk
from mobilekit.core.errors import CheckFailedError
from mobilekit.pipeline.budget import check_budget
from mobilekit.recipe import Budget
from mobilekit.report.evidence import read_evidence


def recipe(source: Path, **changes: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "model": {"source": str(source)},
        "export": {"targets": ["onnx"], "precisions": ["fp32"], "context_length": 64},
        "profile": {"workloads": ["tg4"], "repetitions": 1, "warmup": 0},
        "evaluate": [{"suite": "perplexity", "max_tokens": 200}],
    } | changes


@pytest.fixture(scope="module")
def exported(dense_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("budget") / "run"
    with pytest.raises(CheckFailedError, match="no artifact fits the budget of 0.001 MB") as caught:
        mk.run(recipe(dense_checkpoint, budget={"file_mb": 0.001}), out)
    assert caught.value.exit_code == 1
    return out


def test_an_unreachable_budget_fails_after_the_report(exported: Path) -> None:
    assert (exported / "report.html").is_file()
    assert (exported / "run.json").is_file()


def test_a_budget_is_held_against_what_was_measured(exported: Path) -> None:
    assert check_budget(Budget(file_mb=100, peak_memory_mb=10_000), exported) == []
    (reason,) = check_budget(Budget(peak_memory_mb=1e-6), exported)
    assert "onnx-cpu-fp32: " in reason
    assert "MB peak" in reason
    (reason,) = check_budget(Budget(peak_memory_mb=1, device="phone"), exported)
    assert "peak not measured" in reason


def test_perplexities_of_a_run_share_their_windows(exported: Path) -> None:
    found = [json.loads(path.read_text()) for path in (exported / "results").glob("evaluate-*")]
    assert len(found) == 2
    assert {result["metrics"]["window"] for result in found} == {64}
    assert len({result["metrics"]["bytes"] for result in found}) == 1


def test_what_the_recipe_leaves_out_is_not_reported(
    exported: Path, dense_checkpoint: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(exported, tmp_path / "run")
    steps = recipe(dense_checkpoint, export=None, profile=None)
    mk.run(steps, out, resume=True)
    assert (out / "bundle" / "manifest.json").is_file()
    assert read_evidence(out).manifest is None
