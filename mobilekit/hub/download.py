"""Pull a bundle: only what its manifest names, kept only if every byte is as the manifest says."""

from __future__ import annotations

import glob
import shutil
from pathlib import Path

from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError
from mobilekit.core.files import atomic_directory, check_target
from mobilekit.core.hub import Repo, connect, hub_errors, parse_repo
from mobilekit.core.needs import gigabytes
from mobilekit.schema.bundle import Bundle, open_bundle
from mobilekit.schema.manifest import MANIFEST_FILE


def pull(
    repo_id: str, out: str | Path, *, endpoint: str | None = None, token: str | None = None
) -> Bundle:
    """Download a bundle into a directory, whole and checked, or not at all.

    Args:
        repo_id: ``owner/name[@revision]``, with or without ``hf://``.
        out: Directory to create.
        endpoint: Address of the hub; ``HF_ENDPOINT`` or the public one where ``None``.
        token: Access token; the one that is logged in where ``None``.

    Raises:
        InvalidInputError: If the repository holds no bundle, or a file is not what the manifest
            says; nothing is kept then.
        UsageError: A wrong name, an existing ``out``, or a repository that is not there.
        MissingDependencyError: If the hub cannot be reached.
        OutputError: If ``out`` cannot be written.
    """
    repo, target = parse_repo(repo_id), Path(out)
    check_target(target)
    api = connect(endpoint, token)
    with atomic_directory(target) as folder:
        with hub_errors(repo, api.endpoint):
            _download(api, repo, folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)  # the client's own notes
        _check(repo, folder)
    return open_bundle(target)


def _download(api: object, repo: Repo, folder: Path) -> None:
    """Download the manifest, then exactly the files that it names, of one and the same commit."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    assert isinstance(api, HfApi)
    commit = str(api.model_info(repo.id, revision=repo.revision).sha)
    try:
        api.hf_hub_download(repo.id, MANIFEST_FILE, revision=commit, local_dir=folder)
    except LocalEntryNotFoundError:
        raise  # not reached, rather than not there
    except EntryNotFoundError:
        raise InvalidInputError(
            f"{repo} does not hold a bundle: no {MANIFEST_FILE} in it",
            hint="Give a repository that `mobilekit push` filled.",
        ) from None
    records = open_bundle(folder).manifest.all_files()
    total = sum(record.bytes for record in records)
    console.status(
        f"Pulling {len(records)} files, {gigabytes(total)}, of {repo} at {commit[:12]} …"
    )
    names = [glob.escape(record.path) for record in records]
    patterns = [*names, "README.md"]
    api.snapshot_download(repo.id, revision=commit, local_dir=folder, allow_patterns=patterns)


def _check(repo: Repo, folder: Path) -> None:
    try:
        open_bundle(folder).check_all()
    except InvalidInputError as error:
        message = error.message.replace(str(folder), str(repo))
        raise InvalidInputError(
            f"{repo}: {message}", hint="Nothing was kept; have the bundle pushed again."
        ) from None
