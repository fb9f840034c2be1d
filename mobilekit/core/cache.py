"""The cache of slow results: directories named by the hash of all that went into them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .files import locked


def cache_root() -> Path:
    """Return where slow results are kept: ``$MOBILEKIT_CACHE``, or the user's cache directory."""
    chosen = os.environ.get("MOBILEKIT_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "mobilekit"


def is_held(lock: Path) -> bool:
    """Tell whether a living process holds a lock file; the system frees it when one is killed."""
    try:
        with lock.open("r+") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def remove_abandoned(folder: Path) -> None:
    """Remove the unfinished entries ``.NAME.random`` of which no process holds ``NAME.lock``."""
    for path in folder.glob(".*.*"):
        if not is_held(folder / f"{path.name.split('.')[1]}.lock"):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def scratch_directory(name: str) -> Iterator[Path]:
    """Yield an empty directory in the cache that is gone afterwards.

    What a killed process left of that name is removed by the next one that wants a directory.
    """
    folder = cache_root() / "scratch"
    with locked(folder / f"{name}.lock"):  # until it is locked itself, a new one looks abandoned
        for path in folder.glob(f"{name}-*"):
            if not is_held(path / "lock"):
                shutil.rmtree(path, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=folder, prefix=f"{name}-"))
        own = (made / "lock").open("w")
        fcntl.flock(own, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        own.close()
