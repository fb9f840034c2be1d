"""Run the workers: a few at a time, each with a log of its own, none left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mobilekit.core import errors
from mobilekit.core.cache import cache_root
from mobilekit.core.errors import MobileKitError, OutputError
from mobilekit.core.files import atomic_write_json, read_json

from .job import Job, Outcome

_POLL_SECONDS = 0.1


@dataclass
class _Running:
    name: str
    job: Job
    log: Path
    process: subprocess.Popen[bytes]


def run_jobs(
    jobs: dict[str, Job], *, workers: int, on_done: Callable[[str, Outcome], None]
) -> dict[str, Outcome]:
    """Run every job in a process of its own.

    Args:
        jobs: Jobs by artifact id.
        workers: How many at a time.
        on_done: Called with each outcome as it arrives.

    Raises:
        MobileKitError: The first failure; the other workers are stopped.
    """
    waiting, done = list(jobs), {}
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                running.append(_start(name, jobs[name]))
            time.sleep(_POLL_SECONDS)
            for item in [r for r in running if r.process.poll() is not None]:
                running.remove(item)
                _close_pipe(item.process)
                done[item.name] = _collect(item)
                on_done(item.name, done[item.name])
    finally:
        for item in running:
            _stop(item.process)
            item.log.unlink(missing_ok=True)
    return {name: done[name] for name in jobs}


def _start(name: str, job: Job) -> _Running:
    job_path = Path(job.outcome).with_suffix(".job.json")
    atomic_write_json(job_path, job.model_dump(mode="json"))
    log = cache_root() / "logs" / f"export-{name}-{os.getpid()}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    environment.pop("PYTHONHOME", None)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mobilekit.export.worker", str(job_path)],
            stdin=subprocess.PIPE,  # its end tells the worker that this process is gone
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    return _Running(name, job, log, process)


def _collect(item: _Running) -> Outcome:
    """Return a finished worker's outcome, or raise what stopped it."""
    outcome_path = Path(item.job.outcome)
    if item.process.returncode != 0 or not outcome_path.is_file():
        raise _crash(item)
    outcome = Outcome.parse(read_json(outcome_path), str(outcome_path))
    if outcome.error is not None:
        kind = getattr(errors, outcome.error["kind"], MobileKitError)
        raise kind(f"{item.name}: {outcome.error['message']}", hint=outcome.error["hint"])
    item.log.unlink(missing_ok=True)
    return outcome


def _crash(item: _Running) -> MobileKitError:
    code = item.process.returncode
    if code == -signal.SIGKILL:
        return MobileKitError(
            f"{item.name}: the converter was killed, most likely because memory ran out",
            hint="Export fewer targets at a time on this machine, or use one with more memory.",
        )
    lines = item.log.read_text(errors="replace").strip().splitlines() or ["no output"]
    if any("No space left on device" in line for line in lines[-20:]):
        return OutputError(
            f"{item.name}: no space left on the device",
            hint="Free some space or choose another --out; nothing was left half-written.",
        )
    return MobileKitError(
        f"{item.name}: the converter stopped (exit code {code}): {lines[-1][:200]}",
        hint=f"The whole log is in {item.log}",
    )


def _close_pipe(process: subprocess.Popen[bytes]) -> None:
    """Close our end of a worker's stdin; it holds nothing to be flushed."""
    if process.stdin is not None:
        process.stdin.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    _close_pipe(process)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
        return
    process.kill()
    process.wait()
