"""Places that cannot be written to, and machines that are too small: refused in time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilekit.core import needs
from mobilekit.core.memory import AvailableMemory

from .conftest import AIMER, ONNX, TRAIN, Refused, Said, write_recipe

WRITERS: dict[str, list[str]] = {
    "plan": ["MOE", *AIMER],
    "compress": ["MOE", *AIMER],
    "recover": ["MOE", *TRAIN],
    "export": ["MOE", *ONNX],
    "profile": ["MOE", "--workload", "pp8", "--repetitions", "1"],
    "evaluate": ["MOE", "--suite", "perplexity"],
    "run": ["recipe.yaml", "--quiet"],
}


@pytest.fixture
def writer(shelf: Path, tmp_path: Path) -> Callable[[str, str], list[str]]:
    """Return the arguments of a command that would write a directory."""
    steps = [{"method": "aimer"}]
    recipe = {"model": {"source": str(shelf / "moe")}, "compress": steps}
    write_recipe(tmp_path / "recipe.yaml", **recipe)

    def arguments(verb: str, out: str) -> list[str]:
        given = [str(shelf / "moe") if a == "MOE" else a for a in WRITERS[verb]]
        return [verb, *given, "--out", out]

    return arguments


@pytest.mark.parametrize("verb", WRITERS)
def test_an_output_that_cannot_be(
    verb: str, writer: Callable[[str, str], list[str]], tmp_path: Path, refused: Refused
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "kept").write_text("mine")
    refused(writer(verb, "file"), "is a file")
    refused(writer(verb, "file/new"), "is a file")
    refused(writer(verb, "full"), "is not empty")
    assert (tmp_path / "full" / "kept").read_text() == "mine"


def test_init_under_a_file(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("mine")
    refused(["init", "file/recipe.yaml"], "is a file")
    refused(["init", "file"], "exists", "--force")


def test_init_on_a_directory_is_not_told_to_use_force(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "folder").mkdir()
    for force in ([], ["--force"]):
        refused(["init", "folder", *force], "is a directory", "init folder/recipe.yaml")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no procfs here")
@pytest.mark.parametrize("verb", WRITERS)
def test_a_place_that_only_looks_writable_is_refused_before_the_work(
    verb: str,
    writer: Callable[[str, str], list[str]],
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def worked(*_: Any, **__: Any) -> Any:
        raise AssertionError("it must be refused before any work")

    monkeypatch.setattr("mobilekit.models.inspect.resolve", worked)
    monkeypatch.setattr("mobilekit.models.resolve", worked)
    refused(writer(verb, "/proc/o"), "cannot write /proc/o", "a place that you may write to")
    refused(writer(verb, "/proc/o/p"), "cannot write /proc/o/p")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no procfs here")
def test_init_where_nothing_can_be_is_not_told_of_an_out(refused: Refused) -> None:
    refused(["init", "/proc/o"], "cannot write /proc/o", "a place that you may write to")
    refused(["init", "/proc/o/recipe.yaml"], "cannot write /proc/o/recipe.yaml")


@pytest.mark.parametrize("verb", ["compress", "export", "run"])
def test_a_full_disk(
    verb: str, writer: Callable[[str, str], list[str]], tiny_disk: Path, refused: Refused
) -> None:
    ignoring = [] if verb == "compress" else ["--ignore-estimates"]
    given = [*writer(verb, "disk/new"), *ignoring]
    if verb == "export":
        refused(given, "o space left on")
    else:  # from file to file it is known beforehand what will be written
        refused(given, "of disk", "are free there")


def test_a_disk_that_fills_up_while_it_is_written(
    writer: Callable[[str, str], list[str]],
    tiny_disk: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mobilekit.models.rewrite.free_disk_bytes", lambda path: 1 << 40)
    refused(writer("compress", "disk/new"), "no space left on")


@pytest.mark.parametrize("verb", ["export", "run"])
def test_a_disk_that_is_estimated_too_small(
    verb: str, writer: Callable[[str, str], list[str]], tiny_disk: Path, refused: Refused
) -> None:
    refused(
        writer(verb, "disk/new"), "an estimated", "of disk", "are free at", "--ignore-estimates"
    )


def test_the_plan_comes_before_the_work(shelf: Path, mobilekit: Callable[..., Said]) -> None:
    """A weight that is no number is found when the work begins; the plan stands before that."""
    loud = [option for option in ONNX if option != "--quiet"]
    said = mobilekit("export", shelf / "nan", *loud, "--out", "new")
    assert said.code == 2
    headline, available, artifact, whole, *error = said.lines
    assert headline.startswith("Plan   0.")
    assert "1 artifact, 1 at a time" in headline
    assert "of memory; free disk: " in available
    for line, step in ((artifact, "onnx fp32"), (whole, "export")):
        assert line.strip().startswith(step)
        assert "estimated peak" in line
        assert "estimated disk" in line
    assert "NaN or infinite" in error[0]


@pytest.mark.parametrize("verb", ["export", "run"])
def test_memory_that_is_estimated_too_small(
    verb: str,
    writer: Callable[[str, str], list[str]],
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limited = AvailableMemory(300_000_000, 400_000_000, "/sys/fs/cgroup/memory.max")
    monkeypatch.setattr(needs, "available_memory", lambda: limited)
    words = ("GB of memory, but 0.3 GB are available (/sys/fs/cgroup/memory.max)", "an estimated")
    refused(writer(verb, "new"), *words)


@pytest.mark.parametrize("verb", WRITERS)
def test_a_read_only_disk(
    verb: str, writer: Callable[[str, str], list[str]], read_only_disk: Path, refused: Refused
) -> None:
    refused(writer(verb, "disk/new"), "cannot write disk/new")


def test_init_on_a_read_only_disk(read_only_disk: Path, refused: Refused) -> None:
    refused(["init", "disk/recipe.yaml"], "cannot write disk/recipe.yaml")
