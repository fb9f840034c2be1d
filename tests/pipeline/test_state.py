from __future__ import annotations

import os
from pathlib import Path

import pytest

from mobilekit.core.errors import UsageError
from mobilekit.pipeline import state
from mobilekit.pipeline.state import open_run


def test_a_step_is_done_once(tmp_path: Path) -> None:
    calls = []

    def work() -> str:
        calls.append(1)
        (tmp_path / "run" / "made").write_text("x")
        return "did it"

    def go(inputs: dict[str, object], *, resume: bool) -> bool:
        with open_run(tmp_path / "run", resume=resume) as run:
            return run.step("s", inputs, work, name="export", outputs=["made"])

    assert go({"a": 1}, resume=False) is False
    assert go({"a": 1}, resume=True) is True
    assert go({"a": 2}, resume=True) is False  # other inputs
    (tmp_path / "run" / "made").unlink()
    assert go({"a": 2}, resume=True) is False  # the output is gone
    assert len(calls) == 3


def test_a_failed_step_is_not_done(tmp_path: Path) -> None:
    def fail() -> str:
        raise KeyboardInterrupt

    def go(work: object) -> bool:
        with open_run(tmp_path / "run", resume=True) as run:
            return run.step("s", {}, work, name="export", outputs=[])  # type: ignore[arg-type]

    with pytest.raises(KeyboardInterrupt):
        go(fail)
    assert go(lambda: "done") is False
    assert go(lambda: "done") is True


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", resume=False):
        pid = os.fork()
        if pid == 0:  # the lock belongs to another process
            try:
                with open_run(tmp_path / "run", resume=True):
                    os._exit(1)
            except UsageError as error:
                os._exit(0 if "another process" in error.message else 2)
            os._exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    root = tmp_path / "run"
    with open_run(root, resume=False):
        pass
    (root / ".bundle.abc").mkdir()
    (root / ".bundle.abc" / "half").write_text("x")
    (root / ".run.json.xyz").write_text("{")
    with open_run(root, resume=True):
        assert [p.name for p in root.iterdir()] == [".state"]


def test_an_existing_directory_needs_resume(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="not empty"), open_run(tmp_path, resume=False):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


def test_resume_leaves_a_strangers_directory_alone(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / ".env").write_text("precious")
    with pytest.raises(UsageError, match="not a run directory"), open_run(tmp_path, resume=True):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == [".env", ".git"]


def test_dotfiles_of_others_survive_inside_a_run(tmp_path: Path) -> None:
    with open_run(tmp_path / "run", resume=False):
        pass
    (tmp_path / "run" / ".gitignore").write_text("*")
    with open_run(tmp_path / "run", resume=True):
        pass
    assert (tmp_path / "run" / ".gitignore").is_file()


def test_an_output_written_by_another_step_is_not_taken_for_ones_own(tmp_path: Path) -> None:
    def work(text: str) -> str:
        (tmp_path / "run" / "made").write_text(text)
        return text

    def go(step: str) -> bool:
        with open_run(tmp_path / "run", resume=True) as run:
            return run.step(step, {}, lambda: work(step), name="export", outputs=["made"])

    assert [go("a"), go("a"), go("b"), go("a")] == [False, True, False, False]
    assert (tmp_path / "run" / "made").read_text() == "a"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("inputs", "its inputs (a, b) changed"),
        ("code", "MobileKit's code changed"),
        ("versions", "package torch 1 → 2 changed, package onnx absent → 3 changed"),
        ("output", "made has changed since"),
        ("gone", "made is gone"),
        ("state", "another version of MobileKit did it"),
    ],
)
def test_resume_says_why_a_finished_step_is_done_again(
    change: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "run"
    said_before = []

    def work() -> str:
        said_before.append(capsys.readouterr().err)
        (root / "made").write_text("x")
        return "did it"

    def go(inputs: dict[str, object], torch: dict[str, str], code: str = "1") -> None:
        monkeypatch.setattr(state, "versions", lambda: torch)
        monkeypatch.setattr(state, "code_hash", lambda: code)
        with open_run(root, resume=True) as run:
            run.step("s", inputs, work, name="export", outputs=["made"])

    go({"a": 1, "c": 0}, {"torch": "1"})
    go({"c": 0, "a": 1}, {"torch": "1"})
    assert said_before == [""]
    changed = {"a": 2, "b": 1, "c": 0} if change == "inputs" else {"a": 1, "c": 0}
    if change in ("output", "gone", "state"):
        path = root / (".state/s.json" if change == "state" else "made")
        path.unlink() if change == "gone" else path.write_text("{}")
    packages = {"torch": "2", "onnx": "3"} if change == "versions" else {"torch": "1"}
    go(changed, packages, "2" if change == "code" else "1")
    assert said_before == ["", f"warning: s is done again: {words}\n"]
