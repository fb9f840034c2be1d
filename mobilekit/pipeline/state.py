"""What a run directory remembers: which steps are done, and with what inputs."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import mobilekit
from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.files import (
    atomic_write_json,
    check_writable,
    read_json,
    safe_join,
    sha256_file,
    sha256_json,
    sha256_tree,
    writing,
)
from mobilekit.core.memory import peak_rss_bytes, release_freed_memory, reset_peak_rss
from mobilekit.core.strict import StrictModel
from mobilekit.schema.run import StepName, StepRecord

from .environment import versions

_STATE = ".state"
# what a run writes; an unfinished one is called `.NAME.` and something random
_OUTPUTS = ("checkpoint", "compressed", "bundle", "run.json", "report.html", "model_card.md")


class _Basis(StrictModel):
    """All that the result of a step depends on, beside what it writes itself."""

    inputs: dict[str, str]  # name to the hash of its value
    code: str
    versions: dict[str, str]

    def changes(self, now: _Basis) -> list[str]:
        """Say what is not as it was."""
        differ = [
            k for k in {**self.inputs, **now.inputs} if self.inputs.get(k) != now.inputs.get(k)
        ]
        said = [f"its inputs ({', '.join(differ)})"] if differ else []
        said += ["MobileKit's code"] if self.code != now.code else []
        for name in {**self.versions, **now.versions}:
            was, is_now = self.versions.get(name, "absent"), now.versions.get(name, "absent")
            said += [f"package {name} {was} → {is_now}"] if was != is_now else []
        return said


class _Done(StrictModel):
    basis: _Basis
    outputs: dict[str, str]  # path to SHA-256, of a directory over all that is in it
    record: StepRecord


@dataclass
class RunDirectory:
    """An output directory, held by this process alone."""

    root: Path
    records: list[StepRecord] = field(default_factory=list)
    written: set[str] = field(default_factory=set)  # outputs of this run's steps

    def step(
        self,
        step_id: str,
        inputs: dict[str, Any],
        work: Callable[[], str],
        *,
        name: StepName,
        outputs: Sequence[str] = (),
        estimated_peak_bytes: int | None = None,
    ) -> bool:
        """Do a step, unless it is done already and nothing that it depends on has changed.

        That is its inputs, our code, the packages' versions, and what it wrote itself: an output
        that was damaged or edited since is made anew.

        Args:
            step_id: Unique id of the step in this run.
            inputs: All that the result depends on, as JSON values.
            work: Does the step, writes ``outputs`` atomically, and returns a one-line summary.
            name: Kind of step, for the record ("compress").
            outputs: What the step writes, relative to the run directory.
            estimated_peak_bytes: This process's estimated peak, for the record.

        Returns:
            Whether the step was done before.
        """
        self.written.update(outputs)
        hashes = {key: sha256_json(value) for key, value in inputs.items()}
        basis = _Basis(inputs=hashes, code=code_hash(), versions=versions())
        path = self.root / _STATE / f"{step_id}.json"
        done = _read_done(path)
        if done is not None and self._still_holds(step_id, done, basis, outputs):
            self.records.append(done.record.model_copy(update={"cached": True}))
            return True
        self._forget(path, outputs)
        release_freed_memory()  # of the step before: training leaves half a gigabyte
        reset_peak_rss()
        started = time.monotonic()
        detail = work()
        record = StepRecord(
            name=name,
            detail=detail,
            seconds=round(time.monotonic() - started, 3),
            cached=False,
            output=outputs[0] if outputs else None,
            peak_rss_bytes=peak_rss_bytes(),
            estimated_peak_bytes=estimated_peak_bytes,
        )
        digests = {name: _digest(self.root / name) for name in outputs}
        done = _Done(basis=basis, outputs=digests, record=record)
        atomic_write_json(path, done.model_dump(mode="json"))
        self.records.append(record)
        return False

    def _forget(self, path: Path, outputs: Sequence[str]) -> None:
        """Take back what was done before and is about to be written over."""
        path.unlink(missing_ok=True)
        for other in (self.root / _STATE).glob("*.json"):
            content = read_json(other)
            if isinstance(content, dict) and set(content.get("outputs", ())) & set(outputs):
                other.unlink()

    def _still_holds(
        self, step_id: str, done: _Done, basis: _Basis, outputs: Sequence[str]
    ) -> bool:
        """Tell whether a step need not be done again; where it must, say why."""
        reasons = [f"{what} changed" for what in done.basis.changes(basis)]
        if set(done.outputs) != set(outputs):
            reasons.append("it writes other files now")
        for name, sha in done.outputs.items():
            if not safe_join(self.root, name).exists():
                reasons.append(f"{name} is gone")
            elif not reasons and _digest(self.root / name) != sha:
                reasons.append(f"{name} has changed since")
        if reasons:
            console.warn(f"{step_id} is done again: {', '.join(reasons)}")
        return not reasons


def _read_done(path: Path) -> _Done | None:
    """Return what is known of a step that was done, ``None`` where it was not."""
    if not path.is_file():
        return None
    try:
        return _Done.parse(read_json(path), str(path))
    except InvalidInputError:
        console.warn(f"{path.stem} is done again: another version of MobileKit did it")
        return None


def _digest(path: Path) -> str:
    return sha256_tree(path) if path.is_dir() else sha256_file(path)


def check_run_directory(root: Path, *, resume: bool) -> None:
    """Check that a run can be made at ``root``, or gone on with, before any work.

    Raises:
        UsageError: If it exists and ``resume`` is false, or is no run directory.
        OutputError: If it cannot be written.
    """
    if root.exists() and not root.is_dir():
        raise UsageError(f"{root} exists and is a file", hint="Choose another --out.")
    if not resume and root.is_dir() and any(root.iterdir()):
        raise UsageError(
            f"{root} exists and is not empty",
            hint="Go on with it by --resume, or choose another --out.",
        )
    if resume and root.is_dir() and any(root.iterdir()) and not (root / _STATE).is_dir():
        raise UsageError(
            f"{root} is not a run directory, so there is nothing to resume",
            hint="Give the --out of the run to go on with, or choose a new one without --resume.",
        )
    check_writable(root, root)


@contextlib.contextmanager
def open_run(root: Path, *, resume: bool) -> Iterator[RunDirectory]:
    """Create a run directory, or go on with one.

    Raises:
        UsageError: If it exists and ``resume`` is false, or another process holds it.
        OutputError: If it cannot be written.
    """
    check_run_directory(root, resume=resume)
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
    """Remove the temporary siblings that a killed process left, and nothing else."""
    ours = [path for name in _OUTPUTS for path in root.glob(f".{name}.*")]
    for path in [*ours, *(root / "results").glob(".*.json.*")]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@cache
def code_hash() -> str:
    """Return the hash of all code and embedded data that a step's result can depend on."""
    package = Path(mobilekit.__file__).parent
    export = next(Path(p) / "export" for p in mobilekit.__path__ if (Path(p) / "export").is_dir())
    return sha256_json([sha256_tree(root, _sources(root)) for root in (package, export)])


def _sources(root: Path) -> list[Path]:
    files = (p for p in root.rglob("*") if p.is_file())
    return [p for p in files if not {"cli", "__pycache__"} & set(p.relative_to(root).parts)]
