"""Read a stored checkpoint once: hash every byte, sum every expert, refuse what is not finite.

Files are read side by side, each block hashed while it is summed, so that the disk sets the pace.
What was found in a file is kept in the cache: an interrupted scan goes on at the file.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path

import torch
from torch import Tensor

from mobilekit.core import console
from mobilekit.core.cache import cache_root
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import atomic_write_json, read_json, sha256_json
from mobilekit.models import checkpoint_hash
from mobilekit.models.families import UnitGroup, family_of
from mobilekit.models.lineage import Provenance, provenance, record
from mobilekit.models.stored import StoredModel
from mobilekit.models.stored_units import StoredUnits, stored_units
from mobilekit.models.weights import FLOATS, TensorEntry

from .kernel import choose_kernel, total
from .known import know_sums
from .scan_file import FileScan, scan_file
from .score import WeightSums, pooled

_FORMAT = 2  # of what is kept; raise it when the sums would come out otherwise
_MOST_READERS = 8


def scan(stored: StoredModel, device: torch.device) -> None:
    """Read a checkpoint, and let its model know its experts' sums and its content hash.

    Args:
        stored: The checkpoint.
        device: Where blocks are summed; the sums agree to more digits than a score keeps.

    Raises:
        InvalidInputError: If a file cannot be read, or a weight is NaN or infinite.
    """
    units = stored_units(stored.model, ["expert"])
    _prepare_kernels(stored, device)
    found = _scan_files(stored, units, device)
    history = provenance(stored.model)
    known = {path: one.sha256 for path, one in found.items()}
    digest = checkpoint_hash(stored.path, known)
    record(stored.model, Provenance(history.source, history.plans, known_hash=digest))
    sums = {name: value for one in found.values() for name, value in one.sums.items()}
    groups = family_of(stored.model).units(stored.model, "expert")
    know_sums(
        stored.model, {group.layer: _of_group(stored, group, units, sums) for group in groups}
    )


def _prepare_kernels(stored: StoredModel, device: torch.device) -> None:
    """Build what is worth building for the whole checkpoint; a single block never is."""
    sizes: dict[str, int] = {}
    for entry in stored.table.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    for name, size in sizes.items():
        choose_kernel(device, getattr(torch, FLOATS[name]), size)


def _of_group(
    stored: StoredModel,
    group: UnitGroup,
    units: Mapping[str, StoredUnits],
    sums: Mapping[str, Tensor],
) -> WeightSums:
    """Return the sums of a layer's experts over all their stored tensors."""
    parts: list[list[Tensor]] = [[] for _ in range(group.count)]
    for name, held in units.items():
        if held.scored and held.key == (group.kind, group.layer):
            for unit, value in zip(held.units, sums[name], strict=True):
                if unit >= 0:
                    parts[unit].append(value[None])
    elements = sum(tensor[0].numel() for tensor in group.scored_tensors(stored.model))
    return pooled([torch.cat([total(own) for own in parts])], elements)


def _scan_files(
    stored: StoredModel, units: Mapping[str, StoredUnits], device: torch.device
) -> dict[Path, FileScan]:
    entries: dict[Path, dict[str, TensorEntry]] = {file: {} for file in stored.files}
    for name, entry in stored.table.items():
        entries[entry.file][name] = entry
    folder = cache_root() / "scans" / sha256_json(str(stored.path.resolve()))[:32]
    found: dict[Path, FileScan] = {}
    missing = []
    for file in stored.files:
        key = _key(file, entries[file], units)
        kept = _kept(folder, file, key)
        if kept is not None:
            found[file] = kept
        else:
            missing.append((file, key))
    if found and missing:
        console.status(f"  {len(found)} of {len(entries)} files were read before")
    size = sum(file.stat().st_size for file, _ in missing)
    stop = threading.Event()
    # two a core: one waits for the disk while the other sums
    readers = min(_MOST_READERS, 2 * (os.cpu_count() or 1), len(missing)) or 1
    with (
        console.progress(size, f"reading {stored.path.name}") as bar,
        ThreadPoolExecutor(readers, "scan") as pool,
    ):
        lock = threading.Lock()

        def read(file: Path, key: str) -> tuple[Path, FileScan]:
            def advance(nbytes: int) -> None:
                if stop.is_set():
                    raise _Stopped
                with lock:
                    bar.advance(nbytes, file.name)

            one = scan_file(stored.path, file, entries[file], units, advance, device)
            _keep(folder, file, key, one)
            return file, one

        jobs = [pool.submit(read, file, key) for file, key in missing]
        found.update(_results(jobs, stop))
    return found


class _Stopped(Exception):  # noqa: N818 - no error: another reader met one, or the user stopped us
    pass


def _results(
    jobs: Sequence[Future[tuple[Path, FileScan]]], stop: threading.Event
) -> list[tuple[Path, FileScan]]:
    """Return what the jobs found; the first that fails, or Ctrl-C, ends the others soon."""
    try:
        done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
        return [job.result() for job in done]  # all of them, or one that failed
    finally:
        stop.set()
        for job in jobs:
            job.cancel()


def _key(file: Path, entries: Mapping[str, TensorEntry], units: Mapping[str, StoredUnits]) -> str:
    """Return what must be as it was for a scan of the file to hold still."""
    state = file.stat()
    identity = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    layout = [[name, units[name].dim] for name in entries if name in units and units[name].scored]
    return sha256_json([_FORMAT, identity, layout])


def _kept(folder: Path, file: Path, key: str) -> FileScan | None:
    record = folder / f"{file.name}.json"
    try:
        data = read_json(record) if record.is_file() else {}
        if data.get("key") != key:
            return None
        sums = {
            k: torch.tensor(v, dtype=torch.float64).view(-1, 4) for k, v in data["sums"].items()
        }
        return FileScan(str(data["sha256"]), sums)
    except (InvalidInputError, AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return None  # not as we wrote it: read the file again


def _keep(folder: Path, file: Path, key: str, found: FileScan) -> None:
    sums = {name: value.tolist() for name, value in found.sums.items()}
    atomic_write_json(
        folder / f"{file.name}.json", {"key": key, "sha256": found.sha256, "sums": sums}
    )
