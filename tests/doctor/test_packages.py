"""The tested matrix is true to pyproject.toml, and each way not to meet it is told apart."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from mobilekit.doctor.packages import CORE, TESTED, _state, check_packages

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
EXTRAS = {k: v for k, v in PROJECT["optional-dependencies"].items() if k not in ("dev", "all")}
DECLARED = [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]


def test_the_matrix_names_exactly_what_is_declared() -> None:
    assert set(TESTED) == {Requirement(line).name for line in DECLARED}


@pytest.mark.parametrize("line", DECLARED)
def test_every_tested_version_is_in_its_range(line: str) -> None:
    requirement = Requirement(line)
    assert requirement.specifier.contains(TESTED[requirement.name])


@pytest.mark.parametrize(
    ("installed", "state"),
    [
        ("2.13.0", "tested"),
        ("2.13.0+cpu", "tested"),
        ("2.13.1", "in range"),
        ("2.14.0rc1", "out of range"),
        ("2.12.9", "out of range"),
        (None, "missing"),
    ],
)
def test_how_a_version_fits(installed: str | None, state: str) -> None:
    assert _state(Requirement("torch>=2.13,<2.14"), installed, "2.13.0") == state


def test_packages_come_from_the_installed_metadata_without_the_tools() -> None:
    found = check_packages()
    assert ("core", "torch") in {(r.part, r.name) for r in found}
    assert {r.part for r in found} <= {CORE, *EXTRAS}
    assert not {"pytest", "mobilekit"} & {r.name for r in found}
