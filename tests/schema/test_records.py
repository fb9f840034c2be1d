from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mobilekit.core.errors import InvalidInputError
from mobilekit.schema.plan import KeepEdit, Plan, read_plans
from mobilekit.schema.result import EnergyRecord


def plan_data() -> dict[str, object]:
    edit = {"op": "keep", "unit": "expert", "layer": 0, "indices": [0, 2]}
    return {
        "schema": "mobilekit.plan/1",
        "method": "aimer",
        "method_version": 1,
        "config": {"sparsity": 0.5},
        "seed": 0,
        "parent": None,
        "edits": [edit],
    }


def test_plan_round_trip(tmp_path: Path) -> None:
    plan = Plan.parse(plan_data(), "plan")
    path = tmp_path / "plan.json"
    path.write_text(json.dumps([plan.to_json()]))
    assert read_plans(path) == [plan]
    path.write_text(json.dumps(plan.to_json()))
    assert read_plans(path) == [plan]


@given(st.sets(st.integers(0, 99), min_size=1))
def test_any_ascending_set_is_a_keep_edit(indices: set[int]) -> None:
    edit = KeepEdit(unit="expert", layer=0, indices=tuple(sorted(indices)))
    assert KeepEdit.model_validate_json(edit.model_dump_json()) == edit


@pytest.mark.parametrize("indices", [(), (1, 0), (0, 0), (-1,)])
def test_a_keep_edit_refuses_disorder(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        KeepEdit(unit="expert", layer=0, indices=indices)


@pytest.mark.parametrize(
    "change",
    [{"edits": [{"op": "melt"}]}, {"schema": "mobilekit.plan/2"}, {"method_version": 0}],
)
def test_a_wrong_plan_is_explained(change: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps([plan_data() | change]))
    with pytest.raises(InvalidInputError, match="entry 0"):
        read_plans(path)


def test_energy_is_null_exactly_when_unavailable() -> None:
    assert EnergyRecord(status="unavailable", reason="no powercap interface").joules is None
    for wrong in (
        {"status": "unavailable", "joules": 0.0, "reason": "x"},
        {"status": "unavailable"},
        {"status": "measured"},
    ):
        with pytest.raises(ValidationError):
            EnergyRecord(**wrong)
