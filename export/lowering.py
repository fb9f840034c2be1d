"""Lower one model for one target, or take the result from the cache: lowering is the slow step."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import time
from functools import cache
from pathlib import Path

import mobilekit
from mobilekit.core import console
from mobilekit.core.cache import cache_root, remove_abandoned
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import (
    atomic_directory,
    atomic_write_json,
    locked,
    read_json,
    safe_join,
    sha256_file,
    sha256_json,
    sha256_tree,
)
from mobilekit.core.memory import peak_rss_bytes

from .backends.base import Backend, ExportSpec
from .job import Job, LoweredRecord
from .precision import Precision

_RECORD = "lowered.json"


def lower(job: Job, backend: Backend) -> tuple[LoweredRecord, bool]:
    """Put the artifact's files into ``job.out``; return their record and whether it was cached."""
    kept = cache_root() / "lowered" / _key(job, backend)
    remove_abandoned(kept.parent)
    with locked(kept.with_name(f"{kept.name}.lock")):  # two runs that want the same do it once
        record = _read_cached(kept)
        cached = record is not None
        if record is None:
            with atomic_directory(kept, replace=True) as fresh:
                record = _lower_anew(job, backend, fresh)
                atomic_write_json(fresh / _RECORD, record.model_dump(mode="json"))
        _copy_files(record, kept, Path(job.out))
    return record, cached


def _copy_files(record: LoweredRecord, kept: Path, out: Path) -> None:
    for name in record.files:
        target = safe_join(out, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(safe_join(kept, name), target)


def spec_of(job: Job) -> ExportSpec:
    """Return the job as a back end understands it."""
    return ExportSpec(
        precision=Precision(job.precision, job.overrides),
        context_length=job.context_length,
        bos_token_id=job.bos_token_id,
        eos_token_ids=job.eos_token_ids,
        pad_token_id=job.pad_token_id,
    )


def _lower_anew(job: Job, backend: Backend, directory: Path) -> LoweredRecord:
    from mobilekit.models import load
    from mobilekit.models.families import family_of

    model = load(job.checkpoint, device="cpu", dtype="float32")
    started = time.monotonic()
    lowered = backend.lower(model, family_of(model), spec_of(job), directory)
    return LoweredRecord(
        files={name: sha256_file(directory / name) for name in lowered.files},
        programs=lowered.programs,
        runtime=lowered.runtime,
        weights=lowered.weights,
        settings=lowered.settings,
        seconds=round(time.monotonic() - started, 3),
        peak_rss_bytes=peak_rss_bytes(),
    )


def _read_cached(kept: Path) -> LoweredRecord | None:
    """Return the record of a cached artifact whose files are all there and unchanged."""
    if not (kept / _RECORD).is_file():
        return None
    try:
        record = LoweredRecord.parse(read_json(kept / _RECORD), str(kept))
        whole = all(sha256_file(safe_join(kept, n)) == s for n, s in record.files.items())
    except (InvalidInputError, OSError) as error:
        reason = str(error).partition("\n")[0]  # without the hint, which is for who wrote the file
        console.warn(f"ignoring a damaged cache entry ({reason})")
        return None
    if not whole:
        console.warn(f"ignoring a cache entry whose files changed: {kept}")
    return record if whole else None


def _key(job: Job, backend: Backend) -> str:
    """Return the hash of all that decides what the file looks like."""
    versions = {name: importlib.metadata.version(name) for name in ("torch", *backend.packages)}
    return sha256_json(
        {
            "checkpoint": job.checkpoint_hash,
            "spec": dataclasses.asdict(spec_of(job)),
            "target": job.target,
            "versions": versions,
            "code": code_hash(),
        }
    )


@cache
def code_hash() -> str:
    """Return the hash of the code that turns a checkpoint into an artifact."""
    rooms = [Path(mobilekit.__file__).parent / room for room in ("models", "runtime")]
    return sha256_json(
        [sha256_tree(room, room.rglob("*.py")) for room in (Path(__file__).parent, *rooms)]
    )
