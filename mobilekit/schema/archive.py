"""A zipped bundle: which members it has, and how one of them is unpacked; nothing is trusted."""

from __future__ import annotations

import contextlib
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import safe_join

Members = dict[str, zipfile.ZipInfo]


@contextlib.contextmanager
def opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip; what is wrong with it comes in two lines.

    Raises:
        InvalidInputError: If it is no zip, or a member of it is damaged.
    """
    if not zipfile.is_zipfile(archive):
        raise InvalidInputError(
            f"{archive} is not a zip, or a truncated one",
            hint="Give the directory or .zip that `mobilekit export` wrote; copy it again.",
        )
    try:
        with zipfile.ZipFile(archive) as file:
            yield file
    except (zipfile.BadZipFile, EOFError, zlib.error, RuntimeError, NotImplementedError) as error:
        raise InvalidInputError(
            f"{archive} is a damaged zip: {error}", hint="Copy the bundle again."
        ) from None


def members_of(archive: Path, file: zipfile.ZipFile) -> Members:
    """Return every file in a zip by its path.

    Raises:
        InvalidInputError: If two have one path, or one is a link or would leave the bundle.
    """
    members: Members = {}
    for member in file.infolist():
        safe_join(archive, member.filename.rstrip("/"))
        if stat.S_ISLNK(member.external_attr >> 16):
            raise InvalidInputError(
                f"{archive} holds a link: {member.filename}",
                hint="Do not use this file: bundles hold plain files only.",
            )
        name = str(PurePosixPath(member.filename))
        if name in members:
            raise InvalidInputError(
                f"{archive} holds {name} twice",
                hint="Do not use this file: which of the two counts is anyone's guess.",
            )
        if not member.is_dir():
            members[name] = member
    return members


def below(members: Members, marker: str) -> Members:
    """Return the members beside the file ``marker``: at the top, or in the folder that has it."""
    folders = [n.removesuffix(marker) for n in members if n.endswith(f"/{marker}")]
    if marker in members or len(folders) != 1 or folders[0].count("/") != 1:
        return members
    return {n.removeprefix(folders[0]): m for n, m in members.items() if n.startswith(folders[0])}


def unpack(file: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    """Write a member to ``target``."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with file.open(member) as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)  # no more than the header says, or the checksum fails


def member_of(archive: Path, members: Members, name: str, most: int) -> zipfile.ZipInfo:
    """Return the member ``name``, which must be there and have at most ``most`` bytes.

    Raises:
        InvalidInputError: If it is missing or larger.
    """
    member = members.get(str(PurePosixPath(name)))
    if member is None:
        raise InvalidInputError(
            f"{name} is missing from {archive}",
            hint="Copy the whole bundle again, or export it anew.",
        )
    if member.file_size > most:
        raise InvalidInputError(
            f"{name} in {archive} has {member.file_size} bytes, expected at most {most}",
            hint="The bundle is damaged or was edited: copy it again.",
        )
    return member
