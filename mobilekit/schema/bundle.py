"""Open a bundle safely: a directory or a zip, every path and checksum checked before use."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.files import read_json, safe_join, sha256_file, writing
from mobilekit.core.suggest import did_you_mean

from . import archive
from .manifest import MANIFEST_FILE, Artifact, FileRecord, Manifest

_MAX_MANIFEST = 64 << 20  # bytes
# what may lie in a bundle's directory unlisted: hidden files, and the card that the hub shows
_CARD = "README.md"


@dataclass(frozen=True)
class Bundle:
    """A bundle on disk; nothing in it has been trusted beyond the manifest's form."""

    root: Path
    manifest: Manifest
    _keep: object = field(default=None, repr=False, compare=False)
    source: Path | None = field(default=None, compare=False)  # the zip that it came from

    @property
    def name(self) -> str:
        """The directory or zip that was opened, for messages."""
        return str(self.source or self.root)

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
            f"no artifact '{wanted}' in {self.name}{did_you_mean(wanted, known)}",
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
                f"{record.path} is missing from the bundle {self.name}",
                hint="Copy the whole bundle again, or export it anew.",
            )
        size = path.stat().st_size
        if size != record.bytes:
            reason = f"{size} bytes, expected {record.bytes}"
        elif sha256_file(path) != record.sha256:
            reason = "its checksum is wrong"
        else:
            return path
        raise InvalidInputError(
            f"{record.path} has changed: {reason}",
            hint="The file is damaged or was edited: copy the bundle again.",
        )

    def check_all(self) -> None:
        """Check every file that the manifest names."""
        for record in self.manifest.all_files():
            self.check(record)

    def unlisted(self) -> list[str]:
        """Return the files of the directory that no checksum covers; hidden ones are left out."""
        listed = {record.path for record in self.manifest.all_files()} | {MANIFEST_FILE, _CARD}
        files = (p.relative_to(self.root) for p in self.root.rglob("*") if p.is_file())
        shown = (p.as_posix() for p in files if not any(part[0] == "." for part in p.parts))
        return sorted(set(shown) - listed)


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
    if path.is_file():
        return _open_zip(path)
    if not path.exists():
        raise InvalidInputError(f"bundle {path} does not exist", hint="Check the path.")
    if not (path / MANIFEST_FILE).is_file():
        raise _no_manifest(path)
    return Bundle(path, _read_manifest(path / MANIFEST_FILE, path))


def _open_zip(path: Path) -> Bundle:
    """Unpack what the manifest lists; what else is in the zip is not looked at."""
    holder = Path(tempfile.mkdtemp(prefix="mobilekit-bundle-"))
    keeper = _Keeper()
    weakref.finalize(keeper, shutil.rmtree, holder, ignore_errors=True)
    with writing(holder), archive.opened(path) as file:
        members = archive.below(archive.members_of(path, file), MANIFEST_FILE)
        if MANIFEST_FILE not in members:
            raise _no_manifest(path)
        first = archive.member_of(path, members, MANIFEST_FILE, _MAX_MANIFEST)
        archive.unpack(file, first, holder / MANIFEST_FILE)
        manifest = _read_manifest(holder / MANIFEST_FILE, path)
        for record in manifest.all_files():
            member = archive.member_of(path, members, record.path, record.bytes)
            archive.unpack(file, member, safe_join(holder, record.path))
    return Bundle(holder, manifest, keeper, path)


def _no_manifest(path: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{path} is not a bundle: no {MANIFEST_FILE} in it",
        hint="Give the directory or .zip that `mobilekit export` wrote.",
    )


class _Keeper:
    """Lives as long as a bundle that was unpacked; its end removes the copy."""


def _target(item: Artifact) -> str:
    return {"pte": "executorch", "onnx": "onnx", "mlpackage": "coreml"}[item.format]


def _read_manifest(path: Path, source: Path) -> Manifest:
    """Read a manifest; messages name the ``source``, which may be a zip that it came out of."""
    try:
        manifest = Manifest.parse(read_json(path), str(source / MANIFEST_FILE))
    except InvalidInputError as error:
        message = error.message.replace(str(path), str(source / MANIFEST_FILE))
        raise InvalidInputError(message, hint=error.hint) from None
    for record in manifest.all_files():
        safe_join(source, record.path)
    return manifest
