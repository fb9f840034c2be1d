"""What is estimated not to fit is refused with both numbers, unless the user knows better."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.files import free_disk_bytes
from mobilekit.core.memory import AvailableMemory
from mobilekit.core.needs import Need, announce, check_needs

GB = 10**9
MEMORY = AvailableMemory(4 * GB, 8 * GB, "MemAvailable")


@pytest.fixture(autouse=True)
def _plain_console() -> Iterator[None]:
    console.configure()
    yield
    console.configure()


def need(step: str, memory: int, **disk: int) -> Need:
    return Need(step, memory, memory, disk)


def places(tmp_path: Path) -> dict[str, Path]:
    return {"output": tmp_path / "not" / "there" / "yet", "cache": tmp_path / "cache"}


def test_steps_run_one_after_another_so_memory_does_not_add_up(tmp_path: Path) -> None:
    needs = [need("a", 3 * GB, output=1000), need("b", 4 * GB, cache=1000)]
    check_needs(needs, places(tmp_path), memory=MEMORY)


def test_the_largest_step_is_named_with_both_numbers(tmp_path: Path) -> None:
    needs = [need("a", 5 * GB), need("b", 7 * GB), need("c", GB)]
    with pytest.raises(UsageError) as caught:
        check_needs(needs, places(tmp_path), memory=MEMORY)
    assert caught.value.exit_code == 2
    assert caught.value.message == (
        "b needs an estimated 7.0 GB of memory, but 4.0 GB are available (MemAvailable)"
    )
    assert "--ignore-estimates" in caught.value.hint


def test_disk_adds_up_over_steps_and_places_of_one_file_system(tmp_path: Path) -> None:
    third = free_disk_bytes(tmp_path) // 3
    fits = [need("a", 0, output=third), need("b", 0, cache=third)]
    check_needs(fits, places(tmp_path), memory=MEMORY)
    with pytest.raises(UsageError, match=r"estimated .* of disk, but .* are free") as caught:
        check_needs([*fits, need("c", 0, output=2 * third)], places(tmp_path), memory=MEMORY)
    assert "another --out" in caught.value.hint


def test_who_knows_better_is_warned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs = [need("a", 5 * GB, output=10 * free_disk_bytes(tmp_path))]
    check_needs(needs, places(tmp_path), memory=MEMORY, ignore_estimates=True)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert all(line.startswith("warning: ") and "estimated" in line for line in said)


def test_the_plan_calls_every_figure_an_estimate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    announce("Plan   x", [need("export", 2 * GB, output=5_000_000)], places(tmp_path))
    headline, available, line = capsys.readouterr().err.splitlines()
    assert headline == "Plan   x"
    assert "available: " in available
    assert "free disk: " in available
    assert " ".join(line.split()) == "export estimated peak 2.0 GB estimated disk 5.0 MB"
