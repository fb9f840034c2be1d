"""A worker that dies is an error with a name, and leaves nobody behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from mobilekit.export import pool
from mobilekit.export.job import Job, Outcome

from mobilekit.core.errors import MobileKitError, OutputError


def job(folder: Path) -> Job:
    return Job(
        checkpoint=str(folder / "none"),
        checkpoint_hash="sha256:0",
        target="onnx",
        precision="fp32",
        context_length=8,
        vectors=str(folder / "v"),
        out=str(folder / "out"),
        answer=str(folder / "a"),
        outcome=str(folder / "o.json"),
        threads=1,
        estimated_peak_bytes=1,
    )


def running(folder: Path, script: str) -> pool._Running:
    log = folder / "log"
    with log.open("wb") as sink:
        process = subprocess.Popen([sys.executable, "-c", script], stdout=sink, stderr=sink)
    process.wait()
    return pool._Running("onnx-cpu-fp32", job(folder), log, process)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "killed, most likely because memory ran out"),
        ("raise SystemExit('boom')", "boom"),
        ("pass", "no output"),
        ("import os; os.abort()", "exit code -6"),
    ],
)
def test_a_crash_names_the_artifact(tmp_path: Path, script: str, message: str) -> None:
    with pytest.raises(MobileKitError) as caught:
        pool._collect(running(tmp_path, script))
    assert caught.value.message.startswith("onnx-cpu-fp32: ")
    assert message in caught.value.message


def test_a_full_disk_in_the_worker_is_an_output_error(tmp_path: Path) -> None:
    script = "raise OSError(28, 'No space left on device')"
    with pytest.raises(OutputError, match="no space left"):
        pool._collect(running(tmp_path, script))


def test_an_expected_error_crosses_the_process_with_its_class(tmp_path: Path) -> None:
    """The checkpoint does not exist: the real worker says so, and the class survives."""
    done: list[Outcome] = []
    with pytest.raises(MobileKitError) as caught:
        pool.run_jobs(
            {"onnx-cpu-fp32": job(tmp_path)}, workers=1, on_done=lambda _, o: done.append(o)
        )
    assert type(caught.value).__name__ == "InvalidInputError"
    assert caught.value.exit_code == 2
    assert done == []


def test_stop_ends_the_process(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pool._stop(process)
    assert process.returncode == -signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_no_end_of_a_worker_leaves_its_pipe_open(tmp_path: Path) -> None:
    """The worker waits at its stdin, as the real one does until its parent closes it."""
    for end in (pool._close_pipe, pool._stop):
        command = [sys.executable, "-c", "import os; os.read(0, 1)"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE)
        end(process)
        process.wait(timeout=10)
        assert process.stdin is not None
        assert process.stdin.closed
