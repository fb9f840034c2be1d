"""What a run directory remembers: which steps are done, and with what inputs."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mobilekit
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.files import (
    atomic_write_json,
    read_json,
    safe_join,
    sha256_json,
    sha256_tree,
    writing,
)
from mobilekit.core.memory import peak_rss_bytes
from mobilekit.core.strict import StrictModel
from mobilekit.schema.run import StepName, StepRecord

_STATE = ".state"


class _Done(StrictModel):
    key: str
    record: StepRecord


@dataclass
class RunDirectory:
    """An output directory, held by this process alone."""

    root: Path
    records: list[StepRecord] = field(default_factory=list)

    def step(
        self,
        step_id: str,
        inputs: dict[str, Any],
        work: Callable[[], str],
        *,
        name: StepName,
        output: str | None,
    ) -> bool:
        """Do a step, unless it is done already with the same inputs, settings and code.

        Args:
            step_id: Unique id of the step in this run.
            inputs: All that the result depends on, as JSON values.
            work: Does the step, writes ``output`` atomically, and returns a one-line summary.
            name: Kind of step, for the record ("compress").
            output: What the step writes, relative to the run directory.

        Returns:
            Whether the step was done before.
        """
        key = sha256_json({"step": step_id, "inputs": inputs, "code": code_hash()})
        path = self.root / _STATE / f"{step_id}.json"
        if (done := self._done(path, key, output)) is not None:
            self.records.append(done.record.model_copy(update={"cached": True}))
            return True
        path.unlink(missing_ok=True)
        started = time.monotonic()
        detail = work()
        record = StepRecord(
            name=name,
            detail=detail,
            seconds=round(time.monotonic() - started, 3),
            cached=False,
            output=output,
            peak_rss_bytes=peak_rss_bytes(),
        )
        atomic_write_json(path, _Done(key=key, record=record).model_dump(mode="json"))
        self.records.append(record)
        return False

    def _done(self, path: Path, key: str, output: str | None) -> _Done | None:
        if not path.is_file() or (output and not safe_join(self.root, output).exists()):
            return None
        try:
            done = _Done.parse(read_json(path), str(path))
        except InvalidInputError:
            return None  # written by another version: the step is simply done again
        return done if done.key == key else None


@contextlib.contextmanager
def open_run(root: Path, *, resume: bool) -> Iterator[RunDirectory]:
    """Create a run directory, or go on with one.

    Raises:
        UsageError: If it exists and ``resume`` is false, or another process holds it.
        OutputError: If it cannot be written.
    """
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} exists and is a file", hint="Choose another --out.")
    if not resume and root.is_dir() and any(root.iterdir()):
        raise UsageError(
            f"{root} exists and is not empty",
            hint="Go on with it by --resume, or choose another --out.",
        )
    with writing(root):
        (root / _STATE).mkdir(parents=True, exist_ok=True)
        lock = (root / _STATE / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another process is working on {root}", hint="Wait for it, or stop it first."
            ) from None
        _remove_leftovers(root)
        yield RunDirectory(root)


def _remove_leftovers(root: Path) -> None:
    """Remove the temporary siblings that a killed process left; finished outputs have no dot."""
    for path in [*root.glob(".*"), *(root / "results").glob(".*")]:
        if path.name == _STATE:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@cache
def code_hash() -> str:
    """Return the hash of all code that a step's result can depend on."""
    package = Path(mobilekit.__file__).parent
    sources = [p for p in package.rglob("*.py") if "cli" not in p.parts]
    export = next(Path(p) / "export" for p in mobilekit.__path__ if (Path(p) / "export").is_dir())
    return sha256_json([sha256_tree(package, sources), sha256_tree(export, export.rglob("*.py"))])
