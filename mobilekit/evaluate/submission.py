"""The file that the Mobile-MMLU leaderboard takes: one predicted letter a question."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import atomic_write
from mobilekit.schema.result import Result

__all__ = ["write_submission"]


def write_submission(result: Result, folder: str | Path, model: str) -> Path:
    """Write ``<model>_predictions.csv`` with the columns ``question_id,predicted_answer``.

    A question without an answer keeps its row, with nothing predicted.

    Args:
        result: Of the suite mobile_mmlu, from any device.
        folder: Where; made where missing.
        model: Name of the model; what is no letter, digit, "." or "-" in it becomes "_".

    Returns:
        The path of the file.

    Raises:
        InvalidInputError: If the result has no letters.
        OutputError: If the file cannot be written.

    Source: file name, header and line ends as the official script and pandas' and csv's defaults
    write them.
    """
    if not result.letters:
        raise InvalidInputError(
            f"the result of {result.artifact.id} ({result.workload.id}) has no letters to submit",
            hint="Evaluate with --suite mobile_mmlu.",
        )
    buffer = io.StringIO(newline="")
    rows = csv.writer(buffer)
    rows.writerow(["question_id", "predicted_answer"])
    rows.writerows(result.letters.items())
    path = Path(folder) / f"{re.sub(r'[^A-Za-z0-9.-]', '_', model)}_predictions.csv"
    atomic_write(path, buffer.getvalue())
    _warn(result, path)
    return path


def _warn(result: Result, path: Path) -> None:
    empty = sum(not letter for letter in result.letters.values())
    if empty:
        console.warn(f"{path.name}: {empty} questions have no predicted answer")
    if result.metrics.get("sampling") is not None:
        console.warn(f"{path.name}: holds a part of the questions; the leaderboard asks for all")
