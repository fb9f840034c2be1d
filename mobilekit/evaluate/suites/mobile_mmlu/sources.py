"""Where questions lie: a local copy, or one that the hub's own client keeps; with its licence."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from mobilekit.core import console
from mobilekit.core.errors import InvalidInputError, UsageError
from mobilekit.core.hub import SCHEME, Repo, connect, hub_errors, parse_repo

__all__ = ["MOBILE_MMLU", "PRO", "Published", "Source", "find_source"]

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")
_PATTERN = "*.csv"  # in any folder


@dataclass(frozen=True)
class Published:
    """A published set: its name, its repository, its licence, what that forbids, its size."""

    name: str
    repo: str
    licence: str
    terms: tuple[str, ...]
    questions: int


# licences and counts: the hub's pages; the licence and the count of Pro by a third-party reader
MOBILE_MMLU = Published(
    "Mobile-MMLU",
    "MBZUAI-LLM/Mobile-MMLU",
    "CC-BY-NC-ND-4.0",
    ("non-commercial", "no-derivatives"),
    16_186,
)
PRO = Published(
    "Mobile-MMLU-Pro",
    "MBZUAI-LLM/Mobile-MMLU-Pro",
    "CC-BY-ND-4.0",
    ("no-derivatives",),
    9_497,
)


@dataclass(frozen=True)
class Source:
    """A folder or file of questions; where it came from the hub, which set and revision it is."""

    path: Path
    published: Published | None = None
    repo: str | None = None
    revision: str | None = None


def find_source(data: str | Path) -> Source:
    """Return where the questions are that ``data`` names.

    Args:
        data: A folder or CSV file; ``owner/name[@revision]`` for a data set that is in the local
            hub cache; ``hf://owner/name[@revision]`` to download it there.

    Raises:
        InvalidInputError: If there is no such folder or file, nor such a set in the cache.
        UsageError: If the hub does not have or does not give it.
        MissingDependencyError: If the hub cannot be reached.
    """
    text = str(data)
    if text.startswith(SCHEME):
        return _from_hub(text)
    path = Path(data)
    if path.exists():
        return Source(path)
    if isinstance(data, str) and _HUB_ID.fullmatch(text):
        repo = _repo(text)
        if repo is not None and (folder := _cached(repo)) is not None:
            return _snapshot(repo, folder)
        if repo is not None and _published(repo) is not None:
            raise InvalidInputError(
                f"data set {repo} is neither a local path nor in the hub cache",
                hint=f"Download it, if its licence suits you: data={SCHEME}{repo}",
            )
    raise InvalidInputError(
        f"question set {path} does not exist",
        hint="Give 'sample', the folder or CSV file of your own copy of Mobile-MMLU, or "
        f"{SCHEME}{MOBILE_MMLU.repo}.",
    )


@lru_cache(maxsize=8)  # one answer a process, so that a run reads one revision
def _from_hub(text: str) -> Source:
    repo = parse_repo(text)
    known = _published(repo)
    if known is not None:
        console.warn(
            f"{known.name} is licensed {known.licence}: {', '.join(known.terms)}. It goes into "
            "your own hub cache; MobileKit copies no question of it anywhere."
        )
    api = connect(None, None)
    with hub_errors(repo, api.endpoint):
        console.status(f"Downloading data set {repo} …")
        folder = Path(
            api.snapshot_download(
                repo.id, repo_type="dataset", revision=repo.revision, allow_patterns=_PATTERN
            )
        )
    return _snapshot(repo, folder)


def _cached(repo: Repo) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo.id,
            repo_type="dataset",
            revision=repo.revision,
            allow_patterns=_PATTERN,
            local_files_only=True,
        )
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    return Path(found)


def _snapshot(repo: Repo, folder: Path) -> Source:
    return Source(folder, _published(repo), repo.id, folder.name)


def _repo(text: str) -> Repo | None:
    try:
        return parse_repo(text)
    except UsageError:
        return None


def _published(repo: Repo) -> Published | None:
    return next((known for known in (MOBILE_MMLU, PRO) if known.repo == repo.id), None)
