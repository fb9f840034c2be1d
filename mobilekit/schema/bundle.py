"""Open a bundle safely: a directory or a zip, every path and checksum checked before use."""

from __future__ import annotations

import shutil
import stat
import tempfile
import weakref
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.files import read_json, safe_join, sha256_file, writing
from mobilekit.core.suggest import did_you_mean

from .manifest import MANIFEST_FILE, Artifact, FileRecord, Manifest

_MAX_UNPACKED = 64 << 30


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk; nothing in it has been trusted beyond the manifest's form."""

    root: Path
    manifest: Manifest
    _keep: object = field(default=None, repr=False, compare=False)

    def artifact(self, name: str | None = None, *, precision: str | None = None) -> Artifact:
        """Return one artifact by id, backend or format; the first match in manifest order.

        Raises:
            UsageError: If none matches; the message lists what there is.
        """
        for item in self.manifest.artifacts:
            named = name is None or name in (item.id, item.backend, item.format, _target(item))
            if named and precision in (None, item.precision):
                return item
        known = [item.id for item in self.manifest.artifacts]
        wanted = " ".join(part for part in (name, precision) if part)
        raise UsageError(
            f"no artifact '{wanted}' in {self.root}{did_you_mean(wanted, known)}",
            hint=f"This bundle has: {', '.join(known)}.",
        )

    def path(self, record: FileRecord) -> Path:
        """Return where a file of the bundle lies, refusing a path that leaves it."""
        return safe_join(self.root, record.path)

    def artifact_path(self, artifact: Artifact) -> Path:
        """Return the file or package that a runtime opens, checksums verified.

        Raises:
            InvalidInputError: If a file is missing or its bytes have changed.
        """
        for record in artifact.files:
            self.check(record)
        return entry_point(self.root, artifact.files[0].path)

    def check(self, record: FileRecord) -> Path:
        """Return the path of a file whose size and SHA-256 are as the manifest says.

        Raises:
            InvalidInputError: If it is missing or different.
        """
        path = self.path(record)
        if not path.is_file():
            raise InvalidInputError(
                f"{record.path} is missing from the bundle {self.root}",
                hint="Copy the whole bundle again, or export it anew.",
            )
        size = path.stat().st_size
        if size != record.bytes or sha256_file(path) != record.sha256:
            raise InvalidInputError(
                f"{record.path} has changed: {size} bytes, expected {record.bytes} bytes with "
                f"sha256 {record.sha256[:12]}…",
                hint="The file is damaged or was edited: copy the bundle again.",
            )
        return path

    def check_all(self) -> None:
        """Check every file that the manifest names."""
        for record in self.manifest.all_files():
            self.check(record)


def entry_point(root: Path, first: str) -> Path:
    """Return what a runtime opens: an artifact's first file itself, or the package it lies in.

    Args:
        root: Directory that the path is relative to.
        first: Path of the artifact's first file.
    """
    parts = PurePosixPath(first).parts
    packages = [i for i, part in enumerate(parts) if part.endswith(".mlpackage")]
    return root.joinpath(*parts[: packages[0] + 1 if packages else None])


def open_bundle(source: str | Path) -> Bundle:
    """Open a bundle directory, or unpack a zipped one to a temporary place.

    Raises:
        InvalidInputError: If it is no bundle, is of a newer schema, or has an unsafe path.
    """
    path = Path(source)
    if path.is_file() and zipfile.is_zipfile(path):
        holder = Path(tempfile.mkdtemp(prefix="mobilekit-bundle-"))
        keeper = _Keeper()
        weakref.finalize(keeper, shutil.rmtree, holder, ignore_errors=True)
        _unpack(path, holder)
        root = _bundle_in(holder)
        return Bundle(root, _read_manifest(root), keeper)
    if not (path / MANIFEST_FILE).is_file():
        raise InvalidInputError(
            f"{path} is not a bundle: no {MANIFEST_FILE} in it",
            hint="Give the directory or .zip that `mobilekit export` wrote.",
        )
    return Bundle(path, _read_manifest(path))


def _bundle_in(holder: Path) -> Path:
    """Return the unpacked bundle: at the top, or in the one folder that a zip of a folder has."""
    entries = list(holder.iterdir())
    nested = len(entries) == 1 and (entries[0] / MANIFEST_FILE).is_file()
    return entries[0] if nested else holder


class _Keeper:
    """Lives as long as a bundle that was unpacked; its end removes the copy."""


def _target(item: Artifact) -> str:
    return {"pte": "executorch", "onnx": "onnx", "mlpackage": "coreml"}[item.format]


def _read_manifest(root: Path) -> Manifest:
    manifest = Manifest.parse(read_json(root / MANIFEST_FILE), str(root / MANIFEST_FILE))
    for record in manifest.all_files():
        safe_join(root, record.path)
    return manifest


def _unpack(archive: Path, into: Path) -> None:
    """Unpack regular files only, inside ``into`` only, up to a total size."""
    try:
        with writing(into), zipfile.ZipFile(archive) as bundle:
            members = bundle.infolist()
            if sum(member.file_size for member in members) > _MAX_UNPACKED:
                raise InvalidInputError(
                    f"{archive} unpacks to more than {_MAX_UNPACKED >> 30} GB",
                    hint="Check that this is a bundle.",
                )
            for member in members:
                target = safe_join(into, member.filename.rstrip("/"))
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise InvalidInputError(
                        f"{archive} holds a link: {member.filename}",
                        hint="Do not use this file: bundles hold plain files only.",
                    )
                if member.is_dir():
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with bundle.open(member) as source, target.open("wb") as sink:
                    shutil.copyfileobj(source, sink)
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise InvalidInputError(
            f"{archive} is a damaged zip: {error}", hint="Copy the bundle again."
        ) from None
