"""What ``mobilekit plan`` prints of a plan: a row a layer of experts, or of heads and channels."""

from __future__ import annotations

from typing import Any

from mobilekit.cli.plan import plan_headers, plan_rows
from mobilekit.schema.plan import Plan


def _plan(method: str, scores: dict[str, Any]) -> Plan:
    return Plan.parse(
        {
            "schema": "mobilekit.plan/1",
            "method": method,
            "method_version": 1,
            "config": {},
            "seed": 0,
            "parent": None,
            "edits": [],
            "scores": scores,
        },
        "plan",
    )


def _level(layer: int, unit: str, level: int, kept: int, of: int) -> dict[str, Any]:
    errors = [0.0, 0.1, 0.4, 1.0]
    return {"layer": layer, "unit": unit, "level": level, "kept": kept, "of": of, "errors": errors}


def test_experts_are_listed_that_go() -> None:
    scores = {"layers": [{"layer": 3, "scores": [0.1, 0.2], "kept": [0], "pruned": [1]}]}
    plan = _plan("aimer", scores)
    assert plan_headers(plan) == ("layer", "kept", "removed")
    assert plan_rows(plan) == [["3", "1", "1"]]


def test_levels_are_told_with_what_they_leave() -> None:
    layers = [
        _level(0, "head", 0, 8, 8),
        _level(0, "channel", 2, 30, 96),
        _level(1, "kv_head", 3, 0, 4),
    ]
    plan = _plan("darwinlm", {"layers": layers})
    assert plan_headers(plan) == ("layer", "units", "level", "kept", "removed")
    assert plan_rows(plan) == [
        ["0", "query heads", "0 of 3", "8 of 8", "none"],
        ["0", "channels", "2 of 3", "30 of 96", "68.8%"],
        ["1", "key-value heads", "3 of 3", "0 of 4", "all"],
    ]


def test_a_plan_that_removes_nothing_has_no_rows() -> None:
    assert plan_rows(_plan("darwinlm", {})) == []
