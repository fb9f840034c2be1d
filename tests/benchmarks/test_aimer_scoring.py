"""The benchmark of scoring runs and says what it measured, at a size that takes no time."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setenv("MOBILEKIT_CACHE", str(tmp_path / "cache"))
    return importlib.import_module


def test_in_memory(benchmark: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = benchmark("scoring.memory")
    monkeypatch.setattr(memory, "SHAPE", (4, 512, 2048))
    rows = memory.as_rows(memory.speeds([torch.bfloat16], 2, fused=False))
    assert [row["way"] for row in rows] == ["native", "eager", "vector_norm", "one by one"]
    assert all(row["gb_per_s"] > 0 and row["of_reading"] > 0 for row in rows)
    text = benchmark("aimer_scoring").markdown(
        {"threads": 1, "load_average_before": 0.0, "load_average_after": 0.0, "memory": rows}
    )
    assert text.count("| bfloat16 |") == 4


def test_ways_give_the_same_scores(benchmark: Any) -> None:
    from mobilekit.compress.aimer.score import aimer_scores

    memory = benchmark("scoring.memory")
    weights = torch.randn(3, 40, 50)
    expected = aimer_scores([weights]).float()
    torch.testing.assert_close(memory._vector_norm(weights), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(memory._one_by_one(weights)), expected)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no page cache to drop here")
def test_from_disk(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    disk = benchmark("scoring.disk")
    for name, value in (("_HIDDEN", 64), ("_INNER", 32), ("_EXPERTS", 16)):
        monkeypatch.setattr(disk, name, value)
    (tmp_path / "checkpoint").mkdir()
    size = disk.write_checkpoint(tmp_path / "checkpoint", 0.0005)
    assert size >= 500_000
    found = disk.measure(tmp_path / "checkpoint", tmp_path / "out", 2)
    assert found["shards"] == 4
    assert found["bytes"] > size
    assert size / 3 < found["compress"]["written_bytes"] < size
    assert all(seconds > 0 for seconds in found["median_seconds"].values())
    assert not (tmp_path / "out").exists()
    text = benchmark("aimer_scoring").markdown(
        {"threads": 1, "load_average_before": 0.0, "load_average_after": 0.0, "disk": found}
    )
    assert "plan / fastest read" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu_is_null_with_a_reason(benchmark: Any) -> None:
    found = benchmark("scoring.memory").gpu()
    assert found["seconds"] is None
    assert found["reason"] == "no GPU on this machine"
