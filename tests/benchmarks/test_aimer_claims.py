from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 4000], 1.0),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1.0),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 − 6·Σd² / n(n² − 1), Σd² = 4
        ([1, 1, 2], [1, 2, 3], 0.8660254),  # ranks 1.5, 1.5, 3 against 1, 2, 3
        ([3, 3, 3], [1, 2, 3], None),
    ],
)
def test_rank_correlation_by_hand(
    first: list[float], second: list[float], expected: float | None, benchmark: Any
) -> None:
    found = benchmark("claims.tables").spearman(first, second)
    assert found == (None if expected is None else pytest.approx(expected))


def made_run(seed: int, **losses: Any) -> dict[str, Any]:
    cells = {"aimer": 2.0, "anti_aimer": 3.0, "magnitude": 1.5, "random": [2.0, 3.0], **losses}
    names = ("frequency", "seer", "ean", "reap", "man", "msan")
    cells |= {name: {"all": 1.25, "one": 2.25} for name in names}
    layer = {"layer": 0, "aimer": [0.7, 0.8], "magnitude": [1.0, 1.0], "frequency": [3.0, 1.0]}
    return {"seed": seed, "dense": 1.0, "cells": {"0.5": cells}, "layers": [layer]}


def test_tables_say_what_was_measured(benchmark: Any) -> None:
    tables = benchmark("claims.tables")
    runs = [made_run(1), made_run(2, aimer=2.75)]
    lines = tables.cells_table(runs).splitlines()
    assert lines[2].startswith(
        "| 1 | 50% | 1.000 | 2.000 | 3.000 | 1.500 | 2.500 ± 0.707 | 1.250 /"
    )
    summary = {line.split(" | ")[0]: line for line in tables.summary_table(runs).splitlines()}
    assert summary["| aimer"] == "| aimer | 1.375 | 1/2 | – |"
    assert summary["| random"] == "| random | 1.500 | – | 1/2 |"
    assert summary["| ean, one domain"] == "| ean, one domain | 1.250 | 2/2 | 1/2 |"
    scores = tables.scores_table(runs).splitlines()[2]
    assert scores == "| 1 | 0 | 0.7000 to 0.8000 | 0.50 to 1.50 | +1.00 | – |"


def test_no_paragraph_is_trained_on_and_held_out(benchmark: Any) -> None:
    subjects = benchmark("claims.subjects")
    for name, text in subjects.texts().items():
        parts = [
            {p.strip() for p in bytes(part.tolist()).decode().split("\n\n") if len(p) > 80}
            for part in (text.training, text.heldout)
        ]
        assert not parts[0] & parts[1], name
        assert text.heldout_windows().shape == (subjects.HELDOUT_WINDOWS, subjects.SEQUENCE)
        assert len(text.training) > 5 * len(text.heldout) / 2, name


def test_windows_are_of_the_domains_that_are_asked_for(benchmark: Any) -> None:
    subjects = benchmark("claims.subjects")
    windows = subjects.mixed_windows(6, ("prose", "python"), torch.Generator().manual_seed(0))
    assert windows.shape == (6, subjects.SEQUENCE)
    for half, name in ((windows[:3], "prose"), (windows[3:], "python")):
        whole = bytes(subjects.texts()[name].training.tolist())
        assert all(bytes(window.tolist()) in whole for window in half)
