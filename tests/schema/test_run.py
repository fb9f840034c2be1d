"""The record of a run: round trip, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mobilekit.core.errors import InvalidInputError
from mobilekit.schema.run import RunRecord, read_run


def _record() -> dict[str, Any]:
    model = {"hash": "sha256:0", "class": "Qwen3ForCausalLM", "parameters": 9, "weight_bytes": 18}
    return {
        "schema": "mobilekit.run/1",
        "mobilekit": "0.1.0",
        "created": "2026-01-02T03:04:05Z",
        "command": "mobilekit run recipe.yaml",
        "steps": [{"name": "compress", "seconds": 0.5}],
        "models": {"before": model},
        "recovery": {"tokens": 10, "seconds": 1.0, "curve": [[0, 3.5], [1, 3.25]]},
    }


def test_round_trip_through_json(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps(_record()))
    first = read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps(first.to_json()))
    assert read_run(tmp_path) == first
    assert first.to_json()["schema"] == "mobilekit.run/1"
    assert first.to_json()["models"]["before"]["class"] == "Qwen3ForCausalLM"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": None}, "'schema' is null"),
        ({"schema": "mobilekit.run/2"}, "this version reads mobilekit.run/1"),
        ({"comand": "x"}, "did you mean 'command'"),
        ({"steps": [{"name": "compres", "seconds": 1}]}, "compres"),
        ({"steps": [{"name": "compress", "seconds": -1}]}, "-1"),
    ],
)
def test_refuses(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**_record(), **change}))
    with pytest.raises(InvalidInputError, match=words) as caught:
        read_run(tmp_path)
    assert caught.value.hint


def test_a_directory_without_run_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="not a run directory"):
        read_run(tmp_path)


def test_a_record_is_frozen() -> None:
    record = RunRecord.parse(_record(), "run.json")
    with pytest.raises(ValueError, match="frozen"):
        record.command = "other"  # type: ignore[misc]


def test_a_directory_that_is_not_there_is_said_to_be_absent(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="run directory .*nosuch does not exist"):
        read_run(tmp_path / "nosuch")
