"""A directory that takes long to write: what is finished of it outlives an interruption."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.files import check_target, writing

_JOB = ".job"  # names the work; removed when the directory is whole


@contextlib.contextmanager
def resumable_directory(target: Path, job: str) -> Iterator[Path]:
    """Yield a sibling of ``target`` that becomes ``target`` when the block succeeds.

    Whatever stops the block, files in it that are finished stay for the next call with the same
    job, unless there are none. A file counts as finished under its own name: write it under a
    hidden one, and rename it.

    Args:
        target: The directory to create.
        job: What tells this work from any other; what other work left is removed.

    Raises:
        UsageError: If ``target`` is not empty, or another process is writing it.
        OutputError: If it cannot be written.
    """
    check_target(target)
    folder = target.parent / f".{target.name}.partial"
    with writing(target), _alone(folder, target):
        if _job(folder) != job:
            for path in folder.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            (folder / _JOB).write_text(job, encoding="utf-8")
        for path in folder.glob(".*"):
            if path.name != _JOB:
                path.unlink()  # was being written when it was stopped
        try:
            yield folder
            if target.is_dir():
                target.rmdir()  # it was empty when we began
            os.rename(folder, target)
        except BaseException:
            if any(not path.name.startswith(".") for path in folder.iterdir()):
                console.status(f"  finished files stay in {folder}, for the next try")
            else:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        (target / _JOB).unlink()


@contextlib.contextmanager
def _alone(folder: Path, target: Path) -> Iterator[None]:
    """Make ``folder`` and hold it, so that no other process writes in it."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise UsageError(
            f"another process is writing {target}", hint="Wait for it, or choose another --out."
        ) from None
    finally:
        os.close(handle)


def _job(folder: Path) -> str | None:
    try:
        return (folder / _JOB).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
