from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mobilekit.core.errors import InvalidInputError, MobileKitError, NotExecutableError
from mobilekit.profile import launch
from mobilekit.profile.job import Job


@pytest.fixture(autouse=True)
def _breaking(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch, "_MODULE", "breaking_worker")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    monkeypatch.setenv("BREAKING_PID", str(tmp_path / "pid"))


def job(way: str, threads: int | None = None) -> Callable[[Path], Job]:
    return lambda folder: Job(
        source="nowhere",
        artifact=way,
        workloads=("tg2",),
        repetitions=1,
        warmup=0,
        threads=threads,
        outcome=str(folder / "outcome.json"),
        ticks=str(folder / "ticks"),
    )


@pytest.mark.parametrize(
    ("way", "words"),
    [
        ("exit", "stopped (exit code 7): the last words before exit"),
        ("nothing", "stopped (exit code 0): the last words before nothing"),
        ("SIGSEGV", "crashed (SIGSEGV): the last words before SIGSEGV"),
        ("SIGABRT", "crashed (SIGABRT): the last words before SIGABRT"),
        ("SIGKILL", "was killed, most likely because memory ran out"),
    ],
)
def test_a_crash_is_two_lines_that_name_the_artifact(way: str, words: str) -> None:
    with pytest.raises(MobileKitError) as caught:
        launch.run_worker("onnx-cpu-int8", job(way))
    assert caught.value.message.startswith("onnx-cpu-int8: the process that ran it")
    assert words in caught.value.message
    assert len(str(caught.value).splitlines()) == 2
    if way != "SIGKILL":
        log = Path(caught.value.hint.removeprefix("The whole log is in "))
        assert log.read_text().startswith("loading\n")


def test_an_artifacts_name_cannot_choose_where_the_log_lies() -> None:
    with pytest.raises(MobileKitError) as caught:
        launch.run_worker("x/../../../../elsewhere", job("exit"))
    log = Path(caught.value.hint.removeprefix("The whole log is in "))
    assert log.parent.name == "logs"
    assert log.is_file()


def test_a_module_in_the_current_directory_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('run from the current directory')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MobileKitError, match="exit code 7"):
        launch.run_worker("onnx-cpu-int8", job("exit"))


def test_the_workers_own_error_keeps_its_kind() -> None:
    with pytest.raises(NotExecutableError, match="some-artifact: ") as caught:
        launch.run_worker("some-artifact", job("environment", threads=3))
    environment = json.loads(caught.value.message.partition(": ")[2])
    assert environment == {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": ""}


def test_threads_are_left_alone_where_none_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with pytest.raises(NotExecutableError) as caught:
        launch.run_worker("x", job("environment"))
    assert '"OMP_NUM_THREADS": "5"' in caught.value.message


def test_ticks_arrive_while_it_runs_and_an_interrupt_ends_the_child(tmp_path: Path) -> None:
    counts: list[int] = []

    def interrupt(count: int) -> None:
        counts.append(count)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            pass
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch.run_worker("x", job("hang"), on_tick=interrupt)
    assert counts == [2]
    child = int((tmp_path / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_an_outcome_of_another_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outcome.json").write_text('{"measured": 3}')
    with pytest.raises(InvalidInputError, match="measured"):
        launch._read("x", tmp_path / "outcome.json")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("onnx/model.onnx has changed", "onnx/model.onnx has changed"),
        ("out of range", "onnx: out of range"),
    ],
)
def test_the_id_is_not_printed_twice(said: str, shown: str, tmp_path: Path) -> None:
    error = {"kind": "InvalidInputError", "message": said, "hint": "Copy it again."}
    (tmp_path / "outcome.json").write_text(json.dumps({"error": error}))
    with pytest.raises(InvalidInputError) as caught:
        launch._read("onnx", tmp_path / "outcome.json")
    assert caught.value.message == shown
