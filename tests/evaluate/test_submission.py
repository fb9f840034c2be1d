"""The leaderboard's file, byte for byte."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mobilekit import evaluate
from mobilekit.core.errors import InvalidInputError, OutputError
from mobilekit.schema.result import ArtifactRef, Result, Workload

VECTORS = Path(__file__).parent.parent / "vectors" / "mobile_mmlu"
GOLDEN = VECTORS / "fixture_submission_example.csv"


def result(letters: dict[str, str], **metrics: object) -> Result:
    return Result(
        kind="evaluate",
        device={"class": "host"},
        runtime={},
        artifact=ArtifactRef(id="torch", sha256="0" * 64),
        workload=Workload(id="local:fixture_full"),
        letters=letters,  # type: ignore[arg-type]
        metrics=dict(metrics),
        created="2026-01-01T00:00:00+00:00",
    )


def golden_letters() -> dict[str, str]:
    with GOLDEN.open(newline="", encoding="utf-8") as stream:
        return {row["question_id"]: row["predicted_answer"] for row in csv.DictReader(stream)}


def test_the_golden_bytes(tmp_path: Path) -> None:
    path = evaluate.write_submission(
        result(golden_letters()), tmp_path / "new", "MBZUAI-LLM/A model"
    )
    assert path == tmp_path / "new" / "MBZUAI-LLM_A_model_predictions.csv"
    assert path.read_bytes() == GOLDEN.read_bytes()


def test_no_answer_keeps_its_row_and_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = result({"1": "A", "2": ""}, sampling={"sampled": 2})
    path = evaluate.write_submission(given, tmp_path, "m")
    assert path.read_bytes() == b"question_id,predicted_answer\r\n1,A\r\n2,\r\n"
    said = capsys.readouterr().err
    assert "1 questions have no predicted answer" in said
    assert "the leaderboard asks for all" in said


def test_nothing_to_submit_and_nowhere_to_write(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no letters to submit"):
        evaluate.write_submission(result({}), tmp_path, "m")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        evaluate.write_submission(result({"1": "A"}), tmp_path / "file", "m")
