"""A run hands others' figures to its report where it asked the set that they are of."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import mobilekit as mk
from mobilekit.evaluate.suites.mobile_mmlu.fields import field_table

HEADING = "Published by others, not measured here"
HEADER = ("question_id", "Question", "A", "B", "C", "D")


def _recipe(source: Path, **suite: Any) -> dict[str, Any]:
    return {
        "version": 1,
        "model": {"source": str(source)},
        "export": None,
        "evaluate": [{"suite": "mobile_mmlu", "limit": 4, **suite}],
    }


def _invented_set(folder: Path) -> Path:
    """Write invented questions with the fields and counts of the full set."""
    folder.mkdir()
    for index, field in enumerate(field_table()):
        with (folder / f"{field.name}.csv").open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(HEADER)
            writer.writerows(
                (f"{index:04x}{number:04x}", "?", "1", "2", "3", "4")
                for number in range(field.questions)
            )
    return folder


def test_the_report_of_the_full_set_has_them(moe_checkpoint: Path, tmp_path: Path) -> None:
    data = _invented_set(tmp_path / "questions")
    record = mk.run(_recipe(moe_checkpoint, data=str(data)), tmp_path / "run")
    assert [(one.dataset, len(one.models)) for one in record.published] == [("Mobile-MMLU", 10)]
    stored = json.loads((tmp_path / "run" / "run.json").read_text())
    assert stored["published"][0]["models"][0]["accuracy"] == 0.345
    page = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert page.count(HEADING) == 1
    assert "This run asked 4 of the questions." in page
    result = (tmp_path / "run/results/evaluate-mobile_mmlu-0-before.json").read_text()
    assert "Llama-3.2" not in result


def test_the_report_of_the_sample_has_none(moe_checkpoint: Path, tmp_path: Path) -> None:
    record = mk.run(_recipe(moe_checkpoint), tmp_path / "run")
    assert record.published == ()
    assert HEADING not in (tmp_path / "run" / "report.html").read_text("utf-8")
