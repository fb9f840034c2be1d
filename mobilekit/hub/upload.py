"""Push a bundle: check it, write its card, and send exactly what the manifest names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mobilekit.core import console
from mobilekit.core.errors import UsageError
from mobilekit.core.hub import Repo, connect, hub_errors, parse_repo, require_token
from mobilekit.core.needs import gigabytes
from mobilekit.report import bundle_card
from mobilekit.schema.bundle import Bundle, open_bundle
from mobilekit.schema.manifest import MANIFEST_FILE

CARD_FILE = "README.md"
_HUBS_OWN = (".gitattributes",)  # what the hub keeps for itself in every repository


@dataclass(frozen=True)
class Pushed:
    """Where a bundle went: repository, commit, its address, and what was sent."""

    repo: str
    commit: str
    url: str
    files: int
    bytes: int


def push(
    bundle: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    run: str | Path | None = None,
    base_model: str | None = None,
    endpoint: str | None = None,
    token: str | None = None,
) -> Pushed:
    """Push a bundle to a model repository, which is created where there is none.

    The repository then holds this bundle and its card, nothing else: files of an earlier push are
    removed in the same commit.

    Args:
        bundle: Bundle directory or zip.
        repo_id: ``owner/name``; a revision names the branch.
        private: Whether a new repository is private.
        run: Run directory that the bundle comes from; its measured figures go into the card.
        base_model: Hub id of the model that it was made from, for the card.
        endpoint: Address of the hub; ``HF_ENDPOINT`` or the public one where ``None``.
        token: Access token; the one that is logged in where ``None``.

    Raises:
        InvalidInputError: If it is no bundle, or a file is not what the manifest says.
        UsageError: A wrong name, no token, no such repository, or a run of another bundle.
        MissingDependencyError: If the hub cannot be reached.
    """
    repo = parse_repo(repo_id)
    opened = open_bundle(bundle)
    console.status(f"Checking {opened.root} against its manifest …")
    opened.check_all()
    source = Path(run) if run is not None else None
    card = bundle_card(opened, str(repo), run=source, base_model=base_model)
    api = connect(endpoint, token)
    require_token(api)
    files = dict(_files(opened))
    total = sum(path.stat().st_size for path in files.values())
    with hub_errors(repo, api.endpoint):
        api.create_repo(repo.id, private=private, exist_ok=True)
        console.status(f"Pushing {len(files)} files, {gigabytes(total)}, to {repo} …")
        url, commit = _commit(api, repo, files, card)
    return Pushed(str(repo), commit, url, len(files) + 1, total)


def _commit(api: object, repo: Repo, files: dict[str, Path], card: str) -> tuple[str, str]:
    """Send everything in one commit; return its address and id."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    assert isinstance(api, HfApi)
    there = api.list_repo_files(repo.id, revision=repo.revision)
    stale = set(there) - set(files) - {CARD_FILE, *_HUBS_OWN}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(CARD_FILE, card.encode()),
        *(CommitOperationAdd(name, str(path)) for name, path in files.items()),
        *(CommitOperationDelete(name) for name in sorted(stale)),
    ]
    done = api.create_commit(
        repo.id, operations, commit_message="Upload bundle with MobileKit", revision=repo.revision
    )
    return str(done.commit_url), str(done.oid)


def _files(bundle: Bundle) -> Iterator[tuple[str, Path]]:
    """Yield name and path of everything that belongs to a bundle, the manifest first."""
    yield MANIFEST_FILE, bundle.root / MANIFEST_FILE
    for record in bundle.manifest.all_files():
        if record.path == CARD_FILE:
            raise UsageError(
                f"the bundle has a file called {CARD_FILE}, which the card would replace",
                hint="Export the bundle anew: MobileKit writes none of that name.",
            )
        yield record.path, bundle.path(record)
