"""What follows from versions and probes, part by part; and the command itself."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from mobilekit.doctor.examine import Diagnosis, PartReport, _report
from mobilekit.doctor.machine import Machine
from mobilekit.doctor.packages import PackageRecord, State
from mobilekit.doctor.probe import Finding

WORKS = Finding(broken=None, cannot_run=None, facts={}, seconds=0.1)


def packages(*states: State) -> list[PackageRecord]:
    return [
        PackageRecord(f"p{i}", "onnx", ">=1", "1.0", None if s == "missing" else "1.5", s)
        for i, s in enumerate(states)
    ]


@pytest.mark.parametrize(
    ("states", "finding", "works", "is_broken", "reason"),
    [
        (("tested", "in range"), WORKS, True, False, None),
        (("missing", "missing"), None, False, False, "not installed: p0, p1"),
        (("tested", "missing"), None, False, True, "not installed: p1"),
        (("tested", "out of range"), WORKS, False, True, "p1 1.5 is not >=1"),
        (("tested",), replace(WORKS, broken="importing p0: OSError"), False, True, "OSError"),
    ],
)
def test_a_part(
    states: tuple[State, ...],
    finding: Finding | None,
    works: bool,
    is_broken: bool,
    reason: str | None,
) -> None:
    report = _report("onnx", packages(*states), finding)
    assert (report.works, report.is_broken) == (works, is_broken)
    assert report.install == "pip install 'mobilekit[onnx]'"
    if reason is None:
        assert report.reason is None
        assert report.cannot_run is None
    else:
        assert reason in str(report.reason)
        assert reason in str(report.cannot_run)


def test_what_only_another_system_runs_is_still_exported_and_checked() -> None:
    report = _report("coreml", packages("tested"), replace(WORKS, cannot_run="macOS only"))
    assert report.works
    assert report.cannot_run == "macOS only"
    assert report.numeric_check is not None


def part(name: str, *, works: bool, is_broken: bool = False) -> PartReport:
    return PartReport(name, works, None, None, None, is_broken, "", {})


@pytest.mark.parametrize(
    ("core", "target", "code"),
    [
        (part("core", works=True), part("onnx", works=True), 0),
        (part("core", works=True), part("onnx", works=False), 0),
        (part("core", works=True), part("onnx", works=False, is_broken=True), 1),
        (part("core", works=False), part("onnx", works=True), 3),
        (part("core", works=False, is_broken=True), part("onnx", works=True), 3),
    ],
)
def test_exit_codes(core: PartReport, target: PartReport, code: int) -> None:
    machine = Machine("", None, None, None, None, None, {}, {})
    assert Diagnosis("", "", (core, target), (), (), machine).exit_code == code


@pytest.mark.slow
def test_the_command_examines_this_machine() -> None:
    command = [sys.executable, "-m", "mobilekit", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    works = {p["name"]: p["works"] for p in found["parts"]}
    assert works == {"core": True, "coreml": True, "executorch": True, "onnx": True}
    runs = {p["name"]: p["cannot_run"] is None for p in found["parts"]}
    assert runs["executorch"]
    assert runs["onnx"]
    assert runs["coreml"] == (sys.platform == "darwin")
    assert found["machine"]["disk"]["cache"] > 0
    assert [d["name"] for d in found["devices"]] == ["host"]
