"""Run workers one after the other, watch them, and turn a crash into two lines."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mobilekit.core import errors
from mobilekit.core.cache import cache_root, scratch_directory
from mobilekit.core.errors import MobileKitError
from mobilekit.core.files import atomic_write_json, read_json

from .job import Job, Outcome

_POLL_SECONDS = 0.1
_MODULE = "mobilekit.profile.worker"


def run_worker(
    name: str,
    make_job: Callable[[Path], Job],
    *,
    on_tick: Callable[[int], None] = lambda count: None,
) -> Outcome:
    """Run one job in a fresh process and return its outcome.

    Args:
        name: What is measured, for messages.
        make_job: Given an empty directory for the files in between, returns the job.
        on_tick: Called with the number of repetitions done since the last call.

    Raises:
        MobileKitError: The worker's own error, or what its crash looked like.
    """
    with scratch_directory("profile") as folder:
        job = make_job(folder)
        job_path, log = folder / "job.json", folder / "worker.log"
        atomic_write_json(job_path, job.model_dump(mode="json"))
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", _MODULE, str(job_path)],  # -P: no code from the cwd
                stdin=subprocess.PIPE,  # its end tells the worker that this process is gone
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=_environment(job.threads),
            )
        try:
            _watch(process, Path(job.ticks), on_tick)
        finally:
            _stop(process)
            if process.stdin is not None:
                process.stdin.close()
        if process.returncode != 0 or not Path(job.outcome).is_file():
            raise _crash(name, process.returncode, _kept(name, log))
        return _read(name, Path(job.outcome))


def _kept(name: str, log: Path) -> Path:
    """Move the log of a worker that crashed to where it stays."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", name)[:100]  # the name comes out of a manifest
    kept = cache_root() / "logs" / f"profile-{plain}-{os.getpid()}.log"
    kept.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(log, kept))


def _environment(threads: int | None) -> dict[str, str]:
    """Return the environment of a worker: the host's processor only, the threads asked for."""
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    chosen = {"OMP_NUM_THREADS": str(threads)} if threads is not None else {}
    return {**os.environ, **hidden, **chosen}


def _watch(process: subprocess.Popen[bytes], ticks: Path, on_tick: Callable[[int], None]) -> None:
    seen = 0
    while True:
        is_done = process.poll() is not None
        count = ticks.stat().st_size if ticks.exists() else 0
        if count > seen:
            on_tick(count - seen)
            seen = count
        if is_done:
            return
        time.sleep(_POLL_SECONDS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the worker, by its own id, if it still runs."""
    if process.poll() is not None:
        return
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
        return
    process.kill()
    process.wait()


def _read(name: str, path: Path) -> Outcome:
    outcome = Outcome.parse(read_json(path), str(path))
    if outcome.error is not None:
        kind = getattr(errors, outcome.error.kind, MobileKitError)
        said = outcome.error.message
        raise kind(said if said.startswith(name) else f"{name}: {said}", hint=outcome.error.hint)
    return outcome


def _crash(name: str, code: int, log: Path) -> MobileKitError:
    if code == -signal.SIGKILL:
        return MobileKitError(
            f"{name}: the process that ran it was killed, most likely because memory ran out",
            hint="Profile a smaller artifact, or use a machine with more memory.",
        )
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return MobileKitError(
        f"{name}: the process that ran it {_ending(code)}: {lines[-1][:200]}",
        hint=f"The whole log is in {log}",
    )


def _ending(code: int) -> str:
    if code >= 0:
        return f"stopped (exit code {code})"
    try:
        return f"crashed ({signal.Signals(-code).name})"
    except ValueError:
        return f"crashed (signal {-code})"
