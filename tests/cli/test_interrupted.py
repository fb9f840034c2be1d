"""What is said when a command is stopped: the truth about what was kept."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mobilekit.cli import main as entry

from .conftest import Said, write_recipe


def stopped(*_: Any, **__: Any) -> Any:
    """Fail as a command does when Ctrl-C arrives inside transformers' lazy importer."""
    try:
        raise KeyboardInterrupt
    except BaseException as error:
        raise ModuleNotFoundError("Could not import module 'Qwen3MoeForCausalLM'") from error


@pytest.mark.parametrize(
    ("verb", "hint"),
    [
        ("run", "Finished steps are kept: go on with --resume."),
        ("demo", "Finished steps are kept: run the same command again, and it goes on."),
        ("recover", "Run the same command again: training goes on."),
        ("export", "Nothing was written; run it again."),
        ("plan", "Nothing was written; run it again."),
    ],
)
def test_resume_is_advised_only_where_there_is_one(
    verb: str, hint: str, mobilekit: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "build_app", lambda: stopped)
    said = mobilekit(verb, "--out", "new")
    assert (said.code, said.out, said.lines) == (130, "", ("error: interrupted", hint))


def test_ctrl_c_inside_a_command_is_not_ended_by_typer_without_a_word(
    mobilekit: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("mobilekit.profile.list_devices", interrupted)
    said = mobilekit("devices")
    lines = ("error: interrupted", "Nothing was written; run it again.")
    assert (said.code, said.lines) == (130, lines)


WHILE_WRITING = """
import os, signal, sys
from mobilekit.core import files
files._move_in = lambda temporary, target: os.kill(os.getpid(), signal.SIGTERM)
sys.argv = ["mobilekit", "plan", sys.argv[1], "--method", "aimer", "--out", "new"]
from mobilekit.cli.entry import main
main()
"""


def test_a_polite_kill_leaves_no_temporary_sibling(shelf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WHILE_WRITING, str(shelf / "moe")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 143
    assert done.stderr.splitlines()[-2:] == [
        "error: terminated",
        "Nothing was written; run it again.",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")]
)
def test_a_stopped_run_cleans_up_and_ends_with_128_and_the_signal(
    number: signal.Signals, said: str, shelf: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        model={"source": str(shelf / "dense")},
        export={"targets": ["onnx"], "precisions": ["fp32"], "context_length": 32},
    )
    command = [sys.executable, "-m", "mobilekit", "run", str(recipe), "--out", str(tmp_path / "r")]

    def interruptible() -> None:  # a background job of a shell ignores Ctrl-C, and so this
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=interruptible
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("Plan ")
        process.send_signal(number)
        rest = process.stderr.read().splitlines()
    assert process.returncode == 128 + number
    *plan, first, second = rest
    assert [first, second] == [f"error: {said}", "Finished steps are kept: go on with --resume."]
    assert not [line for line in plan if line.startswith(("error", "Traceback"))]
    assert not list((tmp_path / "r").glob(".bundle.*"))
    assert not (tmp_path / "r" / "bundle").exists()
