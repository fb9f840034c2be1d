"""Files that are whole or absent: atomic writes, checksums, safe joins."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import InvalidInputError, OutputError, UsageError

_CHUNK = 1 << 20
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def sha256_bytes(data: bytes) -> str:
    """Return the SHA-256 of ``data`` as 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits, read in chunks."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(
    root: Path, paths: Iterable[Path] | None = None, known: Mapping[Path, str] | None = None
) -> str:
    """Return one SHA-256 over the names and bytes of the files under ``root``.

    Args:
        root: The directory.
        paths: Which files; all of them where ``None``.
        known: SHA-256 of files that were read already.
    """
    found = known or {}
    digest = hashlib.sha256()
    files = (
        sorted(paths) if paths is not None else sorted(p for p in root.rglob("*") if p.is_file())
    )
    for path in files:
        own = found.get(path) or sha256_file(path)
        digest.update(f"{path.relative_to(root).as_posix()}\0{own}\n".encode())
    return digest.hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of key order."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def safe_join(root: Path, relative: str) -> Path:
    """Join a path that came from a file; refuse one that leaves ``root``.

    Raises:
        InvalidInputError: If the path is absolute, has ``..`` or a drive, or is a link outwards.
    """
    pure = PurePosixPath(relative)
    odd = any(character in relative for character in "\\:\0")
    too_long = any(len(part.encode(errors="replace")) > 255 for part in pure.parts)
    bad = pure.is_absolute() or ".." in pure.parts or odd or too_long
    joined = root / pure
    if bad or not relative or not joined.resolve().is_relative_to(root.resolve()):
        raise InvalidInputError(
            f"path '{relative}' leaves the directory {root}",
            hint="Do not use this file: paths in it must stay inside its own directory.",
        )
    return joined


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``target`` into two-line errors."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"no space left on the device while writing {target}",
                hint="Free some space or choose another place; nothing was left half-written.",
            ) from error
        if error.errno not in _REFUSALS and not _concerns(target, error.filename):
            raise  # of what the block reads or prints, not of what it writes
        blocked = error.errno in (errno.ENOTDIR, errno.EEXIST)
        reason = "a part of its path is a file" if blocked else error.strerror or str(error)
        raise OutputError(
            f"cannot write {target}: {reason}", hint="Choose a place that you may write to."
        ) from error


def unserialized(target: Path, error: Exception) -> OutputError:
    """Return safetensors' refusal to write in two lines; it hides the system's error in a text."""
    number = re.search(r"os error (\d+)", str(error))
    reason = os.strerror(int(number[1])).lower() if number else " ".join(str(error).split())
    return OutputError(
        f"cannot write {target}: {reason}",
        hint="Free some space or choose another place; nothing was left half-written.",
    )


def _concerns(target: Path, filename: object) -> bool:
    """Tell whether a path is ``target``, a folder above it, or in its temporary sibling."""
    if not isinstance(filename, str):
        return False
    path, mark = Path(filename), f".{target.name}."
    return path in (target, *target.parents) or any(p.startswith(mark) for p in path.parts)


def atomic_write(path: Path, data: bytes | str) -> None:
    """Write a file so that it is there whole, or not at all."""
    payload = data.encode() if isinstance(data, str) else data
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(payload)
                stream.flush()
                os.fsync(stream.fileno())
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


def atomic_write_json(path: Path, value: Any) -> None:
    """Write a JSON file, indented, whole or not at all; NaN is refused."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, *, max_bytes: int = 64 << 20) -> Any:
    """Read a JSON file.

    Raises:
        InvalidInputError: If the file is missing, too large, or not JSON.
    """
    try:
        if path.stat().st_size > max_bytes:
            raise InvalidInputError(
                f"{path} is larger than {max_bytes >> 20} MB",
                hint="Check that this is the file you meant.",
            )
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(f"file {path} does not exist", hint="Check the path.") from None
    except IsADirectoryError:
        raise InvalidInputError(
            f"{path} is a directory, expected a JSON file", hint="Name the file in it."
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"{path} is not valid JSON: {error}", hint="Restore the file or write it anew."
        ) from None


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` inside; another process that wants it waits."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("w")
    with stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def free_disk_bytes(path: Path) -> int:
    """Return the bytes that may still be written at ``path``, or where it would be made."""
    return shutil.disk_usage(_nearest(path)).free


def device_of(path: Path) -> int:
    """Return the id of the file system that ``path`` is on, or would be made on."""
    return _nearest(path).stat().st_dev


def _nearest(path: Path) -> Path:
    """Return ``path``, or the nearest of its parents that exists."""
    absolute = path.absolute()
    return next(p for p in (absolute, *absolute.parents) if p.exists())


def check_target(target: Path, *, replace: bool = False) -> None:
    """Check that a directory can be made at ``target``, before work whose result goes there.

    Args:
        target: The directory to create.
        replace: Whether an existing non-empty directory may be replaced.

    Raises:
        UsageError: If ``target`` exists, is not empty, and ``replace`` is false.
        OutputError: If it lies under a file, or where nothing may be written.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} exists and is a file", hint="Choose another --out.")
    if not replace and target.is_dir() and any(target.iterdir()):
        raise UsageError(
            f"{target} exists and is not empty", hint="Choose another --out or remove it."
        )
    check_writable(target, target.parent)


def check_writable(target: Path, folder: Path) -> None:
    """Try to write in ``folder``, or in the nearest of its parents that exists.

    Args:
        target: What is to be written there, for the message.
        folder: Where.

    Raises:
        OutputError: If it lies under a file, or where nothing may be written.
    """
    nearest = next(p for p in (folder, *folder.parents) if p.exists())
    if not nearest.is_dir():
        raise OutputError(
            f"cannot write {target}: {nearest} is a file",
            hint="Choose a place that you may write to.",
        )
    with writing(target):  # permissions do not tell: /proc looks writable, and root may do all
        os.rmdir(tempfile.mkdtemp(dir=nearest, prefix=f".{target.name}."))


@contextlib.contextmanager
def atomic_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``target`` that becomes ``target`` when the block succeeds.

    Args:
        target: The directory to create.
        replace: Whether an existing non-empty directory may be replaced.

    Raises:
        UsageError: If ``target`` exists, is not empty, and ``replace`` is false.
        OutputError: If it cannot be written.
    """
    check_target(target, replace=replace)
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            os.chmod(temporary, 0o755)
            yield temporary
            if replace:
                _swap_in(temporary, target)
            else:
                _move_in(temporary, target)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _move_in(temporary: Path, target: Path) -> None:
    """Rename ``temporary`` to ``target``, which nobody may have filled meanwhile."""
    try:
        os.rename(temporary, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        raise UsageError(
            f"{target} was written by another process meanwhile",
            hint="Choose another --out; what is there was left as it is.",
        ) from None


def _swap_in(temporary: Path, target: Path) -> None:
    """Rename ``temporary`` to ``target``; an existing directory moves aside first."""
    if not target.exists():
        os.rename(temporary, target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old."))
    os.rename(target, aside / "old")
    os.rename(temporary, target)
    shutil.rmtree(aside, ignore_errors=True)
